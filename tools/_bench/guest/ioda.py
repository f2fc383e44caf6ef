"""Freezes a PE of the emulated POWER9 host, which has no other way to.

QEMU's model of the PHB4 keeps the tables in which a real one notes a freeze (IODA), and freezes
nothing by itself. Written as real hardware would write them, the firmware reports the PE frozen,
and so kernel and VFIO see it. The model does not block the PE's accesses: what a frozen device
reads and writes still arrives. The PHB3 of the emulated POWER8 host does not keep these tables.

Registers and tables are those of skiboot's include/phb4-regs.h.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from pyvfio import errors
from pyvfio.eeh import HostPe, InjectedError, Injector, Pe
from pyvfio.pci import Function

_COMPATIBLE = Path("/proc/device-tree/compatible")
_MEMORY = "/dev/mem"
_PAGE = mmap.PAGESIZE

_IODA_ADDRESS, _IODA_DATA = 0x220, 0x228
_PEST_A, _PEST_B, _PEEV = 7, 8, 20
_STOPPED = 1 << 63


class IodaInjector(Injector):
    """Writes the PE's state into the PHB's tables, through /dev/mem."""

    def refusal(self, function: Function) -> str | None:
        machine = _COMPATIBLE.read_bytes().split(b"\0") if _COMPATIBLE.exists() else []
        if "PYVFIO_BENCH" not in os.environ or b"qemu,powernv9" not in machine:
            if b"qemu,powernv8" in machine:
                return "QEMU's PHB3 keeps no state of its PEs: on the bench, take power9"
            return "it freezes PEs of the bench's power9 alone"
        return None

    def inject(self, function: Function, pe: Pe | None, error: InjectedError | None) -> str:
        if (reason := self.refusal(function)) is not None:
            raise errors.HostError(reason)
        if error is not None:
            raise errors.ArgumentError("bench-ioda freezes, without an error: leave it out")
        number = HostPe(function).number
        base = _registers(function)
        try:
            file = os.open(_MEMORY, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
        except OSError as failure:
            raise errors.KernelError(failure.errno or 0, "open", _MEMORY) from None
        try:
            window = mmap.mmap(file, _PAGE, offset=base)
        except OSError as failure:
            raise errors.KernelError(
                failure.errno or 0, "mmap", _MEMORY, "the kernel needs iomem=relaxed"
            ) from None
        finally:
            os.close(file)
        table = _Tables(window)
        vector = table.read(_PEEV, number // 64)
        table.write(_PEST_A, number, _STOPPED)
        table.write(_PEST_B, number, _STOPPED)
        table.write(_PEEV, number // 64, vector | _STOPPED >> number % 64)
        return f"wrote PE {number:#x} as stopped into the IODA tables of the PHB at {base:#x}"


class _Tables:
    """The PHB's tables, behind two big-endian registers of 64 bits."""

    def __init__(self, window: mmap.mmap) -> None:
        register = ctypes.c_uint64.__ctype_be__
        self._address = register.from_buffer(window, _IODA_ADDRESS)
        self._data = register.from_buffer(window, _IODA_DATA)

    def read(self, table: int, index: int) -> int:
        self._address.value = table << 48 | index
        return int(self._data.value)

    def write(self, table: int, index: int, value: int) -> None:
        self._address.value = table << 48 | index
        self._data.value = value


def _registers(function: Function) -> int:
    """Where the registers of the function's PHB are: the first address of its device-tree node."""
    bus = Path(f"/sys/class/pci_bus/{function.address.domain:04x}:00")
    return int.from_bytes((bus / "of_node/reg").read_bytes()[:8], "big")
