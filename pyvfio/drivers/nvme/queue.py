"""A submission queue with its completion queue (NVMe Base 2.0, 3.3): rings in DMA memory.

Entries are written as they come, and the doorbell is rung once for all that were written since; so
are completions taken. No more commands are under way than the rings hold; the rest waits in order.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pyvfio import errors
from pyvfio._sys.memory import pin
from pyvfio.drivers.nvme import spec, status
from pyvfio.drivers.nvme.operation import Operation
from pyvfio.iommu import DmaBuffer, fence

if TYPE_CHECKING:
    from pyvfio.drivers.nvme.line import Line

ENTRY = struct.Struct("<II16xQQ6I")
"""A submission entry: opcode and identifier, namespace, PRP 1 and 2, dwords 10 to 15."""
_GIVEN = struct.Struct("<BIQ6I")  # what of it the caller gives

_NO_DWORDS = (0,) * 6
_PHASE = 1 << 16  # in dword 3 of a completion, whose low half is the command's identifier
_STATUS_SHIFT = 17
_ABORT_REQUESTED = 0x007


class Work(Protocol):
    """What is done by one or more commands of a queue.

    Attributes:
        timeout: seconds that each of its commands may take once it is placed.
        expired: whether one of them has taken longer, and is being aborted.
        name: what it does, for people.
    """

    timeout: float
    expired: bool

    @property
    def name(self) -> str: ...

    def place(self, queue: Queue) -> bool:
        """Write commands while there is room, holding the queue's lock.

        Returns:
            False if there was too little room.
        """

    def completed(self, identifier: int, field: int, result: int) -> None:
        """A command has ended; the queue's lock is held, and its identifier is free again."""

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
    """

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
    ) -> None:
        """Made by :class:`~pyvfio.drivers.nvme.controller.Controller`.

        Args:
            alloc: allocates DMA memory (:meth:`pyvfio.iommu.AddressSpace.alloc`).
            write32: writes a register, at an offset in BAR 0.
            stride: bytes from doorbell to doorbell.
            page: bytes of the controller's memory page.
        """
        self.number = number
        self.depth = depth
        self.line = line
        self.timeout = timeout
        self._lock = threading.Lock()
        self._page = page
        self.largest = page // 8 * page
        self._write32 = write32
        self._tail_doorbell = spec.DOORBELLS + 2 * number * stride
        self._head_doorbell = self._tail_doorbell + stride
        with ExitStack() as stack:
            self._submissions, self._completions, self._lists = (
                # A page of pointers for each identifier, for what does not fit into PRP 1 and 2.
                stack.enter_context(alloc(depth * size, align=page))
                for size in (spec.SUBMISSION_ENTRY, spec.COMPLETION_ENTRY, page)
            )
            stack.pop_all()
        self._entries = self._submissions.view
        self._words = self._completions.view.cast("I")
        self._end = len(self._words)
        # Where the device is closed first, its registers and vectors say so: the rings can still be
        # looked at until then.
        rings = self._entries, self._completions.view, self._words, self._lists.view
        self._pins = [pin(view) for view in rings]
        self._backlog: deque[Work] = deque()
        # Set when an exception out of a signal handler, as Ctrl-C's, cut this short anywhere: what
        # the rings and the tables say may be half done, and only a reset makes it whole.
        self._broken = False
        self._lost: deque[Work] = deque()  # what nobody else will tell of its end
        self._refusal: Exception | None = None
        self._held = 0
        self._running = False
        self._start_anew()

    def _start_anew(self) -> None:
        """Empty rings, and nothing under way."""
        self._completions.view[:] = bytes(self._completions.size)
        self._work: list[Work | None] = [None] * self.depth
        self._deadlines = [0.0] * self.depth
        self._free = list(range(self.depth - 1))
        self._aborts: dict[int, Abort] = {}
        self._tail = self._rung = 0
        self._word = 3  # dword 3 of the completion that is next
        self._phase = _PHASE

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
            ArgumentError: a value does not fit its field, or it is more data than the page of
                pointers can tell of.
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
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
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
        identifier = self._free.pop()
        self._work[identifier] = work
        self._deadlines[identifier] = time.monotonic() + work.timeout
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
        pack, page = ENTRY.pack_into, self._page
        deadlines, deadline = self._deadlines, time.monotonic() + work.timeout
        tail = self._tail
        identifiers = []
        for lba, iova in zip(lbas, iovas, strict=False):
            if not free:
                break
            identifier = free.pop()
            table[identifier] = work
            deadlines[identifier] = deadline
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
                lba & 0xFFFFFFFF,
                lba >> 32,
                last_block,
                0,
                0,
                0,
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
        # The memory is contiguous for the device; no transfer needs more than a page of pointers.
        count = -(-left // page)
        struct.pack_into(
            f"<{count}Q",
            self._lists.view,
            identifier * page,
            *range(second, second + count * page, page),
        )
        return self._lists.iova + identifier * page

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
        found = []
        while (entry := words[word]) & _PHASE == phase:
            found.append(entry)
            word += 4
            if word > end:
                word = 3
                phase ^= _PHASE
        if not found or not self._running or self._broken:
            return 0
        fence()  # what the device wrote before is there: dword 0, and the data
        at, self._word, self._phase = self._word, word, phase
        table, free, aborts = self._work, self._free, self._aborts
        for entry in found:
            identifier = entry & 0xFFFF
            work = table[identifier] if identifier < self.depth else None
            if work is not None:
                work.completed(identifier, entry >> _STATUS_SHIFT, words[at - 3])
                if not ended or ended[-1] is not work:
                    ended.append(work)
                table[identifier] = None
                abort = aborts.get(identifier) if aborts else None
                if abort is None:
                    free.append(identifier)
                elif abort.answered:
                    del aborts[identifier]
                    free.append(identifier)
            at += 4
            if at > end:
                at = 3
        self._place_waiting()
        fence()  # the completions were read before the doorbell
        # If this fails, the next head tells of these completions as well.
        self._write_doorbell(self._head_doorbell, (word - 3) // 4)
        if not self._held:
            self._ring()
        return len(found)

    def _place_waiting(self) -> None:
        while self._backlog and self._backlog[0].place(self):
            self._backlog.popleft()

    # For the controller.

    def expired(self, now: float) -> list[tuple[int, Work, Abort | None]]:
        """The commands that have taken too long: identifiers, whose they are, their aborts."""
        with self._lock:
            return [
                (identifier, work, self._aborts.get(identifier))
                for identifier, work in enumerate(self._work)
                if work is not None and self._deadlines[identifier] < now
            ]

    def identifier_of(self, work: Work) -> int | None:
        """The identifier of work that is one command; None if it is not under way."""
        with self._lock:
            return self._work.index(work) if work in self._work else None

    @property
    def aborts_asked(self) -> int:
        """How many aborts of its commands the controller has not answered."""
        with self._lock:
            return sum(not abort.answered for abort in self._aborts.values())

    def abort_asked(self, identifier: int, work: Work, now: float) -> Abort | None:
        """A command is going to be aborted; None if it has ended meanwhile."""
        with self._lock:
            if self._work[identifier] is not work:
                return None
            abort = self._aborts[identifier] = Abort(now)
            return abort

    def abort_answered(self, identifier: int, abort: Abort) -> None:
        """The controller will not abort the command of this identifier any more."""
        with self._lock:
            abort.answered = True
            if self._aborts.get(identifier) is abort and self._work[identifier] is None:
                del self._aborts[identifier]
                self._free.append(identifier)
                if self._running:
                    self._place_waiting()
                    self._ring()

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

    def close(self) -> None:
        """Give its memory back. The controller is done with it."""
        self._pins.clear()
        for buffer in (self._submissions, self._completions, self._lists):
            buffer.close()

    def __repr__(self) -> str:
        return f"<Queue {self.number} depth={self.depth} under_way={self.under_way}>"


class Command(Operation):
    """One command; :meth:`wait` gives dword 0 of its completion."""

    __slots__ = (
        "_after",
        "_entry",
        "_memory",
        "_name",
        "_queue",
        "_result",
        "expired",
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
        self._memory = memory
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

    def completed(self, identifier: int, field: int, result: int) -> None:
        """As :meth:`Work.completed`."""
        self._result = result
        self._memory = None
        if field & 0x7FF:
            self.error = ended_badly(self, field, self.name)

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
        self._memory = None
        self.error = self.error or error
        self.advance()

    def result(self) -> int:
        """Dword 0 of its completion; errors as :meth:`wait`."""
        super().result()
        return self._result

    def __repr__(self) -> str:
        return f"<Command {self.name}{' done' * self.done}>"


def ended_badly(work: Work, field: int, name: str) -> Exception:
    """The error for a command whose status is not success."""
    if work.expired and field & 0x7FF == _ABORT_REQUESTED:
        return status.CommandTimedOut(f"{name}: took too long, and was aborted")
    return status.failure(field, name)
