"""The whole way to a guest, by loopback: VFIO, eventfd, irqfd, and a handler that counts.

The guest's vCPU halts between interrupts, and nothing of Python runs between VFIO and its handler.
Where KVM runs no guests, what arrives is read from the local APIC instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from hwtests.counting_guest import FIRST_VECTOR, LAST_VECTOR, CountingGuest
from hwtests.holdings import Holdings
from hwtests.receivers import Receiver, receiver_of, seen_by_us
from pyvfio import errors
from pyvfio.device import Device, Irq, MsixEntry
from pyvfio.irqroute import (
    BEFORE,
    D1F6AF6,
    PATCHED,
    TODAY,
    MsiForwarder,
    MsixForwarder,
    Policy,
)
from pyvfio.kvm import VM, apic_message

FIRST, SECOND = 0x40, 0x80  # interrupt vectors; a multiple of 32 each, as MSI wants it
FEW = 4
TIMES = 10_000
SOON = 0.2  # what has not come by then does not come


class Forwarded(ABC):
    """MSI-X or MSI, forwarded, in the words of both.

    Attributes:
        forwarder: the forwarder.
        count: how many vectors are enabled.
    """

    forwarder: MsixForwarder | MsiForwarder
    count: int

    @abstractmethod
    def enable(self, count: int, first: int) -> None:
        """Enable vectors, the interrupt vector of the first one being `first`."""

    @abstractmethod
    def disable(self) -> None:
        """Disable them."""

    @abstractmethod
    def reset(self) -> None:
        """Follow a reset of the device."""

    @abstractmethod
    def mask(self, vector: int) -> None:
        """Mask one."""

    @abstractmethod
    def unmask(self, vector: int) -> None:
        """Unmask one."""

    @abstractmethod
    def pending(self, vector: int) -> bool:
        """Whether one is pending."""

    @abstractmethod
    def retarget(self, first: int) -> None:
        """Give all of them other interrupt vectors, from `first` on."""


class ForwardedMsix(Forwarded):
    """MSI-X, programmed as a driver does."""

    forwarder: MsixForwarder

    def __init__(self, irq: Irq, vm: VM, policy: Policy = TODAY) -> None:
        self.forwarder = MsixForwarder(irq, vm, policy=policy)
        self.msix = self.forwarder.msix
        self.count = 0

    def enable(self, count: int, first: int) -> None:
        self.count = count
        self.retarget(first)
        self.msix.enabled = True

    def disable(self) -> None:
        self.msix.enabled = False

    def reset(self) -> None:
        self.forwarder.reset()

    def mask(self, vector: int) -> None:
        self.msix[vector] = self.msix[vector]._replace(masked=True)

    def unmask(self, vector: int) -> None:
        self.msix[vector] = self.msix[vector]._replace(masked=False)

    def pending(self, vector: int) -> bool:
        return self.msix.is_pending(vector)

    def retarget(self, first: int) -> None:
        for vector in range(self.count):
            self.msix[vector] = MsixEntry(*apic_message(first + vector), masked=False)


class ForwardedMsi(Forwarded):
    """MSI: one message for all vectors."""

    forwarder: MsiForwarder

    def __init__(self, irq: Irq, vm: VM) -> None:
        self.forwarder = MsiForwarder(irq, vm)
        self.count = 0

    def enable(self, count: int, first: int) -> None:
        self.forwarder.enable(apic_message(first), count)
        self.count = count

    def disable(self) -> None:
        self.forwarder.close()

    def reset(self) -> None:
        self.forwarder.close()

    def mask(self, vector: int) -> None:
        self.forwarder.mask(vector)

    def unmask(self, vector: int) -> None:
        self.forwarder.unmask(vector)

    def pending(self, vector: int) -> bool:
        return self.forwarder.pending(vector)

    def retarget(self, first: int) -> None:
        self.forwarder.retarget(apic_message(first))


@pytest.fixture
def guest(device: Device) -> Iterator[tuple[VM, Receiver]]:
    with receiver_of(device) as (vm, receiver):
        yield vm, receiver


@pytest.fixture
def vm(guest: tuple[VM, Receiver]) -> VM:
    return guest[0]


@pytest.fixture
def receiver(guest: tuple[VM, Receiver]) -> Receiver:
    return guest[1]


@pytest.fixture
def forwarded(irq: Irq, vm: VM) -> Iterator[Forwarded]:
    """The device's MSI and its MSI-X, not enabled yet."""
    made: Forwarded = ForwardedMsix(irq, vm) if irq.name == "MSI-X" else ForwardedMsi(irq, vm)
    with made.forwarder:
        yield made


@contextmanager
def forwarded_msix(device: Device, vm: VM, policy: Policy = TODAY) -> Iterator[ForwardedMsix]:
    """For what MSI-X alone has."""
    if not device.msix.count:
        pytest.skip("the device has no MSI-X")
    forwarded = ForwardedMsix(device.msix, vm, policy)
    with forwarded.forwarder:
        yield forwarded


def send(irq: Irq, vector: int, receiver: Receiver, interrupt: int, times: int = 1) -> None:
    """Fire a vector a number of times, one outstanding; each must be counted before the next."""
    before, total = receiver.counts(interrupt), receiver.total()
    for number in range(1, times + 1):
        irq.trigger(vector)
        assert receiver.wait(interrupt, before + number) == before + number
    assert receiver.total() == total + times, "nothing else came"


def enable_as_many_as_fit(forwarded: Forwarded, count: int, first: int) -> None:
    """All of them, or as many as the host has interrupt vectors left for."""
    while True:
        try:
            forwarded.enable(count, first)
        except errors.VectorsExhausted:
            count //= 2
            assert count
        else:
            return


@pytest.mark.messages
def test_every_vector_reaches_its_own_handler(
    irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    # MSI-X: as many as one local APIC tells apart. MSI: a power of two.
    fit = irq.count
    if irq.name == "MSI-X":
        fit = min(fit, LAST_VECTOR + 1 - FIRST_VECTOR)
    enable_as_many_as_fit(forwarded, fit, FIRST_VECTOR)
    for vector in range(forwarded.count):
        send(irq, vector, receiver, FIRST_VECTOR + vector)
    assert receiver.total() == forwarded.count
    assert seen_by_us(forwarded.forwarder) == 0


@pytest.mark.messages
def test_none_is_lost_and_none_comes_twice(
    irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    forwarded.enable(1, FIRST)
    send(irq, 0, receiver, FIRST, TIMES)
    assert receiver.wait(FIRST, TIMES + 1, SOON) == TIMES
    assert seen_by_us(forwarded.forwarder) == 0
    if isinstance(receiver, CountingGuest):
        assert receiver.exits == 0


@pytest.mark.messages
def test_a_masked_vector_is_pending_and_comes_once(
    irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    # The last one of several, so that the others show that they are left alone.
    count = min(irq.count, FEW)
    enable_as_many_as_fit(forwarded, count, FIRST)
    last = forwarded.count - 1
    forwarded.mask(last)
    assert not forwarded.pending(last)
    for _ in range(3):
        irq.trigger(last)
    assert forwarded.pending(last)
    assert receiver.wait(FIRST + last, 1, SOON) == 0
    for vector in range(last):
        send(irq, vector, receiver, FIRST + vector)
    forwarded.unmask(last)
    assert receiver.wait(FIRST + last, 1) == 1
    assert not forwarded.pending(last)
    assert receiver.wait(FIRST + last, 2, SOON) == 1
    send(irq, last, receiver, FIRST + last)


@pytest.mark.messages
def test_another_message_is_another_handler(
    irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    enable_as_many_as_fit(forwarded, min(irq.count, FEW), FIRST)
    for first in (FIRST, SECOND, FIRST):
        forwarded.retarget(first)
        for vector in range(forwarded.count):
            send(irq, vector, receiver, first + vector)


@pytest.mark.messages
def test_what_came_while_masked_goes_to_the_new_handler(
    irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    forwarded.enable(1, FIRST)
    forwarded.mask(0)
    irq.trigger()
    assert forwarded.pending(0)
    if isinstance(forwarded, ForwardedMsix):
        forwarded.msix[0] = MsixEntry(*apic_message(SECOND), masked=True)
    else:
        forwarded.retarget(SECOND)
    assert forwarded.pending(0)
    assert receiver.total() == 0
    forwarded.unmask(0)
    assert receiver.wait(SECOND, 1) == 1
    assert receiver.total() == 1


@pytest.mark.messages
def test_a_reset_silences_it_until_it_is_enabled_again(
    device: Device, irq: Irq, forwarded: Forwarded, receiver: Receiver
) -> None:
    """Where the device cannot be reset alone, the forwarder is reset all the same."""
    for _ in range(2):
        enable_as_many_as_fit(forwarded, min(irq.count, FEW), FIRST)
        for vector in range(forwarded.count):
            send(irq, vector, receiver, FIRST + vector)
        with suppress(errors.Unsupported):
            device.reset()
        forwarded.reset()
        with pytest.raises(errors.StateError, match="not enabled"):
            irq.trigger()
    if isinstance(forwarded, ForwardedMsix):
        assert all(entry == MsixEntry(0, 0, True) for entry in forwarded.msix)


@pytest.mark.messages
def test_nothing_comes_and_nothing_is_left_once_disabled(
    irq: Irq, vm: VM, forwarded: Forwarded, receiver: Receiver
) -> None:
    before, routes = Holdings.now(), dict(vm.routes)
    enable_as_many_as_fit(forwarded, min(irq.count, FEW), FIRST)
    send(irq, 0, receiver, FIRST)
    forwarded.disable()
    with pytest.raises(errors.StateError, match="not enabled"):
        irq.trigger()
    # The device's interrupts are anybody's again, and the guest has none of them.
    with irq.enable(1) as vectors:
        irq.trigger()
        assert vectors[0].wait(SOON) == 1
    assert receiver.total() == 1
    assert len(vm.irqfds) == 0
    assert dict(vm.routes) == routes
    assert Holdings.now() == before


def test_masking_the_function_masks_all_vectors(device: Device, vm: VM, receiver: Receiver) -> None:
    with forwarded_msix(device, vm) as forwarded:
        forwarded.enable(min(device.msix.count, FEW), FIRST)
        forwarded.msix.function_masked = True
        device.msix.trigger(0, forwarded.count)
        vectors = range(forwarded.count)
        assert all(map(forwarded.pending, vectors))
        assert receiver.wait(FIRST, 1, SOON) == 0
        forwarded.msix.function_masked = False
        assert [receiver.wait(FIRST + vector, 1) for vector in vectors] == [1] * len(vectors)
        assert receiver.wait(FIRST, 2, SOON) == 1
        assert not any(map(forwarded.pending, vectors))
        assert receiver.total() == len(vectors)


def test_a_vector_that_is_unmasked_later_joins_the_others(
    device: Device, vm: VM, receiver: Receiver
) -> None:
    """As drivers do: MSI-X is enabled with all vectors masked, and each is unmasked when used."""
    with forwarded_msix(device, vm) as forwarded:
        last = min(device.msix.count, FEW) - 1
        forwarded.msix.enabled = True
        for vector in (last // 2, *range(last // 2), *range(last // 2 + 1, last + 1)):
            forwarded.msix[vector] = MsixEntry(*apic_message(FIRST + vector), masked=False)
            send(device.msix, vector, receiver, FIRST + vector)
        for vector in range(last + 1):
            send(device.msix, vector, receiver, FIRST + vector)


@pytest.mark.parametrize("policy", [BEFORE, D1F6AF6, PATCHED], ids=lambda policy: policy.name)
def test_the_life_of_a_device_in_qemus_order_of_2016(
    device: Device, vm: VM, receiver: Receiver, policy: Policy
) -> None:
    """Where GSIs are routed, every policy for the dummy vector delivers."""
    with forwarded_msix(device, vm, policy) as forwarded:
        msix, count = forwarded.msix, min(device.msix.count, FEW)
        for _ in range(2):
            msix.enabled = True  # all masked: the dummy
            for vector in range(count):
                msix[vector] = MsixEntry(*apic_message(FIRST + vector), masked=False)
            for vector in range(count):
                send(device.msix, vector, receiver, FIRST + vector)
            forwarded.mask(0)
            device.msix.trigger(0)
            assert forwarded.pending(0)
            total, second = receiver.total(), receiver.counts(SECOND)
            msix[0] = MsixEntry(*apic_message(SECOND), masked=False)
            assert receiver.wait(SECOND, second + 1) == second + 1
            assert receiver.total() == total + 1
            assert seen_by_us(forwarded.forwarder) == 0
            with suppress(errors.Unsupported):
                device.reset()
            forwarded.reset()
