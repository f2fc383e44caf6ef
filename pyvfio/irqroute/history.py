"""QEMU's vfio-pci of 2016, ioctl by ioctl, with each policy for the dummy vector.

When a guest enables MSI-X without an unmasked vector, VFIO has to be told of at least one: QEMU
used vector 0 for that, with no message, and released it at once. What became of this dummy at KVM
changed with the commits named in :data:`POLICIES`. Functions are named after those of hw/vfio/pci.c
at 6d17a018d0; the order of calls is theirs, but what QEMU does of INTx around them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

from pyvfio import errors
from pyvfio._sys import EventFd
from pyvfio.device import Irq
from pyvfio.irqroute.gsis import GsiMapping
from pyvfio.irqroute.paths import Path, Paths
from pyvfio.kvm import Irqfds, MsiMessage


class Dummy(Enum):
    """What becomes of the dummy vector at KVM."""

    NULL_IS_NOOP = "its message is NULL, and adding a NULL message does nothing"
    ROUTED = "it is routed and bound with the message that stands in the table"
    GUARDED = "its message is NULL, and the caller adds nothing then"
    NONE = "none, MSI-X is enabled with vector 0 and no eventfd"


@dataclass(frozen=True)
class Policy:
    """How a forwarder treats the dummy vector.

    Attributes:
        name: short, for the command line.
        commit: QEMU's commit that it stands for.
        dummy: what becomes of the dummy.
        commit_unchanged: every update commits the table of routes, also an unchanged one: QEMU does
            so since 3f1fea0fb5, three commits after d1f6af6a17 in the same series. Until then
            kvm_update_routing_entry() returned before the commit where nothing had changed.
    """

    name: str
    commit: str
    dummy: Dummy
    commit_unchanged: bool


BEFORE = Policy("before", "d1f6af6^", Dummy.NULL_IS_NOOP, commit_unchanged=False)
D1F6AF6 = Policy("d1f6af6", "d1f6af6a17", Dummy.ROUTED, commit_unchanged=False)
PATCHED = Policy("patched", "6d17a018d0", Dummy.GUARDED, commit_unchanged=True)
TODAY = Policy("today", "5ebffa4e87", Dummy.NONE, commit_unchanged=False)

POLICIES = {policy.name: policy for policy in (BEFORE, D1F6AF6, PATCHED, TODAY)}
"""By name. TODAY stands for the dummy alone: the rest of its order is this library's own.

No release of QEMU has D1F6AF6 as it is: 2.7.0, which has the fault, has 3f1fea0fb5 too.
"""


class Paths2016(Paths):
    """The vectors' ways as QEMU joined and parted them in 2016."""

    def __init__(
        self,
        irq: Irq,
        irqfds: Irqfds,
        gsis: GsiMapping,
        on_disable: Callable[[], object],
        policy: Policy,
        table: Callable[[int], MsiMessage],
    ) -> None:
        """
        Args:
            irq: the device's MSI-X.
            irqfds: the VM's.
            gsis: where GSIs come from.
            on_disable: as :class:`Paths` has it.
            policy: which of QEMU's.
            table: the message that stands in the guest's table now, by vector.
        """
        super().__init__(irq, irqfds, gsis, on_disable)
        self._policy = policy
        self._table = table
        self._nr_vectors = 0
        self._masked: set[int] = set()

    def enable(self, messages: Mapping[int, MsiMessage]) -> None:
        # vfio_msix_enable
        self._begin()
        try:
            if 0 not in messages:
                self._masked.add(0)
            self._vector_do_use(0, None)
            self._vector_release(0)
            self.unmask(messages)
        except BaseException:
            self._abandon()
            raise

    def unmask(self, messages: Mapping[int, MsiMessage]) -> None:
        # vfio_msix_vector_use, once a vector
        for number, message in messages.items():
            self._masked.discard(number)
            try:
                self._vector_do_use(number, message)
            except BaseException:
                self._masked.add(number)
                raise

    def mask(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._masked.add(number)
            self._vector_release(number)

    def disable(self) -> None:
        # vfio_msix_disable
        with ExitStack() as steps:
            steps.callback(self._forget)
            steps.callback(self._end)
            for number in sorted(self._paths, reverse=True):
                steps.callback(self._remove_kvm_msi_virq, self._paths[number])
            if self._claimed is None or self._claimed.closed:
                return
            if self._nr_vectors:
                steps.callback(self._claim.disable, ask=True)
            if not self.irq.file.closed:
                for number in sorted(self._paths, reverse=True):
                    steps.callback(self._vector_release, number)

    def _forget(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths = {}
        self._masked.clear()
        self._nr_vectors = 0

    def _vector_do_use(self, number: int, message: MsiMessage | None) -> None:
        path = self._paths.get(number)
        if path is None:
            path = self._paths[number] = Path(number)
            path.to_us  # noqa: B018 (made now, as there)
        # QEMU asks for virq >= 0, so GSI 0 counts as bound: under a direct mapping the dummy of an
        # empty table has it, and from then on each use is an update.
        if path.irqfd is not None:
            if message is None:
                self._remove_kvm_msi_virq(path)
            else:
                self._update_kvm_msi_virq(path, message)
        elif message is not None or self._policy.dummy is not Dummy.GUARDED:
            self._add_kvm_msi_virq(path, message)
        if number >= self._nr_vectors:
            try:
                self._claim.disable(ask=True)
            except errors.DeviceGone:
                raise
            except errors.KernelError:
                pass  # EINVAL where nothing was enabled, which QEMU does not look at
            self._nr_vectors = number + 1
            self._enable_vectors()
        else:
            self._signal(number, [path.to_us if path.irqfd is None else path.to_guest])

    def _vector_release(self, number: int) -> None:
        path = self._paths[number]
        if path.irqfd is not None:
            self._signal(number, [path.to_us])

    def _add_kvm_msi_virq(self, path: Path, message: MsiMessage | None) -> None:
        if self._policy.dummy is Dummy.ROUTED:
            # d1f6af6: by the vector's number, so there is always a message.
            message = self._table(path.number)
        if message is None:
            return
        (gsi,) = self.gsis.add([message])
        try:
            path.irqfd = self.irqfds.assign(path.to_guest, gsi)
        except BaseException:
            self.gsis.remove([gsi])
            raise

    def _update_kvm_msi_virq(self, path: Path, message: MsiMessage) -> None:
        irqfd = path.irqfd
        assert irqfd is not None
        gsi = self.gsis.update(irqfd.gsi, message)
        if gsi != irqfd.gsi:
            # Never in QEMU, where an update keeps the GSI; what a direct mapping needed.
            path.irqfd = None
            irqfd.close()
            path.irqfd = self.irqfds.assign(path.to_guest, gsi)

    def _remove_kvm_msi_virq(self, path: Path) -> None:
        irqfd, path.irqfd = path.irqfd, None
        if irqfd is not None:
            try:
                irqfd.close()
            finally:
                self.gsis.remove([irqfd.gsi])

    def _enable_vectors(self) -> None:
        eventfds: list[EventFd | None] = []
        for number in range(self._nr_vectors):
            path = self._paths.get(number)
            if path is None:
                eventfds.append(None)
            elif path.irqfd is None or number in self._masked:
                eventfds.append(path.to_us)
            else:
                eventfds.append(path.to_guest)
        self._signal(0, eventfds)
