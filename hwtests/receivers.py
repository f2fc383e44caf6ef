"""Who receives a device's interrupts in a VM: a guest that counts them, or a local APIC alone."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from hwtests.counting_guest import FIRST_VECTOR, CountingGuest
from pyvfio import errors, irqroute
from pyvfio.device import Device
from pyvfio.irqroute import MsiForwarder, MsixForwarder
from pyvfio.kvm import VM, apic_message

WAIT = 60.0


class Receiver(Protocol):
    """What tests need of either."""

    def counts(self, vector: int) -> int:
        """How many interrupts of an interrupt vector it got."""

    def total(self) -> int:
        """How many of all interrupt vectors."""

    def wait(self, vector: int, count: int, timeout: float = WAIT) -> int:
        """Wait until it got `count` of a vector; returns how many it got within the time."""


class LocalApicAlone:
    """A vCPU that never runs: what arrives stays in its local APIC, and is counted from there."""

    def __init__(self, vm: VM) -> None:
        """
        Args:
            vm: without vCPUs yet.
        """
        self._vcpu = vm.create_vcpu()
        self._counts = dict.fromkeys(range(256), 0)
        self._vcpu.enable_lapic()

    def counts(self, vector: int) -> int:
        self._collect()
        return self._counts[vector]

    def total(self) -> int:
        self._collect()
        return sum(self._counts.values())

    def wait(self, vector: int, count: int, timeout: float = WAIT) -> int:
        end = time.monotonic() + timeout
        while self.counts(vector) < count and time.monotonic() < end:
            time.sleep(0)
        return self._counts[vector]

    def _collect(self) -> None:
        lapic = self._vcpu.lapic
        if arrived := lapic.requested:
            for vector in arrived:
                self._counts[vector] += 1
            lapic.requested = frozenset()
            self._vcpu.lapic = lapic


@functools.cache
def why_no_vm() -> str | None:
    """Why interrupts cannot be received in a VM on this host; None if they can."""
    if platform.machine() != "x86_64":
        return f"the guest that counts, and the local APIC, are x86's: this is {platform.machine()}"
    try:
        VM().close()
    except errors.Error as error:
        return f"no VM can be had here: {error}"
    return None


@functools.cache
def why_no_guest() -> str | None:
    """Why no guest can count interrupts on this host; None if one can."""
    if why := why_no_vm():
        return why
    try:
        with VM() as vm, CountingGuest(vm) as guest:
            vm.signal_msi(apic_message(FIRST_VECTOR))
            if guest.wait(FIRST_VECTOR, 1) == 1:
                return None
            return "a guest runs on this host's KVM, and takes no interrupt"
    except errors.CannotRunGuest as error:
        return str(error)


@contextmanager
def guest_of(device: Device) -> Iterator[tuple[VM, CountingGuest]]:
    """A running guest, in a VM that is known to use the device; skips the test without one."""
    if why := why_no_guest():
        pytest.skip(why)
    with VM() as vm, irqroute.assigned(device, vm), CountingGuest(vm) as guest:
        yield vm, guest


@contextmanager
def receiver_of(device: Device) -> Iterator[tuple[VM, Receiver]]:
    """As :func:`guest_of`, or where the host cannot run a guest its local APIC."""
    if why := why_no_vm():
        pytest.skip(why)
    if why_no_guest() is None:
        with guest_of(device) as (vm, guest):
            yield vm, guest
    else:
        with VM() as vm, irqroute.assigned(device, vm):
            yield vm, LocalApicAlone(vm)


def seen_by_us(forwarder: MsixForwarder | MsiForwarder) -> int:
    """How many events wait in our own descriptors of all its vectors; taken, so only once."""
    paths = map(forwarder.paths.path, range(forwarder.paths.irq.count))
    return sum(eventfd.take() for path in paths if path is not None for eventfd in path.eventfds())


def sent_by(device: Device) -> int:
    """How many interrupts of the device's vectors this host's kernel got since it enabled them."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    processors = len(lines[0].split())
    return sum(
        sum(map(int, line.split()[1 : 1 + processors]))
        for line in lines
        if "vfio-" in line and line.endswith(f"({device.address})")
    )


def until(happens: Callable[[], bool], timeout: float = WAIT) -> None:
    """Wait for something that takes a device a moment."""
    end = time.monotonic() + timeout
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)
