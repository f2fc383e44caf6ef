"""The SPAPR TCE IOMMU of POWER, both versions (Documentation/driver-api/vfio.rst).

A device's DMA goes through windows: ranges of IOVAs, each translated by a table of TCEs
(translation control entries) with pages of its own size. Every container has the default window,
below 4 GiB, with pages of 4 KiB whatever the kernel's own pages are.

- Version 2 has a second window, which begins at 1 << 59 on today's hosts, and registers memory
  before it maps it. A container holds several groups, and shares its windows among them.
- Version 1 has the default window alone and holds one group. Its container is enabled once, which
  counts the whole window as locked memory.

For the kernel, mapping an IOVA again replaces what was there, and an unmapping reports no size.
Refusing the one and knowing the other is this side's.
"""

from __future__ import annotations

import ctypes
import errno
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from pyvfio import errors
from pyvfio._sys import memory, sysfs
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.iommu import locked
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.dma import Mapping
from pyvfio.iommu.group import Group
from pyvfio.iommu.info import DmaWindow, SpaceInfo, SpaprInfo, parse_spapr_info
from pyvfio.iommu.registered import RegisteredMemory
from pyvfio.pci import paths

_SMALLEST_WINDOW = 64 << 20
_TCE = 8  # bytes of a table's entry


class SpaprTce(ContainerSpace):
    """What both versions have in common: a container whose windows map this process's memory."""

    _info_request = vfio.VFIO_IOMMU_SPAPR_TCE_GET_INFO.name
    _kind: int
    _version: int

    def __init__(self, container: Container | None = None) -> None:
        with deferred_signals() as section:
            super().__init__(container)
            section.undo(self.container.close)
            self._ours = False  # whether it was this space that set the container's IOMMU
            if not self.container.check_extension(self._kind):
                raise errors.Unsupported(
                    f"the kernel has no SPAPR TCE IOMMU of version {self._version}: on POWER, load "
                    "it with: modprobe vfio_iommu_spapr_tce"
                )

    @property
    def windows(self) -> tuple[DmaWindow, ...]:
        """The windows it has; memory is mapped in one of them as a whole.

        Raises:
            StateError: no device is open in it.
        """
        self._ready()
        info = self._tell()
        return () if info is None else self._windows(info)

    def _windows(self, info: SpaprInfo) -> tuple[DmaWindow, ...]:
        return () if info.default is None else (info.default,)

    def _tell(self) -> SpaprInfo | None:
        """``VFIO_IOMMU_SPAPR_TCE_GET_INFO``; None while no group is in."""
        kind = vfio.vfio_iommu_spapr_tce_info
        answer = bytearray(kind(argsz=ctypes.sizeof(kind)))
        try:
            self.container.file.ioctl(vfio.VFIO_IOMMU_SPAPR_TCE_GET_INFO, answer)
        except errors.KernelError as error:
            if error.errno in (errno.EINVAL, errno.ENXIO):
                return None
            raise
        return parse_spapr_info(bytes(answer))

    def _ask(self) -> SpaceInfo | None:
        info = self._tell()
        if info is None:
            return None
        windows = self._windows(info)
        page_sizes = info.page_sizes
        for window in windows:
            page_sizes |= window.page_size
        return SpaceInfo(tuple(window.range for window in windows), page_sizes, None)

    def _unmap_all(self) -> None:
        with ExitStack() as steps:
            for step in reversed(self._returns()):
                steps.callback(self._give_back, step)
            steps.callback(super()._unmap_all)

    def _give_back(self, step: Callable[[], None]) -> None:
        try:
            step()
        except errors.KernelError:
            # When the device is being removed, the kernel does so itself, at any moment.
            if self._tell() is not None:
                raise

    @abstractmethod
    def _returns(self) -> Sequence[Callable[[], None]]:
        """The steps that undo what counts as locked memory beside the mappings, in their order.

        The kernel does so when the group leaves, but a group whose device somebody still has a
        view of stays.
        """

    def _choose(self, size: int, align: int, max_iova: int | None, prefer: int = 1) -> int:
        try:
            return super()._choose(size, align, max_iova, prefer)
        except errors.NoSpace:
            below = "" if max_iova is None else f", up to IOVA {max_iova:#x},"
            raise errors.NoSpace(
                f"no DMA window{below} has {size:#x} bytes free in one piece, aligned to "
                f"{align:#x}; the windows are: {', '.join(map(str, self.windows))}. Close buffers "
                "or mappings that are no longer needed, or map smaller pieces"
            ) from None

    def _map(self, address: int, iova: int, size: int, readable: bool, writable: bool) -> None:
        argument = vfio.vfio_iommu_type1_dma_map(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_map),
            flags=vfio.VFIO_DMA_MAP_FLAG_READ * readable | vfio.VFIO_DMA_MAP_FLAG_WRITE * writable,
            vaddr=address,
            iova=iova,
            size=size,
        )
        try:
            self.container.file.ioctl(vfio.VFIO_IOMMU_MAP_DMA, argument)
        except errors.KernelError as error:
            raise self._explain(error, iova, size) from None

    def _unmap(self, iova: int, size: int) -> int:
        argument = vfio.vfio_iommu_type1_dma_unmap(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_unmap), iova=iova, size=size
        )
        self.container.file.ioctl(vfio.VFIO_IOMMU_UNMAP_DMA, argument)
        return size

    def _unmapped_wrong(self, mapping: Mapping, size: int) -> errors.KernelError:
        raise AssertionError("the kernel reports no size")

    def _explain(self, error: errors.KernelError, iova: int, size: int) -> errors.KernelError:
        """What it means that ``VFIO_IOMMU_MAP_DMA`` was refused."""
        if error.errno == errno.ENOMEM:
            # The default window is made at its first use.
            return locked.refused(error, self._default_table(), " for a DMA window's table")
        meaning = self._refusals.get(error.errno or 0, "")
        where = f"{size:#x} bytes at IOVA {iova:#x}"
        return errors.KernelError.from_call(error, f"{where}: {meaning}" if meaning else where)

    def _default_table(self) -> int:
        """Bytes that the default window's table counts."""
        info = self._tell()
        return 0 if info is None or info.default is None else _table_bytes(info.default)

    _refusals = {
        errno.ENXIO: "no DMA window has this IOVA",
        errno.EFAULT: "the memory is not this process's, or is read-only",
    }


class SpaprTceV1(SpaprTce):
    """A SPAPR TCE address space of version 1: the default window, and one group."""

    _kind = vfio.VFIO_SPAPR_TCE_IOMMU
    _version = 1

    def attach(self, group: Group, *, joined: bool = False) -> None:
        with deferred_signals(), self._lock:
            self._refuse_closed()
            if self.groups:
                raise errors.StateError(
                    f"an address space of SPAPR TCE version 1 holds one group, and group "
                    f"{self.groups[0].id} is in it: open this device in an address space of its "
                    "own, or both in one of version 2 (SpaprTceV2)"
                )
            super().attach(group, joined=joined)

    def _set_iommu(self) -> None:
        self.container.set_iommu(self._kind)
        self._ours = True
        try:
            self.container.file.ioctl(vfio.VFIO_IOMMU_ENABLE)
        except errors.KernelError as error:
            if error.errno == errno.ENOMEM:
                info = self._tell()
                size = info.default.size if info is not None and info.default is not None else 0
                what = ", since version 1 counts the whole DMA window at once"
                raise locked.refused(error, size, what) from None
            raise errors.KernelError.from_call(
                error, "the kernel does not let the container's DMA window be used"
            ) from None

    def _returns(self) -> Sequence[Callable[[], None]]:
        return (self._disable,) if self._ours else ()

    def _disable(self) -> None:
        self.container.file.ioctl(vfio.VFIO_IOMMU_DISABLE)

    _refusals = {
        **SpaprTce._refusals,
        errno.EINVAL: "address, IOVA or size are not whole pages of the window",
        errno.EPERM: "the container is not enabled, or the memory's pages are smaller than the "
        "window's",
    }


class SpaprTceV2(SpaprTce):
    """A SPAPR TCE address space of version 2: registered memory, and a window above 4 GiB.

    That window's pages are the largest of the IOMMU's that are not larger than the kernel's, so
    any memory of this process can be mapped in it.
    """

    _kind = vfio.VFIO_SPAPR_TCE_v2_IOMMU
    _version = 2

    def __init__(self, container: Container | None = None, *, window: int | None = None) -> None:
        """Make one.

        Args:
            container: an open container to use, closed with the space. One that has its IOMMU set
                already keeps the windows it has, of which the space uses the default one. None
                opens one.
            window: bytes of the window above 4 GiB, a power of two, made when the first device is
                opened; 0 for none; None for twice the memory that could be mapped there: the
                host's, or what this process may lock.

        Raises:
            NoVfio, AccessDenied, OpenFilesLimit, KernelError: no container can be opened.
            Unsupported: the kernel has no such IOMMU.
        """
        if window is not None and window & (window - 1):
            raise errors.ArgumentError(f"a window's size is a power of two, not {window:#x}")
        super().__init__(container)
        self._wanted = window
        self._high: DmaWindow | None = None
        self._memory = self._new_memory()
        self._addresses: dict[int, int] = {}  # of the memory mapped at each IOVA

    def create_window(self, size: int | None = None) -> DmaWindow:
        """Make the window above 4 GiB, where there is none.

        Args:
            size: bytes, a power of two; None for the size that is made by itself.

        Raises:
            StateError: there is one, or no device is open.
            ArgumentError: the size is no power of two.
            Unsupported: the IOMMU has no second window, or none with the kernel's pages.
            LockedMemoryLimit: its table counts as locked memory, and there is too little left.
            KernelError: the kernel refused otherwise.
        """
        if size is not None and (size <= 0 or size & (size - 1)):
            raise errors.ArgumentError(f"a window's size is a power of two, not {size:#x}")
        with deferred_signals(), self._lock:
            self._ready()
            if self._high is not None:
                raise errors.StateError(f"there is a window at {self._high}: remove it first")
            self._high = self._create(size)
            self._refresh()
            return self._high

    def remove_window(self) -> None:
        """Remove the window above 4 GiB; does nothing if there is none.

        Raises:
            StateError: something is mapped in it.
            KernelError: the kernel refused.
        """
        with deferred_signals(), self._lock:
            self._refuse_closed()
            window = self._high
            if window is None:
                return
            self._pool.trim(keep=0)
            held = [iova for iova in self._mappings if iova >= window.start]
            if held:
                raise errors.StateError(
                    f"{len(held)} mappings are in the window at {window}, the first at IOVA "
                    f"{min(held):#x}: close them, and buffers of alloc(), first"
                )
            self._remove(window)
            self._high = None
            self._refresh()

    def _set_iommu(self) -> None:
        try:
            self.container.set_iommu(self._kind)
        except errors.KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            raise errors.Unsupported(
                "this device's IOMMU has no dynamic DMA windows, which version 2 needs: open the "
                "device in a SpaprTceV1()"
            ) from None
        self._ours = True
        if self._wanted != 0:
            self._high = self._create(self._wanted)

    def _windows(self, info: SpaprInfo) -> tuple[DmaWindow, ...]:
        high = () if self._high is None else (self._high,)
        return super()._windows(info) + high

    def _create(self, size: int | None) -> DmaWindow:
        info = self._tell()
        if info is None or info.windows < 2:
            raise errors.Unsupported("this device's IOMMU has no second DMA window")
        fitting = [1 << n for n in range(memory.PAGE_SIZE.bit_length()) if info.page_sizes >> n & 1]
        if not fitting:
            raise errors.Unsupported(
                f"this device's IOMMU has no pages as small as the kernel's ({info.page_sizes:#x})"
            )
        page = fitting[-1]
        if size is None:
            size = _reasonable_window()
        window = DmaWindow(0, max(size, page), page)
        kind = vfio.vfio_iommu_spapr_tce_create
        failure = None
        held = locked.held()
        for levels in range(_levels(window), max(info.levels, 1) + 1):
            argument = kind(
                argsz=ctypes.sizeof(kind),
                page_shift=page.bit_length() - 1,
                window_size=window.size,
                levels=levels,
            )
            try:
                self.container.file.ioctl(vfio.VFIO_IOMMU_SPAPR_TCE_CREATE, argument)
            except errors.KernelError as error:
                # More levels make smaller tables, which a fragmented host may still have room for.
                failure = failure or error
                if error.errno != errno.ENOMEM:
                    break
            else:
                return window._replace(start=int(argument.start_addr))
        if failure is None:
            raise errors.ArgumentError(f"a window of {size:#x} bytes needs too many table levels")
        if failure.errno == errno.ENOMEM:
            # The kernel makes the default window first, if that has not been used yet.
            tables = _table_bytes(window)
            if locked.held() == held:
                tables += self._default_table()
            raise locked.refused(failure, tables, f" for the tables of a {size:#x}-byte DMA window")
        meaning = {errno.ENOSPC: "the container has a window there, made by somebody else"}
        raise errors.KernelError.from_call(
            failure,
            meaning.get(failure.errno or 0, f"a window of {size:#x} bytes, pages of {page:#x}"),
        )

    def _remove(self, window: DmaWindow) -> None:
        kind = vfio.vfio_iommu_spapr_tce_remove
        argument = kind(argsz=ctypes.sizeof(kind), start_addr=window.start)
        self.container.file.ioctl(vfio.VFIO_IOMMU_SPAPR_TCE_REMOVE, argument)

    def _remove_default(self) -> None:
        info = self._tell()
        if info is not None and info.default is not None:
            self._remove(info.default)

    def _returns(self) -> Sequence[Callable[[], None]]:
        steps: list[Callable[[], None]] = []
        # Whoever set the container's IOMMU, this window is the space's own.
        if self._high is not None:
            steps.append(partial(self._remove, self._high))
        if self._ours:
            steps.append(self._remove_default)
        # Last: what is mapped in a window cannot be unregistered.
        steps.append(self._memory.clear)
        return steps

    def _map(self, address: int, iova: int, size: int, readable: bool, writable: bool) -> None:
        self._memory.hold(address, size)
        # Before it is mapped: whatever ends that, unmapping it gives the memory back.
        self._addresses[iova] = address
        try:
            super()._map(address, iova, size, readable, writable)
        except errors.KernelError:
            self._memory.release(self._addresses.pop(iova), size)
            raise

    def _unmap(self, iova: int, size: int) -> int:
        super()._unmap(iova, size)
        address = self._addresses.pop(iova, None)
        if address is None:  # it was closed before, and unregistering refused
            self._memory.retry()
        else:
            self._memory.release(address, size)
        return size

    def _forget(self) -> None:
        super()._forget()
        self._memory = self._new_memory()  # in the child of a fork the kernel cannot be asked
        self._addresses.clear()
        self._high = None

    def _new_memory(self) -> RegisteredMemory:
        return RegisteredMemory(self._register, self._unregister)

    def _register(self, address: int, size: int) -> None:
        request = vfio.VFIO_IOMMU_SPAPR_REGISTER_MEMORY
        file = self.container.file
        try:
            # Where only some of it could be pinned, the kernel returns how much, and keeps nothing.
            if file.ioctl(request, _registration(address, size)):
                raise errors.KernelError(errno.EFAULT, request.name, file.path)
        except errors.KernelError as error:
            if error.errno == errno.ENOMEM:
                raise locked.refused(error, size) from None
            meaning = {
                errno.EFAULT: "the memory is not this process's, or is read-only",
                errno.EINVAL: "another address space of this process has registered a part of it, "
                "or more: map the same memory there and here",
            }.get(error.errno or 0, "")
            where = f"{size:#x} bytes of memory at {address:#x}"
            raise errors.KernelError.from_call(
                error, f"{where}: {meaning}" if meaning else where
            ) from None

    def _unregister(self, address: int, size: int) -> None:
        self.container.file.ioctl(
            vfio.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, _registration(address, size)
        )

    _refusals = {
        **SpaprTce._refusals,
        errno.EINVAL: "the memory is not registered, or address, IOVA or size are not whole pages "
        "of the window",
        errno.EPERM: "no memory is registered, or its pages are smaller than the window's",
    }


def _registration(address: int, size: int) -> vfio.vfio_iommu_spapr_register_memory:
    kind = vfio.vfio_iommu_spapr_register_memory
    return kind(argsz=ctypes.sizeof(kind), vaddr=address, size=size)


def _reasonable_window() -> int:
    """Twice as much as could be mapped: room for alignment, and for what is mapped again.

    A larger window has a larger table, which counts as locked memory itself: 16 bytes a page.
    """
    for line in sysfs.read(paths.PROC / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            host = int(line.split()[1]) << 10
            break
    allowed = locked.limit()
    most = host if allowed is None else min(host, allowed)
    return max(2 << (most - 1).bit_length() if most else 0, _SMALLEST_WINDOW)


def _levels(window: DmaWindow) -> int:
    """Levels of table to begin with: each of up to 64 pages, which the kernel has in one piece."""
    pages = window.size // window.page_size * _TCE // memory.PAGE_SIZE
    return max(pages.bit_length() - 1, 0) // 6 + 1


def _table_bytes(window: DmaWindow) -> int:
    """What a window's table counts: an entry for each page, and the kernel's own copy of it."""
    return 2 * max(window.size // window.page_size * _TCE, memory.PAGE_SIZE)
