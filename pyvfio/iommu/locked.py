"""Memory that devices reach is locked, and the kernel limits how much a process may lock."""

from __future__ import annotations

import resource

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths

_CAP_IPC_LOCK = 14


def limit() -> int | None:
    """How many bytes this process may lock; None if the kernel does not limit it."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = soft == resource.RLIM_INFINITY
    if unlimited or int(_status()["CapEff"], 16) >> _CAP_IPC_LOCK & 1:
        return None
    return soft


def held() -> int:
    """How many bytes this process has locked."""
    return int(_status()["VmLck"].split()[0]) << 10


def refused(error: errors.KernelError, size: int, what: str = "") -> errors.KernelError:
    """What ENOMEM means: the limit on locked memory, or memory that is really exhausted.

    Args:
        error: the kernel's refusal.
        size: bytes that were to be locked.
        what: what for, where it is more than the memory that the caller asked for.
    """
    allowed = limit()
    locked = held()
    if allowed is None or locked + size <= allowed:
        return errors.KernelError.from_call(
            error, f"the host has no memory left to pin and map {size:#x} bytes{what}"
        )
    return errors.LockedMemoryLimit.from_call(
        error,
        f"memory that devices reach is locked, and this process may lock {allowed >> 10} KiB: "
        f"{locked >> 10} KiB are locked, {size >> 10} KiB more are needed{what}. Raise the limit "
        "with ulimit -l (as root, or memlock in /etc/security/limits.conf; LimitMEMLOCK= for a "
        "systemd unit), or give the process CAP_IPC_LOCK",
    )


def _status() -> dict[str, str]:
    lines = sysfs.read(paths.PROC / "self/status").splitlines()
    return dict(line.split(":", 1) for line in lines)
