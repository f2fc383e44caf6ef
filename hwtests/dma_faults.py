"""What the kernel logs of DMA that the host's IOMMU stops, which differs from IOMMU to IOMMU."""

from __future__ import annotations

from hwtests.bench import ON_BENCH
from hwtests.kernel_log import KernelLog
from pyvfio._sys import sysfs
from pyvfio.pci import Function

_F_TRANSLATION = 0x10


def fault_is_logged(log: KernelLog, function: Function, iova: int, timeout: float) -> bool:
    """Wait until the kernel logs that a function was stopped at an address without a mapping.

    Args:
        log: the kernel's log, open since before the fault.
        function: the device.
        iova: the address.
        timeout: seconds.

    Returns:
        Whether it was logged within the time; True where the IOMMU logs nothing that could be
        compared.
    """
    return all(log.wait_for_parts(parts, timeout) for parts in _lines(function, iova))


def _lines(function: Function, iova: int) -> list[tuple[str, ...]]:
    """The parts of each line that the kernel logs of the fault."""
    iommu = sysfs.link_name(function.sysfs / "iommu") or ""
    address = function.address
    name = f"{address.bus:02x}:{address.device:02x}.{address.function}"
    if iommu.startswith("dmar"):
        return [("DMAR: [DMA ", name, f"fault addr {iova:#x} ")]
    # QEMU's AMD-Vi reports no fault where a table is absent (7.2), or address 0 (11.1).
    if iommu.startswith("ivhd") and not ON_BENCH:
        return [("AMD-Vi: Event logged [IO_PAGE_FAULT ", name, f"address={iova:#x} ")]
    if iommu.startswith("smmu3"):
        # Words 0 and 2 of the event record, a line each (Arm IHI 0070, 7.3.11): the StreamID, which
        # is the requester ID, above the event's number; the address.
        stream = address.bus << 8 | address.device << 3 | address.function
        return [(f"0x{stream:08x}{_F_TRANSLATION:08x}",), (f"0x{iova:016x}",)]
    return []  # POWER's freezes the device's PE
