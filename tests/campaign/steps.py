"""The steps of pyvfio's code between which Python may call a signal's handler.

CPython looks for signals, and for exceptions that another thread has sent, in few places: where a
Python function begins, or goes on after a yield; where a function in C has returned; and where a
loop jumps back. Up to 3.10 it also looks where a Python function has returned, since 3.11 only if
C code has called that. It does not look at the beginning of a line. At the end of a ``with`` block
the last call in the block has returned within it, so that ``__exit__`` is called whatever comes;
if that is a Python function, it may be interrupted as it begins, before it has done anything.
"""

from __future__ import annotations

import dis
import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pyvfio

_PACKAGE = f"{Path(pyvfio.__file__).parent}/"


# Up to 3.10 what is raised here as a generator goes on passes by its finally clauses, which what a
# signal's handler raises does not.
_RESUMED_IS_LEFT = sys.version_info < (3, 11)


class Step(NamedTuple):
    """A step of pyvfio's code.

    Attributes:
        file: of the code, relative to the package.
        line: its line.
        what: what is done there: "begin", "return", "return in C" or "loop".
        callee: the name of the function that begins or has returned.
        callee_file: the file of that function, where it is in Python.
    """

    file: str
    line: int
    what: str
    callee: str = ""
    callee_file: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.what} {self.callee}".rstrip()


class Steps:
    """Follows this thread while the context lasts, and calls a function at each step.

    Args:
        reach: called with each step and the innermost frame; what it raises is raised at the step.
        files: whose steps count, relative to the package; None for all of pyvfio.
    """

    def __init__(
        self, reach: Callable[[Step, FrameType], None], files: tuple[str, ...] | None = None
    ) -> None:
        self._reach = reach
        self._file = _finder(files)
        self._collects = False

    def __enter__(self) -> None:
        # The collector comes at another step each time, and Python drops what its callbacks raise.
        self._collects = gc.isenabled()
        gc.disable()
        sys.settrace(self._call)
        sys.setprofile(self._profile)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Follow it no more."""
        sys.setprofile(None)
        sys.settrace(None)
        if self._collects:
            gc.enable()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_return":
            if file := self._file(frame.f_code.co_filename):
                self._reach(Step(file, frame.f_lineno, "return in C", argument.__name__), frame)
        elif event == "return":
            caller = frame.f_back
            if caller is not None and (file := self._file(caller.f_code.co_filename)):
                code = frame.f_code
                self._reach(
                    Step(file, caller.f_lineno, "return", code.co_name, code.co_filename), frame
                )
        elif event == "call":
            if _RESUMED_IS_LEFT and frame.f_lasti >= 0:
                return
            caller, code = frame.f_back, frame.f_code
            if caller is not None and (file := self._file(caller.f_code.co_filename)):
                self._reach(
                    Step(file, caller.f_lineno, "begin", code.co_name, code.co_filename), frame
                )
            elif file := self._file(code.co_filename):
                self._reach(
                    Step(file, frame.f_lineno, "begin", code.co_name, code.co_filename), frame
                )

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        file = self._file(frame.f_code.co_filename)
        return self._loops(file, frame.f_code) if file else None

    def _loops(self, file: str, code: CodeType) -> Any:
        """What follows the lines of one frame."""
        targets = _loop_targets(code)
        last = -1

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            if event == "line":
                before, last = last, frame.f_lasti
                if last <= before and last in targets:
                    self._reach(Step(file, frame.f_lineno, "loop"), frame)
            return trace

        return trace if targets else None


def is_ours(frame: FrameType | None) -> bool:
    """Whether a frame is of pyvfio's code."""
    return frame is not None and frame.f_code.co_filename.startswith(_PACKAGE)


def in_finalizer(frame: FrameType | None) -> bool:
    """Whether Python would drop what is raised here."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "unmap", "_let_go", "_remove"):
            return True
        frame = frame.f_back
    return False


@functools.cache
def _finder(files: tuple[str, ...] | None) -> Callable[[str], str | None]:
    """What tells, of the path of a file, how it is named in steps; None if it has none."""

    @functools.cache  # asked at each call that any code makes
    def find(path: str) -> str | None:
        file = path.removeprefix(_PACKAGE)
        return file if file != path and (files is None or file in files) else None

    return find


@functools.cache
def _loop_targets(code: CodeType) -> frozenset[int]:
    """The offsets that a loop of the code jumps back to, where Python looks for signals."""
    return frozenset(
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opcode in (*dis.hasjrel, *dis.hasjabs)
        and instruction.argval <= instruction.offset
        and "NO_INTERRUPT" not in instruction.opname
    )
