"""An IRQ index of an opened device: INTx, MSI, MSI-X, ERR or REQ."""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import overload

from pyvfio import errors
from pyvfio._sys import EventFd, File
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.device.vector import Vector

_NO_EVENTFD = -1
_HEADER_SIZE = ctypes.sizeof(vfio.vfio_irq_set)
_TRIGGER = vfio.VFIO_IRQ_SET_ACTION_TRIGGER
_MASK = vfio.VFIO_IRQ_SET_ACTION_MASK
_UNMASK = vfio.VFIO_IRQ_SET_ACTION_UNMASK

# The device raises these three; a device can use one of them at a time.
_EXCLUSIVE = {
    vfio.VFIO_PCI_INTX_IRQ_INDEX: "INTx",
    vfio.VFIO_PCI_MSI_IRQ_INDEX: "MSI",
    vfio.VFIO_PCI_MSIX_IRQ_INDEX: "MSI-X",
}


class Vectors(Closing, Sequence[Vector]):
    """The vectors that one call of :meth:`Irq.enable` enabled; leaving the block disables them."""

    __slots__ = ("_irq", "_vectors")

    def __init__(self, irq: Irq, vectors: Sequence[Vector]) -> None:
        self._irq = irq
        self._vectors = tuple(vectors)

    @overload
    def __getitem__(self, index: int) -> Vector: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Vector]: ...

    def __getitem__(self, index: int | slice) -> Vector | Sequence[Vector]:
        return self._vectors[index]

    def __len__(self) -> int:
        return len(self._vectors)

    def close(self) -> None:
        """Disable these vectors; those disabled already are passed over.

        Raises:
            KernelError: the kernel refused; the eventfds are closed all the same.
        """
        with deferred_signals(), self._irq.lock:
            self._irq._release([vector for vector in self._vectors if vector.enabled])

    def __repr__(self) -> str:
        return f"<{self._irq.name} {list(self._vectors)}>"


class Claim(Closing):
    """An IRQ index whose vectors signal eventfds of its holder, which hands them to KVM.

    Made by :meth:`Irq.claim`. While it lasts nobody else can enable vectors of the index. Whatever
    disables the index (:meth:`Irq.disable`, a reset of the PE, closing the device) ends the claim,
    and its holder is called, so that no holder takes vectors for enabled that are not.
    """

    __slots__ = ("_irq", "_on_disable")

    def __init__(self, irq: Irq, on_disable: Callable[[], object]) -> None:
        self._irq = irq
        self._on_disable = on_disable

    @property
    def closed(self) -> bool:
        """Whether it has ended: the vectors are not its holder's any more."""
        return self._irq._claim is not self

    def signal(self, start: int, fds: Sequence[int | None]) -> None:
        """Let vectors signal eventfds, with one call to the kernel.

        The first call allocates the host's vectors up to the last one named; they stay until
        :meth:`disable`.

        Args:
            start: the first vector's number.
            fds: an eventfd for each vector, None for nobody; an allocated vector stays allocated.

        Raises:
            StateError: the claim has ended; and as :meth:`Irq.enable`.
        """
        irq = self._irq
        irq._checked_count(len(fds), start)
        with deferred_signals(), irq.lock:
            if self.closed:
                raise errors.StateError(
                    f"{irq.name} was disabled meanwhile, and its vectors given back"
                )
            before = dict(irq._signalled)
            irq._signalled.update(enumerate(fds, start))
            try:
                irq._assign(start, fds)
            except errors.Error:
                irq._signalled = before
                raise

    def disable(self, *, ask: bool = False) -> None:
        """Disable the vectors and keep the claim; once it has ended this does nothing.

        Args:
            ask: ask the kernel even where nothing is enabled; it refuses then (EINVAL).

        Raises:
            KernelError: the kernel refused.
        """
        with deferred_signals(), self._irq.lock:
            if not self.closed:
                self._irq._release((), all_of_them=True, ask=ask)

    def close(self) -> None:
        """Disable the vectors and end the claim, the holder's own doing: it is not called.

        Raises:
            KernelError: the kernel refused; the claim has ended all the same.
        """
        with deferred_signals(), self._irq.lock:
            try:
                self.disable()
            finally:
                self._end()

    def _revoke(self) -> None:
        """Have the holder give it back; it ends in any case."""
        try:
            self._on_disable()
        finally:
            self._end()

    def _end(self) -> None:
        if not self.closed:
            self._irq._claim = None

    def __repr__(self) -> str:
        return f"<Claim on {self._irq.name}{' closed' if self.closed else ''}>"


class Irq:
    """One IRQ index of a device.

    A device raises INTx, MSI or MSI-X, one of them at a time. ERR tells of an uncorrectable PCIe
    error, REQ that the host wants the device back.

    An index is used in one of two ways: :meth:`enable` gives vectors to this process, and
    :meth:`claim` lets them signal eventfds that a holder brings, as forwarding to KVM does.

    Threads may share it. A signal (Ctrl-C) in the midst of a call comes after it.

    Attributes:
        file: the device's file.
        index: the VFIO IRQ index (``VFIO_PCI_MSIX_IRQ_INDEX`` ...).
        name: "INTx", "MSI", "MSI-X", "ERR" or "REQ".
        count: how many vectors the device has here; 0 if it has none.
        maskable: whether :meth:`mask` and :meth:`unmask` work.
        automasked: each interrupt masks itself until :meth:`unmask` (level-triggered INTx).
        noresize: the number of vectors is fixed by the first :meth:`enable`; to have more, disable
            all first (``VFIO_IRQ_INFO_NORESIZE``).
        lock: held over each change of the device's interrupts, by whom they are claimed as well.
    """

    def __init__(
        self,
        file: File,
        index: int,
        name: str,
        *,
        flags: int,
        count: int,
        siblings: Iterable[Irq],
        lock: threading.RLock | None = None,
    ) -> None:
        """Made by :class:`~pyvfio.device.device.Device`.

        Args:
            file: the device's descriptor.
            flags: ``VFIO_IRQ_INFO_*``.
            count: vectors.
            siblings: all the device's IRQ indexes.
            lock: one for them all; None where it is alone.
        """
        self.file = file
        self._siblings = siblings
        self.lock = threading.RLock() if lock is None else lock
        self.index = index
        self.name = name
        self.count = count
        self.maskable = bool(flags & vfio.VFIO_IRQ_INFO_MASKABLE)
        self.automasked = bool(flags & vfio.VFIO_IRQ_INFO_AUTOMASKED)
        self.noresize = bool(flags & vfio.VFIO_IRQ_INFO_NORESIZE)
        # Vectors by number: those of enable(), and those of the claim with its holder's eventfd, or
        # none; and how many the kernel has allocated.
        self._enabled: dict[int, Vector] = {}
        self._signalled: dict[int, int | None] = {}
        self._claim: Claim | None = None
        self._allocated = 0
        # Whether the kernel may have disabled the index: a call was interrupted.
        self._uncertain = False

    @property
    def enabled(self) -> Sequence[Vector]:
        """The vectors enabled now, in order of their numbers."""
        return [self._enabled[number] for number in sorted(self._enabled)]

    def enable(self, count: int | None = None, *, start: int = 0) -> Vectors:
        """Enable vectors, with one call to the kernel.

        Args:
            count: how many vectors; None for all from `start` on.
            start: the first vector's number.

        Returns:
            The vectors, in order; a context manager that disables them.

        Raises:
            Unsupported: the device has no such interrupts.
            RangeError: it has fewer; the message says how many.
            StateError: another kind of interrupt, or one of these vectors, is enabled; the index is
                claimed; or the number of vectors would grow and cannot (:attr:`noresize`).
            VectorsExhausted: the host has no vectors left.
            OpenFilesLimit: no descriptors left for the eventfds.
            KernelError: the kernel refused otherwise.
        """
        count = self._checked_count(count, start)
        numbers = range(start, start + count)
        vectors: list[Vector] = []
        with deferred_signals() as section, self.lock:
            self._check_unclaimed()
            for number in numbers:
                if number in self._enabled:
                    raise errors.StateError(f"{self.name} vector {number} is already enabled")
            section.undo(_close_eventfds, vectors)
            for number in numbers:
                vectors.append(Vector(number, EventFd()))
            # Recorded first, since the kernel may have enabled them whatever ends the call.
            self._enabled.update((vector.index, vector) for vector in vectors)
            section.undo(self._take_back, vectors)
            try:
                self._assign(start, [vector.fileno() for vector in vectors])
            except errors.Error:
                for number in numbers:
                    del self._enabled[number]
                raise
            return Vectors(self, vectors)

    def claim(self, on_disable: Callable[[], object]) -> Claim:
        """Take the index, to let its vectors signal eventfds of one's own.

        Args:
            on_disable: called when somebody else disables the index, with :attr:`lock` held and
                before the kernel is asked. It ends what the holder has built on the vectors, and
                may close the claim; what it raises, the one who disables gets.

        Returns:
            The claim; closing it disables the vectors.

        Raises:
            StateError: vectors are enabled for this process, or the index is claimed.
        """
        with self.lock:
            self._check_unclaimed()
            if self._enabled:
                raise errors.StateError(
                    f"{self.name} vectors of the device are enabled for this process, and would "
                    "end with those that are forwarded: close them first"
                )
            self._claim = Claim(self, on_disable)
            return self._claim

    @property
    def claimed(self) -> bool:
        """Whether somebody has the index by :meth:`claim`."""
        return self._claim is not None

    def _assign(self, start: int, fds: Sequence[int | None]) -> None:
        self._check_exclusive()
        end = start + len(fds)
        if self.noresize and 0 < self._allocated < end and self.index in _EXCLUSIVE:
            raise errors.StateError(
                f"{self.name} was enabled with {self._allocated} vectors, and this kernel cannot "
                f"add to them (NORESIZE): disable them, then enable {end} at once"
            )
        numbers = [_NO_EVENTFD if fd is None else fd for fd in fds]
        data = struct.pack(f"<{len(fds)}i", *numbers)
        allocated, self._allocated = self._allocated, max(self._allocated, end)
        uncertain, self._uncertain = self._uncertain, True
        try:
            result = self._set(vfio.VFIO_IRQ_SET_DATA_EVENTFD | _TRIGGER, start, len(fds), data)
            if result:
                # Not an errno: the kernel says how many vectors it could have had, and has taken
                # none.
                raise errors.VectorsExhausted(
                    errno.ENOSPC,
                    "VFIO_DEVICE_SET_IRQS",
                    self.file.path,
                    f"the host can give {result} {self.name} vectors, not {end}; ask for fewer",
                )
        except errors.Error as error:
            self._allocated, self._uncertain = allocated, uncertain
            if type(error) is errors.KernelError and error.errno == errno.ENOSPC:
                raise self._exhausted(error, end) from None
            raise
        self._uncertain = False

    def disable(self) -> None:
        """Disable all vectors and give the host's back; doing it again does nothing.

        Who has claimed the index loses it and is called: a forwarder ends what it has at KVM, and
        its guest's table says that MSI-X is disabled.

        Raises:
            KernelError: the kernel refused; the eventfds are closed all the same.
        """
        with deferred_signals(), self.lock, ExitStack() as steps:
            steps.callback(self._release, list(self._enabled.values()), all_of_them=True)
            if self._claim is not None:
                steps.callback(self._claim._revoke)

    def mask(self, start: int = 0, count: int | None = None) -> None:
        """Keep interrupts back until :meth:`unmask`.

        Raises:
            Unsupported: the kernel cannot mask these (MSI and MSI-X).
            RangeError, KernelError: as :meth:`enable`.
        """
        self._set_mask(_MASK, start, count)

    def unmask(self, start: int = 0, count: int | None = None) -> None:
        """Let interrupts through again; for INTx, after each one (:attr:`automasked`).

        Raises:
            As :meth:`mask`.
        """
        self._set_mask(_UNMASK, start, count)

    def unmask_by(self, eventfd: int | None) -> None:
        """Unmask INTx whenever an eventfd is signalled (KVM's resample eventfd); None ends it.

        Raises:
            Unsupported: the kernel cannot mask these.
            KernelError: the kernel refused.
        """
        self._check_maskable()
        self._check_allocated(1)
        self._set(
            vfio.VFIO_IRQ_SET_DATA_EVENTFD | _UNMASK,
            0,
            1,
            struct.pack("<i", _NO_EVENTFD if eventfd is None else eventfd),
        )

    def trigger(self, start: int = 0, count: int = 1, *, ask: bool = False) -> None:
        """Make the kernel signal vectors as if the device had interrupted (loopback).

        On a POWER host with XIVE a guest gets nothing of it while KVM lets the device's interrupts
        bypass software (:class:`pyvfio.kvm.Irqchip`).

        Args:
            start: the first vector's number.
            count: how many.
            ask: ask the kernel even where nobody is known to be signalled; it refuses where the
                index is disabled (EINVAL).

        Raises:
            StateError: a vector is not enabled.
            RangeError, KernelError: as :meth:`enable`.
        """
        count = self._checked_count(count, start)
        for number in range(start, start + count):
            if number not in self._enabled and self._signalled.get(number) is None and not ask:
                raise errors.StateError(
                    f"{self.name} vector {number} is not enabled, nobody would see it fire: "
                    f"call enable({start + count}) first"
                )
        # With a count of 0 this would disable the index.
        self._set(vfio.VFIO_IRQ_SET_DATA_NONE | _TRIGGER, start, count)

    def __repr__(self) -> str:
        return f"<{self.name} {self.count} vectors, {len(self._enabled)} enabled>"

    def __iter__(self) -> Iterator[Vector]:
        return iter(self.enabled)

    def _checked_count(self, count: int | None, start: int) -> int:
        if not self.count:
            raise errors.Unsupported(f"the device has no {self.name} interrupts")
        if count is None:
            count = self.count - start
        if start < 0 or count < 1 or start + count > self.count:
            raise errors.RangeError(
                f"the device has {self.count} {self.name} vectors (0 to {self.count - 1}): "
                f"{count} from {start} on is outside"
            )
        return count

    def _check_unclaimed(self) -> None:
        if self._claim is not None:
            raise errors.StateError(
                f"{self.name} interrupts of the device are forwarded: end that first, or call "
                "disable(), which ends it"
            )

    def _check_exclusive(self) -> None:
        if self.index not in _EXCLUSIVE:
            return
        for other in self._siblings:
            if other is not self and other.index in _EXCLUSIVE and other._allocated:
                raise errors.StateError(
                    f"{other.name} is enabled, and a device uses one of INTx, MSI and MSI-X at a "
                    f"time: disable {other.name} first"
                )

    def _check_maskable(self) -> None:
        if not self.maskable:
            raise errors.Unsupported(
                f"the kernel cannot mask {self.name} interrupts; "
                "disable the vector, or mask it in the device's own registers"
            )

    def _check_allocated(self, end: int) -> None:
        if self._allocated < end:
            raise errors.StateError(f"{self.name} is not enabled: call enable({end}) first")

    def _set_mask(self, action: int, start: int, count: int | None) -> None:
        count = self._checked_count(count, start)
        self._check_maskable()
        self._check_allocated(start + count)
        self._set(vfio.VFIO_IRQ_SET_DATA_NONE | action, start, count)

    def _release(
        self, vectors: Sequence[Vector], *, all_of_them: bool = False, ask: bool = False
    ) -> None:
        for vector in vectors:
            self._enabled.pop(vector.index, None)
        if all_of_them:
            self._signalled.clear()
        try:
            if self.file.closed or not (self._allocated or ask):
                return
            if not self._enabled and not self._signalled:
                self._disable_index(ask)
            else:
                for start, length in _runs(vector.index for vector in vectors):
                    self._assign(start, [None] * length)
        finally:
            # Last, so that no interrupt meets an eventfd that has gone.
            _close_eventfds(vectors)

    def _disable_index(self, ask: bool) -> None:
        uncertain, self._uncertain = self._uncertain, True
        try:
            # A count of 0 disables the whole index.
            self._set(vfio.VFIO_IRQ_SET_DATA_NONE | _TRIGGER, 0, 0)
        except errors.KernelError as error:
            self._uncertain = uncertain
            # EINVAL: it is disabled already, as it may be after a call that was interrupted.
            if ask or not uncertain or error.errno != errno.EINVAL:
                raise
        self._allocated = 0
        self._uncertain = False

    def _take_back(self, vectors: Sequence[Vector]) -> None:
        """Disable vectors that may be enabled; where that is refused, disable() tries again."""
        left = [vector for vector in vectors if self._enabled.get(vector.index) is vector]
        if left:
            with suppress(errors.KernelError):
                self._release(left)

    def _set(self, flags: int, start: int, count: int, data: bytes = b"") -> int:
        argument = bytearray(_HEADER_SIZE + len(data))
        irq_set = vfio.vfio_irq_set.from_buffer(argument)
        irq_set.argsz = len(argument)
        irq_set.flags = flags
        irq_set.index = self.index
        irq_set.start = start
        irq_set.count = count
        argument[_HEADER_SIZE:] = data
        try:
            return self.file.ioctl(vfio.VFIO_DEVICE_SET_IRQS, argument)
        except errors.DeviceGone:
            raise
        except errors.KernelError as error:
            which = f"vectors {start} to {start + count - 1}" if count else "all vectors"
            raise error.from_call(error, f"{self.name}, {which}") from None

    def _exhausted(self, error: errors.KernelError, wanted: int) -> errors.KernelError:
        return errors.VectorsExhausted.from_call(
            error,
            f"the host has no room for {wanted} {self.name} vectors (an x86 CPU has about 200 for "
            "all devices together); ask for fewer, or bring more CPUs online",
        )


def _close_eventfds(vectors: Sequence[Vector]) -> None:
    with ExitStack() as steps:
        for vector in vectors:
            steps.callback(vector._eventfd.close)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, how many)."""
    start = length = 0
    for number in sorted(numbers):
        if length and number == start + length:
            length += 1
            continue
        if length:
            yield start, length
        start, length = number, 1
    if length:
        yield start, length
