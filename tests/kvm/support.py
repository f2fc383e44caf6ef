"""What the tests of KVM share. They ask the real kernel, and only refusals are made up."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import EventFd
from pyvfio.abi import kvm, kvm_x86
from pyvfio.abi.ioctl import Request
from pyvfio.kvm import VM, NoIrqchip, Vcpu

_PATH = "/dev/kvm"
_WHY_NOT = (
    f"there is no {_PATH}"
    if not os.path.exists(_PATH)
    else f"this user may not open {_PATH}"
    if not os.access(_PATH, os.R_OK | os.W_OK)
    else f"{_PATH} is not x86's"
    if os.uname().machine != "x86_64"
    else ""
)
needs_kvm = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)


class Faults:
    """ioctl(2), save what is to be refused.

    Attributes:
        refuse: {request: errno}.
        answer: {request: what to do instead}.
        calls: the requests made, in order.
    """

    def __init__(self, real: Callable[[int, int, Any], int]) -> None:
        self._real = real
        self.refuse: dict[Request, int] = {}
        self.answer: dict[Request, Callable[[Any], int]] = {}
        self.calls: list[Request] = []

    def ioctl(self, fd: int, request: Request, argument: Any) -> int:
        self.calls.append(request)
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        if request in self.answer:
            return self.answer[request](argument)
        return self._real(fd, request, argument)


class Counted:
    """Takes down a file's ioctls while it is its watcher."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request, argument: Any, outcome: int | OSError) -> None:
        self.requests.append(request)


@contextmanager
def counting(vm: VM) -> Iterator[list[Request]]:
    """The ioctls made on a VM's file while the block lasts."""
    counted = Counted()
    vm.file.watcher = counted
    try:
        yield counted.requests
    finally:
        vm.file.watcher = None


def arrived(vcpu: Vcpu) -> set[int]:
    """The vectors in a vCPU's IRR."""
    return set(vcpu.lapic.requested)


def arrives(vcpu: Vcpu, eventfd: EventFd, vector: int) -> bool:
    """Whether an event on an eventfd puts a vector into the vCPU's IRR; clears it there."""
    eventfd.signal()
    lapic = vcpu.lapic
    came = vector in lapic.requested
    lapic.requested = frozenset()
    vcpu.lapic = lapic
    eventfd.take()
    return came


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether something comes true that the kernel leaves to one of its work queues."""
    end = time.monotonic() + 60
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.001)
    return true


def program_ioapic(vm: VM, vectors: dict[int, int], *, level: bool = False) -> None:
    """Let pins of the I/O APIC, by number, be vectors of vCPU 0."""
    chip = kvm_x86.kvm_irqchip(chip_id=kvm_x86.KVM_IRQCHIP_IOAPIC)
    vm.file.ioctl(kvm_x86.KVM_GET_IRQCHIP, chip)
    for pin, vector in vectors.items():
        entry = chip.chip.ioapic.redirtbl[pin]
        entry.bits = vector
        entry.fields.trig_mode = level
    vm.file.ioctl(kvm_x86.KVM_SET_IRQCHIP, chip)


def pic_requests(vm: VM) -> set[int]:
    """The inputs of the two PICs, 0 to 15, that wait for the processor."""
    found = set()
    for chip_id, first in ((kvm_x86.KVM_IRQCHIP_PIC_MASTER, 0), (kvm_x86.KVM_IRQCHIP_PIC_SLAVE, 8)):
        chip = kvm_x86.kvm_irqchip(chip_id=chip_id)
        vm.file.ioctl(kvm_x86.KVM_GET_IRQCHIP, chip)
        found |= {first + bit for bit in range(8) if chip.chip.pic.irr >> bit & 1}
    return found


def load(vm: VM, vcpu: Vcpu, code: bytes, address: int = 0x1000) -> memoryview:
    """Give a VM 64 KiB of memory and its vCPU 16-bit code to run."""
    memory = vm.alloc_memory(0x10000).view
    memory[address : address + len(code)] = code
    special = vcpu.special_registers
    special.cs.base = special.cs.selector = 0
    vcpu.special_registers = special
    registers = vcpu.registers
    registers.rip, registers.rflags = address, 2
    vcpu.registers = registers
    return memory


@functools.cache
def why_no_guest() -> str:
    """Why guest code cannot be run here; empty where it can."""
    with VM(NoIrqchip()) as vm:
        vcpu = vm.create_vcpu()
        load(vm, vcpu, b"\xf4")
        try:
            assert vcpu.run().reason == kvm.KVM_EXIT_HLT
        except errors.CannotRunGuest as error:
            return str(error)
    return ""
