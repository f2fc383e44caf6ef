"""Kills, Ctrl-C and interrupts, again and again at random instants.

A few of each are part of every run. With PYVFIO_REPEAT=50 there are 200 kills, 300 Ctrl-C and a
million interrupts.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

import pyvfio
from hwtests.bench import ON_BENCH, REPEAT
from hwtests.devices import test_edu as edu
from pyvfio.device import Device, Vector
from pyvfio.drivers.edu import Registers
from pyvfio.pci import Function, bound, functions, paths, unbind

pytestmark = pytest.mark.skipif(
    not ON_BENCH, reason="takes a disk and a network card from the host: only on the bench"
)

WAIT = 60.0


def the(vendor: int, device: int) -> Function:
    return next(f for f in functions() if (f.vendor_id, f.device_id) == (vendor, device))


CARD = (0x8086, 0x10D3)
EDU = (0x1234, 0x11E8)


def is_back(function: Function, driver: str | None) -> bool:
    return (
        function.driver == driver
        and function.driver_override is None
        and not (paths.RECORDS / f"{function.address}.json").exists()
    )


# Kills.


def use(function: Function) -> None:
    """Take a device, let it do DMA and interrupt, and give it back."""
    with (
        bound(function.address),
        pyvfio.open(function) as device,
        device.dma.alloc(4096, max_iova=(1 << edu.DMA_BITS) - 1) as buffer,
    ):
        irq = device.msix if device.msix.count else device.msi
        with irq.enable() as vectors:
            if function.vendor_id == EDU[0]:
                registers = Registers(device.bars[0])
                for _ in range(20):
                    edu.transfer(registers, buffer.iova, edu.OWN_MEMORY, 4000, 0)
                    edu.transfer(registers, edu.OWN_MEMORY, buffer.iova, 4000, edu.TO_MEMORY)
            irq.trigger(0, len(vectors))
            assert vectors[0].wait(WAIT)


def use_until_killed(function: Function) -> NoReturn:
    try:
        while True:
            use(function)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@pytest.mark.parametrize(("identity", "driver"), [(CARD, "e1000e"), (EDU, None)])
def test_kill_9_at_any_instant_loses_no_device(
    identity: tuple[int, int], driver: str | None
) -> None:
    function = the(*identity)
    start = time.monotonic()
    use(function)
    whole = time.monotonic() - start
    chance = random.Random(1)
    for _ in range(2 * REPEAT):
        child = os.fork()
        if not child:
            use_until_killed(function)
        time.sleep(chance.uniform(0, 1.5 * whole))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL, "it ended by itself"
        unbind(function.address)
        assert is_back(function, driver)
    use(function)
    assert is_back(function, driver)


# Ctrl-C.


def interrupted(command: list[str], seconds: float) -> tuple[int, str]:
    """Start a command, send it Ctrl-C after some time; its exit status and what it says."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=WAIT)
    return child.returncode, said


@pytest.mark.parametrize(
    ("command", "times"),
    [
        ("pyvfio nvme copy {} /tmp/copy --size 32M", 2),
        ("tools/hwtest --device {} hwtests/devices/test_nvme.py hwtests/test_dma.py", 1),
    ],
    ids=["nvme copy", "hwtest"],
)
def test_ctrl_c_at_any_instant_gives_the_disk_back(command: str, times: int) -> None:
    disk = next(function for function in functions() if function.driver == "nvme")
    words = command.format(disk.address).split()
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    Path("/tmp/copy").unlink(missing_ok=True)
    whole = time.monotonic() - start
    chance = random.Random(2)
    outcomes: Counter[int] = Counter()
    for _ in range(times * REPEAT):
        status, said = interrupted(words, chance.uniform(0, whole))
        outcomes[status] += 1
        assert is_back(disk, "nvme"), said
        # Python's own start, before any code of the command, prints a traceback.
        assert status in (0, 130, -signal.SIGINT) or "pyvfio/" not in said, said
        Path("/tmp/copy").unlink(missing_ok=True)
    print(f"{whole:.2f} s each, ended with: {dict(outcomes)}")


# Interrupts.


def by_wait(vector: Vector, enough: Callable[[], bool]) -> None:
    while not enough():
        vector.wait(0.01)


def by_select(vector: Vector, enough: Callable[[], bool]) -> None:
    while not enough():
        if select.select([vector], [], [], 0.01)[0]:
            vector.take()


def by_asyncio(vector: Vector, enough: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not enough():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(vector.wait_async(), 0.01)

    asyncio.run(wait())


@pytest.mark.parametrize("receive", [by_wait, by_select, by_asyncio], ids=lambda way: way.__name__)
def test_each_interrupt_is_counted_once(
    receive: Callable[[Vector, Callable[[], bool]], None],
) -> None:
    number = 6_700 * REPEAT
    function = the(*EDU)
    with (
        bound(function.address),
        pyvfio.open(function) as device,
        device.msi.enable(1) as vectors,
    ):
        vector = vectors[0]
        sending = threading.Thread(target=send, args=(device, number))
        sending.start()
        receive(vector, lambda: not sending.is_alive())
        sending.join()
        vector.wait(0)
        assert vector.count == number


def send(device: Device, number: int) -> None:
    chance = random.Random(3)
    for _ in range(number):
        device.msi.trigger()
        if chance.random() < 0.01:
            time.sleep(0.001)
