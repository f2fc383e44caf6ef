"""Read and write a device's registers and its config space.

    tools/bench run x86 -- python3 examples/peek_and_poke.py 0000:00:04.0

prints

    0000:00:04.0 is 1234:11e8, with 0x100000 bytes of BAR0
    capabilities: MSI at 0x40
    it says that it is 0x010000ed
    wrote 0x12345678, reads 0xedcba987; a view shows the same: True
    bus mastering: True, then False
    offset 0x2 in BAR0 is not a multiple of 4; a register access is one access of its own width
    BAR0 has 0x100000 bytes: offset 0x100000 with 4 bytes is outside

The device is edu, QEMU's teaching device: its register at 0x4 answers the complement of what was
written.
"""

from __future__ import annotations

import sys

import pyvfio
from pyvfio import errors
from pyvfio.drivers import edu

IDENTIFICATION, LIVENESS = 0x00, 0x04  # byte offsets


def main(address: str) -> None:
    # What is on the bus is in sysfs: looking does not open the device, which would reset it.
    function = pyvfio.Function(address)
    if (function.vendor_id, function.device_id) != (edu.VENDOR_ID, edu.DEVICE_ID):
        raise errors.Unsupported(f"{address} is no edu: other devices have other registers")

    with pyvfio.bound(address), pyvfio.open(address) as device:
        # Config space has names; what has none is reached by offset: device.config.read(0x40, 2).
        config, bar = device.config, device.bars[0]
        ids = f"{config.vendor_id:04x}:{config.device_id:04x}"
        print(f"{address} is {ids}, with {bar.size:#x} bytes of BAR0")
        found = [
            f"{capability.name} at {capability.offset:#x}" for capability in config.capabilities
        ]
        print("capabilities:", ", ".join(found))

        # Methods: one access of that width, checked.
        print(f"it says that it is {bar.read32(IDENTIFICATION):#010x}")
        bar.write32(LIVENESS, 0x12345678)

        # Views: the same registers without a method call, for loops that count nanoseconds. A view
        # keeps the device open: let it go before the device goes back to the host.
        with bar.view(0, 8).cast("I") as registers:  # items of 32 bits: [1] is at byte 4
            same = registers[1] == bar.read32(LIVENESS)
        print(
            f"wrote 0x12345678, reads {bar.read32(LIVENESS):#010x}; a view shows the same: {same}"
        )

        # Without it the device can neither reach memory nor send MSI.
        before = device.bus_master
        device.bus_master = False
        print(f"bus mastering: {before}, then {device.bus_master}")

        # What makes no sense is refused before the device sees it.
        for offset in (0x2, bar.size):
            try:
                bar.read32(offset)
            except errors.ArgumentError as error:
                print(error)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if sys.argv[1:] else "0000:00:04.0")
    except pyvfio.Error as error:
        sys.exit(f"peek_and_poke.py: {error}")
