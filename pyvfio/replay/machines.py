"""Who plays the VM: what messages its guest writes, and how it is seen what arrives."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Set

from pyvfio._sys import EventFd, File
from pyvfio._sys.closing import Closing
from pyvfio.irqroute import DirectGsis, GsiMapping, Policy
from pyvfio.irqroute.forwarder import default_gsis
from pyvfio.irqroute.model import ModelledVm
from pyvfio.irqroute.paths import Machine
from pyvfio.kvm import VM, MsiMessage, Server, Source, Vcpu, XicsIrqchip


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

    def controls(self) -> Iterator[tuple[str, bool, str]]:
        """Further things that must come out one way: what was tried, whether it did, what was
        seen."""
        yield from ()

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

    def __init__(self, vectors: int, base: int = 0) -> None:
        """
        Args:
            vectors: how many messages are needed.
            base: means nothing here: GSIs are allocated.

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


class _DirectMachine(MachinePart):
    """POWER: the GSI is the interrupt source that the message names."""

    mapping = "direct"
    retargets = False  # ibm,set-xive moves an interrupt, and the message stays

    _ADDRESS = 0x40000000000  # QEMU's SPAPR_PCI_MSI_WINDOW
    _base: int

    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        return MsiMessage(self._ADDRESS, self._base + vector)

    def dead_gsi(self) -> int:
        return 0

    def gsis(self, policy: Policy, *, rebinding: bool = False) -> GsiMapping:
        return DirectGsis() if rebinding else default_gsis(self.vm, policy)


class XicsMachine(_DirectMachine):
    """A real VM with XICS, a vCPU for each source. No guest runs: what arrives stays presented.

    On a POWER8 host it is read from the vCPU's presentation controller; on POWER9, where that
    cannot be seen, from the source.
    """

    modelled = False

    _READY = Source(server=0, priority=4)

    def __init__(self, vectors: int, base: int = 0x1300) -> None:
        """
        Args:
            vectors: how many sources are needed.
            base: the first source; QEMU's are 0x1000 and above.

        Raises:
            NoKvm, AccessDenied, Unsupported, KernelError: there is no KVM with XICS.
        """
        self._base = base
        self._xics = XicsIrqchip()
        self.vm = self._vm = VM(self._xics)
        self.file = self._vm.file
        self.title = "POWER: GSI computed from the message, delivery read from the " + (
            "XICS sources (on XIVE)" if self._xics.on_xive else "vCPUs' XICS presentation"
        )
        # By source, the vCPU that it interrupts.
        self._servers: dict[int, Vcpu] = {}
        try:
            for number in range(base, base + vectors):
                vcpu = self._servers[number] = self._vm.create_vcpu()
                self._xics[number] = self._READY._replace(server=vcpu.id)
                if not self._xics.on_xive:
                    self._xics.set_server(vcpu, Server())
        except BaseException:
            self._vm.close()
            raise

    def take(self) -> frozenset[MsiMessage]:
        arrived = set()
        for number, vcpu in self._servers.items():
            if self._xics.on_xive:
                seen = {number} if self._xics[number].presented else set()
            else:
                seen = {self._xics.server(vcpu).source} - {0}
                if seen:
                    self._xics.set_server(vcpu, Server())
            if seen:
                self._xics[number] = self._READY._replace(server=vcpu.id)
            arrived |= seen
        return frozenset(MsiMessage(self._ADDRESS, number) for number in arrived)

    def controls(self) -> Iterator[tuple[str, bool, str]]:
        """A masked source keeps what comes."""
        if self._xics.on_xive:
            return
        number, vcpu = next(iter(self._servers.items()))
        ready = self._READY._replace(server=vcpu.id)
        self._xics[number] = ready._replace(masked=True)
        with EventFd("control") as eventfd, self._vm.irqfds.assign(eventfd, number):
            eventfd.signal()
            self.arrivals({self.message(0)})
        source, server = self._xics[number], self._xics.server(vcpu)
        yield (
            f"an interrupt of the masked source {number:#x} is pending there, and not presented",
            source.pending and not server.source,
            f"{'pending' if source.pending else 'not pending'}, presented "
            f"{hex(server.source) if server.source else 'nothing'}",
        )
        self._xics[number] = ready

    def close(self) -> None:
        self._vm.close()


class ModelledDirectMachine(_DirectMachine):
    """POWER8's XICS as KVM shows it, modelled."""

    title = "POWER8: GSI computed from the message"
    modelled = True
    patience = 0.0  # nothing happens by itself

    def __init__(self, vectors: int, base: int = 0x1300) -> None:
        """
        Args:
            vectors: how many sources are needed.
            base: the first source.
        """
        self._base = base
        self.vm = self._vm = ModelledVm(frozenset(range(base, base + vectors)))
        self.file = self._vm.file

    def take(self) -> frozenset[MsiMessage]:
        return frozenset(MsiMessage(self._ADDRESS, source) for source in self._vm.take())

    def close(self) -> None:
        self._vm.close()


def _apic_message(apic_id: int, vector: int) -> MsiMessage:
    # Also for the vectors below 0x10, which no guest uses: they are where strays are seen.
    return MsiMessage(0xFEE00000 | apic_id << 12, vector)
