"""A submission queue with its completion queue (NVMe Base 2.0, 3.3): rings in DMA memory.

Entries are written as they come, and the doorbell is rung once for all that were written since; so
are completions taken. No more commands are under way than the rings hold; the rest waits in order.

A command's identifier is a slot in its lower bits, and above them a generation that is another one
each time the slot is used. Slots are used in the order in which they became free. So a completion
that comes twice, or late, names no command that is under way: it is counted, and completes nothing.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from pyvfio import errors
from pyvfio._sys.memory import pin
from pyvfio.drivers.nvme import spec, status
from pyvfio.drivers.nvme.operation import Operation
from pyvfio.drivers.nvme.withheld import Withheld
from pyvfio.iommu import DmaBuffer, Mapping, fence

if TYPE_CHECKING:
    from pyvfio.drivers.nvme.line import Line

MOST_ENTRIES = 4096
"""Of a queue: so that identifiers, which have 16 bits, have 16 generations at least."""
_POINTERS = 512
"""PRP entries of one command at most, for what does not fit into PRP 1 and 2."""
_LIST = 8 * _POINTERS
"""Bytes of a list of them; it lies in one memory page, so it has no continuation."""

ENTRY = struct.Struct("<II16xQQ6I")
"""A submission entry: opcode and identifier, namespace, PRP 1 and 2, dwords 10 to 15."""
_BLOCKS = struct.Struct("<II16xQQQI12x")
"""The same of a read or write: dwords 10 and 11 are a block's number, 12 the last block."""
_GIVEN = struct.Struct("<BIQ6I")  # what of it the caller gives

_COMPLETION = struct.Struct("<I4xII")
"""A completion entry: dword 0; head and identifier of the submission queue; dword 3."""
_NO_DWORDS = (0,) * 6
_PHASE = 1 << 16  # in dword 3 of a completion, whose low half is the command's identifier
_STATUS_SHIFT = 17
FAILED = 0x7FF << _STATUS_SHIFT
"""The bits of dword 3 of a completion that are not all clear where a command failed."""
_ABORT_REQUESTED = 0x007
_IDENTIFIERS = 1 << 16


class Work(Protocol):
    """What is done by one or more commands of a queue.

    Attributes:
        timeout: seconds that each of its commands may take once it is placed.
        expired: whether one of them has taken longer, and is being aborted.
        memory: what its commands read or write, kept alive until they have ended.
        name: what it does, for people.
    """

    timeout: float
    expired: bool
    memory: memoryview | None

    @property
    def name(self) -> str: ...

    def place(self, queue: Queue) -> bool:
        """Write commands while there is room, holding the queue's lock.

        Returns:
            False if there was too little room.
        """

    def completed(self, identifier: int, entry: int, result: int) -> None:
        """A command has ended; the queue's lock is held.

        Args:
            identifier: the command's.
            entry: dword 3 of its completion; see :data:`FAILED`.
            result: dword 0 of it.
        """

    def advance(self) -> None:
        """Commands of it have ended: go on. No lock is held."""

    def failed(self, error: Exception) -> None:
        """Its commands under way will never end, and none of it is placed any more."""


@dataclass
class Abort:
    """That a command is to be aborted. Its identifier is not used again until that was answered.

    Attributes:
        asked: when the controller was asked (:func:`time.monotonic`).
        answered: whether it has answered.
    """

    asked: float
    answered: bool = False


class Queue:
    """One queue pair.

    Attributes:
        number: its identifier at the controller; 0 is the admin queue.
        depth: entries of each ring; one less can be under way.
        line: where its completions are waited for.
        timeout: seconds that a command may take.
        largest: bytes of a command's data at most, by this driver.
        wrong_completions: how many completions named no command that was under way.
        last_wrong: the last of them, for people.
    """

    # Python finds more than 30 attributes of an object slowly, unless they are slots.
    __slots__ = (
        "__dict__",
        "_aborts",
        "_backlog",
        "_broken",
        "_completions",
        "_deadlines",
        "_end",
        "_entries",
        "_free",
        "_generation",
        "_head_doorbell",
        "_heads",
        "_held",
        "_identifiers",
        "_lists",
        "_lock",
        "_lost",
        "_page",
        "_phase",
        "_pins",
        "_refusal",
        "_ring_view",
        "_rung",
        "_running",
        "_submissions",
        "_tail",
        "_tail_doorbell",
        "_word",
        "_words",
        "_work",
        "_write32",
        "_wrong_before",
        "depth",
        "largest",
        "last_wrong",
        "line",
        "number",
        "timeout",
        "withheld",
        "wrong_completions",
    )

    def __init__(
        self,
        number: int,
        depth: int,
        line: Line,
        *,
        alloc: Callable[..., DmaBuffer],
        write32: Callable[[int, int], None],
        stride: int,
        page: int,
        timeout: float,
        withheld: Withheld | None = None,
    ) -> None:
        """Made by :class:`~pyvfio.drivers.nvme.controller.Controller`.

        Args:
            alloc: allocates DMA memory (:meth:`pyvfio.iommu.AddressSpace.alloc`).
            write32: writes a register, at an offset in BAR 0.
            stride: bytes from doorbell to doorbell.
            page: bytes of the controller's memory page.
            withheld: takes the memory of commands that are given up.
        """
        self.number = number
        self.depth = depth
        self.line = line
        self.timeout = timeout
        self.withheld = withheld or Withheld()
        self.wrong_completions = 0
        self.last_wrong = ""
        self._lock = threading.Lock()
        self._page = page
        self.largest = _POINTERS * page
        self._write32 = write32
        self._tail_doorbell = spec.DOORBELLS + 2 * number * stride
        self._head_doorbell = self._tail_doorbell + stride
        with ExitStack() as stack:
            self._submissions, self._completions, self._lists = (
                stack.enter_context(alloc(depth * size, align=page))
                for size in (spec.SUBMISSION_ENTRY, spec.COMPLETION_ENTRY, _LIST)
            )
            stack.pop_all()
        self._entries = self._submissions.view
        self._ring_view = self._completions.view
        self._words = self._ring_view.cast("I")
        self._end = len(self._words)
        # Where the device is closed first, its registers and vectors say so: the rings can still be
        # looked at until then.
        rings = self._entries, self._ring_view, self._words, self._lists.view
        self._pins = [pin(view) for view in rings]
        # A power of two that is larger than any slot; slots are 0 to depth - 2, so no identifier is
        # 0xffff, by which the error log means no command.
        self._generation = 1 << (depth - 1).bit_length()
        # What dword 2 of a completion is: the queue's number above, a head within its ring below.
        self._heads = number << 16, (number << 16) + depth
        self._backlog: deque[Work] = deque()
        # Set when an exception out of a signal handler, as Ctrl-C's, cut this short anywhere: what
        # the rings and the tables say may be half done, and only a reset makes it whole.
        self._broken = False
        self._lost: deque[Work] = deque()  # what nobody else will tell of its end
        self._refusal: Exception | None = None
        self._held = 0
        self._running = False
        # By slot: whose command is under way, until when it may take, and the identifier that it
        # has, or that the next one will have.
        self._work: list[Work | None] = [None] * self._generation
        self._deadlines = [0.0] * self._generation
        self._identifiers = list(range(self._generation))
        self._free = deque(range(depth - 1))  # slots
        self._aborts: dict[int, Abort] = {}
        self._start_anew()

    def _start_anew(self) -> None:
        """Empty rings, and nothing under way."""
        self._ring_view[:] = bytes(len(self._ring_view))
        # Generations go on: a completion from before must name nothing that comes now.
        for slot, work in enumerate(self._work):
            if work is not None:
                self._work[slot] = None
                name = self._identifiers[slot] + self._generation
                self._identifiers[slot] = name % _IDENTIFIERS
        self._free.extend(sorted({*range(self.depth - 1)} - {*self._free}))
        self._aborts.clear()
        self._tail = self._rung = 0
        self._word = 3  # dword 3 of the completion that is next
        self._phase = _PHASE
        self._wrong_before = self.wrong_completions

    def _slot(self, identifier: int) -> int:
        return identifier & self._generation - 1

    def _under_way(self) -> dict[int, Work]:
        """Whose commands are under way, by identifier."""
        pairs = zip(self._identifiers, self._work, strict=True)
        return {identifier: work for identifier, work in pairs if work is not None}

    @property
    def iovas(self) -> tuple[int, int]:
        """Where the device finds the submission and the completion queue."""
        return self._submissions.iova, self._completions.iova

    @property
    def under_way(self) -> int:
        """How many commands are under way."""
        return self.depth - 1 - len(self._free)

    @property
    def refusal(self) -> Exception | None:
        """Why it takes no commands any more; None while it does."""
        return self._refusal

    # Submission.

    def command(
        self,
        opcode: int,
        *dwords: int,
        namespace: int = 0,
        memory: memoryview | None = None,
        iova: int = 0,
        size: int = 0,
        name: str = "",
        timeout: float | None = None,
        after: Callable[[Command], None] | None = None,
    ) -> Command:
        """Start any command.

        Args:
            opcode: its number.
            dwords: command dwords from 10 on, six at most.
            namespace: its ID.
            memory: kept alive until the command has ended.
            iova: of the data, a multiple of 4.
            size: bytes of data.
            name: what it does, for messages; "" derives it.
            timeout: seconds that it may take once there was room for it; None for the queue's own.
            after: called when it has ended, by whoever finds that, before it is done; if it
                raises an exception, the command fails with it.

        Raises:
            ArgumentError: a value does not fit its field, or it is more data than the list of
                pointers can describe.
            ControllerFailed, DeviceGone, Closed: there is no controller any more.
        """
        timeout = self.timeout if timeout is None else timeout
        command = Command(self, opcode, dwords, namespace, memory, iova, size, name, timeout, after)
        self.start(command)
        return command

    def start(self, work: Work) -> None:
        """Place work as soon as there is room for it.

        Raises:
            ControllerFailed, DeviceGone, Closed: there is no controller any more.
        """
        with self._lock:
            if self._refusal is not None:
                # One exception for all: without the frames, and their memory, of those before.
                raise self._refusal.with_traceback(None)
            try:
                if self._backlog or not self._running or not work.place(self):
                    self._backlog.append(work)
                if not self._held:
                    self._ring()
            except BaseException:
                self._broken = True
                raise

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Ring once for all that is started in the block; or earlier, when somebody waits."""
        held = False
        try:
            with self._lock:
                self._held += 1
                held = True
            yield
        finally:
            with self._lock:
                self._held -= held
                if not self._held:
                    self._ring()

    def ring(self) -> None:
        """Tell the controller of what was placed."""
        if self._tail != self._rung:
            with self._lock:
                self._ring()

    def _ring(self) -> None:
        if self._tail != self._rung and self._running:
            fence()  # the entries before the doorbell
            if self._write_doorbell(self._tail_doorbell, self._tail):
                self._rung = self._tail

    def _write_doorbell(self, doorbell: int, value: int) -> bool:
        """Write a doorbell; returns whether it was within reach.

        While the device is reset, or for good, it is not. Whoever waits finds out which, and rings
        again.
        """
        try:
            self._write32(doorbell, value)
        except errors.Error:
            return False
        return True

    def place(
        self,
        work: Work,
        opcode: int,
        namespace: int,
        iova: int,
        size: int,
        dwords: Sequence[int],
    ) -> int | None:
        """Write one command, for :meth:`Work.place`.

        Returns:
            The command's identifier; None if there is no room.
        """
        if not self._free:
            return None
        slot = self._free.popleft()
        identifier = self._identifiers[slot]
        self._work[slot] = work
        self._deadlines[slot] = time.monotonic() + work.timeout
        tail = self._tail
        ENTRY.pack_into(
            self._entries,
            tail * spec.SUBMISSION_ENTRY,
            opcode | identifier << 16,
            namespace,
            iova,
            self._second_pointer(identifier, iova, size),
            *dwords,
        )
        self._tail = tail + 1 if tail + 1 < self.depth else 0
        return identifier

    def place_blocks(
        self,
        work: Work,
        opcode: int,
        namespace: int,
        size: int,
        last_block: int,
        lbas: Sequence[int],
        iovas: Sequence[int],
    ) -> list[int]:
        """Write commands that differ in block and memory only, as many as there is room for.

        As :meth:`place`, written out, since with small blocks this is most of what a command costs.

        Returns:
            The commands' identifiers, in order.
        """
        free, entries, table, depth = self._free, self._entries, self._work, self.depth
        pack, page, names = _BLOCKS.pack_into, self._page, self._identifiers
        deadlines, deadline = self._deadlines, time.monotonic() + work.timeout
        tail = self._tail
        identifiers = []
        for lba, iova in zip(lbas, iovas, strict=False):
            if not free:
                break
            slot = free.popleft()
            identifier = names[slot]
            table[slot] = work
            deadlines[slot] = deadline
            second = 0
            if (iova & page - 1) + size > page:
                second = self._second_pointer(identifier, iova, size)
            pack(
                entries,
                tail * 64,
                opcode | identifier << 16,
                namespace,
                iova,
                second,
                lba,
                last_block,
            )
            tail += 1
            if tail == depth:
                tail = 0
            identifiers.append(identifier)
        self._tail = tail
        return identifiers

    def _second_pointer(self, identifier: int, iova: int, size: int) -> int:
        """PRP 2 for data whose PRP 1 is `iova` (Base 2.0, 4.1.1)."""
        page = self._page
        second = (iova | page - 1) + 1
        left = iova + size - second
        if left <= 0:
            return 0
        if left <= page:
            return second
        # The memory is contiguous for the device; no transfer needs more than a list of pointers.
        count = -(-left // page)
        at = self._slot(identifier) * _LIST
        struct.pack_into(
            f"<{count}Q", self._lists.view, at, *range(second, second + count * page, page)
        )
        return self._lists.iova + at

    # Completion.

    def reap(self) -> int:
        """Take the completions that there are, without waiting.

        Returns:
            0 if there was nothing to do.
        """
        # A look without the lock, which costs as much as all of it.
        if self._words[self._word] & _PHASE != self._phase:
            return 0
        ended: deque[Work] = deque()
        try:
            with self._lock:
                count = self._take(ended)
            if ended:
                with self.batch():
                    while ended:
                        ended[0].advance()
                        ended.popleft()
        except BaseException:
            self._lost.extend(ended)
            self._broken = True
            raise
        return count

    def _take(self, ended: deque[Work]) -> int:
        """Take completions; `ended` gets whose they are."""
        words, word, phase, end = self._words, self._word, self._phase, self._end
        first = word
        # Once round the ring at most, less one entry: a device may go on while we look.
        last = first - 4 if first > 3 else end - 1
        while words[word] & _PHASE == phase and word != last:
            word += 4
            if word > end:
                word = 3
                phase ^= _PHASE
        if word == first or not self._running or self._broken:
            return 0
        fence()  # what the device wrote before is there: the rest of the entries, and the data
        self._word, self._phase = word, phase
        table, names, free, aborts = self._work, self._identifiers, self._free, self._aborts
        generation, (least, most) = self._generation, self._heads
        mask = generation - 1
        # Copied once: what is checked is what is used, whatever the device writes meanwhile.
        for result, head, entry in self._entries_between(first, word):
            identifier = entry & 0xFFFF
            slot = identifier & mask
            work = table[slot]
            if work is None or names[slot] != identifier or not least <= head < most:
                self._note_wrong(head, entry)
                continue
            work.completed(identifier, entry, result)
            if not ended or ended[-1] is not work:
                ended.append(work)
            table[slot] = None
            name = identifier + generation
            names[slot] = name if name < _IDENTIFIERS else slot
            if not aborts or (abort := aborts.get(identifier)) is None:
                free.append(slot)
            elif abort.answered:
                del aborts[identifier]
                free.append(slot)
        self._place_waiting()
        fence()  # the completions were read before the doorbell
        # If this fails, the next head tells of these completions as well.
        self._write_doorbell(self._head_doorbell, (word - 3) // 4)
        if not self._held:
            self._ring()
        return (word - first) // 4 if word > first else self.depth - (first - word) // 4

    def _entries_between(self, first: int, word: int) -> Iterable[tuple[int, int, int]]:
        """Copy completions, each as it is taken."""
        ring, start, end = self._ring_view, 4 * first - 12, 4 * word - 12
        if end == start + spec.COMPLETION_ENTRY:
            return (_COMPLETION.unpack_from(ring, start),)  # in less time than it takes to cut it
        if end > start:
            return _COMPLETION.iter_unpack(ring[start:end])
        return chain(_COMPLETION.iter_unpack(ring[start:]), _COMPLETION.iter_unpack(ring[:end]))

    def _note_wrong(self, heads: int, entry: int) -> None:
        """A completion that names no command under way, or not this queue: nothing is done."""
        self.wrong_completions += 1
        self.last_wrong = (
            f"queue {self.number}, identifier {entry & 0xFFFF:#06x}, "
            f"status {entry >> _STATUS_SHIFT:#06x}, SQID {heads >> 16}, SQHD {heads & 0xFFFF}"
        )

    def _place_waiting(self) -> None:
        while self._backlog and self._backlog[0].place(self):
            self._backlog.popleft()

    # For the controller.

    def expired(self, now: float) -> list[tuple[int, Work, Abort | None]]:
        """The commands that have taken too long: identifiers, whose they are, their aborts."""
        with self._lock:
            return [
                (identifier, work, self._aborts.get(identifier))
                for identifier, work in self._under_way().items()
                if self._deadlines[self._slot(identifier)] < now
            ]

    def identifier_of(self, work: Work) -> int | None:
        """The identifier of work that is one command; None if it is not under way."""
        with self._lock:
            pairs = self._under_way().items()
            return next((identifier for identifier, whose in pairs if whose is work), None)

    @property
    def aborts_asked(self) -> list[float]:
        """When aborts of its commands were asked that the controller has not answered."""
        with self._lock:
            return [abort.asked for abort in self._aborts.values() if not abort.answered]

    def abort_asked(self, identifier: int, work: Work, now: float) -> Abort | None:
        """A command is going to be aborted; None if it has ended meanwhile."""
        with self._lock:
            if self._under_way().get(identifier) is not work:
                return None
            abort = self._aborts[identifier] = Abort(now)
            return abort

    def abort_answered(self, identifier: int, abort: Abort) -> None:
        """The controller will not abort the command of this identifier any more."""
        with self._lock:
            abort.answered = True
            slot = self._slot(identifier)
            ended = self._identifiers[slot] != identifier
            if self._aborts.get(identifier) is abort and ended:
                del self._aborts[identifier]
                self._free.append(slot)
                if self._running:
                    self._place_waiting()
                    self._ring()

    @property
    def wrong_since_start(self) -> int:
        """How many wrong completions came since its rings were empty."""
        return self.wrong_completions - self._wrong_before

    def run(self) -> None:
        """The controller takes commands, from empty rings: place what has waited."""
        with self._lock:
            self._running = True
            self._broken = False
            self._refusal = None
            self._place_waiting()
            self._ring()

    @property
    def stopped(self) -> bool:
        """Whether commands wait for a controller that must be reset first."""
        return (self._broken or not self._running) and self._refusal is None

    def stop(self) -> None:
        """The controller takes no commands for now: they wait."""
        with self._lock:
            self._running = False

    def fail(self, error: Callable[[Work], Exception], *, refusal: Exception | None = None) -> None:
        """What is under way will not end.

        Args:
            error: gives each one's error.
            refusal: fails what has waited too, and all that comes.
        """
        with self._lock:
            self._running = False
            lost: dict[int, Work] = {id(work): work for work in self._work if work is not None}
            self.withheld.keep(work.memory for work in lost.values())
            self._start_anew()
            for work in list(self._backlog):
                if refusal is not None or id(work) in lost:
                    self._backlog.remove(work)
                    lost[id(work)] = work
            if refusal is not None:
                self._refusal = refusal
            self._lost.extend(lost.values())
        while self._lost:
            self._lost[0].failed(error(self._lost[0]))
            self._lost.popleft()

    def release(self, memory: DmaBuffer | Mapping) -> None:
        """Close what commands used, or withhold it while the device may still be at it.

        Raises:
            KernelError: as :meth:`Mapping.close`.
        """
        self.withheld.close(memory)

    def close(self) -> None:
        """Give its memory back, or withhold it while the device may still be at it."""
        self._pins.clear()
        for buffer in (self._submissions, self._completions, self._lists):
            self.release(buffer)

    def __repr__(self) -> str:
        return f"<Queue {self.number} depth={self.depth} under_way={self.under_way}>"


class Command(Operation):
    """One command; :meth:`wait` gives dword 0 of its completion."""

    __slots__ = (
        "_after",
        "_entry",
        "_name",
        "_queue",
        "_result",
        "expired",
        "memory",
        "timeout",
    )

    def __init__(
        self,
        queue: Queue,
        opcode: int,
        dwords: Sequence[int],
        namespace: int,
        memory: memoryview | None,
        iova: int,
        size: int,
        name: str,
        timeout: float,
        after: Callable[[Command], None] | None,
    ) -> None:
        """Made by :meth:`Queue.command`."""
        super().__init__(queue.line)
        if iova & 3:
            raise errors.ArgumentError(
                f"data of a command begins at a multiple of 4, not {iova:#x}"
            )
        dwords = (*dwords, *_NO_DWORDS[len(dwords) :])
        try:
            _GIVEN.pack(opcode, namespace, iova, *dwords)
        except struct.error as error:
            # Here, where it harms nobody: it may be written into the queue by somebody else.
            raise errors.ArgumentError(
                f"no command: opcode {opcode}, namespace {namespace}, dwords {dwords}: {error}"
            ) from None
        if size > queue.largest:
            raise errors.ArgumentError(f"a command moves {queue.largest} bytes at most, not {size}")
        self._queue = queue
        self._entry = (opcode, namespace, iova, size, dwords)
        self.memory = memory
        self._after = after
        self._result = 0
        self._name = name
        self.timeout = timeout
        self.expired = False

    @property
    def queue(self) -> Queue:
        """Where it was started."""
        return self._queue

    @property
    def name(self) -> str:
        """What it does, for people."""
        opcode, namespace, _, _, dwords = self._entry
        if self._name:
            return self._name
        if not self._queue.number:
            known = spec.Admin(opcode).name if opcode in list(spec.Admin) else f"{opcode:#04x}"
            return f"admin command {known}"
        if opcode in (spec.Io.READ, spec.Io.WRITE):
            lba = dwords[0] | dwords[1] << 32
            return (
                f"{spec.Io(opcode).name} of {dwords[2] + 1} blocks from {lba}, "
                f"namespace {namespace}"
            )
        known = spec.Io(opcode).name if opcode in list(spec.Io) else f"command {opcode:#04x}"
        return f"{known}, namespace {namespace}"

    def place(self, queue: Queue) -> bool:
        """As :meth:`Work.place`."""
        return queue.place(self, *self._entry) is not None

    def completed(self, identifier: int, entry: int, result: int) -> None:
        """As :meth:`Work.completed`."""
        self._result = result
        self.memory = None
        if entry & FAILED:
            self.error = ended_badly(self, entry, self.name)

    def advance(self) -> None:
        """As :meth:`Work.advance`."""
        try:
            # Whoever waits finds done what is done afterwards, whichever thread does it.
            if self._after is not None:
                self._after(self)
        except Exception as error:
            self.error = self.error or error  # for who waits for it: nobody else is harmed
        finally:
            self._finish(self.error)

    def failed(self, error: Exception) -> None:
        """As :meth:`Work.failed`."""
        self.memory = None
        self.error = self.error or error
        self.advance()

    def result(self) -> int:
        """Dword 0 of its completion; errors as :meth:`wait`."""
        super().result()
        return self._result

    def __repr__(self) -> str:
        return f"<Command {self.name}{' done' * self.done}>"


def ended_badly(work: Work, entry: int, name: str) -> Exception:
    """The error for a command whose completion has dword 3 with a status that is not success."""
    field = entry >> _STATUS_SHIFT
    if work.expired and field & 0x7FF == _ABORT_REQUESTED:
        return status.CommandTimedOut(f"{name}: took too long, and was aborted")
    return status.failure(field, name)
