"""Other network namespaces: looked into by a thread that enters them and does not come back."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pyvfio._sys.file import File, refused

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x4000_0000  # linux/sched.h

# asm-generic/unistd.h, the same on every architecture but alpha; C libraries have no wrappers for
# them before glibc 2.36.
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432

# linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_MOUNT_ATTR_RDONLY = 1


def look_into(namespaces: Iterable[str], look: Callable[[Path], T]) -> dict[str, T | OSError]:
    """Call a function once in each of several network namespaces.

    Only a thread made for this enters them: no other thread, and no code that runs after an
    exception, is ever in the wrong namespace.

    Args:
        namespaces: files that stand for them, as ``/proc/PID/ns/net``.
        look: called with a sysfs as the namespace shows it. What it raises but OSError is raised
            here.

    Returns:
        For each file what the function returned, or why the namespace cannot be looked into.
    """
    found: dict[str, T | OSError] = {}
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            for namespace in namespaces:
                try:
                    with _entered(namespace) as sysfs:
                        # A mount that is nowhere in the tree is reached through its descriptor.
                        found[namespace] = look(Path(f"/proc/self/fd/{sysfs.fileno()}"))
                except OSError as error:
                    found[namespace] = error
        except BaseException as failure:
            failures.append(failure)

    visitor = threading.Thread(target=visit, name="pyvfio-namespaces", daemon=True)
    visitor.start()
    visitor.join()
    if failures:
        raise failures[0]
    return found


def _entered(namespace: str) -> File:
    """Move this thread into a network namespace and mount its sysfs, as a descriptor alone."""
    with File.open(namespace, os.O_RDONLY) as file:
        _checked(_libc.setns(file.fileno(), _CLONE_NEWNET), "setns", namespace)
    context = _checked(_libc.syscall(_NR_FSOPEN, b"sysfs", _FSOPEN_CLOEXEC), "fsopen", namespace)
    with File(context, "sysfs"):
        _checked(
            _libc.syscall(_NR_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0),
            "fsconfig",
            namespace,
        )
        mount = _libc.syscall(_NR_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_RDONLY)
        return File(_checked(mount, "fsmount", namespace), namespace)


def _checked(result: int, call: str, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise refused(OSError(number, os.strerror(number)), call, path)
    return result
