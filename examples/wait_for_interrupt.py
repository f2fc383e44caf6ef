"""Wait for a device's interrupts: blocking, with select, and without waiting.

    tools/bench run x86 -- python3 examples/wait_for_interrupt.py 0000:00:04.0

prints

    before: 0 interrupts
    blocking: 1 interrupt, of cause 0x1
    select: vector 0 is readable, 1 interrupt, of cause 0x2
    computed: 12! = 479001600, told by 1 interrupt
    by loopback: 3 interrupts that nobody had looked at
    in all: 6 interrupts

The device is edu, QEMU's teaching device, which interrupts on demand and when a factorial is ready.
"""

from __future__ import annotations

import select
import sys

import pyvfio
from pyvfio.drivers import edu

TIMEOUT = 30.0  # seconds; an emulated host may be slow


def main(address: str) -> None:
    with pyvfio.bound(address), pyvfio.open(address) as device:
        driver = edu.Edu(device)  # refuses another device
        with device.msi.enable(1) as vectors:  # msix and intx are used alike
            vector = vectors[0]
            print(f"before: {vector.take()} interrupts")

            # 0 would say that the time ran out.
            driver.raise_interrupt(0x1)
            count = vector.wait(TIMEOUT)
            print(f"blocking: {count} interrupt, of cause {driver.acknowledge():#x}")

            # A vector is a file to select, poll and asyncio, among sockets and pipes of yours.
            driver.raise_interrupt(0x2)
            for ready in select.select([vector], [], [], TIMEOUT)[0]:
                count, cause = ready.take(), driver.acknowledge()
                print(f"select: vector {ready.index} is readable, {count} interrupt, ", end="")
                print(f"of cause {cause:#x}")

            before = vector.count
            factorial = driver.factorial(12, vector)
            print(f"computed: 12! = {factorial}, told by {vector.count - before} interrupt")

            # The kernel can signal a vector as if the device had: no hardware is asked.
            for _ in range(3):
                device.msi.trigger(0)
            print(f"by loopback: {vector.take()} interrupts that nobody had looked at")
            print(f"in all: {vector.count} interrupts")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if sys.argv[1:] else "0000:00:04.0")
    except pyvfio.Error as error:
        sys.exit(f"wait_for_interrupt.py: {error}")
