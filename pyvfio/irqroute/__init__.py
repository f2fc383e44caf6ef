"""A device's MSI and MSI-X vectors, forwarded to KVM: the irqchip-route helper.

    with pyvfio.open(NIC) as device, kvm.VM() as vm, irqroute.assigned(device, vm):
        with irqroute.MsixForwarder(device.msix, vm) as forwarder:
            forwarder.msix[0] = MsixEntry(*kvm.apic_message(0x41), masked=False)
            forwarder.msix.enabled = True

The guest's view is a table in memory (:class:`VirtualMsix`); the forwarder makes VFIO and KVM
follow it. How it is laid out:

    table.py         the guest's MSI-X table and its semantics; nothing of VFIO or KVM
    forwarder.py     from the guest's table, or MSI message, to the device's vectors
    paths.py         a vector's way: eventfds, irqfd, GSI; the order in which they are joined
    history.py       the same in the order of QEMU in 2016, with each policy for the dummy vector
    gsis.py          from message to GSI: by the table of routes, or computed
    trace.py         the ioctls that were made, decoded
    model.py         stand-ins for a device, and for a kernel whose GSIs are computed
"""

from __future__ import annotations

from pyvfio.irqroute.forwarder import MsiForwarder, MsixForwarder, assigned
from pyvfio.irqroute.gsis import DirectGsis, DirectGsis2016, GsiMapping, RoutedGsis
from pyvfio.irqroute.history import BEFORE, D1F6AF6, PATCHED, POLICIES, TODAY, Policy
from pyvfio.irqroute.table import VirtualMsix
from pyvfio.irqroute.trace import Event, Trace

__all__ = [
    "BEFORE",
    "D1F6AF6",
    "PATCHED",
    "POLICIES",
    "TODAY",
    "DirectGsis",
    "DirectGsis2016",
    "Event",
    "GsiMapping",
    "MsiForwarder",
    "MsixForwarder",
    "Policy",
    "RoutedGsis",
    "Trace",
    "VirtualMsix",
    "assigned",
]
