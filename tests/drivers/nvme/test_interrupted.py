"""Exceptions of signal handlers, as of Ctrl-C, at awkward moments: nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import line
from tests.campaign.steps import Step, Steps

from .conftest import MakeController
from .model import BLOCK, Device

LONG = 10.0  # seconds after which a test has hung


class Interrupted(BaseException):
    """What the handler raises."""


def interrupt_once(monkeypatch: pytest.MonkeyPatch, what: object, name: str) -> None:
    """The handler is called as this begins, the first time."""
    before: Callable[..., Any] = getattr(what, name)

    def instead(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(what, name, before)
        raise Interrupted

    monkeypatch.setattr(what, name, instead)


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
@pytest.mark.parametrize("kind", ["command", "copied", "burst"])
def test_before_what_has_ended_was_told(
    device: Device,
    make: MakeController,
    monkeypatch: pytest.MonkeyPatch,
    interrupts: bool,
    kind: str,
) -> None:
    controller = make(depth=4, interrupts=interrupts)
    disk, queue = controller.namespaces[1], controller.queues[0]
    device.nvme.disk[: 16 * BLOCK] = content = bytes(range(256)) * 32
    with device.dma.alloc(16 * BLOCK) as buffer:
        view: Any = bytearray(16 * BLOCK) if kind == "copied" else buffer.view
        if kind == "burst":
            read = disk.start_read_many(range(16), view)
        else:
            read = disk.start_read(0, view)
        interrupt_once(monkeypatch, queue, "batch")
        with pytest.raises(Interrupted):
            read.wait()
        assert not read.done
        # What is half done is made whole by a reset; whether it was done is unknown.
        with pytest.raises(nvme.ControllerReset, match="interrupted"):
            read.wait()
        disk.read_into(0, view)
        assert view == content
    assert controller.resets == 1
    assert queue.under_way == 0


@pytest.mark.parametrize("moment", ["_disable", "_enable", "_count_of_queues", "_create_queues"])
@pytest.mark.parametrize("by", ["waiting", "hand"])
def test_while_it_is_reset(
    device: Device, make: MakeController, monkeypatch: pytest.MonkeyPatch, moment: str, by: str
) -> None:
    controller = make(depth=8, queues=2)
    disk = controller.namespaces[1]
    device.nvme.hold = True
    flush = disk.start_flush(queue=controller.queues[1])
    interrupt_once(monkeypatch, controller, moment)
    device.nvme.fatal = by == "waiting"
    with pytest.raises(Interrupted):
        controller.reset() if by == "hand" else flush.wait()
    device.nvme.hold = False
    data = bytes([7]) * BLOCK
    read = []

    def go_on() -> None:
        with suppress(nvme.ControllerReset):
            flush.wait()
        for queue in controller.queues:
            disk.write(1, data, queue=queue)
            read.append(disk.read(1, 1, queue=queue))
        controller.smart()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "it waits for ever"
    assert isinstance(flush.error, nvme.ControllerReset)
    assert read == [data, data]


@pytest.mark.parametrize("another_sleeps", [False, True])
def test_at_each_step_of_waiting(
    device: Device, make: MakeController, monkeypatch: pytest.MonkeyPatch, another_sleeps: bool
) -> None:
    disk = make(depth=4).namespaces[1]
    waits = disk._controller.queues[0].line
    monkeypatch.setattr(line, "TICK", 0.02)
    ended: list[object] = []

    def wait_for(operation: Any) -> None:
        with suppress(nvme.ControllerReset):
            operation.wait()
        ended.append(operation)

    def finish() -> None:
        for command in device.nvme.under_way():
            device.nvme.complete(command)

    def struck(at: int) -> bool:
        """Wait, struck at one of the steps; False where there are fewer."""
        device.nvme.hold = True
        flush = disk.start_flush()
        other = threading.Thread(target=wait_for, args=(disk.start_flush(),), daemon=True)
        if another_sleeps:
            other.start()
            while not waits._asleep:
                time.sleep(0.001)
        left = at

        def reach(step: Step, frame: FrameType) -> None:
            nonlocal left
            if step.what == "begin" and step.callee == "_sleep":
                finish()
            left -= 1
            if left == -1:
                raise Interrupted

        with suppress(Interrupted, nvme.ControllerReset), Steps(reach, ("drivers/nvme/line.py",)):
            flush.wait()
        finish()
        once_more = threading.Thread(target=wait_for, args=(flush,), daemon=True)
        once_more.start()
        for thread in (once_more, other) if another_sleeps else (once_more,):
            thread.join(LONG)
            assert not thread.is_alive(), "it waits for ever"
        assert not waits._lock.locked()
        assert not waits._asleep
        assert not waits._sleepers
        assert waits._waiting == 0
        return left < 0

    steps = 0
    while struck(steps):
        steps += 1
    assert steps > 10
    device.nvme.hold = False
    disk.write(1, bytes(BLOCK))


def test_at_each_step_of_a_batch(device: Device, make: MakeController) -> None:
    """Otherwise what is started later would wait until somebody waits for it."""
    disk = make(depth=4).namespaces[1]
    queue = disk._controller.queues[0]

    def struck(at: int) -> bool:
        """Begin and end a batch, struck at one of the steps; False where there are fewer."""
        left = at

        def reach(step: Step, frame: FrameType) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise Interrupted

        with suppress(Interrupted), Steps(reach, ("drivers/nvme/queue.py",)), queue.batch():
            pass
        assert not queue._lock.locked()
        device.nvme.hold = True
        flush = disk.start_flush()
        assert device.nvme.under_way(), "the controller was not told"
        device.nvme.hold = False
        device.nvme.complete(device.nvme.under_way()[0])
        flush.wait()
        return left < 0

    steps = 0
    while struck(steps):
        steps += 1
    assert steps > 3
