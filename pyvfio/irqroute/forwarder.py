"""From a guest's MSI-X table, or its MSI message, to a device's vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from pyvfio import errors
from pyvfio._sys.closing import Closing
from pyvfio.device import Device, Irq
from pyvfio.iommu import Type1
from pyvfio.irqroute.gsis import (
    DirectGsis,
    DirectGsis2016,
    GsiMapping,
    RoutedGsis,
    RoutedGsis2016,
)
from pyvfio.irqroute.history import TODAY, Dummy, Paths2016, Policy
from pyvfio.irqroute.paths import BestPaths, Machine, Paths
from pyvfio.irqroute.table import VirtualMsix
from pyvfio.kvm import VM, MsiMessage


@contextmanager
def assigned(device: Device, vm: VM) -> Iterator[None]:
    """While the block lasts KVM knows that the VM uses the device's IOMMU group.

    On POWER it is not told: there KVM wants each group's TCE table as well
    (``KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE``), for guests that map by hypercalls, and without one the
    kernel logs a warning when the group goes (kvm_spapr_tce_release_vfio_group). irqfds need none.

    Raises:
        Unsupported: this kernel's KVM has no KVM-VFIO device.
        KernelError: the kernel refused.
    """
    with ExitStack() as stack:
        if isinstance(device.dma, Type1):
            own = device.function.iommu_group
            for group in device.dma.groups:
                # Another device of the group may have told of it already.
                if own is not None and group.id == own.id:
                    with suppress(errors.Busy):
                        stack.enter_context(vm.vfio.add(group.file))
        yield


def default_gsis(vm: Machine, policy: Policy = TODAY) -> GsiMapping:
    """How a VM's GSIs are had: by routes where its irqchip has them, else from the message.

    Under a policy of 2016 the mapping is QEMU's of 2016 too.
    """
    if policy.dummy is Dummy.NONE:
        return RoutedGsis(vm.routes) if vm.irqchip.routable else DirectGsis()
    if vm.irqchip.routable:
        return RoutedGsis2016(vm.routes, commit_unchanged=policy.commit_unchanged)
    return DirectGsis2016()


class MsixForwarder(Closing):
    """A device's MSI-X, forwarded to a VM as the guest's table says.

    Program :attr:`msix` as a driver would, or let a guest do it; the device's interrupts then reach
    the guest without passing through this process. What a masked vector interrupts is kept in its
    pending bit. When a write to the table raises, it has not been done, and the interrupts are as
    before.

    While MSI-X is enabled in the table, the device's MSI-X is claimed
    (:meth:`~pyvfio.device.irq.Irq.claim`). What disables it from elsewhere
    (``device.msix.disable()``, a reset or recovery of the PE, closing the device) disables it in
    the table too, and it is forwarded again once the table enables it. The entries stay: where the
    device's own table was wiped, :meth:`reset` wipes this one.

    Threads may share it. A thread that writes to the table has :attr:`~pyvfio.device.irq.Irq.lock`,
    then takes that of the VM's routes: within :meth:`pyvfio.kvm.Routes.batch`, which is the other
    order, only a program with one thread may write to it.

    Attributes:
        msix: the guest's table.
        policy: how the dummy vector is treated.
        paths: the vectors' ways as they are.
    """

    def __init__(
        self,
        irq: Irq,
        vm: Machine,
        *,
        policy: Policy = TODAY,
        gsis: GsiMapping | None = None,
    ) -> None:
        """
        Args:
            irq: the device's MSI-X (:attr:`pyvfio.device.Device.msix`).
            vm: whose interrupts they become.
            policy: how the dummy vector is treated; another than TODAY is a replica of QEMU's
                order of 2016.
            gsis: where GSIs come from; None for :func:`default_gsis`.

        Raises:
            Unsupported: the device has no MSI-X.
        """
        if not irq.count:
            raise errors.Unsupported(f"the device has no {irq.name} interrupts")
        gsis = default_gsis(vm, policy) if gsis is None else gsis
        self.policy = policy
        self.msix = VirtualMsix(irq.count, self, irq.lock)
        self.paths: Paths
        if policy.dummy is Dummy.NONE:
            self.paths = BestPaths(irq, vm.irqfds, gsis, self.close)
        else:
            self.paths = Paths2016(irq, vm.irqfds, gsis, self.close, policy, self._message)

    def reset(self) -> None:
        """The device is reset: MSI-X is disabled, then the table is wiped.

        Raises:
            DeviceGone, KernelError: a step was refused; the others were done.
        """
        self.msix.reset()

    def close(self) -> None:
        """Disable MSI-X; nothing is left of it at VFIO and KVM. Doing it again does nothing.

        Raises:
            DeviceGone, KernelError: a step was refused; the others were done.
        """
        self.msix.enabled = False

    # What the table tells.

    def enable(self, vectors: Sequence[int]) -> None:
        """MSI-X was enabled."""
        self.paths.enable(self._messages(vectors))

    def disable(self) -> None:
        """MSI-X was disabled."""
        self.paths.disable()

    def unmask(self, vectors: Sequence[int]) -> None:
        """Vectors may send."""
        self.paths.unmask(self._messages(vectors))

    def mask(self, vectors: Sequence[int]) -> None:
        """Vectors may not send."""
        self.paths.mask(vectors)

    def deliver(self, vector: int) -> None:
        """An interrupt was pending."""
        self.paths.deliver(vector)

    def arrived(self, vectors: Iterable[int]) -> Iterable[int]:
        """Interrupts that came while masked."""
        return self.paths.arrived(vectors)

    def __repr__(self) -> str:
        return f"<MsixForwarder {self.policy.name} {self.msix!r}>"

    def _message(self, vector: int) -> MsiMessage:
        address, data, _ = self.msix[vector]
        return MsiMessage(address, data)

    def _messages(self, vectors: Iterable[int]) -> Mapping[int, MsiMessage]:
        return {vector: self._message(vector) for vector in vectors}


class MsiForwarder(Closing):
    """A device's MSI, forwarded to a VM.

    MSI has one message for all its vectors, which differ in the low bits of its data (PCI Local
    Bus 3.0, 6.8.1). Threads may share it.

    While it is enabled the device's MSI is claimed (:meth:`~pyvfio.device.irq.Irq.claim`). What
    disables it from elsewhere (``device.msi.disable``, a reset or the recovery of the PE, closing
    the device) closes this.

    Attributes:
        count: how many vectors are enabled, 0 for none.
        paths: the vectors' ways as they are.
    """

    def __init__(self, irq: Irq, vm: Machine, *, gsis: GsiMapping | None = None) -> None:
        """
        Args:
            irq: the device's MSI (:attr:`pyvfio.device.Device.msi`).
            vm: whose interrupts they become.
            gsis: where GSIs come from; None for :func:`default_gsis`.

        Raises:
            Unsupported: the device has no MSI.
        """
        if not irq.count:
            raise errors.Unsupported(f"the device has no {irq.name} interrupts")
        gsis = default_gsis(vm) if gsis is None else gsis
        self.paths = BestPaths(irq, vm.irqfds, gsis, self.close)
        self.count = 0
        self._lock = irq.lock  # held over each change, by what disables MSI from elsewhere too
        self._limit = irq.count
        self._message = MsiMessage(0, 0)
        self._pending: set[int] = set()
        self._masked: set[int] = set()

    def enable(self, message: MsiMessage, count: int = 1) -> None:
        """Forward vectors.

        Args:
            message: the first vector's; the others have their number in its data's low bits.
            count: how many, a power of two.

        Raises:
            StateError: it is enabled, or the device's vectors are this process's.
            RangeError: the device has fewer vectors.
            ArgumentError: `count` is no power of two, or the data's low bits are not 0.
            RoutesExhausted, VectorsExhausted, OpenFilesLimit, DeviceGone, KernelError: it cannot
                be done, and nothing was.
        """
        with self._lock:
            if self.count:
                raise errors.StateError("MSI is enabled: retarget() changes its message")
            if not 1 <= count <= self._limit:
                raise errors.RangeError(f"the device has {self._limit} MSI vectors, not {count}")
            self.paths.enable(_messages(message, count))
            self.count, self._message = count, message

    def retarget(self, message: MsiMessage) -> None:
        """Change the message; masked vectors stay masked, with the new one.

        Raises:
            StateError: it is not enabled.
            ArgumentError, KernelError: as :meth:`enable`.
        """
        with self._lock:
            messages = _messages(message, self._enabled())
            self._unmask({n: m for n, m in messages.items() if n not in self._masked})
            self._message = message

    def mask(self, *vectors: int) -> None:
        """Keep vectors' interrupts back, in their pending bits.

        Raises:
            StateError: it is not enabled.
            RangeError: there is no such vector.
            DeviceGone, KernelError: the kernel refused.
        """
        with self._lock:
            self._check(vectors)
            new = sorted(set(vectors) - self._masked)
            self.paths.mask(new)
            self._masked.update(new)

    def unmask(self, *vectors: int) -> None:
        """Let them through, and send what was pending, once; errors as :meth:`mask`."""
        with self._lock:
            self._check(vectors)
            due = set(vectors) & self._masked
            messages = _messages(self._message, self.count)
            self._unmask({vector: messages[vector] for vector in sorted(due)})
            self._masked -= due

    def pending(self, vector: int) -> bool:
        """Whether an interrupt waits for the vector to be unmasked; errors as :meth:`mask`."""
        with self._lock:
            self._check((vector,))
            self._pending.update(self.paths.arrived((vector,)))
            return vector in self._pending

    def close(self) -> None:
        """Disable MSI; doing it again does nothing.

        Raises:
            DeviceGone, KernelError: a step was refused; the others were done.
        """
        with self._lock:
            if self.count:
                self.count = 0
                self._masked.clear()
                self._pending.clear()
                self.paths.disable()

    def __repr__(self) -> str:
        return f"<MsiForwarder {self.count} of {self._limit} vectors>"

    def _unmask(self, messages: Mapping[int, MsiMessage]) -> None:
        self.paths.unmask(messages)
        self._pending.update(self.paths.arrived(messages))
        for vector in sorted(self._pending & set(messages)):
            self._pending.discard(vector)
            self.paths.deliver(vector)

    def _enabled(self) -> int:
        if not self.count:
            raise errors.StateError("MSI is not enabled: call enable() first")
        return self.count

    def _check(self, vectors: Iterable[int]) -> None:
        count = self._enabled()
        for vector in vectors:
            if not 0 <= vector < count:
                raise errors.RangeError(f"{count} MSI vectors are enabled, no {vector}")


def _messages(message: MsiMessage, count: int) -> dict[int, MsiMessage]:
    if count & (count - 1) or message.data & (count - 1):
        raise errors.ArgumentError(
            f"MSI has 1, 2, 4 ... 32 vectors, and their number in the low bits of its data: "
            f"{count} with data {message.data:#x} cannot be"
        )
    return {number: MsiMessage(message.address, message.data | number) for number in range(count)}
