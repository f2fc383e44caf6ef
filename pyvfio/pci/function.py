"""A PCI function as the host sees it, through sysfs: looking never opens a VFIO device."""

from __future__ import annotations

import contextlib
import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import names, paths
from pyvfio.pci.address import Address

if TYPE_CHECKING:
    from pyvfio.pci.config import ConfigSpace
    from pyvfio.pci.group import IommuGroup

_VIRTUAL_FUNCTION = re.compile(r"virtfn\d+")
_HEADER_TYPE = 0x0E  # PCI_HEADER_TYPE in linux/pci_regs.h
_MOST_RESOURCES = 64  # lines; the kernel has up to 17 (PCI_NUM_RESOURCES)


class Resource(NamedTuple):
    """A range of the host's address space that a function decodes.

    Attributes:
        start: first address.
        end: last address, inclusive; 0 with a start of 0 when the resource does not exist.
        flags: IORESOURCE_* of the kernel's include/linux/ioport.h.
    """

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        """Bytes; 0 when the resource does not exist."""
        return self.end - self.start + 1 if self.end else 0


class Function:
    """A PCI function of this host.

    Properties are read from sysfs each time, so they show what is true now.

    Args:
        address: where it is, e.g. ``"0000:01:00.0"``.

    Attributes:
        address: where it is.
        sysfs: its directory, ``/sys/bus/pci/devices/ADDRESS``.

    Raises:
        ArgumentError: no address.
        DeviceNotFound: nothing is there.
    """

    __slots__ = ("address", "sysfs")

    def __init__(self, address: Address | str) -> None:
        self.address = Address.parse(address)
        self.sysfs: Path = paths.SYSFS / "bus/pci/devices" / str(self.address)
        if not self.sysfs.exists():
            raise self._absent()

    @property
    def vendor_id(self) -> int:
        """Vendor ID, 16 bits."""
        return self._number("vendor")

    @property
    def device_id(self) -> int:
        """Device ID, 16 bits."""
        return self._number("device")

    @property
    def subsystem_vendor_id(self) -> int:
        """Subsystem vendor ID, 16 bits; 0 where there is none."""
        return self._number("subsystem_vendor")

    @property
    def subsystem_device_id(self) -> int:
        """Subsystem device ID, 16 bits; 0 where there is none."""
        return self._number("subsystem_device")

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self._number("class")

    @property
    def revision(self) -> int:
        """Revision ID, 8 bits."""
        return self._number("revision")

    @property
    def vendor_name(self) -> str | None:
        """The vendor's name, where the system's pci.ids knows it."""
        return names.vendor_name(self.vendor_id)

    @property
    def device_name(self) -> str | None:
        """The device's name, where the system's pci.ids knows it."""
        return names.device_name(self.vendor_id, self.device_id)

    @property
    def class_name(self) -> str | None:
        """What sort of device it is, in words."""
        return names.class_name(self.class_code)

    @property
    def driver(self) -> str | None:
        """The kernel driver bound to it."""
        return sysfs.link_name(self.sysfs / "driver")

    @property
    def driver_override(self) -> str | None:
        """The only driver that may bind to it, if the kernel was told one."""
        text = self._read("driver_override")
        return None if text == "(null)" else text

    @property
    def iommu_group(self) -> IommuGroup | None:
        """Its IOMMU group; None when no IOMMU translates for it."""
        from pyvfio.pci.group import IommuGroup

        group = sysfs.link_name(self.sysfs / "iommu_group")
        if group is None:
            return None
        return IommuGroup(sysfs.number(group, self.sysfs / "iommu_group", 10))

    @property
    def is_bridge(self) -> bool:
        """Whether its config header is of type 1 or 2; VFIO drives no bridges."""
        config = self.read_config()
        if len(config) <= _HEADER_TYPE:
            found = f"{len(config)} bytes"
            raise sysfs.nonsense(self.sysfs / "config", found, "a header of 64 bytes")
        return config[_HEADER_TYPE] & 0x7F in (1, 2)

    @property
    def numa_node(self) -> int | None:
        """The NUMA node it is attached to, if the host has several."""
        node = sysfs.number(self._optional("numa_node") or "-1", self.sysfs / "numa_node", 10)
        return None if node < 0 else node

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All its resources by the kernel's number: 0 to 5 the BARs, 6 the ROM, then those of
        virtual functions and the windows of a bridge.
        """
        path = self.sysfs / "resource"
        lines = self._read("resource").splitlines()
        if len(lines) > _MOST_RESOURCES:
            raise sysfs.nonsense(path, f"{len(lines)} lines", f"{_MOST_RESOURCES} at most")
        found = []
        for line in lines:
            words = line.split(" ")
            if len(words) != 3:
                raise sysfs.nonsense(path, repr(line[:60]), "three numbers a line")
            found.append(Resource(*(sysfs.number(word, path) for word in words)))
        return tuple(found)

    @property
    def power_state(self) -> str | None:
        """``"D0"`` to ``"D3cold"``, or ``"unknown"``; None on a kernel that does not tell."""
        return self._optional("power_state")

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """How the kernel would reset it, best first: ``"flr"``, ``"pm"``, ``"bus"``..."""
        return tuple((self._optional("reset_method") or "").split())

    @property
    def virtual_functions(self) -> int:
        """How many SR-IOV virtual functions are enabled on it."""
        # Reading sriov_numvfs takes the device's lock, which the kernel keeps, for as long as
        # somebody holds the device, while it removes it.
        return sum(bool(_VIRTUAL_FUNCTION.fullmatch(name)) for name in sysfs.entries(self.sysfs))

    @property
    def physical_function(self) -> Function | None:
        """The physical function that this SR-IOV virtual function belongs to."""
        parent = sysfs.link_name(self.sysfs / "physfn")
        return None if parent is None else Function(parent)

    @property
    def config(self) -> ConfigSpace:
        """Its config space, typed."""
        from pyvfio.pci.config import ConfigSpace

        try:
            return ConfigSpace.from_sysfs(self.sysfs)
        except errors.KernelError as error:
            raise self._failure(error) from None

    def read_config(self) -> bytes:
        """Its config space as the kernel reads it from the device.

        Returns:
            256 or 4096 bytes, of some devices another number; only the first 64 for one who is not
            root.
        """
        try:
            return sysfs.read_bytes(self.sysfs / "config")
        except errors.KernelError as error:
            raise self._failure(error) from None

    def __eq__(self, other: object) -> bool:
        return self.address == other.address if isinstance(other, Function) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.address)

    def __repr__(self) -> str:
        return f"Function({str(self.address)!r})"

    def _read(self, name: str) -> str:
        try:
            return sysfs.read(self.sysfs / name)
        except errors.KernelError as error:
            raise self._failure(error) from None

    def _optional(self, name: str) -> str | None:
        try:
            return self._read(name)
        except errors.KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _number(self, name: str) -> int:
        return sysfs.number(self._read(name), self.sysfs / name)

    def _failure(self, error: errors.KernelError) -> errors.Error:
        return error if self.sysfs.exists() else self._absent()

    def _absent(self) -> errors.DeviceNotFound:
        return errors.DeviceNotFound(
            f"there is no PCI device at {self.address}; `pyvfio list` shows those there are"
        )


def functions() -> tuple[Function, ...]:
    """Every PCI function of this host, in the order of their addresses."""
    # Not through udev, which reads each device's uevent: some kernels take the device's lock for
    # that, and keep it while they remove a device that somebody holds.
    found = []
    for name in sysfs.entries(paths.SYSFS / "bus/pci/devices"):
        # One that is unplugged just now is not there.
        with contextlib.suppress(errors.ArgumentError, errors.DeviceNotFound):
            found.append(Function(name))
    return tuple(sorted(found, key=lambda function: function.address))
