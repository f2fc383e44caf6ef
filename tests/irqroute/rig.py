"""A forwarder between a modelled device and a VM, and a look at all that it holds.

The device is modelled. The VM is the kernel's (routed mapping), or modelled (direct mapping, as on
POWER); what arrives is read from a local APIC of the kernel's, or from the model.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pyvfio import errors, kvm
from pyvfio._sys import File
from pyvfio.device import Irq
from pyvfio.device.msix import MsixEntry
from pyvfio.irqroute import TODAY, GsiMapping, MsixForwarder, Policy, Trace
from pyvfio.irqroute.model import ModelledVm, modelled_msix
from pyvfio.irqroute.paths import Machine
from pyvfio.kvm import MsiMessage

FIRST_VECTOR = 0x40
_APIC = kvm.apic_message(FIRST_VECTOR).address
FIRST_SOURCE = 0x1300
ENABLE, MASKALL = 0x8000, 0x4000


class Guest(ABC):
    """A VM, what its drivers would program, and what arrives there."""

    vm: Machine
    file: File
    modelled: bool

    @abstractmethod
    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        """The message of a vector's interrupt; another one when moved."""

    @abstractmethod
    def take(self) -> set[MsiMessage]:
        """The messages that have arrived since the last look."""

    @abstractmethod
    def bound(self) -> int:
        """How many irqfds there are."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class KernelGuest(Guest):
    """The kernel's VM: a table of routes, a local APIC."""

    modelled = False

    def __init__(self) -> None:
        self.vm = self._vm = kvm.VM()
        self.file = self._vm.file
        self._vcpu = self._vm.create_vcpu()
        self._vcpu.enable_lapic()

    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        return kvm.apic_message(FIRST_VECTOR + vector + (0x60 if moved else 0))

    def take(self) -> set[MsiMessage]:
        lapic = self._vcpu.lapic
        arrived = lapic.requested
        if arrived:
            lapic.requested = frozenset()
            self._vcpu.lapic = lapic
        return {MsiMessage(_APIC, vector) for vector in arrived}

    def bound(self) -> int:
        return len(self._vm.irqfds)

    def close(self) -> None:
        self._vm.close()


class ModelledGuest(Guest):
    """A VM whose GSIs are interrupt sources, as POWER's."""

    modelled = True

    def __init__(self) -> None:
        sources = frozenset(range(FIRST_SOURCE, FIRST_SOURCE + 256))
        self.vm = self._vm = ModelledVm(sources)
        self.file = self._vm.file

    def message(self, vector: int, *, moved: bool = False) -> MsiMessage:
        return MsiMessage(0x40000000000, FIRST_SOURCE + vector + (0x60 if moved else 0))

    def take(self) -> set[MsiMessage]:
        return {MsiMessage(0x40000000000, source) for source in self._vm.take()}

    def bound(self) -> int:
        self._vm.take()
        return len(self._vm.file.irqfds)

    def close(self) -> None:
        self._vm.close()


def make_guest(mapping: str) -> Guest:
    """A guest with the "routed" or the "direct" mapping."""
    if mapping == "direct":
        return ModelledGuest()
    try:
        return KernelGuest()
    except (errors.NoKvm, errors.AccessDenied) as error:
        pytest.skip(f"routes need the kernel's KVM: {error}")


class Rig:
    """Device, forwarder and guest, and a trace of what is asked of the kernel."""

    def __init__(
        self,
        guest: Guest,
        vectors: int = 4,
        *,
        policy: Policy = TODAY,
        gsis: GsiMapping | None = None,
        noresize: bool = False,
    ) -> None:
        self.guest = guest
        self.irq: Irq = modelled_msix(vectors, noresize=noresize)
        self.device: Any = self.irq.file  # the model
        self.forwarder = MsixForwarder(self.irq, guest.vm, policy=policy, gsis=gsis)
        self.msix = self.forwarder.msix
        self.trace = Trace()

    @contextmanager
    def watching(self) -> Iterator[Rig]:
        """Take down the ioctls; device and forwarder end with the block."""
        with ExitStack() as stack:
            stack.callback(self.irq.file.close)
            names = self.forwarder.paths.names
            for file, modelled in ((self.irq.file, True), (self.guest.file, self.guest.modelled)):
                stack.enter_context(self.trace.watching(file, names=names, modelled=modelled))
            stack.enter_context(self.forwarder)
            yield self

    def entry(self, vector: int, *, masked: bool = False, moved: bool = False) -> MsixEntry:
        """What a driver writes for a vector."""
        return MsixEntry(*self.guest.message(vector, moved=moved), masked)

    def fill(self, *vectors: int, masked: bool = False) -> None:
        """Write these vectors' entries."""
        for vector in vectors:
            self.msix[vector] = self.entry(vector, masked=masked)

    def did(self) -> str:
        """The ioctls since the last look, in the words of Event, messages by name."""
        text = "; ".join(map(str, self.trace.take()))
        names = {str(MsiMessage(0, 0)): "0"}
        for vector in range(len(self.msix)):
            names[str(self.guest.message(vector))] = f"m{vector}"
            names[str(self.guest.message(vector, moved=True))] = f"m{vector}'"
        for message, name in names.items():
            text = text.replace(f":{message}", f":{name}")
        return text

    def signalled(self) -> Mapping[int, str]:
        """Where the device's vectors lead now."""
        names = self.forwarder.paths.names()
        eventfds: dict[int, int] = self.device.signalled()
        return {vector: names.get(fd, "?") for vector, fd in sorted(eventfds.items())}

    def fire(self, *vectors: int) -> set[MsiMessage]:
        """Let the device interrupt, and see what arrives in the guest."""
        for vector in vectors:
            self.irq.trigger(vector)
        return self.arrivals()

    def arrivals(self) -> set[MsiMessage]:
        """What has arrived: the kernel injects such interrupts at once, as a rule."""
        end = time.monotonic() + 0.002
        arrived = self.guest.take()
        while not arrived and not self.guest.modelled and time.monotonic() < end:
            arrived |= self.guest.take()
        return arrived


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
