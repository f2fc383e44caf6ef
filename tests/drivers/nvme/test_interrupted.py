"""Exceptions of signal handlers, as of Ctrl-C, at awkward moments: nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pyvfio.drivers import nvme

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


def test_interrupt_after_locking_leaves_no_lock(
    device: Device, make: MakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Condition.__enter__ is Python code, at whose end a handler may raise."""
    disk = make(depth=4).namespaces[1]
    line = disk._controller.queues[0].line
    device.nvme.hold = True
    flush = disk.start_flush()
    enter = threading.Condition.__enter__

    def interrupted(condition: threading.Condition) -> bool:
        entered = enter(condition)
        if condition is line._changed:
            raise Interrupted
        return entered

    monkeypatch.setattr(threading.Condition, "__enter__", interrupted)
    ended: list[int] = []

    def wait() -> None:
        with suppress(Interrupted):
            flush.wait()
        ended.append(flush.wait())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    device.nvme.complete(device.nvme.under_way()[0])
    thread.join(LONG)
    assert ended == [0], "it waits for ever"
