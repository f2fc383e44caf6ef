"""One device, several threads."""

from __future__ import annotations

import threading
import time

import pytest

from pyvfio import errors
from pyvfio.device import Device

WAIT = 60.0


def test_readers_are_refused_while_another_thread_switches_memory_decoding_off(
    device: Device,
) -> None:
    """Touching the BAR in between would be SIGBUS, and the end of this process."""
    bar = next((bar for bar in device.bars.values() if bar.areas), None)
    if bar is None:
        pytest.skip("no BAR of the device can be mapped")
    done = threading.Event()
    refused = []
    before = bar.read32(0)

    def read() -> None:
        while not done.is_set():
            try:
                bar.read32(0)
            except errors.MemoryDisabled as error:
                refused.append(error)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    switched = 0
    try:
        deadline = time.monotonic() + WAIT
        while (switched < 50 or not refused) and time.monotonic() < deadline:
            device.memory_decoding = False
            with pytest.raises(errors.MemoryDisabled):
                bar.read32(0)
            device.memory_decoding = True
            switched += 1
    finally:
        done.set()
    for reader in readers:
        reader.join(WAIT)
    assert refused, f"the readers never met it in {switched} times"
    assert bar.read32(0) == before


def test_a_thread_that_waits_is_told_when_the_device_is_closed(device: Device) -> None:
    irq = next(irq for irq in device.irqs if irq.count)
    (vector,) = irq.enable(1)
    told = []

    def wait() -> None:
        try:
            vector.wait()
        except errors.Closed as error:
            told.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    device.close()
    waiter.join(WAIT)
    assert told
