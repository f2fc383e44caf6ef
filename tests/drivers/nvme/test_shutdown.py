"""Shutting down in order, and what becomes of one that does not (Base 2.0, 3.6.1)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import Admin

from .conftest import MakeController
from .model import Clock, Device

LONG = 10.0  # seconds after which a test has hung


def test_it_is_announced_when_the_queues_are_gone(device: Device, make: MakeController) -> None:
    make(queues=3).close()
    assert device.nvme.shutdowns == [(1, [])]
    assert not device.nvme.ready


@pytest.mark.parametrize("status", [0x101, None])
def test_it_is_announced_though_queues_stay(
    device: Device, make: MakeController, status: int | None
) -> None:
    controller = make(queues=2)
    device.nvme.answer = lambda command: (
        status if command.opcode == Admin.DELETE_SUBMISSION_QUEUE and not command.queue else 0
    )
    controller.close()
    assert device.nvme.shutdowns == [(1, [1, 2])]


@pytest.mark.parametrize("what", ["fatal", "gone", "reset"])
def test_it_is_not_announced_to_one_that_is_not_there(
    device: Device, make: MakeController, what: str
) -> None:
    controller = make()
    if what == "reset":
        device.nvme.reset()
    else:
        setattr(device.nvme, what, True)
    controller.close()
    assert not device.nvme.shutdowns


@pytest.mark.parametrize(("asked", "given"), [(0, 10), (4_000_000, 10), (60_000_000, 60)])
def test_one_that_never_ends(
    device: Device, make: MakeController, clock: Clock, asked: int, given: int
) -> None:
    """It is told, after everything was given back."""
    device.nvme.shutdown_microseconds, device.nvme.shuts_down = asked, False
    controller = make()
    flush = controller.namespaces[1].start_flush()
    before = clock.now
    with pytest.raises(nvme.ControllerFailed, match=rf"shut down within {given} s"):
        controller.close()
    assert given <= clock.now - before < given + 5
    assert not device.dma.open_buffers
    assert not device.msix.file.signalled()  # type: ignore[attr-defined]
    assert flush.done
    controller.close()


@pytest.mark.parametrize("moment", ["idle", "shut down", "queues", "release"])
def test_closing_is_interrupted(
    device: Device, make: MakeController, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As by Ctrl-C: all that waits ends, everything is given back, and closing again is fine."""
    controller = make()
    device.nvme.hold = True
    device.nvme.becomes_idle = False  # so that it must be kept from memory
    flush = controller.namespaces[1].start_flush()
    become, do, fail = controller._become, controller._do, controller._admin.fail

    def interrupted(before: Any, when: Any) -> Any:
        def instead(*given: Any, **named: Any) -> Any:
            if when(*given):
                monkeypatch.undo()
                raise KeyboardInterrupt
            return before(*given, **named)

        return instead

    with monkeypatch.context() as monkeypatch:
        if moment == "queues":
            monkeypatch.setattr(controller, "_do", interrupted(do, lambda *given: True))
        elif moment == "release":
            monkeypatch.setattr(controller._admin, "fail", interrupted(fail, lambda *given: True))
        else:
            instead = interrupted(become, lambda *given: moment in given)
            monkeypatch.setattr(controller, "_become", instead)
        with pytest.raises(KeyboardInterrupt):
            controller.close()
    assert not device.dma.open_buffers
    assert not device.msix.file.signalled()  # type: ignore[attr-defined]
    assert flush.done
    with pytest.raises(errors.Closed):
        flush.wait()
    assert device.nvme.ready
    assert not device.bus_master
    controller.close()


@pytest.mark.parametrize("when", ["it has ended", "it is closed"])
def test_a_callback_that_closes(clock: Clock, when: str) -> None:
    device: Any = Device()
    controller = nvme.Controller(device)
    device.nvme.answer = lambda command: None
    closed = []

    def close(command: nvme.Command, data: memoryview) -> None:
        controller.close()
        closed.append(controller.closed)

    command = controller.start_admin(Admin.GET_FEATURES, 1, size=64, after=close)
    device.nvme.answer = lambda command: 0
    if when == "it has ended":
        device.nvme.complete(device.nvme.waiting[0])
        thread = threading.Thread(target=controller._admin.line.look, daemon=True)
    else:
        thread = threading.Thread(target=controller.close, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "it waits for itself"
    assert closed == [True]
    assert command.done
    assert not device.dma.open_buffers
    assert not device.nvme.faults
    device.close()
