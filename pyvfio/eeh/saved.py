"""Config space as it was before a reset, to be put back after it."""

from __future__ import annotations

import errno
from typing import NamedTuple

from pyvfio import errors
from pyvfio.abi import pci_regs as pci
from pyvfio.device import Device
from pyvfio.pci.capabilities.aer import AerCapability
from pyvfio.pci.config import ConfigSpace

# (offset, width). BARs are VFIO's own shadow; the kernel restores what the device has.
_HEADER = (
    (pci.PCI_CACHE_LINE_SIZE, 2),  # and the latency timer
    *((pci.PCI_BASE_ADDRESS_0 + 4 * bar, 4) for bar in range(6)),
    (pci.PCI_ROM_ADDRESS, 4),
    (pci.PCI_INTERRUPT_LINE, 1),
)
_EXPRESS = ((pci.PCI_EXP_DEVCTL, 2), (pci.PCI_EXP_LNKCTL, 2))
_EXPRESS_2 = ((pci.PCI_EXP_DEVCTL2, 2), (pci.PCI_EXP_LNKCTL2, 2))
_AER = ((pci.PCI_ERR_UNCOR_MASK, 4), (pci.PCI_ERR_UNCOR_SEVER, 4), (pci.PCI_ERR_COR_MASK, 4))
_COMMAND = ((pci.PCI_COMMAND, 2),)


def error_reporting(config: ConfigSpace) -> AerCapability | None:
    """The AER capability; None without one, and where it cannot be found: a PHB3 of an emulated
    host shows 256 bytes of config space, and a broken list is no reason not to recover.
    """
    try:
        return config.aer
    except errors.MalformedConfig:
        return None


class Identity(NamedTuple):
    """What tells a device from another one, as the device itself answers it.

    Not the vendor and device IDs: VFIO answers those from a copy, whatever the device does.

    Attributes:
        class_revision: class code and revision, 32 bits.
        subsystem: subsystem vendor ID and subsystem ID, 32 bits.
    """

    class_revision: int
    subsystem: int

    @classmethod
    def of(cls, config: ConfigSpace) -> Identity:
        """Ask the device."""
        return cls(
            config.read(pci.PCI_CLASS_REVISION, 4), config.read(pci.PCI_SUBSYSTEM_VENDOR_ID, 4)
        )

    def __str__(self) -> str:
        vendor, device = self.subsystem & 0xFFFF, self.subsystem >> 16
        return (
            f"class {self.class_revision >> 8:06x} revision {self.class_revision & 0xFF:02x}, "
            f"subsystem {vendor:04x}:{device:04x}"
        )


class SavedConfig:
    """What a driver sets up in config space, as the kernel's pci_save_state() has it: PCI Express
    controls, error masks, the header, and Command last.

    Interrupts are not among it: they are VFIO's to set up.

    Attributes:
        identity: of the device that it was saved of.
    """

    def __init__(self, device: Device) -> None:
        """Save it.

        Raises:
            StateError: the device does not answer now; save while it is healthy.
        """
        config = device.config
        self._device = device
        if not config.answers:
            raise errors.StateError(
                f"{device.address} does not answer, so nothing can be saved of it: prepare its "
                "recovery while it is healthy"
            )
        self.identity = Identity.of(config)
        places = []
        if (express := config.pcie) is not None:
            places += [(express.offset + offset, width) for offset, width in _EXPRESS]
            flags = config.read(express.offset + pci.PCI_EXP_FLAGS, 2)
            if flags & pci.PCI_EXP_FLAGS_VERS >= 2:
                places += [(express.offset + offset, width) for offset, width in _EXPRESS_2]
        if (aer := error_reporting(config)) is not None:
            places += [(aer.offset + offset, width) for offset, width in _AER]
        self._values = {
            (offset, width): config.read(offset, width)
            for offset, width in (*places, *_HEADER, *_COMMAND)
        }

    def restore(self) -> str:
        """Put it back.

        Returns:
            What came of it, in words.

        Raises:
            DeviceGone: it does not answer, or is another device.
            StateError: all was written, and some registers are not as before.
            KernelError: the kernel refused.
        """
        config = self._device.config
        if (found := Identity.of(config)) != self.identity:
            raise errors.DeviceGone(
                errno.ENODEV,
                "pread",
                str(self._device.address),
                f"it says that it is {found}, and was {self.identity} before",
            )
        changed = 0
        for (offset, width), value in self._values.items():
            if config.read(offset, width) != value:
                config.write(offset, width, value)
                changed += 1
        left = [
            f"{offset:#x}"
            for (offset, width), value in self._values.items()
            if config.read(offset, width) != value
        ]
        said = f"{changed} of {len(self._values)} registers written"
        if left:
            raise errors.StateError(
                f"{self._device.address}: {said}; not as before: {', '.join(left)}"
            )
        return said
