"""The table of routes: what each change does to it, what it costs, and what undoes it."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvfio import errors
from pyvfio._sys import EventFd, File
from pyvfio.abi import kvm as abi
from pyvfio.abi import kvm_x86
from pyvfio.kvm import VM, MsiMessage, NoIrqchip, Pin, Routes, SplitIrqchip, Vcpu, apic_message

from .support import Faults, arrives, counting, needs_kvm, program_ioapic

pytestmark = needs_kvm

COMMIT = abi.KVM_SET_GSI_ROUTING
IOAPIC = kvm_x86.KVM_IRQCHIP_IOAPIC
A, B, C = apic_message(0x41), apic_message(0x42), apic_message(0x43)


def messages(count: int) -> list[MsiMessage]:
    return [apic_message(0x20 + number % 0xC0) for number in range(count)]


@contextmanager
def failing_batch(routes: Routes) -> Iterator[Routes]:
    """A batch that ends with an exception, after all else in it."""
    with suppress(ZeroDivisionError), routes.batch():
        yield routes
        raise ZeroDivisionError


# Allocation.


def test_the_lowest_free_gsi_is_allocated(split: VM) -> None:
    routes = split.routes
    assert routes.add_many([A, B, C]) == [24, 25, 26]
    routes.remove(25, 24)
    assert routes.add(C) == 24
    assert routes.add_many([A, B]) == [25, 27]
    assert dict(routes) == {24: C, 25: A, 26: C, 27: B}


def test_gsis_of_the_irqchip_are_not_allocated_even_when_their_route_is_gone(
    vm: VM, split: VM
) -> None:
    vm.routes.remove(*range(24))
    assert len(vm.routes) == 0
    assert vm.routes.add(A) == 24
    assert vm.routes.add(A, 0) == 0, "who names one may have it"
    split.routes.add(A, 5)
    split.routes.remove(5)
    assert split.routes.add(A) == 24


def test_a_gsi_that_was_named_is_not_allocated_again(split: VM) -> None:
    routes = split.routes
    assert routes.add(A, 25) == 25
    assert routes.add_many([B, C]) == [24, 26]


def test_zero_is_a_message_and_a_gsi(split: VM) -> None:
    routes = split.routes
    assert routes.add(MsiMessage(0, 0), 0) == 0
    assert routes[0] == MsiMessage(0, 0)
    assert routes.change(0, MsiMessage(0, 0)) is False
    assert routes.change(0, A) is True


def test_the_table_reads_as_a_mapping(vm: VM) -> None:
    routes = vm.routes
    assert len(routes) == 24
    assert routes[3] == (Pin(kvm_x86.KVM_IRQCHIP_PIC_MASTER, 3), Pin(IOAPIC, 3))
    assert routes[20] == (Pin(IOAPIC, 20),)
    routes.add(A, 4000)
    routes.add(MsiMessage((1 << 64) - 1, (1 << 32) - 1), 30)
    assert list(routes) == [*range(24), 30, 4000]
    assert routes[30] == MsiMessage((1 << 64) - 1, (1 << 32) - 1)
    assert str(routes[4000]) == "0xfee00000=0x41"
    assert 31 not in routes
    assert routes.get(31) is None
    assert repr(routes) == "<Routes 42 of 4096>"


# Delivery follows the table.


def test_an_event_becomes_the_message_that_its_gsi_has(vm: VM, vcpu: Vcpu) -> None:
    gsi = vm.routes.add(A)
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi):
        assert arrives(vcpu, eventfd, 0x41)
        vm.routes.change(gsi, B)
        assert arrives(vcpu, eventfd, 0x42)
        vm.routes.remove(gsi)
        eventfd.signal()
        assert vcpu.lapic.requested == frozenset()
        vm.routes.add(C, gsi)
        assert arrives(vcpu, eventfd, 0x43), "the irqfd has outlived its route"


def test_until_its_block_ends_a_batch_is_not_in_force(vm: VM, vcpu: Vcpu) -> None:
    gsi = vm.routes.add(A)
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi):
        with vm.routes.batch() as routes:
            routes.change(gsi, B)
            assert routes[gsi] == B
            assert arrives(vcpu, eventfd, 0x41)
        assert arrives(vcpu, eventfd, 0x42)


def test_a_gsi_can_lead_to_pins(vm: VM, vcpu: Vcpu) -> None:
    program_ioapic(vm, {7: 0x77})
    vm.routes.add_pin(100, Pin(IOAPIC, 7), Pin(kvm_x86.KVM_IRQCHIP_PIC_SLAVE, 1))
    vm.set_irq_line(100, True)
    assert vcpu.lapic.requested == {0x77}
    with pytest.raises(errors.ArgumentError, match="not routed to a message"):
        vm.routes.change(100, A)


# What it costs.


def test_a_change_is_one_commit_and_no_change_is_none(split: VM) -> None:
    routes = split.routes
    gsi = routes.add(A)
    changes: list[tuple[Callable[[], Any], int]] = [
        (lambda: routes.add(A), 1),
        (lambda: routes.add(A, 99), 1),
        (lambda: routes.add_many(messages(1000)), 1),
        (lambda: routes.add_many([]), 0),
        (lambda: routes.change(gsi, B), 1),
        (lambda: routes.change(gsi, B), 0),
        (lambda: routes.remove(*range(30, 100)), 1),
        (lambda: routes.remove(*range(30, 100)), 0),
        (lambda: routes.remove(), 0),
        (routes.commit, 1),
    ]
    for change, commits in changes:
        with counting(split) as requests:
            change()
        assert requests == [COMMIT] * commits


def test_a_batch_is_one_commit_however_much_is_in_it(split: VM) -> None:
    with counting(split) as requests:
        with split.routes.batch() as routes:
            for message in messages(500):
                gsi = routes.add(message)
                with routes.batch():
                    routes.change(gsi, A)
            routes.remove(24)
            assert requests == []
        assert requests == [COMMIT]
        with split.routes.batch():
            pass
        assert requests == [COMMIT], "nothing to commit"


def test_a_lazy_removal_waits_for_the_next_commit(vm: VM, vcpu: Vcpu) -> None:
    gsi, other = vm.routes.add_many([A, B])
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi):
        with counting(vm) as requests:
            vm.routes.remove(gsi, lazily=True)
        assert requests == []
        assert gsi not in vm.routes
        assert arrives(vcpu, eventfd, 0x41), "the kernel still has it"
        vm.routes.change(other, C)
        assert not arrives(vcpu, eventfd, 0x41)
        assert vm.routes.add(B) == gsi
        assert arrives(vcpu, eventfd, 0x42)


# What undoes it.


def test_an_exception_undoes_a_batch(vm: VM, vcpu: Vcpu) -> None:
    routes = vm.routes
    gsi, other = routes.add_many([A, B])
    before = dict(routes)
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi), counting(vm) as requests:
        with failing_batch(routes):
            routes.change(gsi, C)
            routes.remove(other, 3)
            routes.remove(7, lazily=True)
            routes.add_many(messages(50))
            routes.add_pin(3, Pin(IOAPIC, 9))
            routes.remove(*routes)
        assert requests == []
        assert dict(routes) == before
        assert repr(routes) == "<Routes 42 of 4096>"
        assert routes.add(C) == 26
        assert arrives(vcpu, eventfd, 0x41)


def test_an_exception_that_an_inner_batch_ends_with_undoes_that_batch_alone(split: VM) -> None:
    with split.routes.batch() as routes:
        routes.add(A)
        with failing_batch(routes):
            routes.add(B)
            routes.change(24, C)
        assert dict(routes) == {24: A}
        with pytest.raises(errors.ArgumentError):
            routes.add(B, 24)
        routes.add(C)
    assert dict(split.routes) == {24: A, 25: C}


def test_what_the_kernel_refuses_is_not_in_the_table(split: VM, faults: Faults) -> None:
    routes = split.routes
    routes.add_many([A, B])
    faults.refuse[COMMIT] = errno.ENOMEM
    changes: list[Callable[[], Any]] = [
        lambda: routes.add(C),
        lambda: routes.add(C, 0),
        lambda: routes.add_many([A, B, C]),
        lambda: routes.change(24, C),
        lambda: routes.remove(24, 25),
        routes.commit,
    ]
    for change in changes:
        with pytest.raises(errors.KernelError, match="KVM_SET_GSI_ROUTING") as caught:
            change()
        assert caught.value.errno == errno.ENOMEM
        assert dict(routes) == {24: A, 25: B}
        assert repr(routes) == "<Routes 2 of 4096>"
    faults.refuse.clear()
    with counting(split) as requests:
        assert routes.add(C) == 26
    assert requests == [COMMIT]


def test_a_batch_that_has_committed_is_undone_in_the_kernel_too(vm: VM, vcpu: Vcpu) -> None:
    gsi = vm.routes.add(A)
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi):
        with failing_batch(vm.routes) as routes, routes.batch():
            routes.change(gsi, B)
            routes.commit()
            assert arrives(vcpu, eventfd, 0x42)
        assert vm.routes[gsi] == A
        assert arrives(vcpu, eventfd, 0x41)
        with vm.routes.batch() as routes:
            with failing_batch(routes):
                routes.change(gsi, C)
                routes.commit()
            assert arrives(vcpu, eventfd, 0x43)
        assert arrives(vcpu, eventfd, 0x41)


def test_other_threads_changes_wait_for_the_end_of_a_batch(split: VM) -> None:
    routes = split.routes
    threads = [threading.Thread(target=lambda: routes.add(B)) for _ in range(4)]
    with failing_batch(routes):
        for thread in threads:
            thread.start()
        assert routes.add_many([A, A]) == [24, 25]
    for thread in threads:
        thread.join(60)
    assert dict(routes) == dict.fromkeys(range(24, 28), B)


# Limits and mistakes.


def test_a_vm_has_4096_gsis(split: VM) -> None:
    routes = split.routes
    assert routes.limit == 4096
    for gsi in (-1, 4096, 1 << 32):
        with pytest.raises(errors.RangeError, match="GSIs are 0 to 4095"):
            routes.add(A, gsi)
        with pytest.raises(errors.RangeError, match="GSIs are 0 to 4095"):
            routes.add_pin(gsi, Pin(IOAPIC, 0))
    with pytest.raises(errors.RoutesExhausted, match="no GSI is free"):
        routes.add_many(messages(4073))
    assert len(routes) == 0
    assert routes.add_many(messages(4072)) == list(range(24, 4096))
    with pytest.raises(errors.RoutesExhausted, match="no GSI is free"):
        routes.add(A)
    with routes.batch():
        for gsi in range(24):
            routes.add(A, gsi)
    assert len(routes) == 4096, "and the kernel took them all"
    routes.remove(4095)
    assert routes.add(B) == 4095


def test_the_kernel_takes_4096_entries_pins_included(vm: VM) -> None:
    """16 of the I/O APIC's GSIs lead to a PIC too: they have two entries each."""
    routes = vm.routes
    with pytest.raises(errors.RoutesExhausted, match="4096 entries"):
        routes.add_many(messages(4096 - 40 + 1))
    assert repr(routes) == "<Routes 40 of 4096>"
    routes.add_many(messages(4096 - 40))
    for change in (
        lambda: routes.add(A),
        lambda: routes.add(A, 4095),
        lambda: routes.add_pin(4095, Pin(IOAPIC, 2)),
    ):
        with pytest.raises(errors.RoutesExhausted, match="4096 entries"):
            change()
    with routes.batch():
        routes.remove(3)
        routes.add_many([A, B])
    assert repr(routes) == "<Routes 4096 of 4096>"


def test_a_gsi_has_one_message(split: VM, vm: VM) -> None:
    split.routes.add(A, 30)
    with pytest.raises(errors.ArgumentError, match="GSI 30 is routed already"):
        split.routes.add(B, 30)
    assert split.routes[30] == A
    with pytest.raises(errors.ArgumentError, match="GSI 3 is routed already"):
        vm.routes.add(A, 3)
    with pytest.raises(errors.ArgumentError, match="GSI 3 is routed already"):
        vm.routes.add_pin(3, Pin(IOAPIC, 3))


def test_only_what_has_a_message_can_get_another(vm: VM) -> None:
    for gsi in (3, 99, -1, 5000):
        with pytest.raises(errors.ArgumentError, match=r"not routed to a message: add\(\) it"):
            vm.routes.change(gsi, A)
    vm.routes.remove(99, -1, 5000)  # nothing to remove is no mistake


@pytest.mark.parametrize(
    "message",
    [
        MsiMessage(-1, 0),
        MsiMessage(1 << 64, 0),
        MsiMessage(0xFEE00000, -1),
        MsiMessage(0xFEE00000, 1 << 32),
    ],
)
def test_a_message_is_64_bits_of_address_and_32_of_data(split: VM, message: MsiMessage) -> None:
    gsi = split.routes.add(A)
    changes: list[Callable[[], Any]] = [
        lambda: split.routes.add(message),
        lambda: split.routes.add(message, 99),
        lambda: split.routes.add_many([B, message, C]),
        lambda: split.routes.change(gsi, message),
    ]
    for change in changes:
        with pytest.raises(errors.ArgumentError, match="address of 64 bits and data of 32"):
            change()
        assert dict(split.routes) == {gsi: A}


def test_messages_may_come_from_a_generator_that_routes_too(split: VM) -> None:
    def made() -> Iterator[MsiMessage]:
        split.routes.add(A)
        yield B

    assert split.routes.add_many(made()) == [25]
    assert dict(split.routes) == {24: A, 25: B}


def test_a_gsi_leads_to_one_pin_of_each_irqchip(vm: VM) -> None:
    for pins in ((), (Pin(IOAPIC, 3), Pin(IOAPIC, 4))):
        with pytest.raises(errors.ArgumentError, match="one pin of each irqchip"):
            vm.routes.add_pin(99, *pins)
    for pin in (Pin(IOAPIC, -1), Pin(1 << 32, 0)):
        with pytest.raises(errors.RangeError, match="32 bits"):
            vm.routes.add_pin(99, pin)


# The kernel's refusals, and what they mean.


@pytest.mark.parametrize("pin", [Pin(IOAPIC, 24), Pin(kvm_x86.KVM_IRQCHIP_PIC_SLAVE, 8), Pin(3, 0)])
def test_a_pin_that_is_not_there_is_named(vm: VM, pin: Pin) -> None:
    with vm.routes.batch() as routes:
        routes.add(A)

    def change() -> None:
        with vm.routes.batch() as routes:
            routes.add(B)
            routes.add_pin(77, pin)

    with pytest.raises(errors.KernelError) as caught:
        change()
    assert caught.value.errno == errno.EINVAL
    assert f"GSI 77 leads to {pin}, which the VM's irqchip has not got" in str(caught.value)
    assert len(vm.routes) == 25


def test_a_split_irqchip_has_no_pins(split: VM) -> None:
    with pytest.raises(errors.KernelError, match="has not got") as caught:
        split.routes.add_pin(30, Pin(IOAPIC, 3))
    assert caught.value.errno == errno.EINVAL


def test_a_refusal_without_a_known_cause_is_left_as_it_is(split: VM, faults: Faults) -> None:
    faults.refuse[COMMIT] = errno.EINVAL
    with pytest.raises(errors.KernelError) as caught:
        split.routes.add(A)
    assert caught.value.meaning == ""


def test_without_an_irqchip_the_kernel_takes_no_routes() -> None:
    with VM(NoIrqchip()) as vm:
        changes: list[Callable[[], Any]] = [
            lambda: vm.routes.add(A),
            lambda: vm.routes.add(A, 0),
            lambda: vm.routes.add_many([A, B]),
            lambda: vm.routes.add_pin(3, Pin(IOAPIC, 3)),
            vm.routes.commit,
        ]
        for change in changes:
            with pytest.raises(errors.NoIrqchip, match="make it with one") as caught:
                change()
            assert caught.value.errno == errno.EINVAL
        assert len(vm.routes) == 0


def test_where_gsis_are_fixed_inputs_there_are_no_routes(faults: Faults) -> None:
    """As POWER's kernel has it: KVM_CAP_IRQ_ROUTING is 0 and the ioctl is not there."""
    with File(os.memfd_create("a VM"), "a VM") as file:
        routes = Routes(file, 0, 0, {})
        for number in (errno.ENOTTY, None):
            if number:
                faults.refuse[COMMIT] = number
            else:
                faults.refuse.clear()
                faults.answer[COMMIT] = lambda _: 0
            changes: list[Callable[[], Any]] = [
                lambda: routes.add(A),
                lambda: routes.add(A, 0),
                lambda: routes.add_many([A, B]),
            ]
            for change in changes:
                with pytest.raises(errors.Unsupported, match="one fixed input"):
                    change()


def test_a_closed_vm_has_no_routes(split: VM) -> None:
    split.routes.add(A)
    split.close()
    with pytest.raises(errors.Closed):
        split.routes.add(B)
    assert dict(split.routes) == {24: A}


# All of it together, against a plain dict, on the real kernel.

GSIS = st.integers(20, 40)
MESSAGES = st.sampled_from([A, B, C, MsiMessage(0, 0), MsiMessage(0x7_0000_0000, 9)])


class RoutesMachine(RuleBasedStateMachine):
    """Routes does as a dict would; outside a batch the kernel was given what the dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.vm = VM(SplitIrqchip())
        self.committed: dict[int, MsiMessage] = {}
        self.model: dict[int, MsiMessage] = {}
        self.stack: list[tuple[Any, dict[int, MsiMessage]]] = []
        self.left: set[int] = set()  # removed lazily since the last commit
        self.vm.file.watcher = self.watch

    def teardown(self) -> None:
        while self.stack:
            self.stack.pop()[0].__exit__(None, None, None)
        self.vm.close()

    def watch(self, request: int, argument: Any, outcome: int | OSError) -> None:
        assert request == COMMIT
        assert outcome == 0
        raw = bytes(argument)
        count = int.from_bytes(raw[:4], "little")
        assert len(raw) == 8 + 48 * count
        entries = [
            abi.kvm_irq_routing_entry.from_buffer_copy(raw, 8 + 48 * at) for at in range(count)
        ]
        assert all((entry.type, entry.flags, entry.pad) == (2, 0, 0) for entry in entries)
        self.committed = {
            entry.gsi: MsiMessage(
                entry.u.msi.address_hi << 32 | entry.u.msi.address_lo, entry.u.msi.data
            )
            for entry in entries
        }
        assert len(self.committed) == count
        self.left.clear()

    def lowest(self, count: int) -> list[int]:
        vacant = (gsi for gsi in itertools.count(24) if gsi not in self.model)
        return list(itertools.islice(vacant, count))

    @rule(message=MESSAGES)
    def add(self, message: MsiMessage) -> None:
        [expected] = self.lowest(1)
        assert self.vm.routes.add(message) == expected
        self.model[expected] = message

    @rule(message=MESSAGES, gsi=GSIS)
    def add_named(self, message: MsiMessage, gsi: int) -> None:
        if gsi in self.model:
            with pytest.raises(errors.ArgumentError):
                self.vm.routes.add(message, gsi)
        else:
            assert self.vm.routes.add(message, gsi) == gsi
            self.model[gsi] = message

    @rule(several=st.lists(MESSAGES, max_size=5))
    def add_many(self, several: list[MsiMessage]) -> None:
        expected = self.lowest(len(several))
        assert self.vm.routes.add_many(several) == expected
        self.model.update(zip(expected, several, strict=True))

    @rule(several=st.lists(MESSAGES, max_size=3))
    def add_many_with_a_bad_one(self, several: list[MsiMessage]) -> None:
        with pytest.raises(errors.ArgumentError):
            self.vm.routes.add_many([*several, MsiMessage(-1, 0)])

    @rule(gsi=GSIS, message=MESSAGES)
    def change(self, gsi: int, message: MsiMessage) -> None:
        if gsi not in self.model:
            with pytest.raises(errors.ArgumentError):
                self.vm.routes.change(gsi, message)
            return
        assert self.vm.routes.change(gsi, message) is (self.model[gsi] != message)
        self.model[gsi] = message

    @rule(gsis=st.lists(GSIS, max_size=4), lazily=st.booleans())
    def remove(self, gsis: list[int], lazily: bool) -> None:
        if lazily:
            self.left.update(gsis)
        self.vm.routes.remove(*gsis, lazily=lazily)
        for gsi in gsis:
            self.model.pop(gsi, None)

    @precondition(lambda self: len(self.stack) < 3)
    @rule()
    def begin(self) -> None:
        batch = self.vm.routes.batch()
        batch.__enter__()
        self.stack.append((batch, dict(self.model)))

    @precondition(lambda self: self.stack)
    @rule()
    def end(self) -> None:
        self.stack.pop()[0].__exit__(None, None, None)

    @precondition(lambda self: self.stack)
    @rule()
    def fail(self) -> None:
        batch, self.model = self.stack.pop()
        error = ZeroDivisionError()
        assert not batch.__exit__(type(error), error, None)

    @invariant()
    def agree(self) -> None:
        assert dict(self.vm.routes) == self.model
        assert repr(self.vm.routes) == f"<Routes {len(self.model)} of 4096>"
        if not self.stack:
            assert self.committed.items() >= self.model.items()
            assert self.committed.keys() - self.model.keys() <= self.left


TestRoutesAgainstADict = RoutesMachine.TestCase
TestRoutesAgainstADict.settings = settings(max_examples=60, stateful_step_count=30)
