"""Emulated hosts for code that is not asynchronous: booted once, used by one command after another.

Most of a short test's time on the bench is the boot. A :class:`Bench` keeps the host that was used
last, and gives it to the next command that wants the same; one that died or hung is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from . import BenchError, machine
from .preparation import CHECKOUT, prepare
from .profiles import PROFILES, Profile
from .suites import DEFAULT_QEMU

T = TypeVar("T")

BOOT_SECONDS = 300


@dataclass(frozen=True)
class Wanted:
    """A host: all that decides how it is booted.

    Attributes:
        profile: Its name.
        kernel: As for `tools/bench run --kernel`.
        qemu: As for --qemu.
        suite: As for --suite.
        qemu_args: As for --qemu-args: one string.
        append: As for --append.
        more: As for --with.
    """

    profile: str
    kernel: str | None = None
    qemu: str = DEFAULT_QEMU
    suite: str | None = None
    qemu_args: str = ""
    append: str = ""
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boot:
    """One boot, for a report of where the time went.

    Attributes:
        wanted: The host.
        seconds: How long it took.
        failure: Why it did not come up; empty if it did.
    """

    wanted: Wanted
    seconds: float
    failure: str = ""


class Bench:
    """Runs commands on emulated hosts, at most one of which is up at a time."""

    def __init__(self) -> None:
        self.boots: list[Boot] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wanted: Wanted | None = None
        self._host: machine.Host | None = None
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the host that is up, and the thread that serves it."""
        self.end()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def end(self) -> None:
        """End the host that is up: the next command boots one."""
        self._host = None
        with contextlib.suppress(BenchError, ConnectionError):
            self._do(self._stack.aclose)

    def run(
        self,
        wanted: Wanted,
        command: str | Sequence[str],
        time_limit: float = 600,
        directory: Path = CHECKOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, booted now if another one or none is up.

        Args:
            wanted: The host.
            command: A script for the guest's sh, or a program and its arguments.
            time_limit: For the command, in seconds.
            directory: Where it starts, in the checkout.

        Returns:
            Its exit status and what it wrote.

        Raises:
            BenchError: The host died or hung, and was ended. The message has what the command wrote
                and the tail of the console.
        """
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        outputs = io.BytesIO(), io.BytesIO()
        host = self._up(wanted)
        try:
            request = machine.Command(words, directory)
            status = self._do(
                lambda: host.run(request, outputs[0].write, outputs[1].write, time_limit)
            )
        except BaseException as error:
            self.end()
            if isinstance(error, BenchError):
                written = "".join(_text(output) for output in outputs)
                raise type(error)(f"{shlex.join(words)}:\n{written}{error}") from None
            raise
        return subprocess.CompletedProcess(words, status, *map(_text, outputs))

    def _up(self, wanted: Wanted) -> machine.Host:
        if self._host is None or self._wanted != wanted or not self._host.alive:
            self.end()
            profile = PROFILES[wanted.profile]
            options = prepare(
                profile,
                wanted.kernel,
                wanted.qemu,
                wanted.suite,
                wanted.more,
                qemu_arguments=shlex.split(wanted.qemu_args),
                kernel_arguments=wanted.append,
            )
            try:
                self._host = self._boot(wanted, profile, options)
            except machine.BootFailed:
                # QEMU 7.2 runs a breakpoint that is no longer there once in some dozens of boots
                # while Linux patches its code. Nothing has run yet, so another boot hides nothing.
                self._host = self._boot(wanted, profile, options)
            self._wanted = wanted
        return self._host

    def _boot(self, wanted: Wanted, profile: Profile, options: machine.Options) -> machine.Host:
        start = time.monotonic()
        booting = machine.boot(profile, options, BOOT_SECONDS)
        failure = ""
        try:
            return self._do(lambda: self._stack.enter_async_context(booting))
        except BaseException as error:
            failure = str(error)
            raise
        finally:
            self.boots.append(Boot(wanted, time.monotonic() - start, failure))

    def _do(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for a coroutine in the thread of the event loop; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _text(output: io.BytesIO) -> str:
    return output.getvalue().decode(errors="replace")
