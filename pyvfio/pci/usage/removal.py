"""Functions that the kernel is taking away while somebody holds them."""

from __future__ import annotations

import errno
import os

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths
from pyvfio.pci.events import wait_until
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio
from pyvfio.pci.usage.holders import openers

_MOMENT = 1.0  # seconds

# What /proc/bus/pci/devices says where no driver is bound and something else has the BARs.
_NO_DRIVER = ("", "compat")


def removal(function: Function) -> str | None:
    """Say that a function is being removed from the host, or taken from its driver, if it is.

    The kernel takes away the link to the driver, then waits until the function is closed, and has
    the device's lock meanwhile: whoever reads `driver_override` or `sriov_numvfs`, or writes to
    `bind` or `unbind`, waits with it and cannot be interrupted. Nothing that takes the lock is read
    here.

    Returns:
        What is going on and who holds the function, in words; None where nothing is.
    """
    if function.driver is not None:
        return None
    driver = _driver_in_list(function)
    group = function.iommu_group
    # Where the list does not tell, an open group does, unless it is open for another function.
    others = group is not None and any(is_vfio(member.driver) for member in group.members)
    holders = []
    if group is not None and os.path.exists(group.path) and not (driver is None and others):
        holders = [holder.text for holder in openers({group.path})]
    if not holders and driver is None:
        return None
    # It may have been done meanwhile.
    if function.driver is not None or not function.sysfs.exists():
        return None
    who = "; ".join(holders) or "a process that cannot be seen may hold it open"
    return f"{function.address} is being removed, or taken from its driver: {who}"


def refuse(function: Function) -> None:
    """Refuse a function that is being removed.

    Raises:
        Busy: it is; the message names the process that holds it.
    """
    said = removal(function)
    # A function that nobody holds changes its driver within a moment.
    if said is not None and not wait_until(lambda: removal(function) is None, _MOMENT):
        raise errors.Busy(errno.EBUSY, "remove", str(function.sysfs), said)


def _driver_in_list(function: Function) -> str | None:
    """The driver that the kernel's own list has for a function; None where it has none.

    The list keeps the driver until it has let the function go. It has no PCI domains: where several
    functions have the numbers of this one, all of them must have a driver.
    """
    number = function.address.bus << 8 | function.address.device << 3 | function.address.function
    wanted = [f"{number:04x}", f"{function.vendor_id:04x}{function.device_id:04x}"]
    try:
        lines = sysfs.read(paths.PROC / "bus/pci/devices").splitlines()
    except errors.KernelError:
        return None
    drivers = []
    for line in lines:
        fields = line.split("\t")
        if fields[:2] == wanted:
            drivers.append(fields[17].strip() if len(fields) > 17 else "")
    found = {driver for driver in drivers if driver not in _NO_DRIVER}
    return found.pop() if len(found) == 1 and not set(drivers) & set(_NO_DRIVER) else None
