"""Who plays the VM: what messages its guest writes, and how it is seen what arrives."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Set

from pyvfio._sys import File
from pyvfio._sys.closing import Closing
from pyvfio.irqroute import (
    DirectGsis,
    DirectGsis2016,
    GsiMapping,
    Policy,
)
from pyvfio.irqroute.forwarder import default_gsis
from pyvfio.irqroute.model import ModelledVm
from pyvfio.irqroute.paths import Machine
from pyvfio.kvm import VM, MsiMessage


class MachinePart(Closing):
    """The VM of a replay.

    Attributes:
        mapping: "routed" or "direct".
        title: for people, what it is.
        modelled: no KVM is behind it.
        vm: the VM.
        file: on which its ioctls are made.
        retargets: the guest moves an interrupt by giving it another message. Where it is False the
            interrupt controller moves it, and the message stays.
        patience: how long what should arrive is waited for, seconds.
    """

    mapping: str
    title: str
    modelled: bool
    vm: Machine
    file: File
    retargets: bool
    patience = 0.2  # the kernel injects at once, or soon after from a worker

    @abstractmethod
    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        """The guest's message for a vector of the device: one that is nobody else's.

        Args:
            vector: the device's.
            moved: the one after retargeting.
        """

    @abstractmethod
    def dead_gsi(self) -> int:
        """A GSI that leads nowhere."""

    @abstractmethod
    def take(self) -> frozenset[MsiMessage]:
        """What has arrived since the last look, as the messages that stand for it."""

    @abstractmethod
    def gsis(self, policy: Policy, *, rebinding: bool = False) -> GsiMapping:
        """Where a policy gets its GSIs.

        Args:
            policy: whose.
            rebinding: an update really moves the irqfd.
        """

    def arrivals(self, expected: Set[MsiMessage]) -> frozenset[MsiMessage]:
        """What arrives, given what should: it is waited for, not for ever."""
        end = time.monotonic() + self.patience
        arrived = self.take()
        while not expected <= arrived and time.monotonic() < end:
            time.sleep(0.001)
            arrived |= self.take()
        return arrived


class ApicMachine(MachinePart):
    """x86: a real VM, seen through its local APICs. No guest runs: what arrives stays in IRR."""

    mapping = "routed"
    title = "x86: GSI routing table, delivery read from the local APIC"
    modelled = False
    retargets = True

    _FIRST, _PER_VCPU = 0x40, 160  # vectors 0x40 to 0xdf; the moved ones are above

    def __init__(self, vectors: int) -> None:
        """
        Args:
            vectors: how many messages are needed.

        Raises:
            NoKvm, AccessDenied, KernelError: there is no KVM.
        """
        self.vm = self._vm = VM()
        try:
            self.file = self._vm.file
            self._vcpus = [
                self._vm.create_vcpu() for _ in range(-(-vectors // self._PER_VCPU) or 1)
            ]
            for vcpu in self._vcpus:
                vcpu.enable_lapic()
        except BaseException:
            self._vm.close()
            raise

    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        apic_id, number = divmod(vector, self._PER_VCPU)
        return _apic_message(apic_id, 0xF0 if moved else self._FIRST + number)

    def dead_gsi(self) -> int:
        return self.vm.routes.limit - 1

    def take(self) -> frozenset[MsiMessage]:
        arrived: set[MsiMessage] = set()
        for vcpu in self._vcpus:
            lapic = vcpu.lapic
            if lapic.requested:
                arrived.update(_apic_message(vcpu.id, number) for number in lapic.requested)
                lapic.requested = frozenset()
                vcpu.lapic = lapic
        return frozenset(arrived)

    def gsis(self, policy: Policy, *, rebinding: bool = False) -> GsiMapping:
        return default_gsis(self.vm, policy)

    def close(self) -> None:
        self._vm.close()


class ModelledDirectMachine(MachinePart):
    """POWER8's XICS as KVM shows it, modelled: the GSI is the source that the message names."""

    mapping = "direct"
    title = "POWER8: GSI computed from the message"
    modelled = True
    retargets = False  # ibm,set-xive moves an interrupt
    patience = 0.0  # nothing happens by itself

    _ADDRESS = 0x40000000000  # QEMU's SPAPR_PCI_MSI_WINDOW

    def __init__(self, vectors: int, base: int = 0x1300) -> None:
        """
        Args:
            vectors: how many sources are needed.
            base: the first source.
        """
        self._base = base
        self.vm = self._vm = ModelledVm(frozenset(range(base, base + vectors)))
        self.file = self._vm.file

    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        return MsiMessage(self._ADDRESS, self._base + vector)

    def dead_gsi(self) -> int:
        return 0

    def take(self) -> frozenset[MsiMessage]:
        return frozenset(MsiMessage(self._ADDRESS, source) for source in self._vm.take())

    def gsis(self, policy: Policy, *, rebinding: bool = False) -> GsiMapping:
        if rebinding:
            return DirectGsis()
        mapping = default_gsis(self.vm, policy)
        assert isinstance(mapping, (DirectGsis, DirectGsis2016))
        return mapping

    def close(self) -> None:
        self._vm.close()


def _apic_message(apic_id: int, vector: int) -> MsiMessage:
    # Also for the vectors below 0x10, which no guest uses: they are where strays are seen.
    return MsiMessage(0xFEE00000 | apic_id << 12, vector)
