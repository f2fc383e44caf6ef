"""Interrupt an operation at each of its steps, or let each of its system calls fail.

A *point* is one run of an operation with one thing going wrong: Ctrl-C at a line, before or after a
system call; or a system call that fails with an errno. Afterwards the operation is done again, all
is closed, and nothing may be left: no descriptor, no mapping, no lock, no deferred signal.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

from pyvfio import errors
from pyvfio._sys import calls, memory
from tests.left import set_right

from .steps import Step, Steps, in_finalizer, is_ours

_OURS = ("memfd:vfio-device", "kvm-vcpu", "pyvfio-", "/dev/zero")  # in /proc/self/maps

# What each call of pyvfio._sys.calls can fail with.
_FILE = (errno.EINTR, errno.EIO, errno.ENODEV, errno.EFAULT)
_NEW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
ERRNOS: dict[str, tuple[int, ...]] = {
    "open": (
        *_NEW,
        errno.EINTR,
        errno.EACCES,
        errno.EPERM,
        errno.EBUSY,
        errno.ENOENT,
        errno.ENODEV,
        errno.EIO,
    ),
    "close": (errno.EINTR, errno.EIO, errno.ENOSPC),
    "read": _FILE,
    "pread": _FILE,
    "pwrite": (*_FILE, errno.ENOSPC),
    "memfd_create": _NEW,
    "eventfd": (*_NEW, errno.ENODEV),
    "eventfd_read": (errno.EAGAIN,),
    "eventfd_write": (errno.EAGAIN,),
    "epoll": _NEW,
    "ioctl": (
        *_FILE,
        *_NEW,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EPERM,
        errno.ENOSPC,
        errno.EEXIST,
        errno.ENOENT,
        errno.EINVAL,
        errno.ENOTTY,
    ),
    "mmap": (errno.ENOMEM, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.ENODEV),
    "madvise": (errno.ENOMEM, errno.EINVAL),
}
_MAKE_OR_CLOSE = {
    "open",
    "close",
    "eventfd",
    "memfd_create",
    "epoll",
    "mmap",
    "VFIO_GROUP_GET_DEVICE_FD",
    "KVM_CREATE_VM",
    "KVM_CREATE_VCPU",
    "KVM_CREATE_DEVICE",
}


@dataclass(frozen=True)
class Operation:
    """What is interrupted.

    Attributes:
        name: for messages.
        world: what it is done with, made anew for each point; closed at the end of the context.
        act: the operation; what it returns is closed afterwards, if that can be closed.
        again: what must work afterwards; None for the operation itself.
        locks: that nobody may hold afterwards.
    """

    name: str
    world: Callable[[], AbstractContextManager[Any]]
    act: Callable[[Any], Any]
    again: Callable[[Any], Any] | None = None
    locks: Callable[[Any], list[Any]] = lambda world: []


class Held(NamedTuple):
    """What this process holds that an operation may have left."""

    files: list[str]
    mappings: list[str]
    places: int
    handler: object

    @property
    def device(self) -> Counter[str]:
        """Those that keep a device, or a VM."""
        return Counter(
            name
            for name in (*self.files, *self.mappings)
            if any(kind in name for kind in ("vfio", "kvm")) and "pyvfio" not in name
        )

    @classmethod
    def now(cls) -> Held:
        files = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                files.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:  # of the listing itself
                continue
        with open("/proc/self/maps") as maps:
            ours = [
                line.split(maxsplit=5)[-1].strip()
                for line in maps
                if any(name in line for name in _OURS)
            ]
        places = len(memory._places)
        return cls(sorted(files), sorted(ours), places, signal.getsignal(signal.SIGINT))


class Campaign:
    """Tries the points of operations.

    Args:
        every: try all points. Otherwise a sample of them: each step once, however often the
            operation comes there, and at most `most` failures of calls.
        seed: of the sample.

    Attributes:
        points: how many were tried, by kind.
    """

    def __init__(self, *, every: bool = False, most: int = 40, seed: int = 1) -> None:
        self.points: Counter[str] = Counter()
        self._leaks: list[str] = []
        self._every = every
        self._most = most
        self._random = random.Random(seed)

    def run(self, operation: Operation) -> list[str]:
        """Try the points of an operation; returns what they left, one text for each point."""
        self._leaks.clear()
        gc.collect()
        gc.freeze()  # so that looking for views takes no time
        self._before = Held.now()
        try:
            self._try(operation, "steps", _Press)
            for how in ("before", "after"):
                self._try(operation, f"signals {how} calls", partial(_PressAtCall, when=how))
                self._try(operation, f"throws {how} calls", partial(_Throw, when=how))
            self._try_errnos(operation)
        finally:
            gc.unfreeze()
        return self._leaks

    def _try(self, operation: Operation, kind: str, make: Callable[[int], _Fault]) -> None:
        counting = make(-1)
        self._point(operation, counting, kind)
        points: dict[str, list[int]] = {}
        for at, place in enumerate(counting.places):
            points.setdefault(place if isinstance(counting, _Press) else str(at), []).append(at)
        for found in points.values():
            for at in found if self._every else [self._random.choice(found)]:
                self._point(operation, make(at), kind)

    def _try_errnos(self, operation: Operation) -> None:
        counting = _Fail(-1, 0)
        self._point(operation, counting, "errnos")
        points = [
            (at, number)
            for at, place in enumerate(counting.places)
            for number in ERRNOS[place.split()[0]]
        ]
        if not self._every and len(points) > self._most:
            points = sorted(self._random.sample(points, self._most))
        for at, number in points:
            self._point(operation, _Fail(at, number), "errnos")

    def _point(self, operation: Operation, fault: _Fault, kind: str) -> None:
        before = self._before
        problem = None
        kept: list[BaseException] = []  # as a debugger keeps an exception, with all its frames
        try:
            with operation.world() as world:
                problem = self._strike(operation, world, fault, kept)
                del world
        except BaseException as error:
            problem = problem or f"closing raised {error!r}"
        after = Held.now()
        if device := after.device - before.device:
            problem = problem or f"a traceback keeps {list(device.elements())}"
        if after != before:  # memory without a device may go with the traceback
            kept.clear()
            after = Held.now()
        if fault.struck is not None:
            self.points[kind] += 1
        if problem is None and after != before:
            problem = f"left: {_difference(before, after)}"
        if held := set_right():
            problem = "; ".join(held)
        if problem is not None:
            where = fault.struck or "no fault"
            self._leaks.append(f"{operation.name}: {kind}, {where}: {problem}")
            self._before = after  # the next points are not blamed for it

    def _strike(
        self, operation: Operation, world: Any, fault: _Fault, kept: list[BaseException]
    ) -> str | None:
        made = None
        try:
            with fault:
                made = operation.act(world)
        except BaseException as error:
            kept.append(error)
            if not isinstance(error, fault.expected):
                return f"raised {error!r}"
        for lock in operation.locks(world):
            if lock._is_owned():
                return "a lock stays taken"
        _close(made)
        try:
            _close((operation.again or operation.act)(world))
        except BaseException as error:
            return f"afterwards: {error!r}"
        return None


class _Fault:
    """Something that goes wrong while a context lasts, once.

    Attributes:
        at: at which of the places; -1 for none of them.
        places: those that were come to.
        struck: the one where it happened; None if it did not.
        expected: what the operation may raise.
    """

    expected: type[BaseException] = KeyboardInterrupt

    def __init__(self, at: int) -> None:
        self.at = at
        self.places: list[str] = []
        self.struck: str | None = None

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def reach(self, place: str) -> bool:
        """Come to a place; returns whether it is the one."""
        self.places.append(place)
        return len(self.places) - 1 == self.at


class _Press(_Fault):
    """Ctrl-C at a step of pyvfio's code."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self._steps = Steps(self._reach_step)

    def __enter__(self) -> None:
        self._steps.__enter__()

    def __exit__(self, *_: object) -> None:
        self._steps.stop()

    def _reach_step(self, step: Step, frame: FrameType) -> None:
        # After the last section there is nobody left to undo anything, as after the operation.
        if step.what == "return" and step.callee == "__exit__":
            caller = frame.f_back
            if caller is None or not is_ours(caller.f_back):
                return
        if self.reach(str(step)) and not in_finalizer(frame):
            self.struck = str(step)
            self._steps.stop()
            signal.raise_signal(signal.SIGINT)


class _Calls(_Fault):
    """Something at a system call."""

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for name in ERRNOS:
            self._patch.setattr(calls, name, self._wrapped(name, getattr(calls, name)))

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            request = getattr(arguments[1], "name", "") if name == "ioctl" else ""
            if self.struck is None and self.is_place(name, request):
                place = f"{name} {request}".rstrip()
                if self.reach(place):
                    self.struck = place
                    return self.strike(name, lambda: real(*arguments))
            return real(*arguments)

        return call

    def is_place(self, name: str, request: str) -> bool:
        """Whether it can happen at such a call."""
        return True

    def strike(self, name: str, call: Callable[[], Any]) -> Any:
        """Make the call, with what goes wrong."""
        raise NotImplementedError


class _PressAtCall(_Calls):
    """Ctrl-C before or after a system call."""

    def __init__(self, at: int, when: str) -> None:
        super().__init__(at)
        self._when = when

    def strike(self, name: str, call: Callable[[], Any]) -> Any:
        if self._when == "before":
            self.happen()
        result = call()
        if self._when == "after":
            self.happen()
        return result

    def happen(self) -> None:
        """What happens."""
        signal.raise_signal(signal.SIGINT)


class _Throw(_PressAtCall):
    """An exception that comes out of the call itself, which no deferring keeps back."""

    def is_place(self, name: str, request: str) -> bool:
        # What these make, or were to close, would be lost with the exception.
        return name not in _MAKE_OR_CLOSE and request not in _MAKE_OR_CLOSE

    def happen(self) -> None:
        raise KeyboardInterrupt


class _Fail(_Calls):
    """A system call fails."""

    expected = errors.Error

    def __init__(self, at: int, number: int) -> None:
        super().__init__(at)
        self._number = number

    def strike(self, name: str, call: Callable[[], Any]) -> Any:
        self.struck = f"{self.struck} {errno.errorcode[self._number]}"
        if name == "close":  # Linux has closed it all the same
            call()
        raise OSError(self._number, os.strerror(self._number))


def _close(made: Any) -> None:
    close = getattr(made, "close", None)
    if close is not None:
        close()


def _difference(before: Held, after: Held) -> str:
    told = []
    for name, old, new in zip(Held._fields, before, after, strict=True):
        if old != new:
            if isinstance(old, list) and isinstance(new, list):
                more, less = Counter(new) - Counter(old), Counter(old) - Counter(new)
                told.append(f"{name} +{list(more.elements())} -{list(less.elements())}")
            else:
                told.append(f"{name} {old} -> {new}")
    return "; ".join(told)


@contextmanager
def closing(thing: Any) -> Iterator[Any]:
    """A world that is one thing, which is closed."""
    try:
        yield thing
    finally:
        thing.close()
