"""Read an NVMe disk: what it is, a block, many pieces at once, its health. Nothing is written.

    tools/bench run x86 -- sh -c '
        disk=$(basename /sys/bus/pci/devices/0000:01:00.0/nvme/nvme*/nvme*n1)
        echo Hello >/dev/$disk && python3 examples/read_a_disk.py'

prints

    'QEMU NVMe Ctrl', serial number 'pyvfio-bench': 67108864 bytes in blocks of 512
    block 0 begins with b'Hello'
    1 MiB in 16 pieces, all under way at once; the first begins with b'Hello'
    8 blocks from 131068 on: namespace 1 has blocks 0 to 131071: 8 from 131068 on is outside
    its health: ... K, 0 media errors

Linux's driver writes to the bench's disk here, which is empty at first, and then pyvfio's has it.
Linux numbers several disks as it finds them, so sysfs is asked for the name.
Another disk is read after `pyvfio list` told its address; one that is mounted is refused.
"""

from __future__ import annotations

import asyncio
import sys

import pyvfio
from pyvfio import errors
from pyvfio.drivers import nvme

PIECE = 64 << 10  # bytes


async def read_pieces(disk: nvme.Namespace, memory: memoryview) -> int:
    """Fill the memory from the disk's beginning; returns how many pieces it took."""
    starts = range(0, len(memory), PIECE)
    await asyncio.gather(
        *(
            disk.start_read(start // disk.block_size, memory[start : start + PIECE])
            for start in starts
        )
    )
    return len(starts)


def main(address: str) -> None:
    with (
        pyvfio.bound(address),
        pyvfio.open(address) as device,
        nvme.Controller(device) as controller,
    ):
        identity = controller.identity
        disk = controller.namespaces[min(controller.namespaces)]
        # Quoted, since a device may say anything, and a terminal would obey it.
        print(f"{identity.model!r}, serial number {identity.serial!r}: ", end="")
        print(f"{disk.size} bytes in blocks of {disk.block_size}")

        # Into new memory, and waited for.
        print(f"block 0 begins with {bytes(disk.read(0, 1)[:5])!r}")

        # The device itself puts the data where they are wanted: a DMA buffer is not copied from.
        with device.dma.alloc(1 << 20) as buffer:
            count = asyncio.run(read_pieces(disk, buffer.view))
            print(f"1 MiB in {count} pieces, all under way at once; ", end="")
            print(f"the first begins with {bytes(buffer.view[:5])!r}")

        try:
            disk.read(disk.blocks - 4, 8)
        except errors.RangeError as error:
            print(f"8 blocks from {disk.blocks - 4} on: {error}")

        health = controller.smart()
        print(f"its health: {health.temperature} K, {health.media_errors} media errors")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if sys.argv[1:] else "0000:01:00.0")
    except pyvfio.Error as error:
        sys.exit(f"read_a_disk.py: {error}")
