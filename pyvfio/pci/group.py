"""IOMMU groups: the functions that the IOMMU cannot tell apart, and VFIO hands out together."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function

# Host drivers that leave DMA to whoever owns the group (`driver_managed_dma` in the kernel).
_HARMLESS = frozenset({"pci-stub", "pcieport"})


def is_vfio(driver: str | None) -> bool:
    """Whether a driver is vfio-pci or one of its variants (mlx5_vfio_pci, nvgrace-gpu-vfio-pci)."""
    return driver is not None and "vfio" in driver


class IommuGroup:
    """An IOMMU group of this host.

    Args:
        id: its number.
    """

    __slots__ = ("id",)

    def __init__(self, id: int) -> None:
        self.id = id

    @property
    def is_noiommu(self) -> bool:
        """Whether VFIO made it up for a device without an IOMMU: no isolation, no translation."""
        try:
            return sysfs.read(self._sysfs / "name") == "vfio-noiommu"
        except errors.KernelError:
            return False  # most groups have no name

    @property
    def path(self) -> str:
        """The node that VFIO offers for it, ``/dev/vfio/ID``."""
        return str(paths.DEV / "vfio" / str(self.id))

    @property
    def members(self) -> tuple[Function, ...]:
        """Its PCI functions, in the order of their addresses."""
        found = []
        for name in sysfs.entries(self._sysfs / "devices"):
            # Devices of other buses, and those unplugged just now, are left out.
            with contextlib.suppress(errors.ArgumentError, errors.DeviceNotFound):
                found.append(Function(name))
        return tuple(sorted(found, key=lambda function: function.address))

    @property
    def culprits(self) -> tuple[Function, ...]:
        """The members whose host driver does DMA of its own, so that VFIO refuses the group.

        It is viable when each member is bound to a VFIO driver, to pci-stub, to pcieport (bridges)
        or to none (the kernel's iommu_group_claim_dma_owner).
        """
        return tuple(
            member
            for member in self.members
            if (driver := member.driver) is not None
            and driver not in _HARMLESS
            and not is_vfio(driver)
        )

    @property
    def _sysfs(self) -> Path:
        return paths.SYSFS / "kernel/iommu_groups" / str(self.id)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, IommuGroup) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"IommuGroup({self.id})"
