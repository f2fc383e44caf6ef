"""Controllers that need something else than the specification says."""

from __future__ import annotations

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import spec
from pyvfio.drivers.nvme.spec import Admin

from .conftest import MakeController
from .model import Device, Submission


@pytest.mark.parametrize("device_id", [0xA821, 0xA822])
def test_samsung_pm1725_without_mqes_has_64_entries(
    device: Device, make: MakeController, device_id: int
) -> None:
    device.config.ids = 0x144D, device_id
    device.nvme.entries = 1
    # The model believes what it says: it has as many as the driver takes.
    device.nvme.answer = lambda command: _entries(device, command)
    (queue,) = make(depth=128).queues
    assert queue.depth == 64


def _entries(device: Device, command: Submission) -> int:
    device.nvme.entries = 64
    return 0


def test_samsung_pm1725_with_mqes_has_its_entries(device: Device, make: MakeController) -> None:
    device.config.ids = 0x144D, 0xA821
    (queue,) = make(depth=128).queues
    assert queue.depth == 128


def test_old_apple_has_one_command_and_one_vector(device: Device, make: MakeController) -> None:
    device.config.ids = 0x106B, 0x2001
    controller = make(queues=3)
    assert [queue.depth for queue in controller.queues] == [2] * 3
    assert len(device.msix.file.signalled()) == 1  # type: ignore[attr-defined]
    controller.namespaces[1].flush(queue=controller.queues[2])


def test_apple_t2_is_refused(device: Device) -> None:
    device.config.ids = 0x106B, 0x2005
    with pytest.raises(errors.Unsupported, match="128 bytes"):
        nvme.Controller(device)  # type: ignore[arg-type]


def test_queues_have_medium_priority(device: Device, make: MakeController) -> None:
    """The Intel P3100 takes it into account though no weights are chosen."""
    seen: list[int] = []

    def answer(command: Submission) -> int:
        if command.opcode == Admin.CREATE_SUBMISSION_QUEUE and not command.queue:
            seen.append(command.dwords[1])
        return 0

    device.nvme.answer = answer
    make(queues=2)
    assert [flags & 6 for flags in seen] == [spec.QUEUE_MEDIUM_PRIORITY] * 2
