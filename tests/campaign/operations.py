"""The public operations of _sys, iommu, device and kvm, and what they are done with."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

import pyvfio
from pyvfio import errors
from pyvfio._sys import EventFd, File, calls
from pyvfio.device import Device
from pyvfio.iommu import SpaprTceV2, Type1, container_space
from pyvfio.kvm import VM, FullIrqchip, Irqchip, NoIrqchip, SplitIrqchip, System, apic_message
from tests.iommu.spapr_standin import PowerKernel
from tests.kernel import device as stand_in

from .driver import Operation, closing

PAGE = mmap.PAGESIZE
MEMORY = mmap.mmap(-1, PAGE)


# _sys.


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def eventfd() -> Iterator[EventFd]:
    with EventFd() as event:
        event.signal()
        yield event


SYS = [
    Operation("File.open", nothing, lambda _: File.open("/dev/null")),
    Operation("EventFd", nothing, lambda _: EventFd()),
    Operation("EventFd.signal", eventfd, lambda event: event.signal()),
    Operation("EventFd.take", eventfd, lambda event: event.take()),
    Operation("EventFd.wait", eventfd, lambda event: event.wait(0)),
    Operation("EventFd.close", eventfd, lambda event: event.close()),
]


# iommu, on stand-ins of VFIO.


@contextmanager
def host() -> Iterator[stand_in.DeviceKernel]:
    """A host with a device; nothing of it is open in the end."""
    with pytest.MonkeyPatch.context() as patch:
        kernel = stand_in.stand_in(patch)
        yield kernel
        assert kernel.files == {}, f"left open: {list(kernel.files.values())}"


@contextmanager
def empty_space() -> Iterator[Type1]:
    with host(), Type1() as space:
        yield space


@contextmanager
def space() -> Iterator[Type1]:
    """A space with a device, in which nothing but arenas is mapped in the end."""
    with host() as kernel, Type1() as space:
        space.open_device(stand_in.function())
        yield space
        arenas = {arena.mapping.iova for arena in space._pool._arenas}
        assert set(kernel.mappings) <= arenas, f"left mapped: {kernel.mappings}"


@contextmanager
def spapr() -> Iterator[SpaprTceV2]:
    with pytest.MonkeyPatch.context() as patch:
        kernel = PowerKernel()
        for name in ("open", "close", "ioctl"):
            patch.setattr(calls, name, getattr(kernel, name))
        patch.setattr(container_space, "check_openable", lambda function: SimpleNamespace(id=1))
        with SpaprTceV2(window=1 << 30) as space:
            yield space
        assert kernel.files == {}
        assert not any(tables.registered for tables in kernel.tables.values())


def open_and_close(space: Type1 | SpaprTceV2) -> None:
    for file in list(space._devices):  # one that was to be closed
        space.close_device(file)
    space.close_device(space.open_device(stand_in.function()))


def use(space: SpaprTceV2) -> None:
    for file in list(space._devices):
        space.close_device(file)
    file = space.open_device(stand_in.function())
    space.map(MEMORY).close()
    space.alloc(4096)
    space.close_device(file)


def trim(space: Type1) -> None:
    space.alloc(1 << 20).close()
    space._pool.trim(0)


def after_closing(space: Type1) -> None:
    with suppress(errors.StateError):
        space.alloc(4096)


def of_space(
    name: str, act: Callable[[Any], Any], again: Callable[[Any], Any] | None = None
) -> Operation:
    return Operation(f"space.{name}", space, act, again, lambda space: [space._lock])


def closing_in_space(name: str, make: Callable[[Type1], Any]) -> Operation:
    """Closing what a space made."""

    @contextmanager
    def world() -> Iterator[Any]:
        with space() as made_in:
            yield make(made_in)

    return Operation(name, world, lambda made: made.close())


IOMMU = [
    Operation("open_space", host, lambda _: pyvfio.open_space()),
    Operation("Type1", host, lambda _: Type1()),
    Operation("open_device", empty_space, open_and_close, locks=lambda space: [space._lock]),
    of_space("map", lambda space: space.map(MEMORY)),
    of_space("map read-only", lambda space: space.map(MEMORY, writable=False)),
    of_space("alloc", lambda space: space.alloc(4096)),
    of_space("alloc large", lambda space: space.alloc(4 << 20)),
    of_space("trim", trim),
    of_space("close", lambda space: space.close(), after_closing),
    closing_in_space("mapping.close", lambda space: space.map(MEMORY)),
    closing_in_space("buffer.close", lambda space: space.alloc(4096)),
    closing_in_space("large buffer.close", lambda space: space.alloc(4 << 20)),
    Operation("spapr", spapr, use, locks=lambda space: [space._lock]),
]


# device, on a stand-in of VFIO.


@contextmanager
def open_device() -> Iterator[Device]:
    with host(), pyvfio.open(stand_in.function()) as device:
        device.bars[0].read32(0)
        yield device


def usable(device: Device) -> None:
    """Either it is closed, or all of it works."""
    if device.closed:
        return
    device.power_state = 0
    device.memory_decoding = True
    assert device.bars[0].read32(4) == 0x07060504
    for irq in device.irqs:
        irq.disable()
    with device.msix.enable(2):
        device.msix.trigger(1)
    device.dma.alloc(4096).close()


def views(device: Device) -> None:
    bar = device.bars[0]
    bar.release()
    assert bar.u32[1] == 0x07060504
    assert bar.view(4, 4)[0] == 4
    bar.write32(8, 1)


def switch(device: Device) -> None:
    device.bus_master = False
    device.memory_decoding = False
    device.memory_decoding = True
    device.bus_master = True


def sleep(device: Device) -> None:
    device.power_state = 3
    device.power_state = 0


def vectors(device: Device) -> None:
    with device.msix.enable(4) as vectors:
        device.msix.trigger(2)
        vectors[2].take()


def eventfds(device: Device) -> None:
    with EventFd() as event:
        try:
            device.msi.claim(list).signal(0, [event.fileno(), None])
            device.msi.trigger(0)
        finally:
            device.msi.disable()


def of_device(name: str, act: Callable[[Device], Any]) -> Operation:
    return Operation(
        f"device.{name}",
        open_device,
        act,
        usable,
        lambda device: [device._lock, device._irq_lock, device.dma._lock],
    )


DEVICE = [
    Operation("open", host, lambda _: pyvfio.open(stand_in.function())),
    of_device("close", lambda device: device.close()),
    of_device("registers", views),
    of_device("Command register", switch),
    of_device("power state", sleep),
    of_device("reset", lambda device: device.reset()),
    of_device("enable", vectors),
    of_device("set eventfds", eventfds),
    of_device("alloc", lambda device: device.dma.alloc(4096).close()),
]


# kvm, on the real /dev/kvm.


def irqfd(vm: VM, *, resample: bool = False) -> None:
    with EventFd() as event:
        vm.irqfds.assign(event, 5, event if resample else None).close()


def irqfds(vm: VM) -> None:
    with ExitStack() as stack:
        events = [stack.enter_context(EventFd()) for _ in range(3)]
        gsis = vm.routes.add_many([apic_message(0x40 + number) for number in range(3)])
        irqfds = vm.irqfds.assign_many(list(zip(events, gsis, strict=True)))
        vm.irqfds.end_many(list(zip(irqfds, events, strict=True)))
        vm.routes.remove(*gsis)


def routes(vm: VM) -> None:
    with vm.routes.batch():
        gsi = vm.routes.add(apic_message(0x41))
        vm.routes.change(gsi, apic_message(0x42))
    vm.routes.remove(gsi)


def close(vm: VM) -> None:
    vm.create_vcpu()
    vm.close()


def of_vm(
    name: str,
    act: Callable[[VM], Any],
    again: Callable[[VM], Any] | None = None,
    *,
    irqchip: Callable[[], Irqchip] = SplitIrqchip,
) -> Operation:
    return Operation(
        f"vm.{name}",
        lambda: closing(VM(irqchip())),
        act,
        again,
        lambda vm: [vm._lock, vm.routes._lock],
    )


def closing_in_vm(name: str, make: Callable[[VM, EventFd], Any]) -> Operation:
    """Closing what a VM made."""

    @contextmanager
    def world() -> Iterator[Any]:
        with VM(SplitIrqchip()) as vm, EventFd() as event:
            yield make(vm, event)

    return Operation(name, world, lambda made: made.close())


KVM = [
    Operation("System", nothing, lambda _: System()),
    Operation("VM", nothing, lambda _: VM()),
    Operation("VM split", nothing, lambda _: VM(SplitIrqchip())),
    Operation("VM bare", nothing, lambda _: VM(NoIrqchip())),
    of_vm("create_vcpu", lambda vm: vm.create_vcpu()),
    of_vm("vfio", lambda vm: vm.vfio),
    of_vm("irqfd", irqfd),
    of_vm("irqfd resampling", lambda vm: irqfd(vm, resample=True), irqchip=FullIrqchip),
    of_vm("irqfds", irqfds),
    of_vm("routes", routes),
    of_vm("alloc_memory", lambda vm: vm.alloc_memory(PAGE)),
    of_vm("close", close, lambda vm: vm.close()),
    closing_in_vm("slot.close", lambda vm, event: vm.alloc_memory(PAGE)),
    closing_in_vm("vcpu.close", lambda vm, event: vm.create_vcpu()),
    closing_in_vm("irqfd.close", lambda vm, event: vm.irqfds.assign(event, 24)),
]

ALL: Sequence[Operation] = [*SYS, *IOMMU, *DEVICE, *KVM]
