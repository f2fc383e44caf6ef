"""An NVMe controller: bringing up, commands, recovery, shutdown (NVMe Base Specification 2.0)."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from pyvfio import errors
from pyvfio._sys.closing import Closing
from pyvfio.device import Device, Region, Vector, Vectors
from pyvfio.drivers.nvme import identify, logs, quirks, spec, status
from pyvfio.drivers.nvme.line import Line
from pyvfio.drivers.nvme.namespace import Namespace
from pyvfio.drivers.nvme.queue import MOST_ENTRIES, Command, Queue, Work
from pyvfio.drivers.nvme.spec import Admin, Feature, Identify
from pyvfio.drivers.nvme.withheld import Withheld
from pyvfio.iommu import AddressSpace

_ADMIN_DEPTH = 32
_SHUTDOWN_SECONDS = 10.0
"""How long the controller may take to shut down, if it claims to need less."""
_MOST_SHUTDOWN_SECONDS = 60.0
"""The same, whatever it claims to need (RTD3E)."""
_ABORT_SECONDS = 3.0
"""How long a command may take to end after it was aborted, before the controller is reset."""
_POLL_SECONDS = 0.0002
_LEAST_SECONDS = 5.0
"""How long the controller may take to become ready, and its registers to read all ones after a
reset, if it claims to need less (CAP.TO; at most it can claim 127.5 s)."""
_MOST_MPSMIN = 4
"""Memory pages of 64 KiB, which is as much as any host has."""
_MOST_BYTES = spec.MOST_BLOCKS * spec.LEAST_BLOCK
"""Of one command, whatever its blocks: more of the smallest do not fit its number of blocks."""
_MOST_NAMESPACES = 4096
_LISTING_SECONDS = 60.0
"""How long finding out which namespaces there are may take, and one command more."""
_TOLERATED = 1
"""Wrong completions; at one more the controller is reset."""


class Controller(Closing):
    """A controller that this process drives, until :meth:`close`.

    Commands that take too long are aborted. If that does not help, and when the controller reports
    a fatal status or was reset by somebody, it is reset: what was under way fails with
    :class:`~pyvfio.drivers.nvme.status.ControllerReset` (or the subclass that says why), and what
    comes later works again. All this is noticed by whoever waits.

    Threads and asyncio tasks may share it, also one queue.

    Attributes:
        device: the PCI device.
        identity: what the controller says of itself.
        namespaces: the active ones, by ID.
        max_transfer: bytes that one command moves at most.
        queues: the I/O queues, each with a vector of its own if there are enough.
        resets: how many times it had to be reset.

    What it says is not trusted: a register or field that asks for more than this driver's limits is
    an error that names it, and a completion of no command under way completes none.
    """

    identity: identify.ControllerIdentity
    max_transfer: int

    def __init__(
        self,
        device: Device,
        *,
        queues: int = 1,
        depth: int = 128,
        interrupts: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Bring a controller up.

        Args:
            device: opened, and the caller's to close afterwards.
            queues: I/O queue pairs; fewer if the controller has no more.
            depth: entries of each, one more than can be under way; fewer if it takes no more, and
                4,096 at most.
            interrupts: wait by MSI-X or MSI; False, or a device without, looks all the time.
            timeout: seconds that a command may take.

        Raises:
            Unsupported: it is no NVMe controller, or one without the NVM command set, or it needs
                what this driver does not do.
            ArgumentError: no queues, or queues too small.
            ControllerFailed: it does not become ready, or says what makes no sense.
            DeviceGone: it does not answer.
            KernelError: the kernel refused memory or interrupts.
        """
        self.device = device
        self.timeout = timeout
        self.resets = 0
        self._most_aborts = 1
        self.queues: tuple[Queue, ...] = ()
        self.namespaces: dict[int, Namespace] = {}
        self._closed = self._released = False
        self._everything: list[Queue] = []
        self._vectors: Vectors | None = None
        self._registers = _registers(device)
        if queues < 1 or depth < 2:
            raise errors.ArgumentError(
                f"queues must be at least 1, and depth at least 2, not {queues} and {depth}"
            )
        quirk = quirks.find(device.config)
        self._patience = _LEAST_SECONDS  # seconds for its registers to answer
        self._silent: tuple[float, float] | None = None  # when it was seen, first and last
        self._until = 0.0  # until then a command of bringing up or shutting down is waited for
        self._capabilities = self._answered(lambda: self._registers.read64(spec.CAP), 64)
        self._patience = max((self._capabilities >> 24 & 0xFF) / 2, _LEAST_SECONDS)
        depth = min(depth, self._check_capabilities(quirk), MOST_ENTRIES)
        self._page = 4096 << (self._capabilities >> 48 & 0xF)
        self._withheld = Withheld()
        # Held by whoever resets the controller, and while it is closed.
        self._recovering = threading.Lock()
        with ExitStack() as stack:
            stack.callback(self._let_go)
            # Before the controller is enabled: an admin queue that is older than its vector gets no
            # interrupts from some controllers, QEMU's among them.
            if interrupts:
                self._vectors = self._enable_vectors(1 if quirk.single_vector else queues + 1)
            vectors: list[Vector | None] = list(self._vectors or [None])
            lines = [Line(vector, self._diagnose) for vector in vectors]
            self._admin = self._make_queue(0, _ADMIN_DEPTH, lines[0])
            self._disable()
            self._enable()
            count = min(queues, self._count_of_queues(queues))
            # With fewer vectors than queues the last ones share; the admin queue has the first.
            self.queues = tuple(
                self._make_queue(number, depth, lines[min(number, len(lines) - 1)])
                for number in range(1, count + 1)
            )
            self._create_queues()
            self._ask()
            stack.pop_all()

    @property
    def space(self) -> AddressSpace:
        """The device's address space."""
        return self.device.dma

    @property
    def interrupts(self) -> bool:
        """Whether completions come with interrupts; else they are looked for."""
        return self._vectors is not None

    @property
    def version(self) -> tuple[int, int, int]:
        """The specification's version that it follows, from its register."""
        version = self._read(spec.VS)
        return version >> 16, version >> 8 & 0xFF, version & 0xFF

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def wrong_completions(self) -> int:
        """How many completions named no command that was under way.

        They complete nothing. The second one since the controller was started has it reset.
        """
        return sum(queue.wrong_completions for queue in self._everything)

    # Commands.

    def start_admin(
        self,
        opcode: int,
        *dwords: int,
        namespace: int = 0,
        size: int = 0,
        data: Any = None,
        name: str = "",
        timeout: float | None = None,
        after: Callable[[Command, memoryview], None] | None = None,
    ) -> Command:
        """Start any admin command.

        Args:
            opcode: its number.
            dwords: command dwords from 10 on.
            namespace: its ID.
            size: bytes that it gives.
            data: what it takes instead.
            name: what it does, for messages.
            timeout: seconds that it may take; None for the controller's.
            after: called at its end, with the data it gave, before it is done; if it raises an
                exception, the command fails with it.

        Raises:
            ControllerFailed, DeviceGone, Closed: there is no controller any more.
        """
        given = memoryview(b"" if data is None else data).cast("B")
        buffer = self.space.alloc(max(size, given.nbytes, 4))
        buffer.view[: given.nbytes] = given

        def ended(command: Command) -> None:
            try:
                if after is not None:
                    after(command, buffer.view[:size])
            finally:
                command.queue.release(buffer)

        try:
            return self._admin.command(
                opcode,
                *dwords,
                namespace=namespace,
                memory=buffer.view,
                iova=buffer.iova,
                size=buffer.size if size or given.nbytes else 0,
                name=name,
                timeout=timeout,
                after=ended,
            )
        except errors.Error:
            buffer.close()
            raise

    def admin(
        self,
        opcode: int,
        *dwords: int,
        namespace: int = 0,
        size: int = 0,
        data: Any = None,
        name: str = "",
        timeout: float | None = None,
    ) -> tuple[int, bytes]:
        """Do any admin command; arguments as for :meth:`start_admin`.

        Returns:
            Dword 0 of its completion, and the data it gave.

        Raises:
            As :meth:`Operation.wait`.
        """
        got = b""

        def keep(command: Command, view: memoryview) -> None:
            nonlocal got
            got = bytes(view)

        command = self.start_admin(
            opcode,
            *dwords,
            namespace=namespace,
            size=size,
            data=data,
            name=name,
            timeout=timeout,
            after=keep,
        )
        return command.wait(), got

    def log_page(self, page: int, size: int, *, namespace: int = spec.ALL_NAMESPACES) -> bytes:
        """Get the first `size` bytes of a log page; `size` is a multiple of 4.

        Raises:
            InvalidLogPage: it has no such page.
            And as :meth:`Operation.wait`.
        """
        if size < 4 or size % 4:
            raise errors.ArgumentError(f"a log page is read in multiples of 4 bytes, not {size}")
        dwords = size // 4 - 1
        name = f"get log page {page:#04x}"
        return self.admin(
            Admin.GET_LOG_PAGE,
            page | (dwords & 0xFFFF) << 16,
            dwords >> 16,
            namespace=namespace,
            size=size,
            name=name,
        )[1]

    def smart(self) -> logs.SmartLog:
        """The controller's health."""
        return logs.SmartLog.parse(self.log_page(spec.Log.SMART, logs.SMART_SIZE))

    def error_log(self, count: int | None = None) -> tuple[logs.ErrorEntry, ...]:
        """The errors it logged last, the newest first; None for all that it keeps."""
        kept = self.identity.error_entries
        count = kept if count is None else min(count, kept)
        return logs.ErrorEntry.parse(self.log_page(spec.Log.ERRORS, count * logs.ERROR_SIZE))

    def get_feature(self, feature: int, *, namespace: int = 0) -> int:
        """The value of a feature.

        Raises:
            InvalidField: it has no such feature.
            And as :meth:`Operation.wait`.
        """
        name = f"get feature {feature:#04x}"
        return self.admin(Admin.GET_FEATURES, feature, namespace=namespace, name=name)[0]

    def set_feature(
        self, feature: int, value: int, *, namespace: int = 0, save: bool = False
    ) -> int:
        """Set a feature.

        Args:
            feature: its number.
            value: command dword 11.
            namespace: its ID, for a feature of one.
            save: keep it beyond resets and power cycles.

        Returns:
            Dword 0 of the completion.

        Raises:
            InvalidField, FeatureNotChangeable, FeatureNotSaveable: it cannot be had.
            And as :meth:`Operation.wait`.
        """
        return self.admin(
            Admin.SET_FEATURES,
            feature | save << 31,
            value,
            namespace=namespace,
            name=f"set feature {feature:#04x}",
        )[0]

    def format(
        self,
        namespace: int,
        *,
        lba_format: int = 0,
        secure_erase: int = 0,
        timeout: float = 600.0,
    ) -> None:
        """Format a namespace: all its data is lost.

        Args:
            namespace: its ID; :data:`spec.ALL_NAMESPACES` for all.
            lba_format: index of one of :attr:`NamespaceIdentity.formats`.
            secure_erase: 0 none, 1 user data, 2 cryptographic.
            timeout: seconds it may take.

        Raises:
            Unsupported: the controller cannot.
            InvalidFormat: it has no such format.
            And as :meth:`Operation.wait`.
        """
        if not self.identity.can_format:
            raise errors.Unsupported("the controller has no Format NVM command")
        self.admin(
            Admin.FORMAT,
            lba_format & 0xF | secure_erase << 9 | (lba_format >> 4) << 12,
            namespace=namespace,
            name=f"format namespace {namespace:#x}",
            timeout=timeout,
        )
        self.refresh()

    def refresh(self) -> None:
        """Find out anew which namespaces there are, and what they are.

        One that cannot be identified is left out; :meth:`identify_namespace` says why. The objects
        of those that there were stay, with what is new.

        Raises:
            ControllerFailed: they are more than any controller has, or it takes too long.
            And as :meth:`Operation.wait`.
        """
        found: dict[int, Namespace] = {}
        end = time.monotonic() + _LISTING_SECONDS
        for id in self._active_namespaces():
            if time.monotonic() > end:
                raise status.ControllerFailed(
                    f"{self.device.address} listed {len(found)} namespaces, up to ID {id}, in "
                    f"{_LISTING_SECONDS:g} s, and lists more"
                )
            try:
                identity = self.identify_namespace(id)
            except (status.CommandFailed, errors.MalformedConfig):
                continue
            namespace = found[id] = self.namespaces.get(id) or Namespace(self, id, identity)
            namespace._update(identity)
        for id in self.namespaces.keys() - found.keys():
            self.namespaces[id]._update(None)
        self.namespaces = found

    def _active_namespaces(self) -> Iterator[int]:
        """Their IDs, in rising order.

        Raises:
            ControllerFailed: they are more than any controller has.
        """
        last = count = 0
        # Version 1.0 has no list, and some later controllers refuse it.
        listed = self.version >= (1, 1, 0)
        while listed:
            try:
                _, data = self.admin(
                    Admin.IDENTIFY,
                    Identify.ACTIVE_NAMESPACES,
                    namespace=last,
                    size=identify.SIZE,
                    name="identify active namespaces",
                )
            except status.CommandFailed:
                if last:
                    raise
                break
            ids = identify.active_namespaces(data)
            before = last
            for id in ids:
                if last < id < spec.ALL_NAMESPACES:
                    last = id
                    count += 1
                    self._check_count(count, "active namespaces (Identify CNS 0x02)")
                    yield id
            if len(ids) < identify.SIZE // 4 or last == before:
                return
        highest = self.identity.namespaces
        self._check_count(highest, "namespaces (Identify Controller, NN)")
        yield from range(1, highest + 1)

    def _check_count(self, count: int, what: str) -> None:
        if count > _MOST_NAMESPACES:
            raise status.ControllerFailed(
                f"{self.device.address} names {count} {what}; this driver takes {_MOST_NAMESPACES}"
            )

    def identify_namespace(self, id: int) -> identify.NamespaceIdentity:
        """What a namespace says of itself.

        Raises:
            InvalidNamespace: there is none, or it is not active.
            MalformedConfig: what it says makes no sense.
            And as :meth:`Operation.wait`.
        """
        _, data = self.admin(
            Admin.IDENTIFY,
            Identify.NAMESPACE,
            namespace=id,
            size=identify.SIZE,
            name=f"identify namespace {id}",
        )
        if not any(data):
            raise status.InvalidNamespace(0x00B, f"identify namespace {id}")
        identity = identify.NamespaceIdentity.parse(data)
        if identity.blocks * identity.current.block_size > identify.MOST_BYTES:
            raise errors.MalformedConfig(
                f"namespace {id} says that it has {identity.blocks:#x} blocks (NSZE) of "
                f"{identity.current.block_size} bytes, which is larger than any disk"
            )
        return identity

    def abort(self, command: Command) -> bool:
        """Ask the controller to abort a command that is under way.

        Returns:
            Whether it says that it did: the command then ends with
            :class:`~pyvfio.drivers.nvme.status.AbortRequested`. Else it goes on, or has ended.

        Raises:
            As :meth:`Operation.wait`.
        """
        identifier = command.queue.identifier_of(command)
        if identifier is None:
            return False
        abort = self._start_abort(command.queue, identifier, command)
        return abort is not None and not abort.wait() & 1

    # Life.

    def reset(self) -> None:
        """Reset the controller: what is under way fails, what comes later works again.

        Also a controller that was given up is tried again.

        Raises:
            Closed: it was closed.
            ControllerFailed: it does not come back.
            DeviceGone: it was removed.
        """
        if self._closed:
            raise errors.Closed("the NVMe controller is closed")
        self._recover(
            lambda work: status.ControllerReset("the controller was reset by this process")
        )
        if (failure := self._admin.refusal) is not None:
            raise failure

    def close(self) -> None:
        """Shut the controller down, and give back its memory and vectors; again does nothing.

        What is under way fails with :class:`~pyvfio.errors.Closed`. Interrupted, it still gives
        everything back.

        Raises:
            ControllerFailed: it did not shut down in time: what was not flushed may be lost.
        """
        if self._released or (self._closed and self._recovering.locked()):
            return
        with self._recovering:
            if self._released:
                return
            self._closed = True
            with ExitStack() as steps:
                steps.callback(self._let_go)
                self._shut_down()

    def __repr__(self) -> str:
        return f"<Controller {self.device.address}{' closed' if self._closed else ''}>"

    # Bringing up.

    def _check_capabilities(self, quirk: quirks.Quirk) -> int:
        """Check the register CAP; returns how many entries a queue can have."""
        address = self.device.address
        if quirk.refused:
            raise errors.Unsupported(f"{address} is not supported: {quirk.refused}")
        if not self._capabilities >> 37 & 1:
            raise errors.Unsupported(f"{address} does not speak the NVM command set (CAP.CSS)")
        smallest = self._capabilities >> 48 & 0xF
        if smallest > _MOST_MPSMIN:
            raise errors.Unsupported(
                f"{address} needs memory pages of {4 << smallest} KiB (CAP.MPSMIN {smallest}); "
                f"this driver has pages up to {4 << _MOST_MPSMIN} KiB"
            )
        entries = (self._capabilities & 0xFFFF) + 1
        if entries == 1:
            entries = quirk.entries_for_mqes_0
        if entries < 2:
            raise status.ControllerFailed(
                f"{address} has no room for a command in its queues (CAP.MQES 0)"
            )
        return min(entries, quirk.most_entries)

    def _make_queue(self, number: int, depth: int, line: Line) -> Queue:
        stride = 4 << (self._capabilities >> 32 & 0xF)
        end = spec.DOORBELLS + 2 * (number + 1) * stride
        if end > self._registers.size:
            raise status.ControllerFailed(
                f"{self.device.address}: the doorbells of queue {number}, {stride} bytes apart "
                f"(CAP.DSTRD {self._capabilities >> 32 & 0xF}), end at {end:#x}, and BAR 0 has "
                f"{self._registers.size:#x} bytes"
            )
        queue = Queue(
            number,
            depth,
            line,
            alloc=self.space.alloc,
            write32=self._registers.write32,
            stride=stride,
            page=self._page,
            timeout=self.timeout,
            withheld=self._withheld,
        )
        self._everything.append(queue)
        line.queues.append(queue)
        return queue

    def _enable_vectors(self, count: int) -> Vectors | None:
        for irq in (self.device.msix, self.device.msi):
            if irq.count:
                return irq.enable(min(count, irq.count))
        return None

    def _enable(self) -> None:
        """Make the controller, which is idle, ready with its admin queue."""
        registers = self._registers
        submissions, completions = self._admin.iovas
        registers.write32(spec.AQA, (_ADMIN_DEPTH - 1) << 16 | _ADMIN_DEPTH - 1)
        for register, iova in ((spec.ASQ, submissions), (spec.ACQ, completions)):
            # As two halves: not every controller takes 64 bits at a time.
            registers.write32(register, iova & 0xFFFFFFFF)
            registers.write32(register + 4, iova >> 32)
        page_size = self._page.bit_length() - 13
        registers.write32(spec.CC, spec.CC_ENTRY_SIZES | page_size << 7 | spec.CC_ENABLE)
        self._become(spec.CSTS_READY, spec.CSTS_READY, "ready")
        self._until = time.monotonic() + self.timeout
        self._admin.run()

    def _disable(self) -> None:
        """Make the controller idle: it reaches memory no more."""
        registers = self._registers
        configuration = self._read(spec.CC)
        if configuration & spec.CC_ENABLE:
            # One that is becoming ready is not to be disturbed (Base 2.0, 3.5.1).
            with suppress(status.ControllerFailed):
                self._become(spec.CSTS_READY, spec.CSTS_READY, "ready")
        # All else may change only while it is not enabled.
        registers.write32(spec.CC, configuration & ~(spec.CC_ENABLE | spec.CC_SHUTDOWN))
        self._become(spec.CSTS_READY, 0, "idle")

    def _become(self, mask: int, value: int, what: str, seconds: float = 0.0) -> None:
        """Wait for the controller's status.

        After a step that resets it, some controllers read all ones, for up to 2 s: that is waited
        for as well.
        """
        seconds = max(seconds, self._patience)
        end = time.monotonic() + seconds
        while True:
            # Before the look: a process that was stopped meanwhile must look once more.
            late = time.monotonic() > end
            now = self._registers.read32(spec.CSTS)
            if now == spec.GONE:
                if late or not self._is_on_the_bus():
                    raise _gone(self.device)
            elif now & mask == value:
                return
            elif now & spec.CSTS_FATAL and value:
                raise status.ControllerFailed(
                    f"{self.device.address} reports a fatal status (CSTS {now:#x}) instead of "
                    f"becoming {what}"
                )
            elif late:
                raise status.ControllerFailed(
                    f"{self.device.address} has not become {what} within {seconds:g} s "
                    f"(CAP.TO {self._capabilities >> 24 & 0xFF}, CSTS {now:#x}): reset the device"
                )
            time.sleep(_POLL_SECONDS)

    def _read(self, register: int) -> int:
        """Read a register, as soon as it does not read all ones.

        Raises:
            DeviceGone: it does so for too long, or config space does as well.
        """
        return self._answered(lambda: self._registers.read32(register), 32)

    def _answered(self, read: Callable[[], int], bits: int) -> int:
        end = time.monotonic() + self._patience
        while True:
            late = time.monotonic() > end
            value = read()
            if value != (1 << bits) - 1:
                return value
            if late or not self._is_on_the_bus():
                raise _gone(self.device)
            time.sleep(_POLL_SECONDS)

    def _is_on_the_bus(self) -> bool:
        """Whether config space answers, whatever the registers do."""
        try:
            return self.device.config.answers
        except errors.DeviceGone:
            return True  # refused, as while its PE is being reset (POWER), which is waited for
        except errors.Error:
            return False

    def _do(self, opcode: Admin, *dwords: int, iova: int = 0) -> int:
        """An admin command while the controller is brought up: nothing recovers it then.

        All of them together are waited for until `_until`.
        """
        late = time.monotonic() > self._until
        command = self._admin.command(opcode, *dwords, iova=iova)
        while not late:
            late = time.monotonic() > self._until
            self._admin.ring()
            found = self._admin.reap()
            if command.done:
                return command.result()
            if found:
                continue
            now = self._registers.read32(spec.CSTS)
            if now == spec.GONE:
                if not self._is_on_the_bus():
                    raise _gone(self.device)
            elif now & spec.CSTS_FATAL:
                break
            time.sleep(_POLL_SECONDS)
        now = self._registers.read32(spec.CSTS)
        raise status.ControllerFailed(
            f"{self.device.address} did not complete {command.name} (CSTS {now:#x}): "
            + ("reset the device" if self.device.bus_master else "set its bus_master to True first")
        )

    def _count_of_queues(self, wanted: int) -> int:
        """Ask for I/O queues; returns how many there may be."""
        both = self._do(
            Admin.SET_FEATURES, Feature.NUMBER_OF_QUEUES, (wanted - 1) << 16 | wanted - 1
        )
        return min(both & 0xFFFF, both >> 16) + 1

    def _create_queues(self) -> None:
        for queue in self.queues:
            submissions, completions = queue.iovas
            size = (queue.depth - 1) << 16
            flags = spec.QUEUE_CONTIGUOUS
            if queue.line.vector is not None:
                flags |= queue.line.vector.index << 16 | spec.QUEUE_INTERRUPTS
            self._do(Admin.CREATE_COMPLETION_QUEUE, size | queue.number, flags, iova=completions)
            self._do(
                Admin.CREATE_SUBMISSION_QUEUE,
                size | queue.number,
                queue.number << 16 | spec.QUEUE_MEDIUM_PRIORITY | spec.QUEUE_CONTIGUOUS,
                iova=submissions,
            )
            queue.run()

    def _ask(self) -> None:
        _, data = self.admin(
            Admin.IDENTIFY, Identify.CONTROLLER, size=identify.SIZE, name="identify controller"
        )
        self.identity = identify.ControllerIdentity.parse(data)
        for field, required, ours in (
            ("SQES", data[512], spec.SUBMISSION_ENTRY),
            ("CQES", data[513], spec.COMPLETION_ENTRY),
        ):
            if 1 << (required & 0xF) > ours:
                raise errors.Unsupported(
                    f"{self.device.address} requires queue entries of {1 << (required & 0xF)} "
                    f"bytes (Identify Controller, {field} {required:#04x}); this driver's have "
                    f"{ours}"
                )
        self._most_aborts = self.identity.aborts
        self.max_transfer = min(self._admin.largest, _MOST_BYTES)
        if self.identity.transfer_pages:
            # By the register's smallest page, which is ours.
            self.max_transfer = min(
                self.max_transfer, self._page << min(self.identity.transfer_pages, 20)
            )
        self.refresh()

    # Recovery.

    def _diagnose(self) -> Callable[[], None] | None:
        """Look at the controller's health, and abort what takes too long.

        Returns:
            What recovers the controller, which may take seconds; None if nothing is to be done.
        """
        seen = self.resets  # before the look whether somebody is at it
        if self._closed or self._recovering.locked():
            return None
        if any(queue.stopped for queue in self._everything):
            return partial(
                self._recover,
                lambda work: status.ControllerReset(
                    f"{self.device.address} was reset, since the driver was interrupted at work"
                ),
            )
        try:
            now = self._registers.read32(spec.CSTS)
        except errors.Error as error:
            late = any(queue.expired(time.monotonic()) for queue in self._everything)
            if isinstance(error, errors.MemoryDisabled) and not late:
                return None  # as for the moment in which somebody writes its command register
            return partial(self._give_up, error, seen)
        if now == spec.GONE:
            return self._wait_for_registers(seen)
        self._silent = None
        if now & spec.CSTS_FATAL:
            return partial(
                self._recover,
                lambda work: status.ControllerFatal(
                    f"{self.device.address} reported a fatal status (CSTS {now:#x}), and was reset"
                ),
                seen,
            )
        if not now & spec.CSTS_READY:
            return partial(
                self._recover,
                lambda work: status.ControllerReset(
                    f"{self.device.address} was reset by somebody else"
                ),
                seen,
            )
        if sum(queue.wrong_since_start for queue in self._everything) > _TOLERATED:
            last = max(self._everything, key=lambda queue: queue.wrong_since_start).last_wrong
            return partial(
                self._recover,
                lambda work: status.ControllerFatal(
                    f"{self.device.address} completed what was not under way, more than once (at "
                    f"last {last}), and was reset"
                ),
                seen,
            )
        if self._abort_expired():
            return partial(self._recover, self._timed_out, seen)
        return None

    def _wait_for_registers(self, seen: int) -> Callable[[], None] | None:
        """The registers read all ones: give up once that is for good."""
        if self._is_on_the_bus():
            now = time.monotonic()
            first, last = self._silent or (now, now)
            if now - last > self._patience:  # nobody has looked since
                first = now
            self._silent = first, now
            if now - first <= self._patience:
                return None
        return partial(self._give_up, _gone(self.device), seen)

    def _abort_expired(self) -> bool:
        """Abort what takes too long; returns whether that did not help."""
        now = time.monotonic()
        for queue in self._everything:
            queue.line.look()  # what has ended is not late, though nobody may wait there
            for identifier, work, abort in queue.expired(now):
                if abort is None:
                    asked = [asked for queue in self._everything for asked in queue.aborts_asked]
                    if len(asked) < self._most_aborts:
                        work.expired = True
                        with suppress(errors.Error):  # it has failed then: there is no controller
                            self._start_abort(queue, identifier, work)
                    elif now > min(asked) + _ABORT_SECONDS:
                        return True  # the one that is in the way is never answered
                elif now > abort.asked + _ABORT_SECONDS:
                    return True
        return False

    def _start_abort(self, queue: Queue, identifier: int, work: Work) -> Command | None:
        """Have a command aborted; None if it has ended."""
        abort = queue.abort_asked(identifier, work, time.monotonic())
        if abort is None:
            return None
        return self._admin.command(
            Admin.ABORT,
            queue.number | identifier << 16,
            timeout=_ABORT_SECONDS,
            after=lambda command: queue.abort_answered(identifier, abort),
        )

    def _timed_out(self, work: Work) -> Exception:
        if not work.expired:
            return status.ControllerReset(
                f"{self.device.address} was reset, since another command took too long"
            )
        return status.CommandTimedOut(
            f"{self.device.address}: {work.name} took too long, aborting it did not help, and the "
            "controller was reset"
        )

    def _recover(self, error: Callable[[Work], Exception], seen: int | None = None) -> None:
        """Reset the controller, and fail what is under way.

        Args:
            error: gives each one's error.
            seen: how many resets there had been at the diagnosis; None to reset anyway.
        """
        if not self._recovering.acquire(blocking=False):
            with self._recovering:  # somebody does so already
                return
        try:
            if self._closed or self._is_late(seen):
                return
            self.resets += 1
            for queue in self._everything:
                queue.stop()
            try:
                try:
                    self._disable()
                except status.ControllerFailed:
                    if not self.device.can_reset:
                        raise
                    self.device.reset()
                    self._disable()
                # The device is idle: what was under way reaches memory no more.
                self._withheld.end()
                for queue in self._everything:
                    queue.fail(error)
                if self._admin.refusal is not None:
                    self.device.bus_master = True  # it had been given up
                self._enable()
                self._count_of_queues(len(self.queues))
                self._create_queues()
            except status.CommandFailed as failure:
                self._fail_all(
                    status.ControllerFailed(
                        f"{self.device.address} did not come back after a reset: {failure}"
                    )
                )
            except errors.Error as failure:
                self._fail_all(failure)
        finally:
            self._recovering.release()

    def _give_up(self, error: Exception, seen: int) -> None:
        with self._recovering:
            if not self._is_late(seen):
                self._fail_all(error)

    def _is_late(self, seen: int | None) -> bool:
        """Whether somebody has done something about a diagnosis meanwhile."""
        return seen is not None and (seen != self.resets or self._admin.refusal is not None)

    def _fail_all(self, failure: Exception) -> None:
        """There is no controller any more."""
        # It may still write to what was under way: keep it from doing so, and keep that memory.
        self._withheld.begin()
        with suppress(errors.Error):
            self.device.bus_master = False
        for queue in self._everything:
            queue.fail(lambda work: failure, refusal=failure)

    # Closing.

    def _shut_down(self) -> None:
        """Let the controller shut down in order, if it is able to (Base 2.0, 3.6.1)."""
        for queue in self.queues:
            queue.stop()
        try:
            now = self._read(spec.CSTS)
        except errors.Error:
            return
        if not now & spec.CSTS_READY or now & spec.CSTS_FATAL:
            return
        self._until = time.monotonic() + min(self.timeout, _SHUTDOWN_SECONDS)
        with suppress(errors.Error):  # the shutdown does without
            for queue in self.queues:
                self._do(Admin.DELETE_SUBMISSION_QUEUE, queue.number)
                self._do(Admin.DELETE_COMPLETION_QUEUE, queue.number)
        with suppress(errors.DeviceGone, errors.StateError):
            configuration = self._read(spec.CC)
            self._registers.write32(spec.CC, configuration | spec.CC_NORMAL_SHUTDOWN)
            claimed = min(self.identity.shutdown_seconds, _MOST_SHUTDOWN_SECONDS)
            seconds = max(_SHUTDOWN_SECONDS, claimed)
            self._become(spec.CSTS_SHUTDOWN, spec.CSTS_SHUT_DOWN, "shut down", seconds)

    def _let_go(self) -> None:
        """Give everything back, after making sure that the device uses it no more."""
        self._closed = True
        closed = errors.Closed("the NVMe controller was closed")
        self._withheld.begin()  # until it is known to be idle
        # The last one first, and each, whatever becomes of the others.
        with ExitStack() as steps:
            steps.callback(setattr, self, "_released", True)
            steps.callback(self._withheld.leave_to, self.space)
            for queue in self._everything:
                steps.callback(queue.close)
            if self._vectors is not None:
                steps.callback(self._vectors.close)
            for queue in self._everything:
                steps.callback(queue.fail, lambda work: closed, refusal=closed)
            steps.callback(self._silence)

    def _silence(self) -> None:
        """The controller reaches memory no more."""
        try:
            self._disable()
            self._withheld.end()
        except BaseException as error:
            with suppress(errors.Error):
                self.device.bus_master = False
            if not isinstance(error, errors.Error):
                raise


def _registers(device: Device) -> Region:
    if not device.config.answers:
        raise _gone(device)
    code = device.config.class_code
    if code != spec.CLASS_CODE:
        raise errors.Unsupported(
            f"{device.address} has class {code:06x}, not that of an NVMe controller "
            f"({spec.CLASS_CODE:06x})"
        )
    return device.bars[0]


def _gone(device: Device) -> errors.DeviceGone:
    return errors.DeviceGone(
        errno.ENODEV,
        "NVMe",
        str(device.address),
        "its registers read all ones: the device was removed, or its link is down",
    )
