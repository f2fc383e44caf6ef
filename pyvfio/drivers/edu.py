"""QEMU's teaching device: computes factorials, does DMA, interrupts (QEMU, docs/specs/edu.rst)."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Literal

from pyvfio import errors
from pyvfio.device import Device, Region, Vector
from pyvfio.iommu import fence

VENDOR_ID = 0x1234
DEVICE_ID = 0x11E8

BUFFER = 0x40000
"""Where the device's own memory begins, in its own address space."""
LARGEST = 4095
"""Bytes that one DMA may move: QEMU aborts at one that ends with the 4,096 bytes of that memory."""
LAST_IOVA = (1 << 28) - 1
"""The last address that its DMA reaches."""

_IDENT = 0x00
_IDENT_SWAPPED = 0xED  # in its first byte, which is the last of 0xMMmm00ED
_LIVENESS = 0x04
_FACTORIAL = 0x08
_STATUS = 0x20
_IRQ_STATUS = 0x24
_IRQ_RAISE = 0x60
_IRQ_ACK = 0x64
_DMA_FROM = 0x80
_DMA_TO = 0x88
_DMA_SIZE = 0x90
_DMA_COMMAND = 0x98

_COMPUTING = 1 << 0
_IRQ_WHEN_COMPUTED = 1 << 7
_DMA_START = 1 << 0
_DMA_TO_MEMORY = 1 << 1
_IRQ_WHEN_MOVED = 1 << 2

_TIMEOUT = 30.0  # seconds; the device takes about 0.1, an emulated host more


class Registers:
    """edu's registers, in its byte order.

    QEMU gives them that of the emulated host's architecture, as QEMU sees it: on POWER, where Linux
    is little-endian, they are big-endian. The identification register tells.
    """

    def __init__(self, region: Region) -> None:
        """For BAR 0."""
        self._region = region
        swapped = region.read32(_IDENT) >> 24 == _IDENT_SWAPPED
        self._order: Literal["big", "little"] = "big" if swapped else "little"

    def ordered(self, value: int, width: int) -> int:
        """`value` of `width` bytes as the region's own accesses have it, and back."""
        return int.from_bytes(value.to_bytes(width, "little"), self._order)

    def read32(self, offset: int) -> int:
        """As :meth:`Region.read32`."""
        return self.ordered(self._region.read32(offset), 4)

    def write32(self, offset: int, value: int) -> None:
        """As :meth:`Region.write32`."""
        self._region.write32(offset, self.ordered(value, 4))

    def write64(self, offset: int, value: int) -> None:
        """As :meth:`Region.write64`."""
        self._region.write64(offset, self.ordered(value, 8))


class Edu:
    """An opened edu device."""

    def __init__(self, device: Device) -> None:
        """Drive `device`, which stays the caller's to close.

        Raises:
            Unsupported: it is another device.
        """
        ids = device.config.vendor_id, device.config.device_id
        if ids != (VENDOR_ID, DEVICE_ID):
            raise errors.Unsupported(
                f"{device.address} is {ids[0]:04x}:{ids[1]:04x}, not edu "
                f"({VENDOR_ID:04x}:{DEVICE_ID:04x})"
            )
        self._device = device
        self._registers = Registers(device.bars[0])

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version, from the identification register."""
        ident = self._registers.read32(_IDENT)
        return ident >> 24, ident >> 16 & 0xFF

    def invert(self, value: int) -> int:
        """The device's complement of 32 bits: a sign of life."""
        self._registers.write32(_LIVENESS, value)
        return self._registers.read32(_LIVENESS)

    def factorial(self, number: int, vector: Vector | None = None) -> int:
        """Let the device compute `number`!, modulo 2**32.

        Args:
            vector: waits for its interrupt, after taking what came before; None polls.

        Raises:
            StateError: it did not finish.
        """
        if vector is not None:
            vector.take()  # of an operation that was given up
        self._registers.write32(_STATUS, 0 if vector is None else _IRQ_WHEN_COMPUTED)
        self._registers.write32(_FACTORIAL, number)
        self._finish(vector, _STATUS, _COMPUTING)
        return self._registers.read32(_FACTORIAL)

    def raise_interrupt(self, status: int) -> None:
        """Make the device interrupt, with these bits in its interrupt status."""
        self._registers.write32(_IRQ_RAISE, status)

    def acknowledge(self) -> int:
        """Clear the interrupt status.

        Returns:
            The bits that were set.
        """
        status = self._registers.read32(_IRQ_STATUS)
        self._registers.write32(_IRQ_ACK, status)
        return status

    def read_memory(self, iova: int, size: int, vector: Vector | None = None) -> None:
        """DMA from memory into the device's buffer.

        Args:
            iova: where to read, at most :data:`LAST_IOVA`.
            size: bytes, at most :data:`LARGEST`.
            vector: waits for its interrupt, after taking what came before; None polls.

        Raises:
            StateError: it did not finish.

        Whatever ends it early (Control-C, too) leaves bus mastering off: the device is not done
        with memory that its owner may now give to others.
        """
        self._dma(iova, BUFFER, size, 0, vector)

    def write_memory(self, iova: int, size: int, vector: Vector | None = None) -> None:
        """DMA from the device's buffer into memory; arguments as for :meth:`read_memory`."""
        self._dma(BUFFER, iova, size, _DMA_TO_MEMORY, vector)
        fence()  # what the device wrote is read after its completion

    def _dma(self, start: int, end: int, size: int, flags: int, vector: Vector | None) -> None:
        if not 0 < size <= LARGEST:
            raise errors.RangeError(f"edu moves 1 to {LARGEST} bytes at a time, not {size}")
        registers = self._registers
        registers.write64(_DMA_FROM, start)
        registers.write64(_DMA_TO, end)
        registers.write64(_DMA_SIZE, size)
        fence()  # data before doorbell
        command = flags | _DMA_START | (0 if vector is None else _IRQ_WHEN_MOVED)
        if vector is not None:
            vector.take()  # of an operation that was given up
        try:
            registers.write32(_DMA_COMMAND, command)
            self._finish(vector, _DMA_COMMAND, _DMA_START)
        except BaseException:
            with suppress(errors.Error):  # what has gone does no DMA
                self._device.bus_master = False
            raise

    def _finish(self, vector: Vector | None, register: int, busy: int) -> None:
        if vector is not None:
            if not vector.wait(_TIMEOUT):
                raise errors.StateError("edu did not interrupt: was bus mastering on?")
            self.acknowledge()
        deadline = time.monotonic() + _TIMEOUT
        while self._registers.read32(register) & busy:
            if time.monotonic() > deadline:
                raise errors.StateError("edu does not finish; reset the device")
            time.sleep(0.001)
