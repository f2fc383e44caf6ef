"""What every address space can do, whatever kernel interface is behind it."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

from pyvfio import errors
from pyvfio._sys import File, memory, sysfs
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.iommu.dma import (
    GRAIN,
    LARGEST_BLOCK,
    Arena,
    DmaBuffer,
    MappedBuffer,
    Mapping,
    Pool,
    arena_of,
)
from pyvfio.iommu.info import SpaceInfo
from pyvfio.iommu.iova import IovaAllocator, IovaRange
from pyvfio.pci import paths

if TYPE_CHECKING:
    from pyvfio.pci import Function

_LOW = 1 << 32
"""Below this, addresses are left to those who ask for them: devices that do 32-bit DMA."""

_SUPERPAGE = 2 << 20
_NOWHERE = 1 << 64  # beyond every address


class AddressSpace(Closing, ABC):
    """Where devices may do DMA, and where not.

    Devices opened in one space see the same memory at the same addresses. A device must be open in
    it before memory can be mapped. When the last device leaves, the kernel drops what was mapped:
    buffers and mappings are closed then, and views of buffers end: touching one raises ValueError.

    Threads may share it, with its mappings and buffers; not one buffer while another thread closes
    it. A signal (Ctrl-C) in the midst of a call comes after it, and leaves nothing half done.

    After a fork the space belongs to the parent; in the child it is closed. The memory of buffers
    stays shared with the parent.
    """

    _info_request = vfio.VFIO_IOMMU_GET_INFO.name

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._info: SpaceInfo | None = None  # None: no device is open
        self._iovas = IovaAllocator(())
        self._mappings: dict[int, Mapping] = {}
        # What devices may read and write, sorted: first byte and end in this process, IOVA. A
        # change replaces the list, so that looking into it needs no lock.
        self._reached: list[tuple[int, int, int]] = []
        self._pool = Pool(self)
        self._bins = self._pool.found
        self._alone: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # of buffers without the pool
        self._stops: dict[File, Callable[[], None]] = {}
        _live.add(self)

    # What an implementation provides.

    @abstractmethod
    def open_device(self, function: Function) -> File:
        """Open a device so that it does its DMA in this space.

        Returns:
            Its file; :meth:`close_device` closes it.

        Raises:
            NotBound, NoIommu, NoVfio, GroupNotViable: the host is not set up for it.
            AccessDenied, Busy, NoInterruptRemapping, OpenFilesLimit, KernelError: the kernel
                refused.
            Closed: the space was closed.
        """

    @abstractmethod
    def close_device(self, file: File) -> None:
        """Close a device that :meth:`open_device` opened; closing it again does nothing."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it was closed."""

    @abstractmethod
    def _close_devices(self) -> None:
        """Close the devices' files."""

    @abstractmethod
    def _close(self) -> None:
        """Close all other files."""

    @abstractmethod
    def _map(self, address: int, iova: int, size: int, readable: bool, writable: bool) -> None:
        """Let devices reach this process's memory."""

    @abstractmethod
    def _unmap(self, iova: int, size: int) -> int:
        """Undo a mapping; returns how many bytes the kernel unmapped."""

    @abstractmethod
    def _ask(self) -> SpaceInfo | None:
        """What the kernel says of this space; None while no device is open."""

    # What the kernel told.

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """The addresses that can be mapped: those that all its devices can use.

        Raises:
            StateError: no device is open in it.
        """
        return self._ready().ranges

    @property
    def page_sizes(self) -> int:
        """Bit n is set where the IOMMU has pages of 2**n bytes.

        Raises:
            StateError: no device is open in it.
        """
        return self._ready().page_sizes

    @property
    def page_size(self) -> int:
        """Bytes of the smallest piece of memory that can be mapped.

        Raises:
            StateError: no device is open in it.
        """
        sizes = self._ready().page_sizes
        return max(sizes & -sizes, memory.PAGE_SIZE)

    @property
    def mappings_available(self) -> int | None:
        """How many more mappings the kernel allows now; None if it does not say.

        Raises:
            StateError: no device is open in it.
        """
        self._ready()
        info = self._ask()
        return info.mappings_available if info is not None else None

    # Memory.

    def map(
        self,
        buffer: Any,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        readable: bool = True,
        writable: bool = True,
        private: bool = False,
    ) -> Mapping:
        """Let devices reach memory that the caller brings.

        Args:
            buffer: anything with a writable, contiguous buffer (mmap, numpy array, ...) that begins
                at a page and is whole pages long (:attr:`page_size`). Kept alive while mapped.
            iova: its address for the device; None chooses one, at 4 GiB or above if possible.
            max_iova: the last address that the device can reach, for one with fewer address bits.
            readable: whether devices may read it.
            writable: whether devices may write it.
            private: :meth:`iova_of` does not tell of it, since its maker alone knows when it ends.

        A mapping with ``writable=False`` is of the pages that the buffer has then: each is there
        already, or made by the call. Kernels before 5.14 cannot make them, and those before 6.2 map
        a shared page of zeros where there is none: with these, write to each page first.

        Raises:
            ArgumentError: the buffer or address is not aligned, or not writable.
            RangeError: `iova` lies outside what devices can reach (:attr:`iova_ranges`).
            NoSpace: `iova` is mapped already, or no address is free.
            LockedMemoryLimit, MappingLimit, KernelError: the kernel refused.
            StateError: no device is open in it.
        """
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise errors.ArgumentError(
                "memory to be mapped must be writable and contiguous: "
                "copy it into a buffer made by alloc()"
            )
        if not readable and not writable:
            raise errors.ArgumentError("a mapping is readable, writable or both")
        page = self.page_size
        address = memory.address_of(view) if view.nbytes else 0
        if not view.nbytes or view.nbytes % page or address % page:
            raise errors.ArgumentError(
                f"memory to be mapped must be whole pages of {page:#x} bytes, not {view.nbytes:#x} "
                f"bytes at {address:#x}: make it with alloc(), or with mmap.mmap(-1, size)"
            )
        with deferred_signals() as section:
            mapping = self._map_memory(
                view,
                iova=iova,
                max_iova=max_iova,
                readable=readable,
                writable=writable,
                private=private,
            )
            section.undo(self._take_back, mapping)
            return mapping

    def alloc(
        self,
        size: int,
        *,
        align: int | None = None,
        max_iova: int | None = None,
        huge: bool | int = False,
    ) -> DmaBuffer:
        """Allocate zeroed memory that devices and this process share.

        Buffers up to 1 MiB come from a pool, without a system call. The pool's memory is reachable
        by devices as long as the pool keeps it, also where no buffer lies.

        Args:
            size: bytes.
            align: of its IOVA, a power of two. None aligns it so that a buffer no larger than a
                page lies in one page, and a larger one begins at a page.
            max_iova: the last address that the device can reach, for one with fewer address bits:
                ``(1 << 28) - 1``.
            huge: True for huge pages of the host's default size, or their size in bytes. They come
                from the host's pool (/proc/sys/vm/nr_hugepages).

        Raises:
            ArgumentError: a size or alignment that makes no sense.
            NoSpace: no address is free.
            LockedMemoryLimit, MappingLimit, KernelError: the kernel refused; ENOMEM where memory,
                or the pool of huge pages, is exhausted.
            Unsupported: the host has no huge pages of that size.
            StateError: no device is open in it.
        """
        try:
            bin = self._bins[size + GRAIN - 1 & -GRAIN, align, max_iova, huge]
            lease = bin.free.pop()
        except (KeyError, IndexError):
            if size <= 0 or (align is not None and (align <= 0 or align & (align - 1))):
                raise errors.ArgumentError(
                    f"size {size} must be positive, alignment {align} a power of two"
                ) from None
            alone = bool(huge) or max(size, align or 0) > LARGEST_BLOCK
            if not alone:
                try:
                    bin, lease = self._pool.carve(size + GRAIN - 1 & -GRAIN, align, max_iova)
                except (errors.NoSpace, errors.LockedMemoryLimit):
                    # A mapping of its own needs less room than an arena, and less alignment.
                    alone = True
            if alone:
                with deferred_signals() as section:
                    buffer = self._alloc_alone(size, align or 1, max_iova, huge)
                    section.undo(buffer.close)
                    return buffer
        view = lease[1]
        view[:] = bin.zeros
        if size != bin.size:
            view = view[:size]
        return DmaBuffer(lease, size, view)

    def iova_of(self, buffer: Any) -> int | None:
        """Where devices find memory of this process: an easy way to do without copying.

        Args:
            buffer: anything with a writable, contiguous buffer: a part of a DMA buffer's view, a
                numpy array made of it, memory that was given to :meth:`map`.

        Returns:
            The IOVA of its first byte; None where devices do not reach all of it, for reading and
            writing, within one mapping.
        """
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous or not view.nbytes:
            return None
        address = memory.address_of(view)
        reached = self._reached  # which another thread may replace
        index = bisect_right(reached, (address, _NOWHERE)) - 1
        if index < 0:
            return None
        start, end, iova = reached[index]
        return iova + address - start if address + view.nbytes <= end else None

    def stop_with(self, file: File, stop: Callable[[], None]) -> None:
        """Say how to silence an open device, for when the space is closed before it.

        Args:
            file: what :meth:`open_device` returned.
            stop: switches its interrupts and its DMA off. :meth:`close_device` does not call it:
                who closes a device has stopped it.
        """
        self._stops[file] = stop

    def close(self) -> None:
        """Stop the devices open in it, undo its mappings, then close devices and its own files.

        Each step is done whatever fails. Closing again does nothing.

        Raises:
            KernelError: a step failed.
        """
        with deferred_signals(), ExitStack() as steps:
            steps.callback(self._close_all)
            for file, stop in tuple(self._stops.items()):
                if not file.closed:
                    steps.callback(stop)

    # For implementations, mappings and the pool.

    def _close_all(self) -> None:
        with deferred_signals(), self._lock, ExitStack() as steps:
            steps.callback(self._close)
            steps.callback(self._close_devices)
            if self._info is not None:
                steps.callback(self._unmap_all)
            self._stops.clear()

    def _ready(self) -> SpaceInfo:
        if self._info is None:
            self._refuse_closed()
            raise errors.StateError(
                "no device is open in this address space, so it has no IOMMU yet: "
                "open a device in it first"
            )
        return self._info

    def _refuse_closed(self) -> None:
        if self.closed:
            raise errors.Closed("the address space is closed (or was made before a fork)")

    def _refresh(self) -> None:
        """Ask the kernel again, after a device came or went."""
        info = self._ask()
        if info is None:
            raise errors.KernelError(
                errno.EINVAL,
                self._info_request,
                type(self).__name__,
                "the kernel says nothing of the address space although a device is open in it",
            )
        iovas = IovaAllocator(info.ranges)
        for mapping in self._mappings.values():
            iovas.take(mapping.iova, mapping.size)
        self._info, self._iovas = info, iovas

    def _map_memory(
        self,
        view: memoryview,
        *,
        iova: int | None = None,
        align: int = 1,
        prefer: int = 1,
        max_iova: int | None = None,
        readable: bool = True,
        writable: bool = True,
        private: bool = False,
    ) -> Mapping:
        with deferred_signals() as section, self._lock:
            page = self.page_size
            size = view.nbytes
            if iova is None:
                iova = self._choose(size, max(align, page), max_iova, prefer)
            else:
                self._take(iova, size, page, max_iova)
            # Recorded first, since the kernel may have mapped it whatever ends the call.
            mapping = self._mappings[iova] = Mapping(self, view, iova)
            section.undo(self._take_back, mapping)
            if not writable:
                memory.populate(view)
            try:
                self._map(mapping._address, iova, size, readable, writable)
            except errors.KernelError:
                self._erase(mapping)
                raise
            if readable and writable and not private:
                self._reached = sorted([*self._reached, _reach(mapping)])
            return mapping

    def _take_back(self, mapping: Mapping) -> None:
        """Unmap what may be mapped; where that is refused, it is tried again at the end."""
        mapping._uncertain = True
        with suppress(errors.KernelError):
            self._unmap_mapping(mapping)

    def _choose(self, size: int, align: int, max_iova: int | None, prefer: int = 1) -> int:
        """Take a free IOVA.

        Args:
            prefer: an alignment that is better, where there is room for it.
        """
        # Not 0: it is a legal address, but many devices take it for "no buffer".
        for lowest in (1,) if max_iova is not None else (_LOW, 1):
            for each in (max(align, prefer), align):
                with suppress(errors.NoSpace):
                    return self._iovas.allocate(size, each, lowest=lowest, highest=max_iova)
        return self._iovas.allocate(size, align, lowest=1, highest=max_iova)  # says so

    def _take(self, iova: int, size: int, page: int, max_iova: int | None) -> None:
        last = iova + size - 1
        if iova % page:
            raise errors.ArgumentError(f"IOVA {iova:#x} must be a multiple of {page:#x}")
        ranges = self.iova_ranges
        if max_iova is not None and last > max_iova:
            ranges = (IovaRange(0, max_iova),)
        if not any(r.start <= iova and last <= r.last for r in ranges):
            raise errors.RangeError(
                f"IOVA {iova:#x}-{last:#x} is out of reach; these can be mapped: "
                + ", ".join(map(str, ranges))
            )
        try:
            self._iovas.take(iova, size)
        except errors.NoSpace:
            taken = [
                str(IovaRange(mapping.iova, mapping.iova + mapping.size - 1))
                for mapping in self._mappings.values()
                if mapping.iova <= last and iova < mapping.iova + mapping.size
            ]
            raise errors.NoSpace(
                f"IOVA {iova:#x}-{last:#x} overlaps what is mapped at {', '.join(taken)}: close "
                "that first, or leave the choice of address to map()"
            ) from None

    def _unmap_mapping(self, mapping: Mapping) -> None:
        with deferred_signals(), self._lock:
            if mapping.closed:
                return
            # Whatever ends the call, it may have unmapped it: the next one may find nothing.
            uncertain, mapping._uncertain = mapping._uncertain, True
            try:
                size = self._unmap(mapping.iova, mapping.size)
            except errors.KernelError:
                mapping._uncertain = uncertain
                raise
            if size != mapping.size and not (uncertain and size == 0):
                mapping._uncertain = uncertain
                raise self._unmapped_wrong(mapping, size)
            self._erase(mapping)

    def _erase(self, mapping: Mapping) -> None:
        """A mapping is no more."""
        del self._mappings[mapping.iova]
        self._iovas.free(mapping.iova, mapping.size)
        reach = _reach(mapping)
        if reach in self._reached:
            self._reached = [each for each in self._reached if each != reach]
        mapping._forget()

    @abstractmethod
    def _unmapped_wrong(self, mapping: Mapping, size: int) -> errors.KernelError:
        """The error for an unmapping after which `size` bytes are gone instead of all."""

    def _unmap_all(self) -> None:
        """Undo every mapping and forget it; for when the last device leaves.

        Each is tried, and the first failure is told. Views of buffers end.
        """
        with deferred_signals():
            failure = None
            try:
                for mapping in self._mappings.values():
                    try:
                        self._unmap_last(mapping)
                    except errors.KernelError as error:
                        failure = failure or error
            finally:
                arenas = self._pool.arenas()
                self._forget()
                self._end_views(arenas)
            if failure is not None:
                raise failure

    def _end_views(self, arenas: list[weakref.ref[Arena]]) -> None:
        """End the views of buffers, as far as somebody has one; their memory has no device now."""
        left = [owner for owner in (*(arena() for arena in arenas), *self._alone) if owner]
        if left:
            ended = {id(owner) for owner in left}
            memory.release_views(lambda owner: id(arena_of(owner) or owner) in ended)

    def _unmap_last(self, mapping: Mapping) -> None:
        # When the device is being removed, the kernel drops them itself, at any moment.
        try:
            size = self._unmap(mapping.iova, mapping.size)
        except errors.KernelError:
            if self._ask() is None:
                return
            raise
        if size not in (0, mapping.size):
            raise self._unmapped_wrong(mapping, size)

    def _forget(self) -> None:
        """All mappings are gone."""
        for mapping in self._mappings.values():
            mapping._forget()
        self._mappings.clear()
        self._reached = []
        self._pool.abandon()
        self._info = None
        self._iovas = IovaAllocator(())

    def _alloc_alone(
        self, size: int, align: int, max_iova: int | None, huge: bool | int
    ) -> DmaBuffer:
        """A buffer with a mapping of its own."""
        with deferred_signals() as section:
            page = self.page_size
            huge_page = None
            if huge:
                huge_page = _default_huge_page() if huge is True else huge
                page = max(page, huge_page)
            length = -(-size // page) * page
            if huge_page is None:
                view = memory.allocate_shared(length)
            else:
                view = _allocate_huge(length, huge_page)
            # With IOVAs aligned as its memory is, the IOMMU can use its larger pages.
            prefer = max(page, _SUPERPAGE if length >= _SUPERPAGE else 1)
            mapping = self._map_memory(view, align=align, prefer=prefer, max_iova=max_iova)
            section.undo(mapping.close)
            self._alone.add(cast(mmap.mmap, view.obj))
            return MappedBuffer(mapping, size, view[:size])


def _reach(mapping: Mapping) -> tuple[int, int, int]:
    return mapping._address, mapping._address + mapping.size, mapping.iova


def _default_huge_page() -> int:
    for line in sysfs.read(paths.PROC / "meminfo").splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    raise errors.Unsupported("this host's kernel has no huge pages")


def _allocate_huge(length: int, huge_page: int) -> memoryview:
    pools = paths.SYSFS / "kernel/mm/hugepages"
    pool = pools / f"hugepages-{huge_page >> 10}kB"
    if huge_page <= 0 or not pool.is_dir():
        sizes = [int(name[10:-2]) << 10 for name in sysfs.entries(pools)]
        raise errors.Unsupported(
            f"this host has no huge pages of {huge_page:#x} bytes; it has "
            + (", ".join(f"{size:#x}" for size in sorted(sizes)) or "none")
        )
    try:
        return memory.allocate_shared(length, huge_page)
    except errors.KernelError as error:
        need = length // huge_page
        raise errors.KernelError.from_call(
            error,
            f"{need} huge pages of {huge_page >> 10} KiB are needed, "
            f"{sysfs.read(pool / 'free_hugepages')} are free; as root, for the default "
            f"size: echo N > /proc/sys/vm/nr_hugepages, for this one: echo N > {pool}/nr_hugepages",
        ) from None


_live: weakref.WeakSet[AddressSpace] = weakref.WeakSet()


def _forget_in_child() -> None:
    # The descriptors are closed in the child; the mappings are the parent's. Another thread of the
    # parent may have held the lock.
    for space in list(_live):
        space._lock = threading.RLock()
        space._forget()


os.register_at_fork(after_in_child=_forget_in_child)
