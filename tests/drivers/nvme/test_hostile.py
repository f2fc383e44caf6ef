"""Whatever a controller does, calls end in time, memory is bounded, and stays its owner's.

docs/nvme.md says what holds ("A controller is not trusted"); its bounds are those here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.device import Vector
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import controller as driver
from pyvfio.drivers.nvme import line, queue
from pyvfio.drivers.nvme.burst import Burst
from pyvfio.drivers.nvme.queue import Command

from .hostile import HostileDevice, Temper
from .model import BLOCK

TIMEOUT = 2.0  # seconds of a command
MOST_MEMORY = 32 << 20  # bytes, of a controller with queues of 8 entries, and what a test allocates
SOME = st.sampled_from([0, 0, 0, 1, 5, 30, 100])
RARELY = st.sampled_from([0, 0, 0, 0, 1, 5])
OPERATIONS = st.lists(
    st.sampled_from(["read", "copied", "write", "burst", "flush", "deallocate", "log", "feature"])
    | st.sampled_from(["refresh", "reset", "abort", "two", "leave"]),
    max_size=8,
)
HONEST = 1023 | 1 << 16 | 1 << 37  # MQES, CQR, CSS


@st.composite
def capabilities(draw: st.DrawFn) -> int | None:
    """CAP: honest, with some fields changed, or anything."""
    kind = draw(st.sampled_from(["honest", "honest", "fields", "fields", "any"]))
    if kind == "honest":
        return None
    if kind == "any":
        return draw(st.integers(0, (1 << 64) - 1))
    timeout, stride = draw(st.integers(0, 255)), draw(st.sampled_from([0, 0, 0, 5, 15]))
    page = draw(st.sampled_from([0, 0, 0, 0, 4, 15]))
    entries = draw(st.sampled_from([0, 1, 2, 1023, 0xFFFF]))
    return HONEST & ~0xFFFF | entries | timeout << 24 | stride << 32 | page << 48


TEMPERS = st.builds(
    Temper,
    seed=st.integers(0, 1 << 32),
    capabilities=capabilities(),
    version=st.sampled_from([1 << 16, *[1 << 16 | 4 << 8] * 5, 0, 0xFFFFFFFF]),
    status=RARELY,
    silence=RARELY,
    drops=SOME,
    repeats=SOME,
    wrong=SOME,
    late=SOME,
    latest=st.sampled_from([0.1, 4.0, 100.0]),
    fails=RARELY,
    lies=SOME,
    floods=st.booleans(),
    ready=st.sampled_from([True, True, True, False]),
    idle=st.sampled_from([True, True, True, False]),
    shuts_down=st.booleans(),
    resets=st.booleans(),
    interrupts=st.sampled_from([0, 50, 100]),
)


class Bounds:
    """Seconds that calls may take, as the documentation has them, and a little for the looks."""

    def __init__(self, temper: Temper) -> None:
        claimed = 1 if temper.capabilities is None else temper.capabilities >> 24 & 0xFF
        patience = max(claimed / 2, driver._LEAST_SECONDS)
        reset = 7 * patience + TIMEOUT
        self.command = TIMEOUT + driver._ABORT_SECONDS + 3 * line.TICK + reset + 1
        self.reset = reset + 1
        self.refresh = driver._LISTING_SECONDS + self.command
        self.bring_up = 5 * patience + TIMEOUT + self.command + self.refresh
        self.close = 5 * patience + driver._SHUTDOWN_SECONDS + driver._MOST_SHUTDOWN_SECONDS + 5


@contextmanager
def within(device: HostileDevice, seconds: float, what: str) -> Iterator[None]:
    """Nothing but the tree's errors, and in time."""
    begun = device.time.now
    with suppress(errors.Error):
        yield
    taken = device.time.now - begun
    assert taken <= seconds, f"{what} took {taken:.1f} s, not {seconds:.1f}"
    assert device.dma.mapped <= MOST_MEMORY, what
    assert not device.referee.fouls, f"{what}: {device.referee.fouls}"


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def settle(device: HostileDevice, patch: pytest.MonkeyPatch) -> None:
    """Put the driver into the device's time, and let the referee see what it takes."""
    for module in (driver, queue, line):
        patch.setattr(module, "time", device.time)
    patch.setattr(
        Vector, "wait", lambda vector, *given, **named: device.wait(vector, *given, **named)
    )
    for kind in (Command, Burst):
        patch.setattr(kind, "completed", _seen(device, kind.completed))


def _seen(device: HostileDevice, completed: Callable[..., None]) -> Callable[..., None]:
    def instead(work: Any, identifier: int, *rest: int) -> None:
        device.referee.taken(work._queue.number, identifier)
        completed(work, identifier, *rest)

    return instead


def churn(device: HostileDevice) -> None:
    """Others allocate, and give back: no block of a device's is among them."""
    buffers = [device.dma.alloc(size) for size in (64, 512, 4096, 4096, 8 * BLOCK)]
    for buffer in buffers:
        buffer.close()


def operate(controller: nvme.Controller, what: str) -> None:
    """Do something with a controller, and its first namespace, if there is one."""
    space = controller.space
    disk = next(iter(controller.namespaces.values()), None)
    if what == "log":
        controller.smart()
    elif what == "feature":
        controller.get_feature(1)
    elif what == "refresh":
        controller.refresh()
    elif what == "reset":
        controller.reset()
    elif disk is None or disk.block_size != BLOCK:
        controller.error_log(2)
    elif what == "read":
        with space.alloc(8 * BLOCK) as buffer:
            disk.read_into(0, buffer.view)
    elif what == "copied":
        disk.read(1, 200)
    elif what == "write":
        disk.write(3, bytes(9 * BLOCK))
    elif what == "burst":
        with space.alloc(20 * BLOCK) as buffer:
            disk.read_many(range(20), buffer.view, depth=5)
    elif what == "flush":
        disk.flush()
    elif what == "deallocate":
        disk.deallocate([(0, 1), (5, 2)])
    elif what == "abort":
        flush = disk.start_flush()
        assert isinstance(flush, nvme.Command)
        controller.abort(flush)
    elif what == "two":
        with space.alloc(8 * BLOCK) as buffer:
            operations = [disk.start_read(lba, buffer.view) for lba in range(3)]
            for operation in operations:
                with suppress(errors.Error):
                    operation.wait()
    elif what == "leave":
        # Given up by its caller, who closes the buffer while the device may be at it.
        buffer = space.alloc(8 * BLOCK)
        disk.start_read(0, buffer.view)
        buffer.close()


@settings(max_examples=80, deadline=None)
@given(
    temper=TEMPERS,
    from_the_start=st.booleans(),
    operations=OPERATIONS,
    depth=st.integers(2, 8),
    queues=st.integers(1, 2),
    vectors=st.integers(0, 3),
)
@example(Temper(floods=True), False, ["read", "burst", "log"], 8, 1, 2)
@example(Temper(floods=True, drops=100), False, ["read"], 8, 1, 0)
@example(Temper(repeats=100), False, ["read", "read", "burst"], 2, 2, 2)
@example(Temper(late=100, latest=100.0), False, ["two", "leave", "read"], 8, 1, 2)
@example(
    Temper(drops=30, idle=False, resets=False), False, ["read", "two", "reset", "leave"], 4, 1, 2
)
@example(Temper(wrong=100, silence=5), False, ["burst", "copied", "reset"], 8, 2, 2)
@example(Temper(lies=100, version=1 << 16), True, ["refresh"], 8, 1, 2)
def test_calls_end_and_memory_stays_its_owners(
    temper: Temper,
    from_the_start: bool,
    operations: list[str],
    depth: int,
    queues: int,
    vectors: int,
) -> None:
    bounds = Bounds(temper)
    device = HostileDevice(temper, vectors=vectors)
    if not from_the_start:  # so that more is seen than that it does not come up
        device.behave(Temper(capabilities=temper.capabilities))
    controller: nvme.Controller | None = None
    with pytest.MonkeyPatch.context() as patch:
        settle(device, patch)
        with within(device, bounds.bring_up, "bringing up"):
            controller = nvme.Controller(
                device,  # type: ignore[arg-type]
                queues=queues,
                depth=depth,
                timeout=TIMEOUT,
            )
        device.behave(temper)
        if controller is not None:
            longest = {"refresh": bounds.refresh, "reset": bounds.reset}
            for what in operations:
                # Several commands, one after the other: blocks that do not fit, or of a transfer.
                seconds = longest.get(what, 4 * bounds.command)
                with within(device, seconds, what):
                    operate(controller, what)
                with within(device, 1.0, "allocating"):
                    churn(device)
            with within(device, bounds.close, "closing"):
                controller.close()
        del controller
        gc.collect()
        with within(device, 1.0, "allocating at the end"):
            churn(device)
    device.close()


def test_referee_sees_memory_given_away(patch: pytest.MonkeyPatch) -> None:
    """What the test above relies on."""
    device = HostileDevice(Temper())
    settle(device, patch)
    with nvme.Controller(device, timeout=TIMEOUT) as controller:  # type: ignore[arg-type]
        device.nvme.hold = True
        buffer = device.dma.alloc(8 * BLOCK)
        controller.namespaces[1].start_read(0, buffer.view)
        assert not device.referee.fouls
        device.referee.allocated(buffer.iova + 512, 64)
        assert "was given away" in device.referee.fouls[0]
    device.close()


def test_referee_sees_another_commands_completion(patch: pytest.MonkeyPatch) -> None:
    device = HostileDevice(Temper())
    settle(device, patch)
    with nvme.Controller(device, timeout=TIMEOUT) as controller:  # type: ignore[arg-type]
        device.nvme.hold = True
        flush = controller.namespaces[1].start_flush()
        (waiting,) = device.nvme.under_way()
        flush.completed(waiting.identifier, 0, 0)  # type: ignore[attr-defined]
        assert "not by its own" in device.referee.fouls[0]
        device.nvme.complete(waiting)
    device.close()
