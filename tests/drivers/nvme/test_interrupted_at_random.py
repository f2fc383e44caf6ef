"""Exceptions of signal handlers, as of Ctrl-C, at any moment: nothing hangs, no data is wrong."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import Operation

from .conftest import MakeController
from .model import BLOCK, Device


class Interrupted(BaseException):
    """What the handler raises."""


@pytest.fixture
def in_the_driver() -> Iterator[None]:
    """SIGALRM raises an exception where the driver is at work; the model is not interrupted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None and at.f_code.co_filename != __file__:
            if at.f_code.co_filename.endswith("model.py"):
                return
            at = at.f_back
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        with suppress(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
@pytest.mark.parametrize("kind", ["command", "copied", "burst"])
def test_a_wait_is_interrupted_at_any_moment(
    device: Device, make: MakeController, in_the_driver: None, interrupts: bool, kind: str
) -> None:
    controller = make(depth=8, interrupts=interrupts)
    disk = controller.namespaces[1]
    device.nvme.disk[:] = content = random.Random(1).randbytes(len(device.nvme.disk))
    rng = random.Random(2)
    interrupted = 0
    with device.dma.alloc(16 * BLOCK) as buffer:
        view: Any = bytearray(16 * BLOCK) if kind == "copied" else buffer.view
        for _ in range(300):
            lba = rng.randrange(1000)
            view[:] = bytes(16 * BLOCK)
            read: Operation
            if kind == "burst":
                read = disk.start_read_many(range(lba, lba + 16), view)
            else:
                read = disk.start_read(lba, view)
            try:
                with alarm(rng.uniform(1e-6, 2e-4)):
                    read.wait()
            except Interrupted:
                interrupted += 1
            except nvme.ControllerReset:
                pass  # for what was interrupted before, after it had ended
            try:
                assert read.wait() == 0
            except nvme.ControllerReset:
                assert interrupted
                disk.read_into(lba, view)
            assert view == content[lba * BLOCK : (lba + 16) * BLOCK]
    assert interrupted > 0
    assert controller.queues[0].under_way == 0
