"""A reset that was asserted by a process which then was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvfio._sys import sysfs
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.eeh.host import HostPe
from pyvfio.eeh.operation import in_reset, operate
from pyvfio.iommu import Group, open_space
from pyvfio.pci import Function, check_openable


def end_leftover_reset(function: Function) -> bool:
    """End a reset that nobody is there to end, so that the device can be opened.

    Until then its config space is blocked: VFIO cannot open it, and neither a thaw nor the host's
    own recovery helps. The group's node alone is opened, which only one process can at a time: a
    reset that somebody is about to end is left to them. Takes as long as a reset.

    Returns:
        Whether there was one.

    Raises:
        Busy: somebody holds the device.
        NotBound, NoIommu, NoVfio, GroupNotViable: the host is not set up for the device.
        NoEeh, Unsupported: it has no PE.
        AccessDenied, KernelError: the kernel refused.
    """
    if not HostPe(function).state.reset_left:
        return False
    wanted = check_openable(function)
    with open_space() as space:
        group = Group.open(wanted.id)
        try:
            space.attach(group)
        except BaseException:
            group.close()
            raise

        def end() -> None:
            operate(space, function.address, vfio.VFIO_EEH_PE_RESET_DEACTIVATE)

        # Meanwhile the kernel put the device to sleep and saved all ones as its config space, which
        # waking writes into it. A reset while it is awake brings back what EEH saved at boot.
        with deferred_signals():
            end()
            with (
                _awake(function),
                in_reset(space, function.address, vfio.VFIO_EEH_PE_RESET_HOT, end),
            ):
                pass
    return True


@contextmanager
def _awake(function: Function) -> Iterator[None]:
    """The function not put to sleep by the kernel (runtime power management)."""
    control = function.sysfs / "power/control"
    before = sysfs.read(control)
    sysfs.write(control, "on")
    try:
        yield
    finally:
        sysfs.write(control, before)
