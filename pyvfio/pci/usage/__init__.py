"""What the host uses a PCI function for: whom it would be taken from.

Everything is found in sysfs, procfs and netlink, so it works where no udevd runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvfio.pci.function import Function
from pyvfio.pci.usage import consoles, disks, interfaces
from pyvfio.pci.usage.holders import vfio_holders

__all__ = ["users", "vfio_holders"]


def users(function: Function) -> tuple[str, ...]:
    """What the host uses a function for, one phrase each; empty when nothing is known.

    Looks for disks that are mounted, swapped to or part of an array or volume, network interfaces
    that are up with an address or part of another one, the console, and enabled SR-IOV virtual
    functions. Only root is shown all of it.
    """
    return (
        *disks.users(function),
        *interfaces.users(function),
        *consoles.users(function),
        *_virtual_functions(function),
    )


def _virtual_functions(function: Function) -> Iterator[str]:
    if count := function.virtual_functions:
        yield f"{count} SR-IOV virtual function{'s are' if count > 1 else ' is'} enabled on it"
