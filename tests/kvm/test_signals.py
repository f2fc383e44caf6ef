"""Calls that Ctrl-C interrupts, on the real KVM: they are made whole, or undone."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pyvfio._sys import EventFd, calls
from pyvfio.abi import kvm as abi
from pyvfio.abi.ioctl import Request
from pyvfio.kvm import VM, SplitIrqchip, System, apic_message
from tests.interruptions import HOW, WHEN, press

from .support import arrives, needs_kvm

pytestmark = needs_kvm

MESSAGE = apic_message(0x41)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the next such request be interrupted, before or after KVM has done it."""

    def interrupt(request: Request, when: str, how: Callable[[], None]) -> None:
        real = calls.ioctl

        def ioctl(fd: int, asked: Request, argument: Any) -> int:
            if asked != request:
                return real(fd, asked, argument)
            monkeypatch.setattr(calls, "ioctl", real)
            if when == "before":
                how()
            result = real(fd, asked, argument)
            if when == "after":
                how()
            return result

        monkeypatch.setattr(calls, "ioctl", ioctl)

    return interrupt


@WHEN
@pytest.mark.parametrize(
    "request_",
    [abi.KVM_CREATE_VM, abi.KVM_CREATE_IRQCHIP, abi.KVM_CHECK_EXTENSION],
)
def test_interrupted_vm_is_not_made(
    interrupt: Callable[..., None], request_: Request, when: str
) -> None:
    with System() as system:
        interrupt(request_, when, press)
        with pytest.raises(KeyboardInterrupt):
            VM(system=system)


@WHEN
@pytest.mark.parametrize("what", ["vCPU", "KVM-VFIO device"])
def test_interrupted_part_of_a_vm_is_not_made(
    vm: VM, interrupt: Callable[..., None], what: str, when: str
) -> None:
    request = abi.KVM_CREATE_VCPU if what == "vCPU" else abi.KVM_CREATE_DEVICE
    interrupt(request, when, press)
    with pytest.raises(KeyboardInterrupt):
        _ = vm.create_vcpu() if what == "vCPU" else vm.vfio
    if what == "vCPU":
        assert repr(vm) == "<VM full irqchip, 0 vCPUs>"
        assert vm.create_vcpu().id == 1, "KVM keeps the number taken"


@HOW
@WHEN
def test_interrupted_memory_is_not_mapped(
    vm: VM, interrupt: Callable[..., None], when: str, how: Callable[[], None]
) -> None:
    interrupt(abi.KVM_SET_USER_MEMORY_REGION, when, how)
    with pytest.raises(KeyboardInterrupt):
        vm.alloc_memory(mmap.PAGESIZE)
    slot = vm.alloc_memory(mmap.PAGESIZE)
    interrupt(abi.KVM_SET_USER_MEMORY_REGION, when, how)
    with pytest.raises(KeyboardInterrupt):
        slot.close()
    slot.close()
    vm.alloc_memory(mmap.PAGESIZE).close()


@HOW
@WHEN
@pytest.mark.parametrize("resample", [False, True])
def test_interrupted_irqfd_is_not_bound(
    interrupt: Callable[..., None], when: str, how: Callable[[], None], resample: bool
) -> None:
    with VM() as vm, EventFd() as eventfd, EventFd() as told:
        gsi = 5
        arguments = (eventfd, gsi, told) if resample else (eventfd, gsi)
        interrupt(abi.KVM_IRQFD, when, how)
        with pytest.raises(KeyboardInterrupt):
            vm.irqfds.assign(*arguments)
        assert len(vm.irqfds) == 0
        irqfd = vm.irqfds.assign(*arguments)  # EBUSY if it was bound
        interrupt(abi.KVM_IRQFD, when, how)
        with pytest.raises(KeyboardInterrupt):
            irqfd.close()
        irqfd.close()
        assert len(vm.irqfds) == 0
        vm.irqfds.assign(*arguments).close()


@HOW
@WHEN
def test_interrupted_irqfds_are_not_bound(
    vm: VM, interrupt: Callable[..., None], when: str, how: Callable[[], None]
) -> None:
    with ExitStack() as stack:
        pairs = [(stack.enter_context(EventFd()), 99) for _ in range(3)]

        def later(pairs: list[tuple[EventFd, int]]) -> Any:
            yield pairs[0]
            interrupt(abi.KVM_IRQFD, when, how)
            yield from pairs[1:]

        with pytest.raises(KeyboardInterrupt):
            vm.irqfds.assign_many(later(pairs))
        assert len(vm.irqfds) == 0
        vm.irqfds.assign_many(pairs)


@HOW
@WHEN
def test_interrupted_commit_leaves_table_and_kernel_alike(
    vm: VM, interrupt: Callable[..., None], when: str, how: Callable[[], None]
) -> None:
    vcpu = vm.create_vcpu()
    vcpu.enable_lapic()
    gsi = vm.routes.add(MESSAGE)
    with EventFd() as eventfd, vm.irqfds.assign(eventfd, gsi):
        for change in (
            lambda: vm.routes.change(gsi, apic_message(0x42)),
            lambda: vm.routes.remove(gsi),
            lambda: vm.routes.add(apic_message(0x43)),
        ):
            before = dict(vm.routes)
            interrupt(abi.KVM_SET_GSI_ROUTING, when, how)
            with pytest.raises(KeyboardInterrupt):
                change()
            assert dict(vm.routes) == before
            assert arrives(vcpu, eventfd, 0x41)
        vm.routes.change(gsi, apic_message(0x44))
        assert arrives(vcpu, eventfd, 0x44)


def test_what_a_run_gave_keeps_no_vm(split: VM) -> None:
    vcpu = split.create_vcpu()
    kept = vcpu._shared[:8]
    structure = vcpu._run
    vcpu.close()
    with open("/proc/self/maps") as maps:
        assert "kvm-vcpu" not in maps.read()
    assert structure is not None
    assert structure.exit_reason == 0xFFFFFFFF
    del kept


def test_split_irqchip_after_an_interruption(interrupt: Callable[..., None]) -> None:
    interrupt(abi.KVM_ENABLE_CAP, "after", press)
    with pytest.raises(KeyboardInterrupt):
        VM(SplitIrqchip())
    VM(SplitIrqchip()).close()
