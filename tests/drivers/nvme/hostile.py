"""A modelled controller that does what it likes, in a time that passes only when it is looked at.

It knows what it owes: which memory it may still write to, and for which commands it has posted a
completion. So it can tell when the driver gives such memory to somebody else, or takes a completion
for another command's.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyvfio.device import Vector
from pyvfio.drivers.nvme import spec
from pyvfio.drivers.nvme.spec import Admin, Io
from pyvfio.iommu import DmaBuffer

from .model import SUCCESS, Device, DmaFault, Memory, Nvme, Submission, walk

LOOK = 1e-4  # seconds that a look at the clock takes


@dataclass(frozen=True)
class Temper:
    """What a controller does; numbers are per cent unless they say otherwise.

    Attributes:
        seed: of its dice.
        capabilities: the register CAP; None for an honest one.
        version: the register VS.
        status: how often the register CSTS reads anything.
        silence: how often a read of a register begins a time in which they read all ones.
        drops: how often a command never ends.
        repeats: how often a completion is posted twice.
        wrong: how often a completion of anything is posted before the right one.
        late: how often a completion comes up to `latest` seconds later, and so in another order.
        latest: seconds.
        fails: how often a command ends with any status.
        lies: how often Identify and logs give anything.
        floods: whether each doorbell is answered with one more completion.
        ready, idle, shuts_down: whether it ever becomes so.
        resets: whether a reset of the function helps.
        interrupts: how often a completion interrupts.
    """

    seed: int = 0
    capabilities: int | None = None
    version: int = 1 << 16 | 4 << 8
    status: int = 0
    silence: int = 0
    drops: int = 0
    repeats: int = 0
    wrong: int = 0
    late: int = 0
    latest: float = 10.0
    fails: int = 0
    lies: int = 0
    floods: bool = False
    ready: bool = True
    idle: bool = True
    shuts_down: bool = True
    resets: bool = True
    interrupts: int = 100


class FakeTime:
    """Time passes when it is looked at, and when somebody sleeps; what is due happens then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something that much later."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), action))

    def monotonic(self) -> float:
        self._pass(self.now + LOOK)
        return self.now

    def sleep(self, seconds: float) -> None:
        self._pass(self.now + max(seconds, 0.02))

    def sleep_unless(self, woken: Callable[[], int], seconds: float) -> int:
        """Sleep until `woken` gives something, or for that long; gives the same."""
        end = self.now + seconds
        while not (count := woken()) and self.now < end:
            self._pass(min(self._due[0][0] if self._due else end, end))
        return count

    def _pass(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            at, _, action = heapq.heappop(self._due)
            self.now = max(self.now, at)
            action()
        self.now = max(self.now, now)


@dataclass
class Debt:
    """A command that was fetched.

    Attributes:
        ranges: the memory that it may write to: (IOVA, bytes).
        posted: completions of it that were posted, and valid.
        taken: those that the driver took.
    """

    ranges: list[tuple[int, int]] = field(default_factory=list)
    posted: int = 0
    taken: int = 0


class Referee:
    """Who may do what; what was done against it is in `fouls`."""

    def __init__(self) -> None:
        self.fouls: list[str] = []
        self.debts: dict[tuple[int, int], Debt] = {}
        self.forfeited: set[tuple[int, int]] = set()

    def fetched(self, command: Submission, ranges: list[tuple[int, int]]) -> None:
        key = command.queue, command.identifier
        posted = int(key in self.forfeited)
        self.forfeited.discard(key)
        self.debts[key] = Debt(ranges, posted)

    def posted(self, queue: int, identifier: int) -> None:
        debt = self.debts.get((queue, identifier))
        if debt is None:
            self.forfeited.add((queue, identifier))
        else:
            debt.posted += 1

    def taken(self, queue: int, identifier: int) -> None:
        debt = self.debts.get((queue, identifier))
        if debt is None:
            if (queue, identifier) not in self.forfeited:
                self.fouls.append(f"queue {queue}: {identifier:#x} completed, and not fetched")
            return
        debt.taken += 1
        if debt.taken > min(debt.posted, 1):
            self.fouls.append(f"queue {queue}: {identifier:#x} completed, and not by its own")

    def reset(self) -> None:
        self.debts.clear()
        self.forfeited.clear()

    def allocated(self, iova: int, size: int) -> None:
        for (queue, identifier), debt in self.debts.items():
            if not debt.posted:
                for start, length in debt.ranges:
                    if start < iova + size and iova < start + length:
                        self.fouls.append(
                            f"memory at {start:#x} was given away under queue {queue}'s "
                            f"{identifier:#x}"
                        )


class HostileMemory(Memory):
    """An address space that knows the referee."""

    referee: Referee

    def alloc(self, size: int, **options: Any) -> DmaBuffer:
        buffer = super().alloc(size, **options)
        self.referee.allocated(buffer.iova, size)
        return buffer

    @property
    def mapped(self) -> int:
        """Bytes that are pinned."""
        return sum(mapping.size for mapping in self._mappings.values())


class HostileNvme(Nvme):
    """The controller."""

    temper: Temper
    time: FakeTime
    referee: Referee
    dice: random.Random

    def likely(self, percent: int) -> bool:
        return self.dice.random() * 100 < percent

    # Registers.

    def read64(self, offset: int) -> int:
        if self.answers and self.temper.capabilities is not None:
            return self.temper.capabilities
        return super().read64(offset)

    def read32(self, offset: int) -> int:
        if self.likely(self.temper.silence):
            self.silent = True
            self.time.at(self.dice.uniform(0, self.temper.latest), self._wake)
        value = super().read32(offset)
        if offset == spec.CSTS and self.answers and self.likely(self.temper.status):
            value = self.dice.getrandbits(32)
        enabled = self._registers.get(spec.CC, 0) & spec.CC_ENABLE
        if offset == spec.CSTS and not (enabled or value & spec.CSTS_READY):
            self.referee.reset()  # it says itself that it is idle
        return value

    def _wake(self) -> None:
        self.silent = False

    def reset(self) -> None:
        super().reset()
        self.referee.reset()

    def _check(self, held: bool, fault: str) -> None:
        # Who overruns its rings, or is asked for what it lied of, has nobody to blame.
        if "was given" in fault:
            super()._check(held, fault)

    def _doorbell(self, queue: int, completions: int, value: int) -> None:
        rings = self._completions if completions else self._submissions
        if queue in rings and self.ready and value < rings[queue].depth:
            try:
                super()._doorbell(queue, completions, value)
            except DmaFault:
                self.fatal = True
            if self.temper.floods:
                self._post_anything(queue)

    # Commands.

    def fetched(self, command: Submission) -> None:
        """A command is about to be done: what it may write to is known from now on."""
        ranges: list[tuple[int, int]] = []
        size = self._size(command)
        if size:
            try:
                ranges = list(walk(self.memory, self.page, command.pointers, size))
            except DmaFault:
                self.fatal = True
        self.referee.fetched(command, ranges)

    def _size(self, command: Submission) -> int:
        """Bytes that it writes."""
        if command.queue:
            return command.blocks * self.block if command.opcode == Io.READ else 0
        if command.opcode == Admin.IDENTIFY:
            return 4096
        if command.opcode == Admin.GET_LOG_PAGE:
            first, second = command.dwords[:2]
            return 4 * ((first >> 16 | (second & 0xFFFF) << 16) + 1)
        return 0

    def complete(self, command: Submission, status: int = SUCCESS) -> None:
        temper = self.temper
        if self.likely(temper.drops):
            return
        if self.likely(temper.fails):
            status = self.dice.getrandbits(15)
        if self.likely(temper.late):
            enabled = self.enabled
            self.time.at(
                self.dice.uniform(0, temper.latest),
                lambda: self._complete_if(enabled, command, status),
            )
        else:
            self._complete(command, status)

    def _complete_if(self, enabled: int, command: Submission, status: int) -> None:
        """Also after it was reset: then it is of nothing."""
        if command in self.waiting and enabled == self.enabled:
            self._complete(command, status)
        elif command.queue in self._completions:
            self.tell(command.queue, command.identifier, status)

    def _complete(self, command: Submission, status: int) -> None:
        if self.likely(self.temper.wrong):
            self._post_anything(command.queue)
        try:
            super().complete(command, status)
            if self.likely(self.temper.repeats):
                self.tell(command.queue, command.identifier, status)
        except DmaFault:
            self.fatal = True

    def _post_anything(self, queue: int) -> None:
        waiting = [c.identifier for c in self.waiting]
        old = [identifier for number, identifier in self.referee.debts if number == queue]
        identifier = self.dice.choice([self.dice.getrandbits(16), *waiting, *old])
        if queue in self._completions:
            self.tell(
                queue,
                identifier,
                self.dice.choice([0, 0, self.dice.getrandbits(15)]),
                self.dice.getrandbits(32),
                head=self.dice.choice([0, 1, self.dice.getrandbits(16)]),
                submissions=self.dice.choice([queue, queue, 0, 1, self.dice.getrandbits(16)]),
            )

    def tell(
        self,
        queue: int,
        identifier: int,
        status: int = SUCCESS,
        result: int = 0,
        *,
        head: int | None = None,
        submissions: int | None = None,
    ) -> None:
        if queue not in self._completions or queue not in self._submissions:
            return
        depth = self._submissions[queue].depth
        if (submissions is None or submissions == queue) and (head is None or head < depth):
            self.referee.posted(queue, identifier)
        super().tell(queue, identifier, status, result, head=head, submissions=submissions)

    def _identify(self, what: int, namespace: int) -> bytes:
        data = bytearray(super()._identify(what, namespace))
        for _ in range(self.dice.randrange(40) if self.likely(self.temper.lies) else 0):
            at = self.dice.choice([self.dice.randrange(4096), self.dice.randrange(600)])
            data[at : at + 4] = self.dice.choice([b"\xff" * 4, self.dice.randbytes(4)])
        return bytes(data[:4096])


class HostileDevice(Device):
    """An opened device with that controller.

    Attributes:
        time: in which it is, and the driver.
        referee: what is owed.
    """

    memory_kind = HostileMemory
    nvme_kind = HostileNvme
    nvme: HostileNvme
    dma: HostileMemory

    def __init__(self, temper: Temper, *, vectors: int = 4, **controller: Any) -> None:
        super().__init__(vectors=vectors, **controller)
        self.time, self.referee = FakeTime(), Referee()
        self.dma.referee = self.referee
        self.nvme.time, self.nvme.referee = self.time, self.referee
        self.nvme.dice = random.Random(temper.seed)
        self.nvme.version = temper.version
        self.behave(temper)

    def behave(self, temper: Temper) -> None:
        """Have another temper from now on."""
        nvme = self.nvme
        nvme.temper = temper
        nvme.becomes_ready, nvme.becomes_idle = temper.ready, temper.idle
        nvme.shuts_down = temper.shuts_down
        self.reset_helps = temper.resets

    def _interrupt(self, vector: int) -> None:
        if self.nvme.likely(self.nvme.temper.interrupts):
            super()._interrupt(vector)

    def wait(self, vector: Vector, timeout: float | None = None, *, spin: float = 0.0) -> int:
        """In the place of :meth:`Vector.wait`."""
        assert timeout is not None
        return self.time.sleep_unless(vector.take, timeout)
