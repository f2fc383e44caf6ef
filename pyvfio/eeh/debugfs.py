"""The kernel's debug files for EEH, for root (eeh_init_proc() in its arch/powerpc/kernel/eeh.c).

They act on the host's own side: nothing is opened. For a PE whose device is held through VFIO the
kernel checks and recovers nothing.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.eeh.error import InjectedError
from pyvfio.eeh.host import HostPe
from pyvfio.pci import Function, paths


class Settings(NamedTuple):
    """What the host does about freezes.

    Attributes:
        enabled: whether EEH is on.
        max_freezes: freezes an hour after which the kernel gives a device up.
        recovery: whether the kernel recovers at all.
    """

    enabled: bool
    max_freezes: int
    recovery: bool


def settings() -> Settings:
    """The host's settings.

    Raises:
        HostError: debugfs is not mounted, or the kernel offers no such file.
        AccessDenied: only root may look.
        KernelError: a file holds something else than a number (EPROTO).
    """
    return Settings(
        enabled=_number("eeh_enable", 16) != 0,
        max_freezes=_number("eeh_max_freezes", 10),
        recovery=_read("eeh_disable_recovery") == "N",
    )


def check(function: Function) -> None:
    """Let the kernel look whether the function's PE is frozen, and recover it if it is its to.

    Raises:
        HostError, AccessDenied: as :func:`settings`.
        KernelError: the kernel refused.
    """
    _write("eeh_dev_check", str(function.address))


def dev_break(function: Function) -> None:
    """Let the kernel read the function's memory while that is switched off: on real hardware the
    PE freezes. It does so to a device that somebody holds as well.

    Raises:
        HostError, AccessDenied: as :func:`settings`.
        KernelError: the kernel refused; ENXIO for a function without memory.
    """
    _write("eeh_dev_break", str(function.address))


def force_recover(function: Function) -> None:
    """Let the kernel recover the function's PE, whatever its state; it goes on in the background.

    Raises:
        HostError, AccessDenied: as :func:`settings`.
        NoEeh, Unsupported: the function has no PE.
        KernelError: the kernel refused.
    """
    _write("eeh_force_recover", f"{function.address.domain:x}:{HostPe(function).number:x}\n")


def inject(function: Function, error: InjectedError) -> str:
    """Ask the firmware, through the function's PHB, to make an error happen; on PowerNV only.

    Returns:
        What was written.

    Raises:
        HostError, AccessDenied: as :func:`settings`.
        NoEeh, Unsupported: the function has no PE.
        KernelError: the firmware refused (EIO), or knows no such error (EINVAL).
    """
    text = error.debugfs(HostPe(function).number)
    # The kernel looks for the end of the last number, so there is one.
    _write(phb_file(function), f"{text}\n")
    return text


def phb_file(function: Function) -> str:
    """The PHB's file for :func:`inject`, below debugfs's folder for the architecture."""
    return f"PCI{function.address.domain:04x}/err_injct"


def find(name: str) -> Path:
    """A file below debugfs's folder for the architecture.

    Raises:
        HostError: debugfs is not mounted, or the kernel offers no such file.
        AccessDenied: only root may look.
    """
    root = paths.SYSFS / "kernel/debug"
    path = root / "powerpc" / name
    try:
        mounted = bool(sysfs.entries(root))
    except errors.KernelError as error:
        raise errors.AccessDenied.from_call(error, "only root may look: run as root") from None
    if not mounted:
        raise errors.HostError(f"debugfs is not mounted: mount -t debugfs debugfs {root} (as root)")
    if path.exists():
        return path
    raise errors.HostError(f"this kernel has no {path}: it is too old, or this platform's has none")


def _read(name: str) -> str:
    return sysfs.read(find(name))


def _number(name: str, base: int) -> int:
    return sysfs.number(_read(name), find(name), base)


def _write(name: str, text: str) -> None:
    path = find(name)
    try:
        sysfs.write(path, text)
    except errors.AccessDenied as error:
        raise errors.AccessDenied.from_call(error, "run as root") from None
    except errors.KernelError as error:
        meaning = {
            errno.EIO: "the firmware refused",
            errno.EINVAL: "the firmware knows no such error" if name.endswith("/err_injct") else "",
            errno.ENODEV: "the kernel knows no such device or PE there",
            errno.ENXIO: "the device has no memory BAR, or the platform cannot do it",
        }.get(error.errno or 0, "")
        raise errors.KernelError.from_call(error, meaning) from None
