"""Interrupt controllers that KVM emulates in the kernel, and what each can do."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import kvm, kvm_x86
from pyvfio.kvm.routes import Pin

_IOAPIC_PINS = 24
_PIC_PINS = 16
_MAX_ROUTES = 4096  # KVM_MAX_IRQ_ROUTES


class Irqchip(ABC):
    """A VM's interrupt controller, chosen when the VM is made.

    Attributes:
        name: for messages.
        routable: GSIs are looked up in the VM's table of routes (``KVM_SET_GSI_ROUTING``). Where
            it is False, each GSI is one fixed input of the controller.
        irqfds: whether eventfds can be interrupts here.
        resample: irqfds can tell when the guest has acknowledged a level-triggered interrupt.
        first_gsi: the first GSI that is not the controller's own.
        bypass: a device's interrupts bypass software once VFIO and an irqfd have the same eventfd,
            and KVM drops what software signals on that eventfd meanwhile: VFIO's loopback, too.
    """

    name: str
    routable = False
    irqfds = True
    resample = False
    first_gsi = 0
    bypass = False

    @abstractmethod
    def create(self, vm: File) -> None:
        """Create it in a VM that has no vCPU yet.

        Raises:
            Unsupported: this kernel does not have it.
            KernelError: the kernel refused.
        """

    def connect(self, vcpu: File, number: int) -> None:  # noqa: B027 (few have to)
        """Let a new vCPU, whose file and number these are, take its interrupts.

        Raises:
            KernelError: the kernel refused.
        """

    def close(self) -> None:  # noqa: B027 (few have)
        """Close what it has of its own; the VM calls it."""

    def default_routes(self) -> Mapping[int, tuple[Pin, ...]]:
        """The routes that a new VM has from the kernel, by GSI."""
        return {}


class NoIrqchip(Irqchip):
    """None in the kernel: vCPUs run, and irqfds do not work."""

    name = "no irqchip"
    irqfds = False

    def create(self, vm: File) -> None:
        """Nothing to create."""


class FullIrqchip(Irqchip):
    """x86: local APICs, I/O APIC and both PICs in the kernel (``KVM_CREATE_IRQCHIP``)."""

    name = "full irqchip"
    routable = True
    resample = True
    first_gsi = _IOAPIC_PINS

    def create(self, vm: File) -> None:
        machine = os.uname().machine
        # arm64 has the same capability and request, for a GICv2.
        if machine != "x86_64":
            raise errors.Unsupported(
                f"pyvfio has interrupt controllers for guests of x86_64 and POWER hosts, not of "
                f"{machine}: no interrupt can be forwarded to a guest on this host"
            )
        _require(vm, kvm.KVM_CAP_IRQCHIP, self.name)
        vm.ioctl(kvm.KVM_CREATE_IRQCHIP)

    def default_routes(self) -> Mapping[int, tuple[Pin, ...]]:
        """GSI n is pin n of the I/O APIC and, below 16, of the PICs (arch/x86/kvm/irq_comm.c)."""
        routes = {}
        for gsi in range(_IOAPIC_PINS):
            ioapic = Pin(kvm_x86.KVM_IRQCHIP_IOAPIC, gsi)
            master = gsi < _PIC_PINS // 2
            chip = kvm_x86.KVM_IRQCHIP_PIC_MASTER if master else kvm_x86.KVM_IRQCHIP_PIC_SLAVE
            pic = Pin(chip, gsi % (_PIC_PINS // 2))
            routes[gsi] = (pic, ioapic) if gsi < _PIC_PINS else (ioapic,)
        return routes


class SplitIrqchip(Irqchip):
    """x86: local APICs in the kernel, all else the caller's (``KVM_CAP_SPLIT_IRQCHIP``).

    What a VM with interrupt remapping needs. Only messages can be routed.
    """

    name = "split irqchip"
    routable = True

    def __init__(self, pins: int = _IOAPIC_PINS) -> None:
        """
        Args:
            pins: GSIs to keep free for the caller's own I/O APIC.

        Raises:
            RangeError: it is no number of pins.
        """
        if not 0 <= pins <= _MAX_ROUTES:
            raise errors.RangeError(f"an I/O APIC has 0 to {_MAX_ROUTES} pins here, not {pins}")
        self.first_gsi = pins

    def create(self, vm: File) -> None:
        _require(vm, kvm.KVM_CAP_SPLIT_IRQCHIP, self.name)
        enable = kvm.kvm_enable_cap(cap=kvm.KVM_CAP_SPLIT_IRQCHIP)
        enable.args[0] = self.first_gsi
        vm.ioctl(kvm.KVM_ENABLE_CAP, enable)


def _require(vm: File, capability: int, name: str) -> None:
    if not vm.ioctl(kvm.KVM_CHECK_EXTENSION, capability):
        raise errors.Unsupported(f"this kernel's KVM has no {name}")
