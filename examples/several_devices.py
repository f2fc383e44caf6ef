"""Await the interrupts of several devices at once, with asyncio.

    tools/bench run x86 -- python3 examples/several_devices.py 0000:00:04.0 0000:02:00.0

prints

    0000:00:04.0: told to interrupt 3 times, 3 interrupts came
    0000:02:00.0: told to interrupt 3 times, 3 interrupts came
    meanwhile something else ran: True

The devices are edu, QEMU's teaching device, and an Intel 82574L network card (e1000e).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pyvfio
from pyvfio import errors
from pyvfio.device import Device, Vector
from pyvfio.drivers.e1000e import Intel82574
from pyvfio.drivers.edu import Edu

TIMES = 3
TIMEOUT = 30.0  # seconds; an emulated host may be slow


async def interrupt(vector: Vector, tell: Callable[[], None]) -> int:
    """Tell a device to interrupt and await it, again and again; returns how many came."""
    came = 0
    for time in range(1, TIMES + 1):
        tell()
        try:
            # What came while nobody looked is counted, so it can have come before this awaits it.
            came += await asyncio.wait_for(vector, TIMEOUT)
        except asyncio.TimeoutError:
            raise errors.StateError(f"interrupt {time} did not arrive") from None
    return came


async def meet(teacher: Device, card: Device) -> None:
    """Both devices interrupt, each when it likes, while something else runs."""
    edu, nic = Edu(teacher), Intel82574(card)  # each refuses another device
    turns = 0

    async def something_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def tell_edu() -> None:
        edu.acknowledge()  # the one before
        edu.raise_interrupt(1)

    with teacher.msi.enable(1) as (of_edu,), card.msix.enable(1) as (of_nic,):
        other = asyncio.create_task(something_else())
        counts = await asyncio.gather(
            interrupt(of_edu, tell_edu), interrupt(of_nic, nic.raise_interrupt)
        )
        other.cancel()
        edu.acknowledge()
        nic.quiet()
    for device, count in zip((teacher, card), counts, strict=True):
        print(f"{device.address}: told to interrupt {TIMES} times, {count} interrupts came")
    print(f"meanwhile something else ran: {turns > 0}")


def main(first: str, second: str) -> None:
    with (
        pyvfio.bound(first),
        pyvfio.bound(second),
        # Each has an address space of its own; open(..., space=space) would let them share one.
        pyvfio.open(first) as teacher,
        pyvfio.open(second) as card,
    ):
        asyncio.run(meet(teacher, card))


if __name__ == "__main__":
    addresses = sys.argv[1:3] if sys.argv[2:] else ["0000:00:04.0", "0000:02:00.0"]
    try:
        main(*addresses)
    except pyvfio.Error as error:
        sys.exit(f"several_devices.py: {error}")
