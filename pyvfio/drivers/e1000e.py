"""Intel 82574L network card, as far as it takes to see it do DMA and interrupt.

Registers and descriptors are those of its datasheet, chapters 7.2, 7.4 and 10.2.
"""

from __future__ import annotations

import time

from pyvfio import errors
from pyvfio.device import Device
from pyvfio.iommu import fence

VENDOR_ID = 0x8086
DEVICE_ID = 0x10D3

_CTRL = 0x0000
_RESET = 1 << 26
_ICR, _ICS, _IMS, _IMC, _EIAC, _IVAR = 0x00C0, 0x00C8, 0x00D0, 0x00D8, 0x00DC, 0x00E4
_THROTTLING = range(0x00E8, 0x00FC, 4)
_OTHER_CAUSE = 1 << 24
_VALID, _EVERY_WRITE_BACK = 8, 1 << 31
_RCTL = 0x0100
_LOOPBACK = 1 << 6
_TCTL = 0x0400
_TRANSMIT_ENABLE = 1 << 1
_RING_LOW, _RING_HIGH, _RING_BYTES, _RING_HEAD, _RING_TAIL = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818

# A legacy transmit descriptor: buffer address, length, what to do, status.
_RING_SIZE = 128
_END_OF_PACKET_REPORT = 1 << 24 | 1 << 27
_DONE = 1 << 0

_FRAME = bytes(6 * [2] + 6 * [2]) + b"\x88\xb5" + bytes(46)  # to itself; for experiments (802)
_TIMEOUT = 30.0  # seconds; microseconds on hardware, more on an emulated host


class Intel82574:
    """An opened card, reset."""

    def __init__(self, device: Device) -> None:
        """Drive `device`, which stays the caller's to close.

        Raises:
            Unsupported: it is another device.
        """
        ids = device.config.vendor_id, device.config.device_id
        if ids != (VENDOR_ID, DEVICE_ID):
            raise errors.Unsupported(
                f"{device.address} is {ids[0]:04x}:{ids[1]:04x}, no 82574L "
                f"({VENDOR_ID:04x}:{DEVICE_ID:04x})"
            )
        self._device = device
        self._registers = registers = device.bars[0]
        registers.write32(_IMC, 0xFFFFFFFF)
        registers.write32(_CTRL, registers.read32(_CTRL) | _RESET)
        time.sleep(0.01)  # 1 us until it may be looked at, and it reads its EEPROM
        registers.write32(_IMC, 0xFFFFFFFF)
        registers.read32(_ICR)

    def transmit(self) -> int:
        """Let the card fetch a frame from memory and write back that it has; the frame goes round
        inside the card (MAC loopback) and not out to the network.

        Returns:
            The bytes of the frame.

        Raises:
            StateError: it did not; bus mastering is off, or its DMA is blocked.
        """
        registers = self._registers
        with self._device.dma.alloc(_RING_SIZE) as ring, self._device.dma.alloc(4096) as frame:
            frame.view[: len(_FRAME)] = _FRAME
            ring.view[:8] = frame.iova.to_bytes(8, "little")
            ring.view[8:12] = (len(_FRAME) | _END_OF_PACKET_REPORT).to_bytes(4, "little")
            registers.write32(_RCTL, _LOOPBACK)
            registers.write32(_RING_LOW, ring.iova & 0xFFFFFFFF)
            registers.write32(_RING_HIGH, ring.iova >> 32)
            registers.write32(_RING_BYTES, _RING_SIZE)
            registers.write32(_RING_HEAD, 0)
            registers.write32(_RING_TAIL, 0)
            registers.write32(_TCTL, _TRANSMIT_ENABLE)
            fence()  # data before doorbell
            registers.write32(_RING_TAIL, 1)
            deadline = time.monotonic() + _TIMEOUT
            try:
                while not ring.view[12] & _DONE:
                    if time.monotonic() > deadline:
                        raise errors.StateError(
                            f"{self._device.address} fetched no frame in {_TIMEOUT:g} s: is bus "
                            "mastering on, and its PE not frozen?"
                        )
                    time.sleep(0.001)
            finally:
                registers.write32(_TCTL, 0)
        return len(_FRAME)

    def raise_interrupt(self) -> None:
        """Make the card interrupt once by MSI-X vector 0, which somebody has enabled.

        Call :meth:`quiet` before MSI-X is disabled.
        """
        registers = self._registers
        for register in _THROTTLING:
            registers.write32(register, 0)
        registers.write32(_EIAC, _OTHER_CAUSE)
        registers.write32(_IVAR, _EVERY_WRITE_BACK | _VALID << 16)
        # The card masks the cause again with the interrupt.
        registers.write32(_IMS, _OTHER_CAUSE)
        registers.write32(_ICS, _OTHER_CAUSE)

    def quiet(self) -> None:
        """Mask all causes, and be done with those that there were."""
        self._registers.write32(_IMC, 0xFFFFFFFF)
        # It holds the next one back for a while. QEMU (7.2 at least) ends with an assertion if
        # MSI-X is off when that while is over.
        time.sleep(0.2)

    def interrupt(self) -> None:
        """Let the card interrupt by MSI-X vector 0, on demand.

        Raises:
            StateError: the interrupt did not arrive.
            Error: vector 0 cannot be enabled.
        """
        with self._device.msix.enable(1) as vectors:
            self.raise_interrupt()
            arrived = vectors[0].wait(_TIMEOUT)
            self.quiet()
        if not arrived:
            raise errors.StateError(f"{self._device.address}: no interrupt in {_TIMEOUT:g} s")
