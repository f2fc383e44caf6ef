from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import controller, line, queue

from .model import Clock, Device

MakeController = Callable[..., nvme.Controller]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which commands are too late; waiting takes real time, and looks often."""
    clock = Clock()
    for module in (controller, queue):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(line, "TICK", 0.01)
    return clock


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()
    assert not device.nvme.faults


@pytest.fixture
def make(device: Device, clock: Clock) -> Iterator[MakeController]:
    """Makes controllers, and sees that nothing is left of them."""
    with ExitStack() as stack:

        def make(**options: Any) -> nvme.Controller:
            return stack.enter_context(nvme.Controller(device, **options))  # type: ignore[arg-type]

        yield make
    assert not device.dma.open_buffers
    assert not device.msix.file.signalled()  # type: ignore[attr-defined]


@pytest.fixture
def disk(make: MakeController) -> nvme.Namespace:
    return make(depth=8).namespaces[1]
