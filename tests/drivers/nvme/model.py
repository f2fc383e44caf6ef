"""A modelled NVMe controller in a modelled device, to inject faults (NVMe Base Specification 2.0).

It finds commands and data where the driver put them, by IOVA, and keeps the specification's rules:
what the driver does against them is remembered as a fault. That they are the rules of a controller
that was not written beside the driver is shown on the bench.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.drivers.nvme import spec
from pyvfio.drivers.nvme.spec import Admin, Identify, Io
from pyvfio.iommu import AddressSpace, DmaBuffer, Mapping
from pyvfio.iommu.info import SpaceInfo
from pyvfio.iommu.iova import IovaRange
from pyvfio.irqroute.model import modelled_msix
from pyvfio.pci import Function

BLOCK = 512
BLOCKS = 16384
SUCCESS = 0
ABORTED = 0x007
INVALID_FIELD = 0x002


class Memory(AddressSpace):
    """An address space without a kernel: pages are reached by whoever knows their IOVA.

    Attributes:
        buffers: all that were ever allocated.
        refuse_after: so many more allocations succeed; None for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[DmaBuffer] = []
        self.refuse_after: int | None = None
        self._refresh()

    @property
    def open_buffers(self) -> list[DmaBuffer]:
        return [buffer for buffer in self.buffers if not buffer.closed]

    def alloc(self, size: int, **options: Any) -> DmaBuffer:
        if self.refuse_after is not None:
            if not self.refuse_after:
                raise errors.LockedMemoryLimit(12, "VFIO_IOMMU_MAP_DMA", "memory")
            self.refuse_after -= 1
        buffer = super().alloc(size, **options)
        self.buffers.append(buffer)
        return buffer

    def at(self, iova: int, size: int) -> memoryview:
        """The memory that a device reaches there, or a fault."""
        for start, mapping in self._mappings.items():
            if start <= iova and iova + size <= start + mapping.size:
                assert mapping._memory is not None
                return mapping._memory.cast("B")[iova - start : iova - start + size]
        raise DmaFault(f"{size} bytes at {iova:#x} are not mapped")

    @property
    def closed(self) -> bool:
        return False

    def open_device(self, function: Function) -> File:
        raise NotImplementedError

    def close_device(self, file: File) -> None: ...

    def _close_devices(self) -> None: ...

    def _close(self) -> None: ...

    def _map(self, address: int, iova: int, size: int, readable: bool, writable: bool) -> None: ...

    def _unmap(self, iova: int, size: int) -> int:
        return size

    def _unmapped_wrong(self, mapping: Mapping, size: int) -> errors.KernelError:
        raise NotImplementedError

    def _ask(self) -> SpaceInfo:
        return SpaceInfo((IovaRange(0, (1 << 48) - 1),), 0x1000, None)


class DmaFault(Exception):
    """What an IOMMU would refuse."""


@dataclass(eq=False)
class Submission:
    """A command that the controller has fetched."""

    queue: int
    opcode: int
    identifier: int
    namespace: int
    pointers: tuple[int, int]
    dwords: tuple[int, ...]

    @property
    def lba(self) -> int:
        return self.dwords[0] | self.dwords[1] << 32

    @property
    def blocks(self) -> int:
        return (self.dwords[2] & 0xFFFF) + 1


@dataclass
class _Ring:
    """A submission or completion queue, as the controller sees it."""

    iova: int
    depth: int
    head: int = 0
    tail: int = 0
    phase: int = 1
    vector: int | None = None


@dataclass
class Nvme:
    """The controller: registers, and what it does.

    Attributes:
        disk: the namespace's blocks.
        waiting: commands fetched and not completed.
        hold: I/O commands wait until :meth:`complete`; otherwise they are done at once.
        answer: gives the status of each command that is done at once; None leaves it waiting.
        faults: what was done against the specification.
        rings: submission doorbells: (queue, tail).
        aborts: (queue, identifier) that it was asked to abort.
        obeys_aborts: whether it does so.
        most_aborts: how many it takes at a time.
        version: of the specification, as in its register.
        namespaces: the IDs of the active ones, all of the same blocks; the first has the disk.
        blank: those of them that it cannot tell anything of.
        blocks: how many it claims that each has; None for those of the disk.
        formats: further sizes of a block, by index; the format it has at first is 0.
        format: the index of the one it has.
        deallocated: (first block, how many) of each range.
        erased: of each Format command: namespace, secure erase setting.
        features: values by feature and namespace.
        saved: those that are kept for good.
        logs: log pages, by number; any other has bytes that count.
        error_entries: of its error log.
        shutdown_microseconds: how long it says that shutting down takes.
        shuts_down: whether it ever ends doing so.
        shutdowns: of each that was announced while it was enabled: kind (CC.SHN), and the I/O
            queues that there were.
        enabled: how many times it was enabled.
        becomes_ready, becomes_idle, fatal: what it is like.
        gone: it was removed: registers and config space read all ones.
        silent: its registers read all ones, and config space answers.
        silent_seconds: for so long it is silent after each reset, by `clock`.
        capabilities: bits of CAP that are changed.
        entry_sizes: SQES and CQES of Identify Controller.
        lies: what Identify says instead, by CNS: bytes by their offset.
        refuses_list: whether it has no list of active namespaces, whatever its version.
        size: bytes of BAR 0.
        rung: called after each doorbell was obeyed, with the queue's number.
        ready: CSTS.RDY.
        may_interrupt: whether it has vectors; as with QEMU's, the admin queue must find them so.
    """

    memory: Memory
    interrupt: Callable[[int], None]
    may_interrupt: Callable[[], bool]
    page: int = 4096
    stride: int = 4
    most_queues: int = 4
    entries: int = 1024
    block: int = BLOCK
    transfer_pages: int = 0
    disk: bytearray = field(default_factory=lambda: bytearray(BLOCK * BLOCKS))
    waiting: list[Submission] = field(default_factory=list)
    hold: bool = False
    answer: Callable[[Submission], int | None] = lambda command: SUCCESS
    faults: list[str] = field(default_factory=list)
    rings: list[tuple[int, int]] = field(default_factory=list)
    aborts: list[tuple[int, int]] = field(default_factory=list)
    obeys_aborts: bool = True
    most_aborts: int = 1
    version: int = 1 << 16 | 4 << 8
    namespaces: list[int] = field(default_factory=lambda: [1])
    blank: set[int] = field(default_factory=set)
    blocks: int | None = None
    formats: dict[int, int] = field(default_factory=dict)
    format: int = 0
    deallocated: list[tuple[int, int]] = field(default_factory=list)
    erased: list[tuple[int, int]] = field(default_factory=list)
    features: dict[tuple[int, int], int] = field(default_factory=dict)
    saved: set[tuple[int, int]] = field(default_factory=set)
    logs: dict[int, bytes] = field(default_factory=dict)
    error_entries: int = 64
    shutdown_microseconds: int = 0
    shuts_down: bool = True
    shutdowns: list[tuple[int, list[int]]] = field(default_factory=list)
    enabled: int = 0
    becomes_ready: bool = True
    becomes_idle: bool = True
    fatal: bool = False
    gone: bool = False
    silent: bool = False
    silent_seconds: float = 0.0
    clock: Any = None
    capabilities: int = 0
    entry_sizes: tuple[int, int] = (0x66, 0x44)
    lies: dict[int, dict[int, bytes]] = field(default_factory=dict)
    refuses_list: bool = False
    size: int = 1 << 16
    rung: Callable[[int], None] = lambda queue: None
    reaches_memory: bool = True
    ready: bool = False
    shut_down: bool = False
    lock: Any = field(default_factory=threading.RLock)
    _registers: dict[int, int] = field(default_factory=dict)
    _submissions: dict[int, _Ring] = field(default_factory=dict)
    _completions: dict[int, _Ring] = field(default_factory=dict)
    _silent_until: float = 0.0

    # BAR 0, as pyvfio.device.Region has it.

    @property
    def answers(self) -> bool:
        """Whether its registers can be read and written."""
        waking = self.clock is not None and self.clock.monotonic() < self._silent_until
        return not (self.gone or self.silent or waking)

    def read64(self, offset: int) -> int:
        assert offset == spec.CAP
        if not self.answers:
            return (1 << 64) - 1
        stride, page = (self.stride // 4).bit_length() - 1, self.page.bit_length() - 13
        registers = self.entries - 1 | 1 << 16 | 1 << 24 | stride << 32 | 1 << 37 | page << 48
        return registers ^ self.capabilities

    def read32(self, offset: int) -> int:
        with self.lock:
            if not self.answers:
                return spec.GONE
            if offset == spec.CSTS:
                return self.ready * 1 | self.fatal * 2 | self.shut_down * 8
            if offset == spec.VS:
                return self.version
            return self._registers.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        with self.lock:
            if not self.answers:
                return
            if offset >= spec.DOORBELLS:
                queue, completions = divmod((offset - spec.DOORBELLS) // self.stride, 2)
                self._doorbell(queue, completions, value)
                self.rung(queue)
                return
            before = self._registers.get(offset, 0)
            self._registers[offset] = value
            if offset == spec.CC:
                self._configure(before, value)

    def _configure(self, before: int, now: int) -> None:
        if before & spec.CC_ENABLE:
            changed = (before ^ now) & ~(spec.CC_ENABLE | spec.CC_SHUTDOWN)
            self._check(not changed, f"CC {before:#x} became {now:#x}")
        if before & now & spec.CC_ENABLE and now & spec.CC_SHUTDOWN:
            queues = self._submissions.keys() | self._completions.keys()
            self.shutdowns.append((now >> 14 & 3, sorted(queues - {0})))
        if now & spec.CC_ENABLE and not before & spec.CC_ENABLE:
            self._check(now >> 16 & 0xFF == 0x46, f"entry sizes: CC {now:#x}")
            self._check(4096 << (now >> 7 & 0xF) == self.page, f"page size: CC {now:#x}")
            self._check(not self.ready, "enabled before it was idle")
            self.enabled += 1
            sizes = self._registers[spec.AQA]
            for register, rings, size in (
                (spec.ASQ, self._submissions, sizes & 0xFFF),
                (spec.ACQ, self._completions, sizes >> 16),
            ):
                iova = self._registers[register] | self._registers[register + 4] << 32
                self._check(not iova % self.page, f"admin queue at {iova:#x}")
                rings[0] = _Ring(iova, size + 1, vector=0 if self.may_interrupt() else None)
            self.ready = self.becomes_ready
        elif not now & spec.CC_ENABLE and self.becomes_idle:
            self.reset()
            if self.silent_seconds and before & spec.CC_ENABLE:
                self._silent_until = self.clock.monotonic() + self.silent_seconds
        self.shut_down = bool(now & spec.CC_SHUTDOWN) and self.shuts_down

    def reset(self) -> None:
        """As by CC.EN = 0, by a reset of the function, or by somebody else."""
        with self.lock:
            self.ready = self.fatal = False
            self.waiting.clear()
            self._submissions.clear()
            self._completions.clear()
            self._registers[spec.CC] = 0

    def _doorbell(self, queue: int, completions: int, value: int) -> None:
        rings = self._completions if completions else self._submissions
        if queue not in rings or not self.ready:
            self._check(not self.ready, f"doorbell of queue {queue}, which there is not")
            return
        ring = rings[queue]
        self._check(value < ring.depth, f"doorbell {value} in a queue of {ring.depth}")
        if completions:
            ring.head = value
            return
        self.rings.append((queue, value))
        ring.tail = value
        while ring.head != ring.tail:
            entry = self.memory.at(ring.iova + 64 * ring.head, 64)
            ring.head = (ring.head + 1) % ring.depth
            first, namespace, one, two, *dwords = struct.unpack("<II16xQQ6I", entry)
            command = Submission(
                queue, first & 0xFF, first >> 16, namespace, (one, two), tuple(dwords)
            )
            self.fetched(command)
            under_way = [other for other in self.waiting if other.queue == queue]
            self._check(
                command.identifier not in {other.identifier for other in under_way},
                f"identifier {command.identifier} is under way already",
            )
            self._check(len(under_way) < ring.depth - 1, "more under way than the queue holds")
            self.waiting.append(command)
            aborts = [c for c in self.waiting if not c.queue and c.opcode == Admin.ABORT]
            self._check(len(aborts) <= self.most_aborts, f"{len(aborts)} aborts at a time")
            if not (self.hold and queue):
                status = self.answer(command)
                if status is not None:
                    self.complete(command, status)

    def fetched(self, command: Submission) -> None:
        """A command was fetched; for those who keep account."""

    # What a test lets it do.

    def complete(self, command: Submission, status: int = SUCCESS) -> None:
        """Do a command, or fail it, and tell."""
        with self.lock:
            self.waiting.remove(command)
            result = 0
            if status == SUCCESS:
                done = self._do(command)
                if done is None:
                    self.waiting.append(command)
                    return
                status, result = done
            self.tell(command.queue, command.identifier, status, result)

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
        """Write a completion, also of a command that there is not.

        Args:
            head: of the submission queue, if it is not what it is.
            submissions: the submission queue's number, the same.
        """
        with self.lock:
            ring = self._completions[queue]
            full = (ring.tail + 1) % ring.depth == ring.head
            self._check(not full, f"completion queue {queue} is full")
            last = identifier | ring.phase << 16 | status << 17
            head = self._submissions[queue].head if head is None else head
            submissions = queue if submissions is None else submissions
            self.memory.at(ring.iova + 16 * ring.tail, 12)[:] = struct.pack(
                "<III", result, 0, head | submissions << 16
            )
            # The phase is the last that arrives.
            self.memory.at(ring.iova + 16 * ring.tail + 12, 4).cast("I")[0] = last
            ring.tail += 1
            if ring.tail == ring.depth:
                ring.tail, ring.phase = 0, ring.phase ^ 1
            if ring.vector is not None:
                self.interrupt(ring.vector)

    def under_way(self, opcode: int | None = None) -> list[Submission]:
        """The I/O commands that wait."""
        with self.lock:
            return [c for c in self.waiting if c.queue and opcode in (None, c.opcode)]

    # Commands.

    def _do(self, command: Submission) -> tuple[int, int] | None:
        """Status and dword 0; None if it is not to be completed."""
        if command.queue:
            return self._do_io(command), 0
        return self._do_admin(command)

    def _do_io(self, command: Submission) -> int:
        if command.opcode in (Io.READ, Io.WRITE):
            if command.namespace != 1:
                return 0x00B
            start, size = command.lba * self.block, command.blocks * self.block
            if start + size > len(self.disk):
                return 0x080
            if command.opcode == Io.WRITE:
                self.disk[start : start + size] = self._gather(command, size)
            else:
                self._scatter(command, self.disk[start : start + size])
        elif command.opcode == Io.DATASET_MANAGEMENT:
            count = (command.dwords[0] & 0xFF) + 1
            data = self._gather(command, 16 * count)
            for _, blocks, lba in struct.iter_unpack("<IIQ", data):
                self.deallocated.append((lba, blocks))
                start, end = lba * self.block, min((lba + blocks) * self.block, len(self.disk))
                self.disk[start:end] = bytes(max(end - start, 0))
        elif command.opcode != Io.FLUSH:
            return 0x001
        return SUCCESS

    def _do_admin(self, command: Submission) -> tuple[int, int] | None:
        first, second = command.dwords[:2]
        if command.opcode == Admin.IDENTIFY:
            if self.refuses_list and first & 0xFF == Identify.ACTIVE_NAMESPACES:
                return INVALID_FIELD, 0
            self._scatter(command, self._identify(first & 0xFF, command.namespace))
        elif command.opcode == Admin.SET_FEATURES and first & 0xFF == 7:
            most = self.most_queues - 1
            return SUCCESS, min(second & 0xFFFF, most) | min(second >> 16, most) << 16
        elif command.opcode == Admin.CREATE_COMPLETION_QUEUE:
            self._check(bool(second & 1), "a completion queue in pieces")
            vector = second >> 16 if second & spec.QUEUE_INTERRUPTS else None
            self._create(self._completions, command, vector)
        elif command.opcode == Admin.CREATE_SUBMISSION_QUEUE:
            self._check(second >> 16 in self._completions, "no such completion queue")
            self._create(self._submissions, command, None)
        elif command.opcode == Admin.DELETE_SUBMISSION_QUEUE:
            self._check(first & 0xFFFF in self._submissions, "there is no such submission queue")
            self._submissions.pop(first & 0xFFFF, None)
            self.waiting = [c for c in self.waiting if c.queue != first & 0xFFFF]
        elif command.opcode == Admin.DELETE_COMPLETION_QUEUE:
            self._check(first & 0xFFFF not in self._submissions, "its submission queue is there")
            self._check(first & 0xFFFF in self._completions, "there is no such completion queue")
            self._completions.pop(first & 0xFFFF, None)
        elif command.opcode == Admin.ABORT:
            self.aborts.append((first & 0xFFFF, first >> 16))
            for other in self.waiting if self.obeys_aborts else ():
                if (other.queue, other.identifier) == self.aborts[-1]:
                    self.complete(other, ABORTED)
                    return SUCCESS, 0
            return SUCCESS, 1
        elif command.opcode == Admin.GET_LOG_PAGE:
            size = 4 * ((first >> 16 | (second & 0xFFFF) << 16) + 1)
            self._check(command.namespace in (0, spec.ALL_NAMESPACES), "a log of one namespace")
            page = self.logs.get(first & 0xFF)
            if page is None:
                page = bytes(range(256)) * (size // 256 + 1)
            self._check(size <= len(page), f"{size} bytes of a log of {len(page)}")
            self._scatter(command, page[:size])
        elif command.opcode in (Admin.SET_FEATURES, Admin.GET_FEATURES):
            feature = first & 0xFF, command.namespace
            if command.opcode == Admin.GET_FEATURES:
                self._check(not first >> 8, f"get features {first:#x}")
                return SUCCESS, self.features.get(feature, 0)
            self._check(not first >> 8 & 0x7FFFFF, f"set features {first:#x}")
            self.features[feature] = second
            if first >> 31:
                self.saved.add(feature)
        elif command.opcode == Admin.FORMAT:
            self._check(not first & ~0x3E0F, f"format {first:#x}")
            return self._format(command.namespace, first), 0
        elif command.opcode == Admin.ASYNC_EVENT_REQUEST:
            return None
        else:
            return 0x001, 0
        return SUCCESS, 0

    def _format(self, namespace: int, how: int) -> int:
        index = how & 0xF | (how >> 12 & 3) << 4
        if index != self.format and index not in self.formats:
            return 0x10A
        self.formats.setdefault(self.format, self.block)
        self.format, self.block = index, self.formats.get(index, self.block)
        self.disk[:] = bytes(len(self.disk))
        self.erased.append((namespace, how >> 9 & 7))
        return SUCCESS

    def _create(self, rings: dict[int, _Ring], command: Submission, vector: int | None) -> None:
        number, size = command.dwords[0] & 0xFFFF, command.dwords[0] >> 16
        self._check(number not in rings, f"queue {number} is there already")
        self._check(1 <= size < self.entries, f"a queue of {size + 1}")
        self._check(not command.pointers[0] % self.page, "a queue that begins within a page")
        rings[number] = _Ring(command.pointers[0], size + 1, vector=vector)

    def _identify(self, what: int, namespace: int) -> bytes:
        data = bytearray(4096)
        if what == Identify.CONTROLLER:
            struct.pack_into("<H2x20s40s8s", data, 0, 0x1234, b"S1", b"Modelled", b"1")
            data[77] = self.transfer_pages
            struct.pack_into("<I", data, 80, self.version)
            struct.pack_into("<I", data, 88, self.shutdown_microseconds)
            struct.pack_into("<HB", data, 256, 1 << 1, self.most_aborts - 1)
            data[262] = self.error_entries - 1
            data[512], data[513] = self.entry_sizes
            struct.pack_into("<IH", data, 516, max(self.namespaces, default=0), 1 << 2)
        elif what == Identify.ACTIVE_NAMESPACES:
            self._check(self.version >= 1 << 16 | 1 << 8, "a list that version 1.0 has not")
            ids = [id for id in sorted(self.namespaces) if id > namespace][:1024]
            struct.pack_into(f"<{len(ids)}I", data, 0, *ids)
        elif namespace in self.namespaces and namespace not in self.blank:
            blocks = len(self.disk) // self.block if self.blocks is None else self.blocks
            struct.pack_into("<QQQ", data, 0, blocks, blocks, blocks)
            formats = {**self.formats, self.format: self.block}
            data[25] = max(formats)
            data[26] = self.format & 0xF | self.format >> 4 << 5
            for index, block in formats.items():
                struct.pack_into("<HBB", data, 128 + 4 * index, 0, block.bit_length() - 1, 0)
        for at, lie in self.lies.get(what, {}).items():
            data[at : at + len(lie)] = lie
        return bytes(data)

    def _gather(self, command: Submission, size: int) -> bytes:
        pieces = walk(self.memory, self.page, command.pointers, size)
        return b"".join(bytes(self.memory.at(iova, count)) for iova, count in pieces)

    def _scatter(self, command: Submission, data: bytes | bytearray) -> None:
        if not self.reaches_memory:
            return
        at = 0
        for iova, count in walk(self.memory, self.page, command.pointers, len(data)):
            self.memory.at(iova, count)[:] = data[at : at + count]
            at += count

    def _check(self, held: bool, fault: str) -> None:
        if not held:
            self.faults.append(fault)


def walk(
    memory: Memory, page: int, pointers: tuple[int, int], size: int
) -> Iterator[tuple[int, int]]:
    """What PRP 1 and 2 stand for: (IOVA, bytes) of each piece (Base 2.0, 4.1.1)."""
    first, second = pointers
    if first & 3:
        raise DmaFault(f"PRP 1 is {first:#x}")
    count = min(size, page - first % page)
    yield first, count
    size -= count
    if not size:
        return
    if size <= page:
        if second % page:
            raise DmaFault(f"PRP 2 is {second:#x}, which is within a page")
        yield second, size
        return
    if second & 7:
        raise DmaFault(f"the list is at {second:#x}")
    while size:
        entry = int.from_bytes(memory.at(second, 8), "little")
        last = (second + 8) % page == 0
        if last and size > page:
            second = entry
            continue
        if entry % page:
            raise DmaFault(f"{entry:#x} in the list is within a page")
        yield entry, min(size, page)
        size -= min(size, page)
        second += 8


class Config:
    """Config space, as far as the driver reads it.

    Attributes:
        ids: vendor and device. VFIO answers them from a copy of its own, also where the device has
            gone (drivers/vfio/pci/vfio_pci_config.c, init_pci_cap_basic_perm()).
        refused: what is read from the device is refused, as while its PE is being reset.
    """

    def __init__(self, nvme: Nvme) -> None:
        self.ids = 0x1234, 0x5678
        self.refused = False
        self._nvme = nvme

    @property
    def vendor_id(self) -> int:
        return self.ids[0]

    @property
    def device_id(self) -> int:
        return self.ids[1]

    @property
    def answers(self) -> bool:
        return self.class_code != 0xFF_FFFF

    @property
    def class_code(self) -> int:
        if self.refused:
            raise errors.DeviceGone(errno.ENODEV, "pread", "0000:01:00.0", "")
        return 0xFFFFFF if self._nvme.gone else spec.CLASS_CODE


class Device:
    """An opened device with that controller, as far as the driver is concerned.

    Attributes:
        nvme: the controller.
        resets: how many times the function was reset.
        steps: what became of bus mastering.
    """

    memory_kind: type[Memory] = Memory
    nvme_kind: type[Nvme] = Nvme

    def __init__(self, *, vectors: int = 8, **controller: Any) -> None:
        self.address = "0000:01:00.0"
        self.dma = self.memory_kind()
        self.msix = modelled_msix(vectors)
        self.msi = SimpleNamespace(count=0)
        self.nvme = self.nvme_kind(self.dma, self._interrupt, self._may_interrupt, **controller)
        self.bars = {0: self.nvme}
        self.config = Config(self.nvme)
        self.can_reset = True
        self.reset_helps = True
        self.resets = 0
        self._bus_master = True

    def _may_interrupt(self) -> bool:
        return bool(self.msix.file.signalled())  # type: ignore[attr-defined]

    def _interrupt(self, vector: int) -> None:
        fd = self.msix.file.signalled().get(vector)  # type: ignore[attr-defined]
        if fd is not None and self._bus_master:
            os.eventfd_write(fd, 1)

    @property
    def bus_master(self) -> bool:
        return self._bus_master

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self._bus_master = self.nvme.reaches_memory = on
        if on:
            # What was cut off in the middle goes on.
            for command in self.nvme.under_way(Io.READ):
                self.nvme._do_io(command)

    def reset(self) -> None:
        self.resets += 1
        if self.reset_helps:
            self.nvme.becomes_idle = True
            self.nvme.reset()
            if self.nvme.silent_seconds:
                self.nvme._silent_until = self.nvme.clock.monotonic() + self.nvme.silent_seconds

    def close(self) -> None:
        self.msix.file.close()


class Clock:
    """Time that passes when it is told to, and, in large steps, for who sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.1)
