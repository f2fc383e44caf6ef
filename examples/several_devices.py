"""Await the interrupts of several devices at once, with asyncio.

    tools/bench run x86 -- python3 examples/several_devices.py 0000:00:04.0 0000:02:00.0

prints

    round 1: both interrupted
    round 2: both interrupted
    round 3: both interrupted
    0000:00:04.0: 3 interrupts by MSI
    0000:02:00.0: 3 interrupts by MSI-X
    meanwhile something else ran: True

The devices are edu, QEMU's teaching device, and an Intel 82574L network card (e1000e).
"""

from __future__ import annotations

import asyncio
import sys

import pyvfio
from pyvfio.device import Device
from pyvfio.drivers.e1000e import Intel82574
from pyvfio.drivers.edu import Edu

TIMEOUT = 30.0  # seconds; an emulated host may be slow


async def meet(teacher: Device, card: Device) -> None:
    """Three rounds in which both devices interrupt, in whatever order."""
    edu, nic = Edu(teacher), Intel82574(card)  # each refuses another device
    turns = 0

    async def something_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    with teacher.msi.enable(1) as (of_edu,), card.msix.enable(1) as (of_nic,):
        other = asyncio.create_task(something_else())
        for number in range(1, 4):
            both = asyncio.gather(of_edu.wait_async(), of_nic.wait_async())
            await asyncio.sleep(0)  # they wait now, before anything happens
            edu.raise_interrupt(1)
            nic.raise_interrupt()
            await asyncio.wait_for(both, TIMEOUT)
            edu.acknowledge()
            print(f"round {number}: both interrupted")
            await asyncio.sleep(0.01)  # the card keeps some distance between its interrupts
        other.cancel()
        nic.quiet()
        print(f"{teacher.address}: {of_edu.count} interrupts by MSI")
        print(f"{card.address}: {of_nic.count} interrupts by MSI-X")
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
