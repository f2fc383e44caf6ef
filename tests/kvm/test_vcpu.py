"""vCPUs: registers, running guest code, and why it stopped."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.abi import kvm as abi
from pyvfio.abi import kvm_x86
from pyvfio.kvm import VM, NoIrqchip, Vcpu, apic_message

from .support import Faults, arrived, load, needs_kvm

pytestmark = needs_kvm


@pytest.fixture
def bare() -> Iterator[VM]:
    """A VM without an irqchip: its vCPU leaves when it halts."""
    with VM(NoIrqchip()) as vm:
        yield vm


@pytest.fixture
def cpu(bare: VM) -> Vcpu:
    return bare.create_vcpu()


def pretend(cpu: Vcpu, faults: Faults, reason: int, **fields: Any) -> None:
    """Let the next run end as told."""

    def run(_: object) -> int:
        cpu._run.exit_reason = reason
        for name, value in fields.items():
            part, _, field = name.partition("__")
            setattr(getattr(cpu._run, part), field, value)
        return 0

    faults.answer[abi.KVM_RUN] = run


# Registers.


def test_registers_are_copies_and_are_written_whole(cpu: Vcpu) -> None:
    registers = cpu.registers
    registers.rax, registers.r15, registers.rip = 0x1122334455667788, 15, 0x1000
    assert cpu.registers.rax != registers.rax
    cpu.registers = registers
    assert bytes(cpu.registers) == bytes(registers)
    special = cpu.special_registers
    special.cs.base = special.cs.selector = 0
    special.idt.base, special.idt.limit = 0x2000, 0x7FF
    cpu.special_registers = special
    assert cpu.special_registers.idt.base == 0x2000
    assert cpu.special_registers.cs.base == 0


def test_registers_that_make_no_sense_are_refused(cpu: Vcpu) -> None:
    special = cpu.special_registers
    special.cr0 |= 1 << 31  # paging without protection
    with pytest.raises(errors.KernelError, match="KVM_SET_SREGS on vCPU 0"):
        cpu.special_registers = special


# Running.


def test_a_guest_halts(bare: VM, cpu: Vcpu, guest_code: None) -> None:
    load(bare, cpu, b"\x40\xf4")  # inc ax; hlt
    before = cpu.registers.rax
    exit = cpu.run()
    assert (exit.reason, exit.name) == (abi.KVM_EXIT_HLT, "HLT")
    assert (exit.address, exit.size, exit.write, bytes(exit.data)) == (None, 0, False, b"")
    assert repr(exit) == "<Exit HLT>"
    assert cpu.registers.rax == before + 1


def test_an_io_port_is_written_and_read(bare: VM, cpu: Vcpu, guest_code: None) -> None:
    # mov ax, 0x1234; out 0x10, ax; in al, 0x20; out 0x30, al; hlt
    load(bare, cpu, b"\xb8\x34\x12\xe7\x10\xe4\x20\xe6\x30\xf4")
    exit = cpu.run()
    assert (exit.name, exit.address, exit.size, exit.write) == ("IO", 0x10, 2, True)
    assert bytes(exit.data) == b"\x34\x12"
    assert repr(exit) == "<Exit IO write 0x10 3412>"
    exit = cpu.run()
    assert (exit.name, exit.address, exit.size, exit.write) == ("IO", 0x20, 1, False)
    exit.data[0] = 0x77
    assert repr(exit) == "<Exit IO read 0x20 77>"
    assert bytes(cpu.run().data) == b"\x77"
    assert cpu.run().name == "HLT"


def test_port_zero_is_a_port(bare: VM, cpu: Vcpu, guest_code: None) -> None:
    load(bare, cpu, b"\xe6\x00\xf4")  # out 0, al; hlt
    assert cpu.run().address == 0


def test_memory_that_nobody_has_is_mmio(bare: VM, cpu: Vcpu, guest_code: None) -> None:
    # mov ax, 0x2000; mov ds, ax; mov ax, [4]; mov [8], ax; hlt
    load(bare, cpu, b"\xb8\x00\x20\x8e\xd8\xa1\x04\x00\xa3\x08\x00\xf4")
    exit = cpu.run()
    assert (exit.name, exit.address, exit.size, exit.write) == ("MMIO", 0x20004, 2, False)
    exit.data[:] = b"\xcd\xab"
    exit = cpu.run()
    assert (exit.name, exit.address, exit.size, exit.write) == ("MMIO", 0x20008, 2, True)
    assert bytes(exit.data) == b"\xcd\xab"
    assert cpu.run().name == "HLT"


def test_a_signal_ends_a_run(vm: VM, vcpu: Vcpu, guest_code: None) -> None:
    load(vm, vcpu, b"\xeb\xfe")  # jmp to itself
    ticks: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        exit = vcpu.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert (exit.reason, exit.name) == (abi.KVM_EXIT_INTR, "INTR")
    assert ticks == [signal.SIGALRM]


def test_a_halted_guest_takes_the_interrupt_that_has_arrived(
    vm: VM, vcpu: Vcpu, guest_code: None
) -> None:
    """Real mode: the table at 0 has the handler's address at four times the vector."""
    memory = load(vm, vcpu, b"\xbc\x00\x70\xfb\xf4")  # mov sp, 0x7000; sti; hlt
    memory[0x41 * 4 : 0x41 * 4 + 4] = b"\x00\x20\x00\x00"
    memory[0x2000:0x2003] = b"\xe6\x55\xf4"  # out 0x55, al; hlt
    vm.signal_msi(apic_message(0x41))
    assert arrived(vcpu) == {0x41}
    assert vcpu.run().address == 0x55
    assert arrived(vcpu) == set(), "the vCPU has taken it"


# What cannot be run.


def test_a_processor_that_refuses_to_enter_the_guest(cpu: Vcpu, faults: Faults) -> None:
    pretend(cpu, faults, abi.KVM_EXIT_FAIL_ENTRY, fail_entry__hardware_entry_failure_reason=0x21)
    with pytest.raises(errors.CannotRunGuest, match=r"reason 0x21\. Routes and irqfds work"):
        cpu.run()


def test_code_that_kvm_cannot_emulate(cpu: Vcpu, faults: Faults) -> None:
    pretend(cpu, faults, abi.KVM_EXIT_INTERNAL_ERROR, internal__suberror=1)
    with pytest.raises(errors.CannotRunGuest, match="suberror 1"):
        cpu.run()


def test_a_run_that_is_refused(cpu: Vcpu, faults: Faults) -> None:
    faults.refuse[abi.KVM_RUN] = errno.EIO
    with pytest.raises(errors.CannotRunGuest, match="KVM_RUN on vCPU 0"):
        cpu.run()


def test_a_host_that_runs_no_guest_still_delivers(vm: VM, vcpu: Vcpu, faults: Faults) -> None:
    pretend(vcpu, faults, abi.KVM_EXIT_FAIL_ENTRY, fail_entry__hardware_entry_failure_reason=7)
    with pytest.raises(errors.CannotRunGuest):
        vcpu.run()
    vm.signal_msi(apic_message(0x41))
    assert arrived(vcpu) == {0x41}


def test_memory_that_the_process_has_not_is_not_the_hosts_fault(cpu: Vcpu, faults: Faults) -> None:
    faults.refuse[abi.KVM_RUN] = errno.EFAULT
    with pytest.raises(errors.KernelError, match="the guest touched memory") as caught:
        cpu.run()
    assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_a_run_to_be_tried_again_is_an_exit(cpu: Vcpu, faults: Faults, number: int) -> None:
    """EAGAIN: the vCPU waited to be started by another one, and was."""
    faults.refuse[abi.KVM_RUN] = number
    assert cpu.run().name == "INTR"


def test_an_exit_of_another_kind_has_a_name(cpu: Vcpu, faults: Faults) -> None:
    pretend(cpu, faults, abi.KVM_EXIT_SHUTDOWN)  # a triple fault
    assert cpu.run().name == "SHUTDOWN"
    pretend(cpu, faults, 9999)
    assert repr(cpu.run()) == "<Exit 9999>"


# The local APIC: what can go wrong about it. What it shows is in test_lapic.py.


def test_a_local_apic_needs_an_irqchip(cpu: Vcpu, vcpu: Vcpu) -> None:
    lapic = vcpu.lapic
    with pytest.raises(errors.NoIrqchip, match="no local APICs"):
        _ = cpu.lapic
    with pytest.raises(errors.NoIrqchip, match="no local APICs"):
        cpu.lapic = lapic


def test_a_refused_local_apic_is_not_taken_for_none(vcpu: Vcpu, faults: Faults) -> None:
    lapic = vcpu.lapic
    faults.refuse[kvm_x86.KVM_SET_LAPIC] = errno.EINVAL
    with pytest.raises(errors.KernelError, match="KVM_SET_LAPIC") as caught:
        vcpu.lapic = lapic
    assert not isinstance(caught.value, errors.NoIrqchip)
    faults.refuse[kvm_x86.KVM_GET_LAPIC] = errno.ENOMEM
    with pytest.raises(errors.KernelError, match="ENOMEM"):
        _ = vcpu.lapic


def test_a_closed_vcpu_does_nothing(cpu: Vcpu) -> None:
    registers = cpu.registers
    cpu.close()
    cpu.close()
    assert repr(cpu) == "<Vcpu 0 closed>"
    uses: list[Callable[[], Any]] = [
        cpu.run,
        lambda: cpu.registers,
        lambda: setattr(cpu, "registers", registers),
        lambda: cpu.special_registers,
        lambda: cpu.lapic,
    ]
    for use in uses:
        with pytest.raises(errors.Closed, match="vCPU 0 is closed"):
            use()
