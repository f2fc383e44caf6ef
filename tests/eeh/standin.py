"""Stand-ins for the kernel's EEH, to inject faults: VFIO_EEH_PE_OP, and a PE's file in sysfs.

They keep the kernel's rules that pyvfio relies on; that they are the kernel's is shown on the
bench.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.abi import vfio
from pyvfio.pci import Function
from tests.iommu.standin import Kernel

NAMES = {
    vfio.VFIO_EEH_PE_DISABLE: "disable",
    vfio.VFIO_EEH_PE_ENABLE: "enable",
    vfio.VFIO_EEH_PE_UNFREEZE_IO: "unfreeze_io",
    vfio.VFIO_EEH_PE_UNFREEZE_DMA: "unfreeze_dma",
    vfio.VFIO_EEH_PE_GET_STATE: "state",
    vfio.VFIO_EEH_PE_RESET_DEACTIVATE: "deactivate",
    vfio.VFIO_EEH_PE_RESET_HOT: "hot",
    vfio.VFIO_EEH_PE_RESET_FUNDAMENTAL: "fundamental",
    vfio.VFIO_EEH_PE_CONFIGURE: "configure",
    vfio.VFIO_EEH_PE_INJECT_ERR: "inject",
}


class EehKernel(Kernel):
    """VFIO containers that know EEH, over one PE.

    Attributes:
        mmio, dma: whether they are stopped.
        in_reset: whether a reset is asserted.
        state: what GET_STATE says instead of the truth, while it is not None.
        operations: those asked for, by name.
        before: called with each operation's name before it is done; may raise.
        freezes: whether an injected error freezes the PE.
        stuck: whether a reset leaves the PE frozen.
        injected: the last error injected: type, function, address, mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extensions.add(vfio.VFIO_EEH)
        self.mmio = self.dma = self.in_reset = False
        self.state: int | None = None
        self.operations: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        self.freezes = True
        self.stuck = False
        self.injected: tuple[int, int, int, int] | None = None

    def freeze(self) -> None:
        self.mmio = self.dma = True

    def vfio_eeh_pe_op(self, container: Any, arg: Any) -> int:
        assert arg.argsz == 40
        assert arg.flags == 0
        name = NAMES[arg.op]
        self.operations.append(name)
        self.before(name)
        if name == "state":
            return self._state()
        if name == "unfreeze_io":
            self.mmio = False
        elif name == "unfreeze_dma":
            self.dma = False
        elif name in ("hot", "fundamental"):
            self.in_reset = True
            self.freeze()
        elif name == "deactivate":
            self.in_reset = False
            self.mmio = self.dma = self.stuck
        elif name == "enable":
            self.mmio = self.dma = False
        elif name == "inject":
            error = arg.err
            self.injected = error.type, error.func, error.addr, error.mask
            self.mmio = self.dma = self.freezes
        return 0

    def _state(self) -> int:
        if self.state is not None:
            return self.state
        if self.mmio:
            return vfio.VFIO_EEH_PE_STATE_STOPPED
        return vfio.VFIO_EEH_PE_STATE_STOPPED_DMA if self.dma else vfio.VFIO_EEH_PE_STATE_NORMAL


class FakeConfig:
    """Config space of a device: what recovery saves and restores; gone while in reset."""

    pcie = None
    vendor_id, device_id, status = 0x8086, 0x10D3, 0x0010

    def __init__(self) -> None:
        self.registers: dict[int, int] = {4: 0x0107, 8: 0x0200_0001, 0x2C: 0xA01F_8086, 0x3C: 7}

    @property
    def aer(self) -> None:
        raise errors.MalformedConfig("only 256 bytes of config space are here")

    @property
    def answers(self) -> bool:
        return self.read(8, 4) != 0xFFFF_FFFF

    @property
    def command(self) -> int:
        return self.read(4, 2)

    @command.setter
    def command(self, value: int) -> None:
        self.write(4, 2, value)

    def read(self, offset: int, width: int) -> int:
        return self.registers.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        self.registers[offset] = value


class FakeIrq:
    """Counts how often it is disabled."""

    def __init__(self) -> None:
        self.disabled = 0

    def disable(self) -> None:
        self.disabled += 1


class FakeDevice:
    """An opened device, as far as EEH is concerned.

    Attributes:
        at_reset: how often MSI-X had been disabled before each reset.
    """

    def __init__(self, space: Any, address: str = "0000:01:00.0") -> None:
        self.dma = space
        self.address = address
        self.function = SimpleNamespace(address=address, read_config=lambda: b"")
        self.config = FakeConfig()
        self.intx, self.msi, self.msix = FakeIrq(), FakeIrq(), FakeIrq()
        self.bars: dict[int, Any] = {}

    @property
    def bus_master(self) -> bool:
        return bool(self.config.command & 4)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self.config.command = self.config.command & ~4 | 4 * on


class SysfsPe:
    """A PE's file eeh_pe_state in a tree, with what the kernel does when it is read and written.

    Attributes:
        hardware, software: its two words.
        writes: how often it was written.
        refuse: the errno with which writing fails.
        gone: whether the function has no PE (any more).
        thaws: whether a write thaws it.
    """

    def __init__(self, function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hardware, self.software = 0x78, 0x800
        self.writes = 0
        self.refuse: int | None = None
        self.gone = False
        self.thaws = True
        self.path = function.sysfs / "eeh_pe_state"
        self._fds: set[int] = set()
        directory = function.sysfs.resolve()
        (directory / "eeh_pe_state").write_text("")
        (directory / "eeh_pe_config_addr").write_text("0x1fd\n")
        (directory / "eeh_mode").write_text("0x200\n")
        for name in ("open", "read", "pwrite"):
            monkeypatch.setattr(calls, name, getattr(self, name))

    def freeze(self) -> None:
        self.hardware = 0

    def open(self, path: str, flags: int) -> int:
        fd = os.open(path, flags)
        self._fds.discard(fd)
        if Path(path) == self.path:
            self._fds.add(fd)
            self._seen = False
        return fd

    def read(self, fd: int, size: int) -> bytes:
        if fd not in self._fds:
            return os.read(fd, size)
        if self.gone:
            raise OSError(19, "ENODEV")
        if self._seen:
            return b""
        self._seen = True
        if not self.hardware & 0x1B:
            self.software |= 1
        return f"0x{self.hardware:08x} 0x{self.software:08x}\n".encode()

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if fd not in self._fds:
            return os.pwrite(fd, data, offset)
        self.writes += 1
        if self.refuse is not None:
            raise OSError(self.refuse, "injected")
        if self.software & 1 and self.thaws:
            self.hardware = 0x78
            self.software &= ~1
        return len(data)


def press_ctrl_c(name: str, at: str) -> None:
    """For EehKernel.before: Ctrl-C while operation `at` is under way."""
    if name == at:
        signal.raise_signal(signal.SIGINT)
