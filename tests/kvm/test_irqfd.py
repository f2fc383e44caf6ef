"""irqfds: an event arrives as the interrupt of its GSI, until it is unbound."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest

from hwtests.counting_guest import CountingGuest
from pyvfio import errors
from pyvfio._sys import EventFd, File
from pyvfio.abi import kvm as abi
from pyvfio.kvm import VM, FullIrqchip, Irqchip, NoIrqchip, SplitIrqchip, Vcpu, apic_message

from .support import (
    Faults,
    arrived,
    arrives,
    counting,
    eventually,
    needs_kvm,
    program_ioapic,
)

pytestmark = needs_kvm

BIND = abi.KVM_IRQFD
MANY = 2048


@pytest.fixture
def eventfd() -> Iterator[EventFd]:
    with EventFd() as eventfd:
        yield eventfd


@pytest.fixture
def many() -> Iterator[list[EventFd]]:
    """More eventfds than most limits on open files allow."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 256
    if limits[0] < wanted:
        if limits[1] < wanted:
            pytest.skip(f"this user may have {limits[1]} open files, not {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
    eventfds = [EventFd() for _ in range(MANY)]
    yield eventfds
    for eventfd in eventfds:
        eventfd.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Delivery, seen in the local APIC: no guest has to run.


def test_an_event_arrives_as_the_interrupt_of_its_gsi(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    gsi = vm.routes.add(apic_message(0x41))
    with vm.irqfds.assign(eventfd, gsi) as irqfd:
        assert (irqfd.gsi, irqfd.eventfd) == (gsi, eventfd)
        assert repr(irqfd) == "<Irqfd GSI 0x18>"
        assert list(vm.irqfds) == [irqfd]
        eventfd.signal()
        assert arrived(vcpu) == {0x41}
        assert eventfd.take() == 0, "KVM has taken the event"
    assert len(vm.irqfds) == 0


def test_an_event_before_the_irqfd_arrives_when_it_is_bound(
    vm: VM, vcpu: Vcpu, eventfd: EventFd
) -> None:
    eventfd.signal(3)
    assert arrived(vcpu) == set()
    with vm.irqfds.assign(eventfd, vm.routes.add(apic_message(0x41))):
        assert eventually(lambda: arrived(vcpu) == {0x41})


def test_each_vcpu_gets_its_own(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    other = vm.create_vcpu()
    lapic = other.lapic
    lapic.enabled = True
    other.lapic = lapic
    with vm.irqfds.assign(eventfd, vm.routes.add(apic_message(0x41, apic_id=1))):
        eventfd.signal()
    assert (arrived(vcpu), arrived(other)) == (set(), {0x41})


def test_gsi_zero_is_a_gsi(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    vm.routes.remove(0)
    vm.routes.add(apic_message(0x41), 0)
    irqfd = vm.irqfds.assign(eventfd, 0)
    assert arrives(vcpu, eventfd, 0x41)
    irqfd.close()
    assert not arrives(vcpu, eventfd, 0x41)


@pytest.mark.parametrize("gsi", [99, 4095, 4096, 0x1300, 0xFFFFFFFF])
def test_an_event_for_a_gsi_without_a_route_is_lost_without_a_word(
    vm: VM, vcpu: Vcpu, eventfd: EventFd, gsi: int
) -> None:
    """The control of every test here: that binding succeeded proves nothing."""
    with vm.irqfds.assign(eventfd, gsi):
        eventfd.signal()
        assert arrived(vcpu) == set()
        assert eventfd.take() == 0, "KVM has taken the event all the same"


def test_a_route_added_later_reaches_an_irqfd(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    with vm.irqfds.assign(eventfd, 99):
        assert not arrives(vcpu, eventfd, 0x41)
        vm.routes.add(apic_message(0x41), 99)
        assert arrives(vcpu, eventfd, 0x41)


def test_two_eventfds_may_be_one_interrupt(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    gsi = vm.routes.add(apic_message(0x41))
    with EventFd() as other, vm.irqfds.assign(eventfd, gsi), vm.irqfds.assign(other, gsi):
        assert arrives(vcpu, eventfd, 0x41)
        assert arrives(vcpu, other, 0x41)


# Unbinding.


def test_unbinding_takes_the_gsi_that_was_bound(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    """The kernel says that it unbound where eventfd and GSI do not match, and does nothing."""
    gsi = vm.routes.add(apic_message(0x41))
    irqfd = vm.irqfds.assign(eventfd, gsi)
    wrong = abi.kvm_irqfd(fd=eventfd.fileno(), gsi=gsi + 1, flags=abi.KVM_IRQFD_FLAG_DEASSIGN)
    assert vm.file.ioctl(BIND, wrong) == 0
    assert arrives(vcpu, eventfd, 0x41), "the kernel's answer was worth nothing"
    irqfd.close()
    assert not arrives(vcpu, eventfd, 0x41)
    with vm.irqfds.assign(eventfd, gsi):
        assert arrives(vcpu, eventfd, 0x41)
    assert not arrives(vcpu, eventfd, 0x41)


def test_closing_again_does_not_unbind_who_came_after(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    gsi = vm.routes.add(apic_message(0x41))
    first = vm.irqfds.assign(eventfd, gsi)
    first.close()
    with vm.irqfds.assign(eventfd, gsi), counting(vm) as requests:
        first.close()
        assert requests == []
        assert arrives(vcpu, eventfd, 0x41)


def test_closing_the_eventfd_unbinds_it(vm: VM, vcpu: Vcpu) -> None:
    gsi = vm.routes.add(apic_message(0x41))
    with EventFd() as eventfd:
        irqfd = vm.irqfds.assign(eventfd, gsi)
    with counting(vm) as requests:
        irqfd.close()
    assert requests == [], "there is no descriptor by which to ask"
    assert len(vm.irqfds) == 0


def test_an_event_is_the_eventfds_own_again_once_unbound(vm: VM, eventfd: EventFd) -> None:
    vm.irqfds.assign(eventfd, vm.routes.add(apic_message(0x41))).close()
    eventfd.signal(5)
    assert eventfd.take() == 5


def test_many_are_bound_and_ended_together(vm: VM, vcpu: Vcpu, many: list[EventFd]) -> None:
    vectors = [0x20 + number % 0xC0 for number in range(MANY)]
    gsis = vm.routes.add_many(map(apic_message, vectors))
    before = len(os.listdir("/proc/self/fd"))
    with counting(vm) as requests:
        irqfds = vm.irqfds.assign_many(zip(many, gsis, strict=True))
    assert requests == [BIND] * MANY
    assert [irqfd.gsi for irqfd in irqfds] == gsis
    assert set(vm.irqfds) == set(irqfds)
    for number in (0, 1, 1000, MANY - 1):
        assert arrives(vcpu, many[number], vectors[number])
    # Copies, to see that no event arrives any more. They would keep the irqfds bound: so they
    # are of eventfds that are unbound one by one.
    kept = {0: os.dup(many[0].fileno()), MANY - 1: os.dup(many[-1].fileno())}
    irqfds[0].close()
    with counting(vm) as requests:
        vm.irqfds.end_many(list(zip(irqfds, many, strict=True)))
    assert requests == [BIND], "the last one's call waits for the clean-up of all"
    assert len(vm.irqfds) == 0
    assert all(eventfd.closed for eventfd in many)
    assert len(os.listdir("/proc/self/fd")) == before - MANY + len(kept)
    for fd in kept.values():
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fd) == 1, "nobody took the event"
        os.close(fd)
    assert arrived(vcpu) == set()
    vm.irqfds.end_many([])


def test_many_end_although_the_kernel_refuses_the_last(vm: VM, faults: Faults) -> None:
    eventfds = [EventFd() for _ in range(3)]
    irqfds = vm.irqfds.assign_many([(eventfd, 99) for eventfd in eventfds])
    faults.refuse[BIND] = errno.ENOMEM
    with pytest.raises(errors.KernelError):
        vm.irqfds.end_many(list(zip(irqfds, eventfds, strict=True)))
    assert all(eventfd.closed for eventfd in eventfds)
    assert len(vm.irqfds) == 0


def test_of_many_all_are_bound_or_none(vm: VM, vcpu: Vcpu, eventfd: EventFd) -> None:
    gsi = vm.routes.add(apic_message(0x41))
    with EventFd() as other:
        closed = EventFd()
        closed.close()
        for bad, raised in (
            ((eventfd, gsi), errors.Busy),
            ((closed, gsi), errors.Closed),
            ((other, -1), errors.RangeError),
            ((other, 1 << 32), errors.RangeError),
        ):
            with pytest.raises(raised):
                vm.irqfds.assign_many([(eventfd, gsi), bad])
            assert len(vm.irqfds) == 0
            assert not arrives(vcpu, eventfd, 0x41)


# What is refused, and why.


def test_an_eventfd_is_one_irqfd(vm: VM, split: VM, eventfd: EventFd) -> None:
    with vm.irqfds.assign(eventfd, 99):
        with pytest.raises(errors.Busy, match="is an irqfd already") as caught:
            vm.irqfds.assign(eventfd, 100)
        assert caught.value.errno == errno.EBUSY
        assert len(vm.irqfds) == 1
    with vm.irqfds.assign(eventfd, 100):
        pass


@pytest.mark.parametrize("gsi", [-1, 1 << 32])
def test_a_gsi_has_32_bits(vm: VM, eventfd: EventFd, gsi: int) -> None:
    with pytest.raises(errors.RangeError, match="32 bits"):
        vm.irqfds.assign(eventfd, gsi)
    with pytest.raises(errors.RangeError, match="32 bits"):
        vm.irqfds.assign(eventfd, gsi, eventfd)


def test_what_is_no_eventfd_is_named(vm: VM, eventfd: EventFd) -> None:
    with File(os.memfd_create("a file"), "a file") as file:
        number = file.fileno()
        with pytest.raises(errors.ArgumentError, match=f"descriptor {number} is no eventfd"):
            vm.irqfds.assign(file, 99)
        with pytest.raises(errors.ArgumentError, match=f"descriptor {number} is no eventfd"):
            vm.irqfds.assign(eventfd, 99, resample=file)
    gone = type("Gone", (), {"fileno": lambda self: number})()
    with pytest.raises(errors.ArgumentError, match=f"descriptor {number} is no eventfd, but clos"):
        vm.irqfds.assign(gone, 99)
    assert len(vm.irqfds) == 0


def test_closed_means_closed(vm: VM, eventfd: EventFd) -> None:
    other = EventFd()
    irqfd = vm.irqfds.assign(other, 99)
    other.close()
    with pytest.raises(errors.Closed, match="eventfd is closed"):
        vm.irqfds.assign(other, 99)
    with pytest.raises(errors.Closed, match="eventfd is closed"):
        vm.irqfds.assign(eventfd, 99, resample=other)
    again = vm.irqfds.assign(eventfd, 99)
    vm.close()
    with pytest.raises(errors.Closed, match="a VM is closed"):
        vm.irqfds.assign(eventfd, 99)
    irqfd.close()
    again.close()
    eventfd.signal()
    assert eventfd.take() == 1, "closing the VM has unbound it"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EAGAIN])
def test_irqfds_need_an_irqchip(eventfd: EventFd, faults: Faults, number: int) -> None:
    """x86's kernel says EINVAL, as seen here; POWER's says EAGAIN."""
    if number == errno.EAGAIN:
        faults.refuse[BIND] = number
    with VM(NoIrqchip()) as vm:
        for resample in (None, eventfd):
            with pytest.raises(errors.NoIrqchip, match="make it with one") as caught:
                vm.irqfds.assign(eventfd, 99, resample)
            assert caught.value.errno == number


def test_other_refusals_keep_their_errno(vm: VM, eventfd: EventFd, faults: Faults) -> None:
    for number in (errno.EINVAL, errno.EAGAIN, errno.ENOMEM):
        faults.refuse[BIND] = number
        with pytest.raises(errors.KernelError, match="KVM_IRQFD on a VM") as caught:
            vm.irqfds.assign(eventfd, 99)
        assert caught.value.errno == number
        assert not isinstance(caught.value, errors.NoIrqchip)


def test_a_child_process_leaves_its_parents_irqfds_alone(
    vm: VM, vcpu: Vcpu, eventfd: EventFd
) -> None:
    irqfd = vm.irqfds.assign(eventfd, vm.routes.add(apic_message(0x41)))
    child = os.fork()
    if not child:
        status = 1
        try:
            irqfd.close()
            vm.irqfds.end_many([])
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert arrives(vcpu, eventfd, 0x41)
    irqfd.close()


# Level-triggered interrupts.


def test_a_level_triggered_interrupt_is_resampled_when_the_guest_has_acknowledged_it(
    guest_code: None, eventfd: EventFd
) -> None:
    with VM() as vm, EventFd() as resample, CountingGuest(vm) as guest:
        # A pin of the I/O APIC alone: those below 16 are the PICs' too, which interrupt as well.
        program_ioapic(vm, {20: 0x50}, level=True)
        with vm.irqfds.assign(eventfd, 20, resample):
            for count in range(1, 6):
                eventfd.signal()
                assert resample.wait(60) == 1
                # KVMs without the processor's help may acknowledge before the handler has run.
                assert guest.wait(0x50, count) == count
            assert resample.take() == 0
            assert guest.total() == 5


def test_a_level_is_not_resampled_before_it_is_acknowledged(
    vm: VM, vcpu: Vcpu, eventfd: EventFd
) -> None:
    program_ioapic(vm, {20: 0x50}, level=True)
    with EventFd() as resample, vm.irqfds.assign(eventfd, 20, resample):
        eventfd.signal()
        assert eventually(lambda: arrived(vcpu) == {0x50})
        assert vcpu.lapic.level_triggered == {0x50}
        assert resample.take() == 0, "nobody has acknowledged it"


def test_a_split_irqchip_does_not_see_acknowledgements(split: VM, eventfd: EventFd) -> None:
    with (
        EventFd() as resample,
        pytest.raises(errors.Unsupported, match="split irqchip cannot resample"),
    ):
        split.irqfds.assign(eventfd, 24, resample)
    assert len(split.irqfds) == 0


def test_an_edge_leaves_the_other_irqfds_resample_alone(
    vm: VM, vcpu: Vcpu, eventfd: EventFd
) -> None:
    program_ioapic(vm, {20: 0x50}, level=True)
    gsi = vm.routes.add(apic_message(0x41))
    with (
        EventFd() as level,
        EventFd() as resample,
        vm.irqfds.assign(level, 20, resample),
        vm.irqfds.assign(eventfd, gsi),
    ):
        assert arrives(vcpu, eventfd, 0x41)
        assert resample.take() == 0


# What a guest makes of them.


@pytest.mark.parametrize("irqchip", [FullIrqchip(), SplitIrqchip()])
def test_a_guest_counts_every_interrupt(guest_code: None, irqchip: Irqchip) -> None:
    with VM(irqchip) as vm, EventFd() as first, EventFd() as second, CountingGuest(vm) as guest:
        gsis = vm.routes.add_many([apic_message(0x41), apic_message(0x42)])
        with vm.irqfds.assign(first, gsis[0]), vm.irqfds.assign(second, gsis[1]):
            for count in range(1, 501):
                first.signal()
                assert guest.wait(0x41, count) == count
                second.signal()
                assert guest.wait(0x42, count) == count
            assert guest.total() == 1000
