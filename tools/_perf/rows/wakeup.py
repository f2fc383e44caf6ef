"""Being woken by an eventfd: round trips between us and a C program that echoes each event.

Two wake-ups make a round trip, the C program's and ours, and only ours differs. What is counted is
elapsed time, nearly all of which is the kernel's. Nobody is kept on a processor: which of them the
scheduler chooses is part of a wake-up, and the C programs have the same choice.
"""

from __future__ import annotations

import asyncio
import contextlib
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

ROUNDS = 100
TRIPS = 100  # in a turn
SPIN = 1e-3

C = "C, read(2)"
WAIT = "vector.wait()"
SPINNING = f"vector.wait(spin={SPIN:g})"
EPOLL = "select.epoll by hand"
AWAIT = "await vector"
WATCH = "vector.watch(callback)"
READER = "loop.add_reader by hand"

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
    """All contenders in Python: they signal `there`, and wait for `back`."""

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


def _measure(setting: Setting) -> Samples:
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            peer = _compiled(directory)
        except Absent as reason:
            absent[C] = str(reason)
            peer = (sys.executable, "-c", _PEER_IN_PYTHON)
        # What a C program reads must block, and what we wait for does not.
        there = stack.enter_context(_blocking())
        back = EventFd()
        python = stack.enter_context(contextlib.closing(_Python(there, back)))
        stack.enter_context(_running(peer, "echo", there, back.fileno()))
        contenders: dict[str, Callable[[], float]] = {
            WAIT: python.wait,
            SPINNING: python.spin,
            EPOLL: python.epoll,
            AWAIT: python.awaiting,
            WATCH: python.watch,
            READER: python.reader,
        }
        if not absent:
            out, home = stack.enter_context(_blocking()), stack.enter_context(_blocking())
            stack.enter_context(_running(peer, "echo", out, home))
            ping = stack.enter_context(_running(peer, "ping", out, home))
            contenders[C] = lambda: _ping(ping)
        costs = dict(interleave(contenders, setting.progress, ROUNDS, pinned=False))
    if not absent:
        half = [cost and cost / 2 for cost in costs[C]]
        costs[alone(C)] = half
        for name in (WAIT, AWAIT):
            costs[alone(name)] = [
                cost - theirs
                for cost, theirs in zip(costs[name], half, strict=True)
                if cost is not None and theirs is not None
            ]
    return Samples(costs, absent)


def alone(contender: str) -> str:
    """A contender's name for its own wake-up, which is the round trip without C's."""
    return f"{contender}, one way"


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
def _running(peer: Sequence[str], what: str, *fds: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        (*peer, what, *map(str, fds)),
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ping(process: subprocess.Popen[str]) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{TRIPS}\n")
    return int(process.stdout.readline()) / TRIPS


ROW = Row(
    "wakeup",
    "wake-up by eventfd",
    "ns",
    (
        Comparison(WAIT, C, Aim(1.3)),
        Comparison(SPINNING, C),
        Comparison(EPOLL, C),
        Comparison(AWAIT, C, Aim(1.5)),
        Comparison(WATCH, C),
        Comparison(READER, C),
        Comparison(WAIT, EPOLL),
        Comparison(AWAIT, READER),
        Comparison(WATCH, READER),
        Comparison(alone(WAIT), alone(C)),
        Comparison(alone(AWAIT), alone(C)),
    ),
    _measure,
)
