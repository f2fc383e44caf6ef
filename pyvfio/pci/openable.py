"""Whether a function could be opened through VFIO, and if not, what to do about it."""

from __future__ import annotations

import errno
import os

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import modules, paths
from pyvfio.pci.function import Function
from pyvfio.pci.group import IommuGroup, is_vfio


def check_openable(function: Function) -> IommuGroup:
    """Check all that stands before opening a function; opens nothing.

    Returns:
        Its group, which is there to be opened.

    Raises:
        DeviceNotFound: it is no longer there.
        NoIommu: it is in no IOMMU group.
        Unsupported: it is a bridge.
        Busy: it is being removed.
        NoVfio: the VFIO driver is not loaded, or its node is missing.
        NotBound: it is not bound to a VFIO driver.
        AccessDenied: the group's node may not be opened.
        GroupNotViable: other members of its group belong to the host.
    """
    address, driver, group = function.address, function.driver, function.iommu_group
    if not function.sysfs.exists():
        Function(address)  # says so
    if driver is None:
        # Here, since devices that are opened have a driver.
        from pyvfio.pci.usage import removal

        removal.refuse(function)
    if not is_vfio(driver) and function.is_bridge:
        raise bridge(function)
    if lacks_iommu(function):
        raise no_iommu(function)
    if not is_vfio(driver):
        holder = f"the driver {driver}" if driver else "no driver"
        if not modules.is_registered("vfio-pci"):
            raise errors.NoVfio(
                f"{address} is bound to {holder}, not to vfio-pci, which is not loaded: "
                f"`pyvfio bind {address}` loads it and binds the device to it"
            )
        raise errors.NotBound(
            f"{address} is bound to {holder}, not to vfio-pci: run `pyvfio bind {address}`"
        )
    assert group is not None
    if not os.path.exists(group.path):
        raise errors.NoVfio(
            f"{group.path} does not exist although {address} is bound to {driver}: a container "
            "must be given the node (docker: --device), elsewhere devtmpfs or udevd makes it"
        )
    if not os.access(group.path, os.R_OK | os.W_OK):
        # access(2) as Python has it does not tell which; root has the rights of every file.
        number = errno.EACCES if os.geteuid() else errno.EPERM
        raise errors.AccessDenied(number, "open", group.path, denied(group.path, number))
    if culprits := group.culprits:
        # A culprit may have been given back since.
        found = [(str(member.address), member.driver or "none") for member in culprits]
        listed = ", ".join(f"{culprit} ({its_driver})" for culprit, its_driver in found)
        command = " ".join(["pyvfio bind", *(culprit for culprit, _ in found)])
        raise errors.GroupNotViable(
            f"IOMMU group {group.id} of {address} is not viable, as the host's drivers hold "
            f"{listed}: all of a group goes to VFIO or none. Bind them too: `{command}`",
            found,
        )
    return group


def lacks_iommu(function: Function) -> bool:
    """Tell whether no IOMMU confines a function, nor would once a driver is bound to it.

    Where the firmware describes the IOMMU by device tree or IORT (arm64), Linux before 6.15 puts a
    function into its group when a driver is probed for it the first time (bcb81ac6ae3c).
    """
    group = function.iommu_group
    if group is not None:
        return group.is_noiommu
    return function.driver is not None or not sysfs.entries(paths.SYSFS / "class/iommu")


def denied(path: str, number: int, command: str = "chown USER") -> str:
    """What to do where this process may not open a node of VFIO.

    Args:
        path: the node.
        number: EACCES or EPERM.
        command: lets a user have the node.
    """
    if number == errno.EACCES and os.geteuid():
        return f"run as root, or let a user have it: {command} {path}"
    return (
        f"in a container its device cgroup must allow the node (docker and podman: --device {path};"
        " Kubernetes: a device plugin), and root without the capability CAP_DAC_OVERRIDE must own "
        f"it: {command} {path}. Elsewhere a security module (SELinux, AppArmor) forbids it"
    )


def bridge(function: Function) -> errors.Unsupported:
    """The error for a bridge; names the devices below it."""
    below = [
        name
        for name in sysfs.entries(function.sysfs)
        if (paths.SYSFS / "bus/pci/devices" / name).exists()
    ]
    devices = f": {', '.join(below)}" if below else "; there is none now"
    return errors.Unsupported(
        f"{function.address} is a bridge, which VFIO does not drive: name a device below it"
        f"{devices}"
    )


def no_iommu(function: Function) -> errors.NoIommu:
    """The error for a function without an IOMMU; says what to do."""
    return errors.NoIommu(
        f"{function.address} is in no IOMMU group, so nothing would confine its DMA. Enable the "
        "IOMMU in the firmware (VT-d, AMD-Vi, SMMU) and in the kernel (intel_iommu=on on Intel; "
        "it is on elsewhere unless iommu=off). pyvfio does not drive devices without one, whatever "
        "enable_unsafe_noiommu_mode says"
    )
