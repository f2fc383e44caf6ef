"""Numbers of a controller that ask for too much: each has a limit, and an error that names it."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import controller as driver
from pyvfio.drivers.nvme import identify, spec
from pyvfio.drivers.nvme.spec import Admin, Identify

from .conftest import MakeController
from .model import BLOCK, Clock, Device


def bring_up(clock: Clock, **controller: Any) -> None:
    """Fails, and leaves nothing: memory is asked for in small measure."""
    device = Device(**controller)
    try:
        nvme.Controller(device)  # type: ignore[arg-type]
    finally:
        assert not device.dma.open_buffers
        assert sum(mapping.size for mapping in device.dma._mappings.values()) <= 4 << 20
        device.close()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"page": 1 << 27}, "CAP.MPSMIN 15"),
        ({"page": 1 << 17}, "CAP.MPSMIN 5"),
        ({"entries": 1}, "CAP.MQES 0"),
        ({"stride": 4 << 15}, "CAP.DSTRD 15"),
        ({"stride": 4 << 13}, "CAP.DSTRD 13"),
        ({"capabilities": 1 << 37}, "CAP.CSS"),
        ({"entry_sizes": (0x77, 0x44)}, "SQES 0x77"),
        ({"entry_sizes": (0xFF, 0xFF)}, "SQES 0xff"),
        ({"entry_sizes": (0x66, 0x45)}, "CQES 0x45"),
        ({"version": 1 << 16, "namespaces": [0xFFFFFFFF]}, "4294967295 .*NN"),
        ({"version": 1 << 16, "namespaces": [4097]}, "4097 .*NN"),
        ({"refuses_list": True, "namespaces": [0xFFFFFFFE]}, "4294967294 .*NN"),
    ],
    ids=str,
)
def test_errors_name_register_and_value(clock: Clock, model: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.Error, match=said):
        bring_up(clock, **model)


def test_endless_list_of_namespaces_is_refused(clock: Clock) -> None:
    """It is always full, and each of its namespaces can be identified, or none."""
    for blank in (set(), set(range(1, 1 << 14))):
        with pytest.raises(nvme.ControllerFailed, match=r"4097 active namespaces .*CNS 0x02"):
            bring_up(clock, namespaces=[*range(1, 1 << 14)], blank=blank)


def test_namespaces_that_answer_slowly_are_given_up(clock: Clock) -> None:
    device = Device(namespaces=[*range(1, 1000)])

    def slow(command: Any) -> int:
        clock.now += 1
        return 0

    device.nvme.answer = slow
    begun = clock.now
    with pytest.raises(nvme.ControllerFailed, match="and lists more"):
        nvme.Controller(device)  # type: ignore[arg-type]
    assert clock.now - begun < driver._LISTING_SECONDS + 30
    device.close()


@pytest.mark.parametrize(
    "ids",
    [
        [5, 5, 5, 7],
        [5, 3, 7, 1],
        [5, 7, 0xFFFFFFFF],
        [5, 7, *[7] * 1022],
        [5, 7, *[2] * 1022],
    ],
    ids=["repeated", "falling", "all", "full", "full and falling"],
)
def test_disordered_lists_of_namespaces_end(
    device: Device, make: MakeController, ids: list[int]
) -> None:
    device.nvme.namespaces = [5, 7]
    device.nvme.lies = {
        Identify.ACTIVE_NAMESPACES: {0: struct.pack(f"<{len(ids)}I", *ids)},
    }
    assert list(make().namespaces) == [5, 7]


def test_controller_without_a_list_is_asked_for_each(device: Device, make: MakeController) -> None:
    device.nvme.refuses_list, device.nvme.namespaces = True, [1, 3]
    assert list(make().namespaces) == [1, 3]


@pytest.mark.parametrize("blocks", [(1 << 64) - 1, (1 << 54) + 1])
def test_namespace_larger_than_any_disk_is_left_out(
    device: Device, make: MakeController, blocks: int
) -> None:
    device.nvme.namespaces, device.nvme.blocks = [1, 2], blocks
    controller = make()
    assert not controller.namespaces
    with pytest.raises(errors.MalformedConfig, match=rf"{blocks:#x} blocks \(NSZE\) of 512"):
        controller.identify_namespace(1)


def test_deallocating_all_of_a_large_disk_ends(device: Device, make: MakeController) -> None:
    device.nvme.blocks = 1 << 54
    disk = make().namespaces[1]
    with pytest.raises(errors.RangeError, match="256 ranges"):
        disk.deallocate([(0, disk.blocks)])


@pytest.mark.parametrize("entries", [4096, 65536])
def test_queues_have_no_more_entries_than_identifiers_allow(
    device: Device, make: MakeController, entries: int
) -> None:
    device.nvme.entries = entries
    (queue,) = make(depth=1 << 16).queues
    assert queue.depth == 4096
    mapped = sum(mapping.size for mapping in device.dma._mappings.values())
    assert mapped <= 4096 * (64 + 16 + 4096) + (8 << 20)


def test_large_pages_do_not_enlarge_lists(clock: Clock) -> None:
    device = Device(page=1 << 16)
    with nvme.Controller(device, depth=128) as controller:  # type: ignore[arg-type]
        mapped = sum(mapping.size for mapping in device.dma._mappings.values())
        assert mapped <= 8 << 20
        assert controller.max_transfer == 32 << 20
    device.close()


@pytest.mark.parametrize("transfer_pages", [0, 20, 255])
@pytest.mark.parametrize("page", [1 << 15, 1 << 16])
def test_commands_have_no_more_than_65536_blocks(
    clock: Clock, page: int, transfer_pages: int
) -> None:
    """Their number has 16 bits: of 70,000 blocks the last ones must be read as well."""
    device = Device(page=page, transfer_pages=transfer_pages, disk=bytearray(70_000 * BLOCK))
    device.nvme.disk[:] = content = random.Random(1).randbytes(70_000 * BLOCK)
    with nvme.Controller(device) as controller:  # type: ignore[arg-type]
        disk = controller.namespaces[1]
        assert controller.max_transfer <= spec.MOST_BLOCKS * BLOCK
        with device.dma.alloc(70_000 * BLOCK) as buffer:
            disk.read_into(0, buffer.view)
            assert buffer.view == content
        assert disk.read(0, 70_000) == content
    device.close()


def test_copied_transfers_take_little_memory(clock: Clock) -> None:
    device = Device(page=1 << 16, disk=bytearray(64 << 20))
    with nvme.Controller(device) as controller:  # type: ignore[arg-type]
        before = sum(mapping.size for mapping in device.dma._mappings.values())
        read = controller.namespaces[1].start_read(0, memoryview(bytearray((64 << 20) + 2))[1:-1])
        mapped = sum(mapping.size for mapping in device.dma._mappings.values())
        assert mapped - before <= 8 * (2 << 20)
        read.wait()
    device.close()


def test_shutdown_waits_a_minute_at_most(
    device: Device, make: MakeController, clock: Clock
) -> None:
    device.nvme.shutdown_microseconds, device.nvme.shuts_down = 0xFFFFFFFF, False
    controller = make()
    before = clock.now
    with pytest.raises(nvme.ControllerFailed, match="shut down within 60 s"):
        controller.close()
    assert clock.now - before < 65


def test_shutdown_waits_once_for_all_queues(
    device: Device, make: MakeController, clock: Clock
) -> None:
    """Each is deleted just in time."""
    controller = make(queues=4, timeout=100.0)

    def slow(command: Any) -> int:
        clock.now += 9 if command.opcode in (Admin.DELETE_SUBMISSION_QUEUE, 4) else 0
        return 0

    device.nvme.answer = slow
    before = clock.now
    controller.close()
    assert clock.now - before < 40


def test_bringing_up_waits_once_for_all_queues(clock: Clock) -> None:
    device = Device()

    def slow(command: Any) -> int:
        clock.now += 9 if command.opcode in (Admin.CREATE_SUBMISSION_QUEUE, 5) else 0
        return 0

    device.nvme.answer = slow
    with pytest.raises(nvme.ControllerFailed, match=r"did not complete .* reset the device"):
        nvme.Controller(device, queues=4)  # type: ignore[arg-type]
    assert device.nvme.enabled == 1
    device.close()


def test_ready_is_waited_for_as_long_as_claimed(
    device: Device, make: MakeController, clock: Clock
) -> None:
    device.nvme.becomes_ready = False
    device.nvme.capabilities = 0xFE << 24  # of 1 it makes 255
    before = clock.now
    with pytest.raises(nvme.ControllerFailed, match=r"within 127.5 s \(CAP.TO 255"):
        make()
    assert clock.now - before < 3 * 128


def test_anything_identify_says_is_bounded() -> None:
    rng = random.Random(1)
    for _ in range(200):
        identity = identify.ControllerIdentity.parse(rng.randbytes(4096))
        assert identity.aborts <= 256
        assert identity.error_entries <= 256
        assert identity.shutdown_seconds < 1 << 13
