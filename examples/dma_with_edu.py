"""Let a device read and write memory: buffers of the library, and memory of one's own.

    tools/bench run x86 -- python3 examples/dma_with_edu.py 0000:00:04.0

prints

    a buffer of 4096 bytes, at 0x... for the device
    moved to the device and back: b'hello, device'
    from the device into memory of our own: b'hello, device'
    unmapped again: the IOMMU stops the device, and our memory stays b'untouched'

The device is edu, QEMU's teaching device. It has 4096 bytes of its own and copies between them and
memory; it reaches the first 256 MiB of addresses. pyvfio/drivers/edu.py has this as a driver.
"""

from __future__ import annotations

import mmap
import sys
import time

import pyvfio
from pyvfio import errors
from pyvfio.device import Device
from pyvfio.drivers import edu

SOURCE, TARGET, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98  # registers: byte offsets in BAR 0
START, TO_MEMORY = 1 << 0, 1 << 1  # bits of COMMAND
OWN_MEMORY = 0x40000  # where edu's own bytes are, to edu
LAST_IOVA = (1 << 28) - 1
TIMEOUT = 30.0  # seconds; an emulated host may be slow


def move(device: Device, source: int, target: int, size: int, direction: int) -> None:
    """Let edu copy `size` bytes; `direction` is 0 or TO_MEMORY."""
    bar = device.bars[0]
    bar.write64(SOURCE, source)
    bar.write64(TARGET, target)
    bar.write64(COUNT, size)
    pyvfio.fence()  # our data is in memory before the device is told to look there
    bar.write64(COMMAND, START | direction)
    deadline = time.monotonic() + TIMEOUT
    while bar.read64(COMMAND) & START:
        if time.monotonic() > deadline:
            device.bus_master = False  # it may yet write, and the memory is soon used for others
            raise errors.StateError("edu does not finish")
        time.sleep(0.001)
    pyvfio.fence()  # and the device's is read only after it said that it is done


def main(address: str) -> None:
    text = b"hello, device"
    with pyvfio.bound(address), pyvfio.open(address) as device:
        edu.Edu(device)  # refuses another device

        # Memory that both see. The device knows it by its IOVA, and reaches nothing else.
        with device.dma.alloc(4096, max_iova=LAST_IOVA) as buffer:
            print(f"a buffer of {buffer.size} bytes, at {buffer.iova:#x} for the device")
            buffer.view[: len(text)] = text
            move(device, buffer.iova, OWN_MEMORY, len(text), 0)
            move(device, OWN_MEMORY, buffer.iova + 1024, len(text), TO_MEMORY)
            print("moved to the device and back:", bytes(buffer.view[1024 : 1024 + len(text)]))

        # Whole pages that somebody else allocated: an mmap here, a numpy array, a file.
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        with device.dma.map(memory, max_iova=LAST_IOVA) as mapping:
            move(device, OWN_MEMORY, mapping.iova, len(text), TO_MEMORY)
            print("from the device into memory of our own:", memory[: len(text)])

        memory[:9] = b"untouched"
        move(device, OWN_MEMORY, mapping.iova, len(text), TO_MEMORY)
        print(f"unmapped again: the IOMMU stops the device, and our memory stays {memory[:9]!r}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if sys.argv[1:] else "0000:00:04.0")
    except pyvfio.Error as error:
        sys.exit(f"dma_with_edu.py: {error}")
