"""A stand-in for a device behind VFIO: config space, a BAR, interrupts, reset.

Its file is real memory, so that pread, pwrite and mmap on it are the real calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvfio._sys import calls
from pyvfio.abi import pci_regs, vfio
from pyvfio.device import device as device_module
from pyvfio.iommu import container_space
from pyvfio.pci import Address, Function
from tests.iommu.standin import Kernel, _Device, _Group

ADDRESS = "0000:01:00.0"
BAR_SIZE = 1 << 16
PM = 0x40  # where the power-management capability is
_OFFSET = 40  # bits; VFIO_PCI_OFFSET_SHIFT
_CONFIG_SIZE = 256
_IRQ_SET = struct.Struct("<5I")  # argsz, flags, index, start, count
_VECTORS = {
    vfio.VFIO_PCI_INTX_IRQ_INDEX: 1,
    vfio.VFIO_PCI_MSI_IRQ_INDEX: 4,
    vfio.VFIO_PCI_MSIX_IRQ_INDEX: 8,
    vfio.VFIO_PCI_ERR_IRQ_INDEX: 1,
    vfio.VFIO_PCI_REQ_IRQ_INDEX: 1,
}


@dataclass
class OpenDevice(_Device):
    """An open device.

    Attributes:
        irqs: {index: {vector: eventfd}} of what is enabled.
    """

    irqs: dict[int, dict[int, int]] = field(default_factory=dict)


class DeviceKernel(Kernel):
    """What it does can be changed, as :class:`Kernel`.

    Attributes:
        einval: indexes of which REGION_INFO and IRQ_INFO know nothing.
        resets: how many resets were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.einval: set[str] = {f"region {vfio.VFIO_PCI_VGA_REGION_INDEX}"}
        self.resets = 0

    @property
    def devices(self) -> dict[int, OpenDevice]:
        """The devices that are open, by descriptor."""
        return {fd: file for fd, file in self.files.items() if isinstance(file, OpenDevice)}

    @property
    def command(self) -> int:
        """The Command register of the device that is open."""
        (fd,) = self.devices
        return int.from_bytes(os.pread(fd, 2, _config(pci_regs.PCI_COMMAND)), "little")

    def vfio_group_get_device_fd(self, group: _Group, arg: bytearray) -> int:
        assert arg.endswith(b"\0")
        if group.container is None or group.container.iommu is None:
            raise OSError(errno.EINVAL, "no IOMMU")
        fd = os.memfd_create("vfio-device", os.MFD_CLOEXEC)
        os.ftruncate(fd, (vfio.VFIO_PCI_NUM_REGIONS + 1) << _OFFSET)
        os.pwrite(fd, _config_space(), _config(0))
        os.pwrite(fd, bytes(range(256)), 0)
        group.devices += 1
        self.files[fd] = OpenDevice(group)
        return fd

    def vfio_device_get_info(self, device: OpenDevice, arg: Any) -> None:
        arg.flags = vfio.VFIO_DEVICE_FLAGS_PCI | vfio.VFIO_DEVICE_FLAGS_RESET
        arg.num_regions, arg.num_irqs = vfio.VFIO_PCI_NUM_REGIONS, vfio.VFIO_PCI_NUM_IRQS

    def vfio_device_get_region_info(self, device: OpenDevice, arg: bytearray) -> None:
        info = vfio.vfio_region_info.from_buffer(arg)
        self._known("region", info.index)
        info.offset = info.index << _OFFSET
        access = vfio.VFIO_REGION_INFO_FLAG_READ | vfio.VFIO_REGION_INFO_FLAG_WRITE
        if info.index == vfio.VFIO_PCI_BAR0_REGION_INDEX:
            info.size, info.flags = BAR_SIZE, access | vfio.VFIO_REGION_INFO_FLAG_MMAP
        elif info.index == vfio.VFIO_PCI_CONFIG_REGION_INDEX:
            info.size, info.flags = _CONFIG_SIZE, access

    def vfio_device_get_irq_info(self, device: OpenDevice, arg: Any) -> None:
        self._known("irq", arg.index)
        arg.count = _VECTORS[arg.index]
        arg.flags = vfio.VFIO_IRQ_INFO_EVENTFD
        if arg.index == vfio.VFIO_PCI_INTX_IRQ_INDEX:
            arg.flags |= vfio.VFIO_IRQ_INFO_MASKABLE | vfio.VFIO_IRQ_INFO_AUTOMASKED

    def vfio_device_set_irqs(self, device: OpenDevice, arg: bytearray) -> None:
        """As drivers/vfio/pci/vfio_pci_intrs.c has it."""
        _, flags, index, start, count = _IRQ_SET.unpack_from(arg)
        if not flags & vfio.VFIO_IRQ_SET_ACTION_TRIGGER:
            if index not in device.irqs:
                raise OSError(errno.EINVAL, "not enabled")
        elif flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
            fds = struct.unpack_from(f"<{count}i", arg, _IRQ_SET.size)
            for fd in fds:
                if fd >= 0 and os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                    raise OSError(errno.EBADF, "no eventfd")
            vectors = device.irqs.setdefault(index, {})
            for vector, fd in enumerate(fds, start):
                vectors.pop(vector, None)
                if fd >= 0:
                    vectors[vector] = fd
        elif index not in device.irqs:
            raise OSError(errno.EINVAL, "not enabled")
        elif not count:
            del device.irqs[index]
        else:
            for vector in range(start, start + count):
                if vector in device.irqs[index]:
                    os.eventfd_write(device.irqs[index][vector], 1)

    def vfio_device_reset(self, device: OpenDevice, arg: object) -> None:
        self.resets += 1

    def _known(self, kind: str, index: int) -> None:
        if f"{kind} {index}" in self.einval:
            raise OSError(errno.EINVAL, "no such index")


def stand_in(patch: pytest.MonkeyPatch) -> DeviceKernel:
    """Put the stand-in in the kernel's place."""
    kernel = DeviceKernel()
    for name in ("open", "close", "ioctl"):
        patch.setattr(calls, name, getattr(kernel, name))
    for module in (device_module, container_space):
        patch.setattr(module, "check_openable", lambda function: SimpleNamespace(id=1))
    return kernel


def function(address: str = ADDRESS) -> Function:
    """A function that is not looked for in sysfs."""
    made = Function.__new__(Function)
    made.address = Address.parse(address)
    made.sysfs = Path("/nonexistent")
    return made


def _config(offset: int) -> int:
    return (vfio.VFIO_PCI_CONFIG_REGION_INDEX << _OFFSET) + offset


def _config_space() -> bytes:
    config = bytearray(_CONFIG_SIZE)
    struct.pack_into("<HH", config, pci_regs.PCI_VENDOR_ID, 0x1AF4, 0x10D3)
    struct.pack_into("<H", config, pci_regs.PCI_STATUS, pci_regs.PCI_STATUS_CAP_LIST)
    config[pci_regs.PCI_CAPABILITY_LIST] = PM
    config[PM] = pci_regs.PCI_CAP_ID_PM
    return bytes(config)


assert ctypes.sizeof(vfio.vfio_irq_set) == _IRQ_SET.size
