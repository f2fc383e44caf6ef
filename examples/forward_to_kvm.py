"""Forward a device's MSI-X vector to a KVM guest, without Python in between.

    tools/bench run x86 -- python3 examples/forward_to_kvm.py 0000:02:00.0

prints

    before: the guest's local APIC has none
    the card interrupted: it has 0x41
    masked by the guest: pending True, it has 0x41
    unmasked, with another message: pending False, it has 0x41 0x52

The host is an x86, the device an Intel 82574L network card (e1000e). What a guest's driver would
write is written here; no guest runs, so what arrived stays requested at the local APIC for
everybody to see.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pyvfio
from pyvfio import errors, irqroute, kvm
from pyvfio.device import MsixEntry
from pyvfio.drivers.e1000e import Intel82574

TIMEOUT = 30.0  # seconds; an emulated host may be slow


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        if time.monotonic() > deadline:
            raise errors.StateError("the interrupt did not arrive")
        time.sleep(0.001)


def main(address: str) -> None:
    with pyvfio.bound(address), pyvfio.open(address) as device, kvm.VM() as vm:
        card = Intel82574(device)  # refuses another device
        vcpu = vm.create_vcpu()
        vcpu.enable_lapic()  # a guest would

        def requested() -> str:
            return " ".join(f"{vector:#x}" for vector in sorted(vcpu.lapic.requested)) or "none"

        with irqroute.assigned(device, vm), irqroute.MsixForwarder(device.msix, vm) as forwarder:
            msix = forwarder.msix  # the MSI-X table that the guest sees
            print("before: the guest's local APIC has", requested())

            # From here to the guest it is the kernel's: VFIO's eventfd, an irqfd, a GSI route.
            msix.enabled = True
            msix[0] = MsixEntry(*kvm.apic_message(0x41), masked=False)
            card.raise_interrupt()
            until(lambda: 0x41 in vcpu.lapic.requested)
            print("the card interrupted: it has", requested())

            msix[0] = msix[0]._replace(masked=True)
            card.raise_interrupt()
            until(lambda: msix.is_pending(0))
            print(f"masked by the guest: pending {msix.is_pending(0)}, it has {requested()}")

            # A guest moves an interrupt to another vector or processor in this way.
            msix[0] = MsixEntry(*kvm.apic_message(0x52), masked=False)
            until(lambda: 0x52 in vcpu.lapic.requested)
            print(f"unmasked, with another message: pending {msix.is_pending(0)}, ", end="")
            print("it has", requested())
            card.quiet()


if __name__ == "__main__":
    try:
        main(sys.argv[1] if sys.argv[1:] else "0000:02:00.0")
    except pyvfio.Error as error:
        sys.exit(f"forward_to_kvm.py: {error}")
