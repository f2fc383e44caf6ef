"""Being woken by an eventfd: round trips between us and a C program that echoes each event.

Two wake-ups make a round trip, the C program's and ours, and only ours differs. What is counted is
elapsed time. Apart, who echoes has a processor of his own, and each wakes the other's from
idleness, as a device's interrupt does; together, they share one, which changes from one to the
other. Left to the scheduler, a pair is one or the other for as long as it lasts, and the times
differ tenfold.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns

from pyvfio._sys import EventFd
from pyvfio.device import Vector
from tools._perf.measure import interleave
from tools._perf.peers import Absent
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

ROUNDS = 200
TRIPS = 50  # in a turn
SPIN = 1e-3

APART = "apart"
TOGETHER = "together"

C = "C, read(2)"
WAIT = "vector.wait()"
SPINNING = f"vector.wait(spin={SPIN:g})"
EPOLL = "select.epoll by hand"
AWAIT = "await vector"
WATCH = "vector.watch(callback)"
READER = "loop.add_reader by hand"
FUTURE = "add_reader, await future by hand"

# `echo IN OUT` answers each event; `ping OUT IN` makes as many round trips as a line on its
# standard input says, and prints their nanoseconds.
_PEER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int one_way(int from, int to)
{
    uint64_t count;
    return read(from, &count, sizeof count) == sizeof count
        && write(to, &count, sizeof count) == sizeof count;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int first = atoi(argv[2]), second = atoi(argv[3]);
    if (!strcmp(argv[1], "echo")) {
        while (one_way(first, second))
            ;
        return 1;
    }
    long trips;
    while (scanf("%ld", &trips) == 1) {
        uint64_t count = 1;
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (long i = 0; i < trips; i++)
            if (write(first, &count, sizeof count) < 0 || read(second, &count, sizeof count) < 0)
                return 1;
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
        fflush(stdout);
    }
    return 0;
}
"""


class _Python:
    """A contender in Python: it signals `there`, and waits for `back`.

    Each has its own, and its own loop: an eventfd that was awaited stays in our epoll instance and
    that in the loop, so whoever waits for it by hand would pay for ours as well.
    """

    def __init__(self, there: int, back: EventFd) -> None:
        self.there = there
        self.back = back
        self.vector = Vector(0, back)
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.back.close()
        self.loop.close()

    def wait(self, **how: float) -> float:
        there, write, wait = self.there, os.eventfd_write, self.vector.wait
        start = perf_counter_ns()
        for _ in range(TRIPS):
            write(there, 1)
            wait(**how)
        return (perf_counter_ns() - start) / TRIPS

    def spin(self) -> float:
        return self.wait(spin=SPIN)

    def epoll(self) -> float:
        there, write, read, back = self.there, os.eventfd_write, os.eventfd_read, self.back.fileno()
        with select.epoll() as epoll:
            epoll.register(back, select.EPOLLIN)
            start = perf_counter_ns()
            for _ in range(TRIPS):
                write(there, 1)
                epoll.poll()
                read(back)
            return (perf_counter_ns() - start) / TRIPS

    def awaiting(self) -> float:
        async def trips() -> float:
            there, write, vector = self.there, os.eventfd_write, self.vector
            start = perf_counter_ns()
            for _ in range(TRIPS):
                write(there, 1)
                await vector
            return (perf_counter_ns() - start) / TRIPS

        return self.loop.run_until_complete(trips())

    def watch(self) -> float:
        take = self.vector.take

        @contextmanager
        def watched(callback: Callable[[], None]) -> Iterator[None]:
            def answer() -> None:
                take()
                callback()

            with self.vector.watch(answer):
                yield

        return self.loop.run_until_complete(self._by_callback(watched))

    def reader(self) -> float:
        read, back = os.eventfd_read, self.back.fileno()

        @contextmanager
        def watched(callback: Callable[[], None]) -> Iterator[None]:
            def answer() -> None:
                read(back)
                callback()

            self.loop.add_reader(back, answer)
            try:
                yield
            finally:
                self.loop.remove_reader(back)

        return self.loop.run_until_complete(self._by_callback(watched))

    def future(self) -> float:
        read, back, loop = os.eventfd_read, self.back.fileno(), self.loop

        async def trips() -> float:
            there, write = self.there, os.eventfd_write
            ready = loop.create_future()
            loop.add_reader(back, lambda: ready.set_result(read(back)))
            try:
                start = perf_counter_ns()
                for _ in range(TRIPS):
                    write(there, 1)
                    await ready
                    ready = loop.create_future()
                return (perf_counter_ns() - start) / TRIPS
            finally:
                loop.remove_reader(back)

        return loop.run_until_complete(trips())

    async def _by_callback(
        self, watched: Callable[[Callable[[], None]], AbstractContextManager[None]]
    ) -> float:
        there, write, left = self.there, os.eventfd_write, TRIPS
        done = asyncio.get_running_loop().create_future()

        def came() -> None:
            nonlocal left
            left -= 1
            if left:
                write(there, 1)
            else:
                done.set_result(perf_counter_ns())

        with watched(came):
            start = perf_counter_ns()
            write(there, 1)
            cost: int = await done - start
        return cost / TRIPS


# The contenders in Python, by name.
_PYTHON: dict[str, Callable[[_Python], float]] = {
    WAIT: _Python.wait,
    SPINNING: _Python.spin,
    EPOLL: _Python.epoll,
    AWAIT: _Python.awaiting,
    WATCH: _Python.watch,
    READER: _Python.reader,
    FUTURE: _Python.future,
}


def _measure(setting: Setting) -> Samples:
    absent: dict[str, str] = {}
    processors = os.sched_getaffinity(0)
    ours = max(processors)  # where we are kept
    places = {APART: min(processors), TOGETHER: ours}
    if len(processors) == 1:
        del places[APART]
        absent |= {of(name, APART): "there is one processor" for name in (C, *_PYTHON)}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            peer = _compiled(directory)
        except Absent as reason:
            absent |= {of(C, place): str(reason) for place in places}
            peer = (sys.executable, "-c", _PEER_IN_PYTHON)
        contenders: dict[str, Callable[[], float]] = {}
        for place, theirs in places.items():
            for name, run in _PYTHON.items():
                # What a C program reads must block, and what we wait for does not.
                there, back = stack.enter_context(_blocking()), EventFd()
                python = stack.enter_context(contextlib.closing(_Python(there, back)))
                stack.enter_context(_running(theirs, peer, "echo", there, back.fileno()))
                contenders[of(name, place)] = functools.partial(run, python)
            if of(C, place) not in absent:
                out, home = stack.enter_context(_blocking()), stack.enter_context(_blocking())
                stack.enter_context(_running(theirs, peer, "echo", out, home))
                ping = stack.enter_context(_running(ours, peer, "ping", out, home))
                contenders[of(C, place)] = functools.partial(_ping, ping)
        return Samples(interleave(contenders, setting.progress, ROUNDS), absent)


def of(contender: str, place: str) -> str:
    """A contender's name in the row."""
    return f"{place}: {contender}"


_PEER_IN_PYTHON = """
import os, sys
there, back = map(int, sys.argv[2:])
while True:
    os.eventfd_write(back, os.eventfd_read(there))
"""


def _compiled(directory: Path) -> tuple[str, ...]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Absent("there is no C compiler (apt install gcc libc6-dev)")
    program = directory / "peer"
    result = subprocess.run(
        (compiler, "-O2", "-o", str(program), "-x", "c", "-"),
        input=_PEER,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise Absent(f"{compiler} failed: {result.stderr.strip().splitlines()[-1]}")
    return (str(program),)


@contextmanager
def _blocking() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _running(
    processor: int, peer: Sequence[str], what: str, *fds: int
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        (*peer, what, *map(str, fds)),
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            os.sched_setaffinity(process.pid, {processor})
            yield process
        finally:
            process.kill()


def _ping(process: subprocess.Popen[str]) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{TRIPS}\n")
    return int(process.stdout.readline()) / TRIPS


def _comparisons() -> Iterator[Comparison]:
    aims = {WAIT: Aim(1.3), AWAIT: Aim(1.5)}
    by_hand = {WAIT: (EPOLL,), AWAIT: (FUTURE, READER), WATCH: (READER,)}
    for place in (APART, TOGETHER):
        for name in _PYTHON:
            yield Comparison(of(name, place), of(C, place), aims.get(name))
        for name, others in by_hand.items():
            for other in others:
                yield Comparison(of(name, place), of(other, place))


ROW = Row("wakeup", "wake-up by eventfd", "ns", tuple(_comparisons()), _measure)
