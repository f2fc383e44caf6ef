"""KVM, as far as interrupts of assigned devices need it: VMs, irqchips, GSI routes, irqfds.

    with kvm.VM() as vm:
        vcpu = vm.create_vcpu()
        gsi = vm.routes.add(kvm.apic_message(0x41))
        with vm.irqfds.assign(vectors[0], gsi):        # from device.msix.enable(1)
            ...                                        # its interrupts go to the guest

How it is laid out:

    system.py        /dev/kvm: what KVM can do here
    vm.py            a VM: memory, vCPUs, messages
    irqchip.py       interrupt controllers in the kernel, and what each can do
    xics.py          POWER's, whose GSIs are its interrupt sources
    message.py       MSI messages, and what they say to x86's local APICs
    routes.py        the table from GSI to message, committed as a whole
    irqfd.py         eventfds that are interrupts
    vfio_device.py   telling KVM of the VFIO groups that a VM uses
    vcpu.py          a vCPU: registers, running, exits
    lapic.py         a vCPU's local APIC, as it stands
"""

from __future__ import annotations

from pyvfio.kvm.irqchip import FullIrqchip, Irqchip, NoIrqchip, SplitIrqchip
from pyvfio.kvm.irqfd import Irqfd, Irqfds
from pyvfio.kvm.lapic import LocalApic
from pyvfio.kvm.message import MsiMessage, apic_message
from pyvfio.kvm.routes import Pin, Routes
from pyvfio.kvm.system import System
from pyvfio.kvm.vcpu import Exit, Vcpu
from pyvfio.kvm.vfio_device import VfioDevice
from pyvfio.kvm.vm import VM, MemorySlot
from pyvfio.kvm.xics import Server, Source, XicsIrqchip

__all__ = [
    "VM",
    "Exit",
    "FullIrqchip",
    "Irqchip",
    "Irqfd",
    "Irqfds",
    "LocalApic",
    "MemorySlot",
    "MsiMessage",
    "NoIrqchip",
    "Pin",
    "Routes",
    "Server",
    "Source",
    "SplitIrqchip",
    "System",
    "Vcpu",
    "VfioDevice",
    "XicsIrqchip",
    "apic_message",
]
