"""Operations of all kinds against a controller that does what it likes, in any order.

Each operation has blocks of its own, so that what it must read or write is known whatever else goes
on. The controller completes and fails commands, forgets, breaks down and is reset by others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import Io, Operation, controller, queue
from pyvfio.drivers.nvme.queue import Queue

from .model import ABORTED, BLOCK, Clock, Device, Submission

SLOT = 64  # blocks of each operation's place
SLOTS = 24
CONTENT = random.Random(1).randbytes(SLOT * SLOTS * BLOCK)
CHOICE = st.integers(0, 1 << 16)


@dataclass(eq=False)
class Task:
    """An operation, and what has befallen it.

    Attributes:
        expected: what it reads, or writes.
        got: where it reads to.
        statuses: with which its commands failed.
        reset: whether the controller was reset while it was there.
        ends: how many times it has ended.
    """

    slot: int
    opcode: Io
    lbas: list[int]
    blocks: int
    expected: bytes
    got: Any
    operation: Operation | None = None
    buffer: Any = None
    statuses: set[int] = field(default_factory=set)
    reset: bool = False
    ends: int = 0


class Operations(RuleBasedStateMachine):
    @initialize(
        depth=st.integers(2, 8),
        queues=st.integers(1, 2),
        vectors=st.integers(0, 3),
        pages=st.integers(1, 3),
    )
    def bring_up(self, depth: int, queues: int, vectors: int, pages: int) -> None:
        self.device = Device(vectors=vectors, transfer_pages=pages)
        self.nvme = self.device.nvme
        self.nvme.disk[: len(CONTENT)] = CONTENT
        self.clock = Clock()
        self.tasks: dict[int, Task] = {}
        self.number = 0
        self.patch = pytest.MonkeyPatch()
        for module in (controller, queue):
            self.patch.setattr(module, "time", self.clock)
        finish = Operation._finish

        def counted(operation: Operation, error: Exception | None = None) -> None:
            for task in self.tasks.values():
                task.ends += task.operation is operation
            finish(operation, error)

        self.patch.setattr(Operation, "_finish", counted)
        device: Any = self.device
        self.controller = nvme.Controller(device, queues=queues, depth=depth)
        self.disk = self.controller.namespaces[1]
        self.buffers = len(self.device.dma.open_buffers)
        self.nvme.hold = True

    # What the driver is asked.

    def _task(self, opcode: Io, lbas: list[int], blocks: int, reached: bool) -> Task:
        slot = next(slot for slot in range(SLOTS) if slot not in self.tasks)
        lbas = [slot * SLOT + lba for lba in lbas]
        size = len(lbas) * blocks * BLOCK
        self.number += 1
        if opcode == Io.WRITE:
            expected = (self.number.to_bytes(4, "little") * (size // 4))[:size]
        else:
            expected = b"".join(self._on_disk(lba, blocks) for lba in lbas)
        task = Task(slot, opcode, lbas, blocks, expected, bytearray(size))
        if reached:
            task.buffer = self.device.dma.alloc(size)
            task.got = task.buffer.view
        if opcode == Io.WRITE:
            task.got[:] = expected
        self.tasks[slot] = task
        return task

    def _on_disk(self, lba: int, blocks: int) -> bytes:
        return bytes(self.nvme.disk[lba * BLOCK : (lba + blocks) * BLOCK])

    def _queue(self, choice: int) -> Queue:
        queues = self.controller.queues
        return queues[choice % len(queues)]

    def _transfer(self, opcode: Io, blocks: int, reached: bool, where: Queue) -> None:
        task = self._task(opcode, [0], blocks, reached)
        start = self.disk.start_read if opcode == Io.READ else self.disk.start_write
        task.operation = start(task.lbas[0], task.got, queue=where)

    @precondition(lambda self: len(self.tasks) < SLOTS)
    @rule(
        opcode=st.sampled_from([Io.READ, Io.WRITE]),
        blocks=st.integers(1, SLOT),
        reached=st.booleans(),
        choice=CHOICE,
    )
    def transfer(self, opcode: Io, blocks: int, reached: bool, choice: int) -> None:
        self._transfer(opcode, blocks, reached, self._queue(choice))

    @precondition(lambda self: len(self.tasks) < SLOTS)
    @rule(
        opcode=st.sampled_from([Io.READ, Io.WRITE]),
        lbas=st.lists(st.integers(0, SLOT // 2 - 1), min_size=1, max_size=30, unique=True),
        blocks=st.integers(1, 2),
        window=st.integers(1, 10),
        choice=CHOICE,
    )
    def many(self, opcode: Io, lbas: list[int], blocks: int, window: int, choice: int) -> None:
        task = self._task(opcode, [2 * lba for lba in lbas], blocks, True)
        start = self.disk.start_read_many
        if opcode == Io.WRITE:
            start = self.disk.start_write_many
        task.operation = start(
            task.lbas, task.got, blocks=blocks, depth=window, queue=self._queue(choice)
        )

    @precondition(lambda self: len(self.tasks) < SLOTS - 4)
    @rule(sizes=st.lists(st.integers(1, 16), min_size=1, max_size=4), choice=CHOICE)
    def batch(self, sizes: list[int], choice: int) -> None:
        where = self._queue(choice)
        self.nvme.rings.clear()
        with where.batch():
            for blocks in sizes:
                self._transfer(Io.READ, blocks, True, where)
            assert not self.nvme.rings
        assert len(self.nvme.rings) <= 1

    # What becomes of it.

    @precondition(lambda self: self.nvme.under_way())
    @rule(
        choices=st.lists(CHOICE, min_size=1, max_size=8),
        status=st.sampled_from([0, 0, 0, 0, 0x281, 0x7C3]),
    )
    def complete(self, choices: list[int], status: int) -> None:
        for choice in choices:
            waiting = self.nvme.under_way()
            if waiting:
                self._complete(waiting[choice % len(waiting)], status)

    def _complete(self, command: Submission, status: int) -> None:
        if status:
            self.tasks[command.lba // SLOT].statuses.add(status)
        self.nvme.complete(command, status)

    @rule(identifier=st.integers(0, 0xFFFF), choice=CHOICE)
    def complete_what_there_is_not(self, identifier: int, choice: int) -> None:
        self.look()
        number = self._queue(choice).number
        taken = {c.identifier for c in self.nvme.under_way() if c.queue == number}
        if identifier not in taken:
            self.nvme.tell(number, identifier, 0x281)
            self.look()

    @rule()
    def look(self) -> None:
        for where in self.controller.queues:
            where.line.look()
        self.controller._admin.line.look()
        for where in self.controller.queues:
            mine = [c for c in self.nvme.under_way() if c.queue == where.number]
            assert where.under_way == len(mine)
            assert not where._backlog or len(mine) == where.depth - 1, "there is room"

    @rule(seconds=st.sampled_from([2, 11, 31]), obeys=st.booleans())
    def time_passes(self, seconds: int, obeys: bool) -> None:
        self.clock.now += seconds
        self.nvme.obeys_aborts = obeys
        before = len(self.nvme.aborts)
        under_way = {(c.queue, c.identifier): c for c in self.nvme.under_way()}
        self._diagnose()
        for aborted in self.nvme.aborts[before:]:
            command = under_way[aborted]
            self.tasks[command.lba // SLOT].statuses.add(ABORTED)

    @rule(what=st.sampled_from(["fatal", "reset", "needs a reset", "by hand"]))
    def misfortune(self, what: str) -> None:
        self.nvme.fatal = what in ("fatal", "needs a reset")
        self.nvme.becomes_idle = what != "needs a reset"
        if what == "reset":
            self.nvme.reset()
        before = self.controller.resets
        if what == "by hand":
            self._remember_reset()
            self.controller.reset()
        else:
            self._diagnose()
        assert self.controller.resets == before + 1

    def _diagnose(self) -> None:
        recover = self.controller._diagnose()
        if recover is not None:
            self._remember_reset()
            recover()

    def _remember_reset(self) -> None:
        for task in self.tasks.values():
            task.reset = True

    # What must hold.

    @invariant()
    def the_rules_are_kept(self) -> None:
        assert not self.nvme.faults

    @invariant()
    def what_has_ended_has_ended_well(self) -> None:
        for task in list(self.tasks.values()):
            assert task.operation is not None
            assert task.ends == task.operation.done
            if task.operation.done:
                self._check(task)
                del self.tasks[task.slot]

    def _check(self, task: Task) -> None:
        assert task.operation is not None
        waiting = [c for c in self.nvme.under_way() if c.lba // SLOT == task.slot]
        assert not waiting, "its commands are still under way"
        error = task.operation.error
        if error is None:
            assert not task.statuses - {ABORTED}
            assert task.operation.wait() == 0
            if task.opcode == Io.WRITE:
                task.got = b"".join(self._on_disk(lba, task.blocks) for lba in task.lbas)
            assert task.got == task.expected
        elif isinstance(error, nvme.CommandFailed):
            assert error.status in task.statuses
        elif isinstance(error, nvme.CommandTimedOut):
            assert ABORTED in task.statuses
        else:
            assert isinstance(error, nvme.ControllerReset)
            assert task.reset
        task.got = None
        if task.buffer is not None:
            task.buffer.close()

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        try:
            for _ in range(2000):
                if not self.tasks:
                    break
                for command in self.nvme.under_way():
                    self.nvme.complete(command)
                self.look()
                self.what_has_ended_has_ended_well()
            assert not self.tasks, "it never ends"
            assert len(self.device.dma.open_buffers) == self.buffers
            self.controller.close()
            assert not self.device.dma.open_buffers
            assert not self.nvme.faults
        finally:
            self.patch.undo()
            self.device.close()


TestOperations = Operations.TestCase
TestOperations.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
