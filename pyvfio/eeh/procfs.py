"""/proc/powerpc/eeh: whether the host has EEH, and what it has counted since boot."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths

_FILE = "powerpc/eeh"


class Counters(NamedTuple):
    """What the kernel has counted.

    Attributes:
        enabled: whether EEH is on.
        counts: each count by the kernel's name for it, e.g. ``"eeh_slot_resets"``.
    """

    enabled: bool
    counts: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Counters:
        """Read what the file shows (proc_eeh_show() in the kernel's arch/powerpc/kernel/eeh.c).

        Raises:
            ArgumentError: it is something else.
        """
        headline, *lines = text.splitlines() or [""]
        if headline not in _HEADLINES:
            raise errors.ArgumentError(f"{headline!r} is not how /proc/powerpc/eeh begins")
        counts = {}
        for line in lines:
            name, equals, number = line.partition("=")
            if not equals or not _COUNT.fullmatch(number):
                raise errors.ArgumentError(f"{line!r} is no count of /proc/powerpc/eeh")
            counts[name] = int(number)
        return cls(_HEADLINES[headline], counts)


_COUNT = re.compile(r"[0-9]{1,20}")  # as many digits as 64 bits have
_HEADLINES = {"EEH Subsystem is enabled": True, "EEH Subsystem is globally disabled": False}


def counters() -> Counters:
    """The host's counters.

    Raises:
        NoEeh: the host has no EEH.
    """
    path = paths.PROC / _FILE
    try:
        return Counters.parse(sysfs.read(path))
    except errors.KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        raise errors.NoEeh(
            f"this host has no EEH: there is no {path}. POWER hosts have it, with a kernel built "
            "with CONFIG_EEH"
        ) from None


def check_enabled() -> Counters:
    """The host's counters, where EEH is on.

    Raises:
        NoEeh: the host has no EEH, or it is off.
    """
    found = counters()
    if not found.enabled:
        raise errors.NoEeh(
            "EEH is off on this host: no device has a PE, or the kernel was started with eeh=off"
        )
    return found
