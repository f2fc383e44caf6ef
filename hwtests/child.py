"""Part of a test in a forked child: as another user, with other limits, or where a crash may be."""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

NOBODY = 65534
_TIMEOUT = 120.0


def in_child(work: Callable[[], T], *, user: int | None = None) -> T:
    """Call a function in a forked child.

    Args:
        work: what to do; what it returns or raises is pickled.
        user: become this user first, without any privilege.

    Returns:
        What `work` returned. What it raised is raised.

    Raises:
        ChildProcessError: the child died of a signal, or never ended.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(work, user, writer)
    os.close(writer)
    answer = b""
    try:
        while select.select([reader], [], [], _TIMEOUT)[0]:
            more = os.read(reader, 1 << 16)
            if not more:
                break
            answer += more
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        raise ChildProcessError(f"the child died of {signal.Signals(-status).name}")
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _answer(work: Callable[[], object], user: int | None, writer: int) -> None:
    """In the child: work, send the outcome, and end without the parent's clean-up."""
    try:
        outcome: tuple[object, BaseException | None] = (None, None)
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            outcome = (work(), None)
        except BaseException as error:
            error.__notes__ = [traceback.format_exc()]  # type: ignore[attr-defined]
            outcome = (None, error)
        os.write(writer, pickle.dumps(outcome))
    finally:
        os._exit(0)
