"""A region of an opened device: a BAR, the expansion ROM, config space, VGA."""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyvfio import errors
from pyvfio._sys import memory
from pyvfio._sys.file import File
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_REMEMBERED = 4096  # registers of each width in a region; a quarter of a KiB each


@dataclass(frozen=True)
class Area:
    """A part of a region that can be mapped.

    Attributes:
        offset: bytes from the start of the region.
        size: bytes.
    """

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first offset behind the area, in bytes."""
        return self.offset + self.size


class Region:
    """Registers or memory of a device, addressed by byte offset from the start of the region.

    ``read8`` ... ``write64`` are exactly one access of that width, at a multiple of the width: by
    load or store where the region can be mapped, by pread or pwrite on the device's descriptor
    elsewhere (I/O ports, the ROM, config space). Without a mapping, kernels before Linux 6.10 split
    a 64-bit access in two.

    The views ``u8`` ... ``u64`` are memoryviews over the mapping for loops that count nanoseconds.
    They check nothing but their bounds: Python takes a negative index from the end, and touching a
    view while the device does not decode memory raises SIGBUS, which ends the process. The methods
    refuse such an access with :class:`~pyvfio.errors.MemoryDisabled`.

    When the device is closed its views end: touching one raises ValueError. What another library
    has made of one, such as a numpy array, reads all ones from then on, as a device does that has
    gone. So a view that somebody keeps (a traceback, a logger) does not keep the device.

    Accesses to one register happen in the order of the program. Of two registers, a store and a
    load after it may change places on POWER: put :func:`pyvfio.fence` between them where the device
    minds. So may a store to a DMA buffer and the store to a register that tells the device.

    Threads may share it.

    Attributes:
        index: the VFIO region index (``VFIO_PCI_BAR0_REGION_INDEX`` ...).
        name: "BAR0" to "BAR5", "ROM", "config", "VGA", or "region N" for others.
        size: bytes.
        readable: whether it can be read.
        writable: whether it can be written.
        areas: the parts that can be mapped; empty if none can.
        kind: (type, subtype) of a device-specific region (``VFIO_REGION_TYPE_*``), else None.
    """

    __slots__ = (
        "__weakref__",
        "_at",
        "_at8",
        "_at16",
        "_at32",
        "_at64",
        "_closed",
        "_file",
        "_given",
        "_lock",
        "_mapped",
        "_offset",
        "_refuse",
        "_views",
        "areas",
        "index",
        "kind",
        "name",
        "readable",
        "size",
        "writable",
    )

    def __init__(
        self,
        file: File,
        index: int,
        name: str,
        *,
        flags: int,
        size: int,
        offset: int,
        areas: tuple[Area, ...],
        refuse: Callable[[], None],
        kind: tuple[int, int] | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        """Made by :class:`~pyvfio.device.device.Device`.

        Args:
            file: the device's descriptor.
            flags: ``VFIO_REGION_INFO_FLAG_*``.
            size: bytes.
            offset: of the region in the file, bytes.
            areas: the parts that can be mapped.
            refuse: raises if the region must not be touched now.
            kind: (type, subtype) of a device-specific region.
            lock: held over each change of what `refuse` looks at; None for one of its own.
        """
        self._file = file
        self._lock = threading.RLock() if lock is None else lock
        self._closed = False
        self._offset = offset
        self._refuse = refuse
        self.index = index
        self.name = name
        self.size = size
        self.readable = bool(flags & vfio.VFIO_REGION_INFO_FLAG_READ)
        self.writable = bool(flags & vfio.VFIO_REGION_INFO_FLAG_WRITE)
        self.areas = areas
        self.kind = kind
        # The views of each area that has been mapped.
        self._mapped: dict[Area, memoryview] = {}
        # What all views of these mappings hold.
        self._given: list[weakref.ref[object]] = []
        # Registers that were accessed, by width and offset: each a view of its one item. Being
        # here, an offset has passed all checks.
        self._at8: dict[int, memoryview] = {}
        self._at16: dict[int, memoryview] = {}
        self._at32: dict[int, memoryview] = {}
        self._at64: dict[int, memoryview] = {}
        # Views of the whole region, by width.
        self._views: dict[int, memoryview] = {}
        self._at = {1: self._at8, 2: self._at16, 4: self._at32, 8: self._at64}
        _live.add(self)

    def read8(self, offset: int) -> int:
        """One 8-bit read at byte `offset`; errors as :meth:`read32`."""
        try:
            return self._at8[offset][0]
        except KeyError:
            pass
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """One 16-bit read at byte `offset`; errors as :meth:`read32`."""
        try:
            return self._at16[offset][0]
        except KeyError:
            pass
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """One 32-bit read at byte `offset`.

        Raises:
            RangeError: the offset is negative or beyond the region.
            ArgumentError: the offset is not a multiple of the width.
            MemoryDisabled: the device does not decode memory now.
            Closed: the device was closed.
            KernelError: the kernel refused (regions that are not mapped).
        """
        try:
            return self._at32[offset][0]
        except KeyError:
            pass
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        """One 64-bit read at byte `offset`; errors as :meth:`read32`."""
        try:
            return self._at64[offset][0]
        except KeyError:
            pass
        return self._read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit write at byte `offset`; errors as :meth:`write32`."""
        try:
            self._at8[offset][0] = value
            return
        except (KeyError, TypeError, ValueError):
            pass
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit write at byte `offset`; errors as :meth:`write32`."""
        try:
            self._at16[offset][0] = value
            return
        except (KeyError, TypeError, ValueError):
            pass
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write at byte `offset`.

        Raises:
            RangeError: the offset is negative or beyond the region.
            ArgumentError: the offset is not a multiple of the width, the value does not fit it, or
                the region is read-only.
            MemoryDisabled: the device does not decode memory now.
            Closed: the device was closed.
            KernelError: the kernel refused (regions that are not mapped).
        """
        try:
            self._at32[offset][0] = value
            return
        except (KeyError, TypeError, ValueError):
            pass
        self._write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit write at byte `offset`; errors as :meth:`write32`."""
        try:
            self._at64[offset][0] = value
            return
        except (KeyError, TypeError, ValueError):
            pass
        self._write(offset, 8, value)

    def read(self, offset: int, size: int) -> bytes:
        """Copy `size` bytes from `offset`, by the kernel, in aligned accesses of its choice.

        Where an MSI-X table stands, the kernel shows ones; a :meth:`view` shows what is there.

        Raises:
            RangeError: the range is not inside the region.
            MemoryDisabled, Closed, KernelError: as for :meth:`read32`.
        """
        self._check(offset, size)
        return self._file.pread(size, self._offset + offset)

    def write(self, offset: int, data: Buffer) -> None:
        """Copy bytes to `offset`, by the kernel, in aligned accesses of its choice.

        Raises:
            RangeError: the range is not inside the region.
            ArgumentError: the region is read-only.
            MemoryDisabled, Closed, KernelError: as for :meth:`write32`.
        """
        content = bytes(data)
        self._check(offset, len(content))
        self._check_writable()
        self._file.pwrite(content, self._offset + offset)

    def view(self, offset: int = 0, size: int | None = None) -> memoryview:
        """A view of bytes that the device answers, until the device is closed.

        Args:
            offset: bytes from the start of the region.
            size: bytes; None for all up to the end of the region.

        Returns:
            A memoryview of format "B"; ``cast("I")`` makes it one of 32-bit registers.

        Raises:
            RangeError: the range is not inside the region.
            Unsupported: it is not inside one area that can be mapped (see :attr:`areas`).
            MemoryDisabled, Closed, KernelError: as for :meth:`read32`.
        """
        size = self.size - offset if size is None else size
        with deferred_signals(), self._lock:
            self._check(offset, size)
            area = self._area(offset, size)
            if area is None:
                raise self._not_mappable(offset, size)
            start = offset - area.offset
            return self._view(area)[start : start + size]

    @property
    def u8(self) -> memoryview:
        """The whole region as 8-bit items, indexed by byte; errors as :meth:`view`."""
        return self._views.get(1) or self._whole(1)

    @property
    def u16(self) -> memoryview:
        """The whole region as 16-bit items; ``u16[i]`` is at byte 2 * i; errors as :meth:`view`."""
        return self._views.get(2) or self._whole(2)

    @property
    def u32(self) -> memoryview:
        """The whole region as 32-bit items; ``u32[i]`` is at byte 4 * i; errors as :meth:`view`."""
        return self._views.get(4) or self._whole(4)

    @property
    def u64(self) -> memoryview:
        """The whole region as 64-bit items; ``u64[i]`` is at byte 8 * i; errors as :meth:`view`."""
        return self._views.get(8) or self._whole(8)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        access = ("r" if self.readable else "") + ("w" if self.writable else "")
        return f"<{self.name} {self.size:#x} bytes {access}{' mappable' if self.areas else ''}>"

    def release(self) -> None:
        """Let go of the region's own mappings; views that others hold stay valid."""
        with deferred_signals(), self._lock:
            for registers in self._at.values():
                registers.clear()
            self._views.clear()
            self._mapped.clear()

    def close(self) -> None:
        """End all views of the region, for the device, which is closed.

        Raises:
            KernelError: the kernel refused to put other memory in the place of the device's.
        """
        with deferred_signals(), self._lock:
            self._closed = True
            self.release()
            memory.withdraw(self._given)

    def _whole(self, width: int) -> memoryview:
        with deferred_signals(), self._lock:
            view = self._views[width] = self.view().cast(_FORMATS[width])
            return view

    def _read(self, offset: int, width: int) -> int:
        while True:
            if not self._prepare(offset, width):
                data = self._file.pread(width, self._offset + offset)
                return int.from_bytes(data, "little")
            try:
                return int(self._at[width][offset][0])
            except KeyError:
                pass  # another thread switched memory decoding meanwhile

    def _write(self, offset: int, width: int, value: int) -> None:
        self._check_access(offset, width)
        self._check_writable()
        try:
            value = operator.index(value)
            data = value.to_bytes(width, "little")
        except (OverflowError, TypeError):
            raise errors.ArgumentError(
                f"{value!r} is not an integer of {8 * width} bits (0 to {(1 << 8 * width) - 1:#x})"
            ) from None
        while True:
            if not self._prepare(offset, width):
                self._file.pwrite(data, self._offset + offset)
                return
            try:
                self._at[width][offset][0] = value
                return
            except KeyError:
                pass  # as in _read

    def _prepare(self, offset: int, width: int) -> bool:
        """Make a register ready to be accessed by look-up; False where it is not mapped.

        Checking and remembering are one step to :meth:`release`: what it has emptied stays empty
        until the device may be touched again.
        """
        area = self._area(offset, width)
        if area is None:
            self._check_access(offset, width)
            return False
        with deferred_signals(), self._lock:
            self._check_access(offset, width)
            start = offset - area.offset
            registers = self._at[width]
            if len(registers) >= _REMEMBERED:
                registers.clear()
            registers[offset] = self._view(area)[start : start + width].cast(_FORMATS[width])
            return True

    def _not_mappable(self, offset: int, size: int) -> errors.Unsupported:
        where = ", ".join(f"{area.offset:#x}..{area.end:#x}" for area in self.areas)
        return errors.Unsupported(
            f"{self.name} cannot be mapped at {offset:#x}..{offset + size:#x}; "
            + (f"it can be at {where}" if where else "use its read and write methods")
        )

    def _area(self, offset: int, size: int) -> Area | None:
        for area in self.areas:
            if area.offset <= offset and offset + size <= area.end:
                return area
        return None

    def _view(self, area: Area) -> memoryview:
        """The area's mapping, made when it is first needed."""
        view = self._mapped.get(area)
        if view is None:
            # The kernel maps whole pages; a BAR smaller than a page has one to itself.
            length = -(-area.size // memory.PAGE_SIZE) * memory.PAGE_SIZE
            mapping = memory.map_file(
                self._file, self._offset + area.offset, length, writable=self.writable
            )
            given = [owner for owner in self._given if owner() is not None]
            self._given = [*given, weakref.ref(mapping.obj)]
            view = self._mapped[area] = mapping[: area.size]
        return view

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise errors.RangeError(
                f"{self.name} has {self.size:#x} bytes: "
                f"offset {offset:#x} with {size} bytes is outside"
            )
        if self._closed:
            raise self._file.closed_error()
        self._refuse()

    def _check_access(self, offset: int, width: int) -> None:
        self._check(offset, width)
        if offset % width:
            raise errors.ArgumentError(
                f"offset {offset:#x} in {self.name} is not a multiple of {width}; "
                "a register access is one access of its own width"
            )

    def _check_writable(self) -> None:
        if not self.writable:
            raise errors.ArgumentError(f"{self.name} is read-only")


_live: weakref.WeakSet[Region] = weakref.WeakSet()


def _release_in_child() -> None:
    # A child has no mapping of the device: without this its next access would be a fault.
    for region in list(_live):
        region._lock = threading.RLock()  # the parent's may be held by a thread that is not here
        region.release()


os.register_at_fork(after_in_child=_release_in_child)
