"""VMs, their memory and their irqchips."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import memory
from pyvfio.abi import kvm as abi
from pyvfio.abi.ioctl import Request
from pyvfio.kvm import (
    VM,
    FullIrqchip,
    Irqchip,
    MsiMessage,
    NoIrqchip,
    SplitIrqchip,
    Vcpu,
    apic_message,
)

from .support import Faults, arrived, load, needs_kvm, pic_requests, program_ioapic

pytestmark = needs_kvm

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("irqchip", [FullIrqchip(), SplitIrqchip(), NoIrqchip()])
def test_a_vm_is_closed_with_all_that_it_has(irqchip: Irqchip) -> None:
    with VM(irqchip) as vm:
        vcpus = [vm.create_vcpu(), vm.create_vcpu()]
        assert [vcpu.id for vcpu in vcpus] == [0, 1]
        assert repr(vm) == f"<VM {irqchip.name}, 2 vCPUs>"
        assert vm.check_extension(abi.KVM_CAP_IRQFD)
        device = vm.vfio
    vm.close()
    assert vm.closed
    assert repr(vm) == "<VM closed>"
    assert all(vcpu.file.closed for vcpu in vcpus)
    assert device.file.closed
    for use in (vm.create_vcpu, lambda: vm.vfio, lambda: vm.signal_msi(apic_message(0x41))):
        with pytest.raises(errors.Closed):
            use()


def test_other_processors_are_declined_with_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    host = (*os.uname()[:4], "aarch64")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(host))
    with pytest.raises(errors.Unsupported, match="not of aarch64: no interrupt can be forwarded"):
        VM()


def test_timer_signals_do_not_keep_a_vm_from_being_made() -> None:
    """KVM_CREATE_VM starts a kernel thread, which a signal interrupts (EINTR)."""
    ticks = 0

    def tick(number: int, frame: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(150):
            VM().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


@pytest.mark.parametrize(
    ("irqchip", "request_", "capability"),
    [
        (FullIrqchip(), abi.KVM_CREATE_IRQCHIP, abi.KVM_CAP_IRQCHIP),
        (SplitIrqchip(), abi.KVM_ENABLE_CAP, abi.KVM_CAP_SPLIT_IRQCHIP),
    ],
)
def test_a_vm_whose_irqchip_cannot_be_had_is_not_left_behind(
    irqchip: Irqchip, request_: Request, capability: int, faults: Faults
) -> None:
    faults.refuse[request_] = errno.ENOMEM
    with pytest.raises(errors.KernelError, match=request_.name):
        VM(irqchip)
    faults.answer[abi.KVM_CHECK_EXTENSION] = lambda asked: int(asked != capability)
    with pytest.raises(errors.Unsupported, match=f"no {irqchip.name}"):
        VM(irqchip)


def test_a_split_irqchip_keeps_gsis_for_the_callers_io_apic() -> None:
    with VM(SplitIrqchip(3)) as vm:
        assert vm.routes.add(apic_message(0x41)) == 3
        assert len(vm.routes) == 1, "all routes are the caller's"
    with VM(SplitIrqchip(0)) as vm:
        assert vm.routes.add(apic_message(0x41)) == 0, "0 is a legal GSI"
    for pins in (-1, 4097):
        with pytest.raises(errors.RangeError, match=f"not {pins}"):
            SplitIrqchip(pins)


# A new VM's routes: the kernel does not show them, but what a line does shows where it leads.


def test_the_routes_of_a_full_irqchip_are_those_that_the_kernel_begins_with(
    vm: VM, vcpu: Vcpu
) -> None:
    vectors = {pin: 0x40 + pin for pin in range(24)}

    def led_to() -> list[tuple[set[int], set[int]]]:
        """For each line: what arrives at the local APIC, and at the PICs."""
        found = []
        for gsi in range(32):
            vm.set_irq_line(gsi, True)
            found.append((arrived(vcpu), pic_requests(vm)))
            vm.set_irq_line(gsi, False)
            lapic = vcpu.lapic
            lapic.requested = frozenset()
            vcpu.lapic = lapic
        return found

    program_ioapic(vm, vectors)
    kernels = led_to()
    assert [through_ioapic for through_ioapic, _ in kernels[:24]] == [{v} for v in vectors.values()]
    assert kernels[24:] == [(set(), pic_requests(vm))] * 8
    vm.routes.commit()
    # The PICs remember edges until they are acknowledged: a new VM shows them from the start.
    with VM() as other:
        other.routes.commit()
        theirs = other.create_vcpu()
        lapic = theirs.lapic
        lapic.enabled = True
        theirs.lapic = lapic
        program_ioapic(other, vectors)
        vm, vcpu = other, theirs
        assert led_to() == kernels


def test_a_line_is_raised_and_lowered(vm: VM, vcpu: Vcpu) -> None:
    program_ioapic(vm, {4: 0x44})
    vm.set_irq_line(4, True)
    assert arrived(vcpu) == {0x44}
    vm.set_irq_line(4, False)
    vm.set_irq_line(4000, True)  # leads nowhere
    for gsi in (-1, 1 << 32):
        with pytest.raises(errors.RangeError, match="32 bits"):
            vm.set_irq_line(gsi, True)


# Messages without a route.


def test_a_message_arrives_without_a_route(vm: VM, vcpu: Vcpu) -> None:
    assert vm.signal_msi(apic_message(0x41)) is True
    assert arrived(vcpu) == {0x41}


def test_a_message_that_nobody_takes_is_no_error(vm: VM, split: VM, vcpu: Vcpu) -> None:
    assert vm.signal_msi(apic_message(0x41, apic_id=7)) is False, "no vCPU 7"
    asleep = vm.create_vcpu()
    assert vm.signal_msi(apic_message(0x41, apic_id=1)) is False, "its local APIC is disabled"
    assert arrived(asleep) == set()
    assert split.signal_msi(apic_message(0x41)) is False, "no vCPU at all"


def test_a_message_is_never_cut_to_fit(vm: VM, vcpu: Vcpu) -> None:
    for message in (MsiMessage(1 << 64 | 0xFEE00000, 0x41), MsiMessage(0xFEE00000, 1 << 32 | 0x41)):
        with pytest.raises(errors.ArgumentError, match="64 bits"):
            vm.signal_msi(message)
    assert arrived(vcpu) == set()


def test_without_an_irqchip_there_are_no_interrupts() -> None:
    with VM(NoIrqchip()) as vm:
        for use in (
            lambda: vm.signal_msi(apic_message(0x41)),
            lambda: vm.set_irq_line(4, True),
            lambda: vm.create_vcpu().lapic,
        ):
            with pytest.raises(errors.NoIrqchip):
                use()


def test_other_refusals_of_a_message_keep_their_errno(vm: VM, faults: Faults) -> None:
    faults.refuse = {abi.KVM_SIGNAL_MSI: errno.EINVAL, abi.KVM_IRQ_LINE: errno.ENXIO}
    with pytest.raises(errors.KernelError, match="KVM_SIGNAL_MSI") as caught:
        vm.signal_msi(apic_message(0x41))
    assert not isinstance(caught.value, errors.NoIrqchip)
    with pytest.raises(errors.KernelError, match="KVM_IRQ_LINE") as caught:
        vm.set_irq_line(4, True)
    assert not isinstance(caught.value, errors.NoIrqchip)


# APIC IDs above 255.


def test_an_apic_id_above_255_needs_the_x2apic_format(vm: VM, vcpu: Vcpu) -> None:
    far = vm.create_vcpu(0x100)
    lapic = far.lapic
    lapic.enabled = True
    far.lapic = lapic
    message = apic_message(0x41, apic_id=0x100)
    assert message == MsiMessage(0x100_FEE0_0000, 0x41)
    assert vm.signal_msi(message) is True
    assert arrived(vcpu) == {0x41}, "without the format 8 bits of the ID count: it is vCPU 0's"
    vm.use_x2apic_format()
    assert vm.routes.x2apic_format
    far.lapic = lapic
    vcpu.lapic = lapic
    assert vm.signal_msi(message) is True
    assert (arrived(vcpu), arrived(far)) == (set(), {0x41})


def test_in_the_x2apic_format_a_message_has_bits_that_must_be_zero(vm: VM, vcpu: Vcpu) -> None:
    wrong = MsiMessage(0x1_FEE0_0000, 0x41)
    assert vm.signal_msi(wrong) is True, "without the format nobody looks there"
    gsi = vm.routes.add(wrong)
    with pytest.raises(errors.ArgumentError, match="bits 39 to 32"):
        vm.use_x2apic_format()
    assert not vm.routes.x2apic_format, "the kernel was not asked: it would refuse the next commit"
    vm.routes.remove(gsi)
    vm.use_x2apic_format()
    uses: list[Callable[[], Any]] = [
        lambda: vm.signal_msi(wrong),
        lambda: vm.routes.add(wrong),
        lambda: vm.routes.add(wrong, 99),
        lambda: vm.routes.add_many([apic_message(0x41, 256), wrong]),
        lambda: vm.routes.change(vm.routes.add(apic_message(0x42)), wrong),
    ]
    for use in uses:
        with pytest.raises(errors.ArgumentError, match="bits 39 to 32"):
            use()
    assert vm.routes.add(apic_message(0x41, 0xFFFFFFFF)) == 25


def test_the_kernel_refuses_what_the_x2apic_format_forbids(vm: VM) -> None:
    """So the check before it is not stricter than the kernel's own."""
    vm.use_x2apic_format()
    vm.routes._x2apic_format = False
    with pytest.raises(errors.KernelError) as caught:
        vm.routes.add(MsiMessage(0x1_FEE0_0000, 0x41))
    assert caught.value.errno == errno.EINVAL
    vm.routes.add(MsiMessage(0x100_FEE0_0000, 0x41))


def test_a_kernel_without_the_x2apic_format_is_unsupported(vm: VM, faults: Faults) -> None:
    faults.refuse[abi.KVM_ENABLE_CAP] = errno.EINVAL
    with pytest.raises(errors.KernelError, match="KVM_ENABLE_CAP"):
        vm.use_x2apic_format()
    assert not vm.routes.x2apic_format
    faults.answer[abi.KVM_CHECK_EXTENSION] = lambda _: 0
    with pytest.raises(errors.Unsupported, match="x2APIC"):
        vm.use_x2apic_format()


@pytest.mark.parametrize(("vector", "apic_id"), [(0xF, 0), (0x100, 0), (0x41, -1), (0x41, 1 << 32)])
def test_there_is_no_such_vector_or_apic_id(vector: int, apic_id: int) -> None:
    with pytest.raises(errors.RangeError):
        apic_message(vector, apic_id)


# vCPUs' numbers.


def test_vcpus_are_numbered_on_from_the_highest(vm: VM) -> None:
    vm.create_vcpu()
    vm.create_vcpu(9)
    assert vm.create_vcpu().id == 10
    with pytest.raises(errors.KernelError, match="EEXIST"):
        vm.create_vcpu(9)
    with pytest.raises(errors.KernelError, match="EINVAL"):
        vm.create_vcpu(vm.check_extension(abi.KVM_CAP_MAX_VCPU_ID))


def test_a_vcpu_that_cannot_be_mapped_does_not_block_the_next(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> memoryview:
        raise errors.KernelError(errno.ENOMEM, "mmap", "vCPU 0")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "map_file", refuse)
        with pytest.raises(errors.KernelError, match="ENOMEM"):
            vm.create_vcpu()
    assert vm.create_vcpu().id == 1, "the kernel keeps a number taken"


# Memory.


def test_guest_memory_is_whole_pages_of_writable_memory(vm: VM) -> None:
    whole = mmap.mmap(-1, 2 * PAGE)
    view = memoryview(whole)
    for address, buffer in (
        (1, whole),
        (0, view[:100]),
        (0, view[1 : PAGE + 1]),
        (0, view[:0]),
        (0, view.toreadonly()),
    ):
        with pytest.raises(errors.ArgumentError, match="guest memory"):
            vm.map_memory(address, buffer)
    for address in (-PAGE, 1 << 64):
        with pytest.raises(errors.RangeError, match="64 bits"):
            vm.map_memory(address, whole)
    for size in (0, -PAGE):
        with pytest.raises(errors.ArgumentError, match="size"):
            vm.alloc_memory(size)
    with pytest.raises(errors.KernelError, match="KVM_SET_USER_MEMORY_REGION"):
        vm.map_memory(-PAGE % (1 << 64), whole)  # its end is beyond all addresses


def test_guest_memory_does_not_overlap(vm: VM) -> None:
    vm.alloc_memory(4 * PAGE, 4 * PAGE)
    for first, pages in ((4, 1), (7, 2), (0, 5), (0, 16)):
        with pytest.raises(errors.KernelError, match="other memory") as caught:
            vm.alloc_memory(pages * PAGE, first * PAGE)
        assert caught.value.errno == errno.EEXIST
    vm.alloc_memory(4 * PAGE)
    vm.alloc_memory(PAGE, 8 * PAGE)


def test_memory_is_taken_away_and_its_slot_used_again(vm: VM) -> None:
    first = vm.alloc_memory(PAGE)
    second = vm.alloc_memory(PAGE, PAGE)
    assert repr(second) == f"<MemorySlot {PAGE:#x} {PAGE:#x} bytes>"
    with first:
        pass
    third = vm.alloc_memory(PAGE)
    assert (third._number, second._number) == (0, 1)
    first.close()
    with pytest.raises(errors.KernelError, match="other memory"):
        vm.alloc_memory(PAGE)  # closing the first again has not taken away the third
    third.close()
    second.close()


def test_more_slots_than_a_byte_counts_can_be_had(vm: VM) -> None:
    slots = [vm.alloc_memory(PAGE, number * PAGE) for number in range(150)]
    for slot in slots:
        slot.close()
    assert vm._slots == {}


def test_memory_that_the_kernel_does_not_take_away_stays_known(vm: VM, faults: Faults) -> None:
    slot = vm.alloc_memory(PAGE)
    faults.refuse[abi.KVM_SET_USER_MEMORY_REGION] = errno.ENOMEM
    with pytest.raises(errors.KernelError):
        slot.close()
    faults.refuse.clear()
    slot.close()
    vm.alloc_memory(PAGE)


def test_memory_lives_as_long_as_the_guest_may_touch_it(guest_code: None) -> None:
    with VM(NoIrqchip()) as vm:
        vcpu = vm.create_vcpu()
        # mov al, [0x8000]; hlt
        load(vm, vcpu, b"\xa0\x00\x80\xf4")[0x8000] = 0x5A
        gc.collect()
        assert vcpu.run().name == "HLT"
        assert vcpu.registers.rax & 0xFF == 0x5A


def test_writes_to_readonly_memory_come_back(guest_code: None) -> None:
    with VM(NoIrqchip()) as vm:
        vcpu = vm.create_vcpu()
        rom = mmap.mmap(-1, PAGE)
        rom[0] = 0x33
        # mov ds, ax (ax = 0x2000); mov al, [0]; mov [1], al; hlt
        load(vm, vcpu, b"\xb8\x00\x20\x8e\xd8\xa0\x00\x00\xa2\x01\x00\xf4")
        vm.map_memory(0x20000, rom, readonly=True)
        exit = vcpu.run()
        assert (exit.name, exit.address, exit.write) == ("MMIO", 0x20001, True)
        assert bytes(exit.data) == b"\x33"
        assert vcpu.run().name == "HLT"
        assert rom[1] == 0


def test_memory_closed_after_its_vm_is_no_error() -> None:
    with VM() as vm:
        slot = vm.alloc_memory(PAGE)
    slot.close()
    assert len(slot.view) == PAGE


def test_a_vm_belongs_to_the_process_that_made_it(vm: VM, vcpu: Vcpu) -> None:
    slot = vm.alloc_memory(PAGE)
    child = os.fork()
    if not child:
        status = 1
        try:
            closed = vm.closed and vcpu.file.closed
            slot.close()
            vm.close()
            try:
                vcpu.run()
            except errors.Closed:
                status = 0 if closed else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert vm.signal_msi(apic_message(0x41)) is True
    assert arrived(vcpu) == {0x41}
