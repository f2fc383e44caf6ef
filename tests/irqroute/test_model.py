"""The modelled device and VM keep the kernel's rules, where these are seen from here.

Rules of KVM_IRQFD are tried on the kernel too, so that a model that strays is noticed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest

from pyvfio import errors
from pyvfio._sys import EventFd, File
from pyvfio.abi import kvm as kvm_abi
from pyvfio.abi import vfio
from pyvfio.device import Irq, MsixEntry
from pyvfio.irqroute import MsixForwarder
from pyvfio.irqroute.gsis import DirectGsis2016
from pyvfio.irqroute.model import ModelledVm, modelled_msix
from pyvfio.kvm import MsiMessage

from .rig import FIRST_SOURCE, Guest, open_files


@pytest.fixture
def irq() -> Iterator[Irq]:
    irq = modelled_msix(8)
    with irq.file:
        yield irq


def irqfd(file: File, eventfd: EventFd, gsi: int, *, away: bool = False) -> None:
    """The bare ioctl."""
    flags = kvm_abi.KVM_IRQFD_FLAG_DEASSIGN if away else 0
    file.ioctl(kvm_abi.KVM_IRQFD, kvm_abi.kvm_irqfd(fd=eventfd.fileno(), gsi=gsi, flags=flags))


# KVM_IRQFD: kernel and model.


def test_an_eventfd_is_one_irqfd_at_a_time(guest: Guest) -> None:
    with EventFd() as eventfd:
        irqfd(guest.file, eventfd, 30)
        for gsi in (30, 31):
            with pytest.raises(errors.KernelError) as refusal:
                irqfd(guest.file, eventfd, gsi)
            assert refusal.value.errno == errno.EBUSY


def test_unbinding_what_does_not_match_succeeds_and_does_nothing(guest: Guest) -> None:
    with EventFd() as eventfd:
        irqfd(guest.file, eventfd, 30, away=True)
        irqfd(guest.file, eventfd, 30)
        irqfd(guest.file, eventfd, 31, away=True)
        with pytest.raises(errors.KernelError):
            irqfd(guest.file, eventfd, 30)  # bound as before
        irqfd(guest.file, eventfd, 30, away=True)
        irqfd(guest.file, eventfd, 31)


def test_a_gsi_that_leads_nowhere_is_accepted_and_drops_what_comes(guest: Guest) -> None:
    with EventFd() as eventfd:
        irqfd(guest.file, eventfd, 0xFFFF)
        eventfd.signal()
        assert guest.take() == set()
        assert eventfd.take() == 0, "and it was taken"


def test_what_came_before_the_binding_is_delivered_by_it(guest: Guest) -> None:
    with EventFd() as eventfd:
        message = guest.message(0)
        gsi = FIRST_SOURCE if guest.modelled else guest.vm.routes.add(message)
        eventfd.signal()
        irqfd(guest.file, eventfd, gsi)
        # The kernel leaves this to a worker.
        end, arrived = time.monotonic() + 10, guest.take()
        while not arrived and time.monotonic() < end:
            arrived = guest.take()
        assert arrived == {message}


def test_closing_an_eventfd_unbinds_it_whoever_gets_its_number(guest: Guest) -> None:
    first = EventFd()
    number = first.fileno()
    irqfd(guest.file, first, 30)
    first.close()
    with EventFd() as second:
        assert second.fileno() == number
        irqfd(guest.file, second, 31)


def test_a_descriptor_that_is_closed_is_refused(guest: Guest) -> None:
    for flags in (0, kvm_abi.KVM_IRQFD_FLAG_DEASSIGN):
        with pytest.raises(errors.KernelError) as refusal:
            guest.file.ioctl(kvm_abi.KVM_IRQFD, kvm_abi.kvm_irqfd(fd=9999, gsi=1, flags=flags))
        assert refusal.value.errno == errno.EBADF


def test_a_modelled_vm_has_no_routes(direct: Guest) -> None:
    with pytest.raises(errors.Unsupported, match="no GSI routes"):
        direct.vm.routes.add(MsiMessage(0, 0))
    with pytest.raises(errors.KernelError) as refusal:
        direct.file.ioctl(kvm_abi.KVM_SET_GSI_ROUTING, bytearray(8))
    assert refusal.value.errno == errno.ENOTTY


def test_sources_take_what_is_theirs() -> None:
    files = open_files()
    vm = ModelledVm(frozenset({7}))
    with EventFd() as there, EventFd() as nowhere:
        vm.irqfds.assign(there, 7)
        vm.irqfds.assign(nowhere, 0)
        for eventfd in (there, nowhere, there):
            eventfd.signal()
        assert vm.take() == {7}
        assert vm.take() == set()
    vm.close()
    vm.close()
    with pytest.raises(errors.Closed), EventFd() as eventfd:
        irqfd(vm.file, eventfd, 1)
    assert open_files() == files


# VFIO_DEVICE_SET_IRQS: drivers/vfio/pci/vfio_pci_intrs.c.


def test_disabling_what_is_disabled_is_einval(irq: Irq) -> None:
    claim = irq.claim(list)
    for _ in range(2):
        with pytest.raises(errors.KernelError) as refusal:
            claim.disable(ask=True)
        assert refusal.value.errno == errno.EINVAL
        claim.signal(0, [None])
        claim.disable(ask=True)


def test_firing_goes_to_the_eventfd_of_the_moment(irq: Irq) -> None:
    claim = irq.claim(list)
    with EventFd() as one, EventFd() as other:
        claim.signal(0, [one.fileno(), other.fileno()])
        irq.trigger(0, 2)
        claim.signal(0, [other.fileno(), None])
        irq.trigger(0)
        assert (one.take(), other.take()) == (1, 2)


def test_an_eventfd_that_was_closed_hears_nothing_nor_does_who_has_its_number(irq: Irq) -> None:
    first = EventFd()
    irq.claim(list).signal(0, [first.fileno()])
    first.close()
    with EventFd() as second:
        irq.trigger(0)
        assert second.take() == 0


def test_a_bad_descriptor_parts_all_that_the_call_named(irq: Irq) -> None:
    claim = irq.claim(list)
    with EventFd() as eventfd:
        claim.signal(0, [eventfd.fileno()])
        with pytest.raises(errors.KernelError) as refusal:
            claim.signal(0, [eventfd.fileno(), 9999])
        assert refusal.value.errno == errno.EBADF
        irq.trigger(0)
        assert eventfd.take() == 0


def test_beyond_the_last_vector_and_growing_without_leave_are_einval() -> None:
    for noresize, start in ((False, 8), (True, 1)):
        irq = modelled_msix(8, noresize=noresize)
        with irq.file:
            irq.claim(list).signal(0, [None])
            argument = bytearray(
                vfio.vfio_irq_set(
                    argsz=24,
                    flags=vfio.VFIO_IRQ_SET_DATA_EVENTFD | vfio.VFIO_IRQ_SET_ACTION_TRIGGER,
                    index=vfio.VFIO_PCI_MSIX_IRQ_INDEX,
                    start=start,
                    count=1,
                )
            )[:20] + bytearray(b"\xff" * 4)
            with pytest.raises(errors.KernelError) as refusal:
                irq.file.ioctl(vfio.VFIO_DEVICE_SET_IRQS, argument)
            assert refusal.value.errno == errno.EINVAL


def test_other_ioctls_are_enotty(irq: Irq) -> None:
    with pytest.raises(errors.KernelError) as refusal:
        irq.file.ioctl(vfio.VFIO_DEVICE_RESET)
    assert refusal.value.errno == errno.ENOTTY


# From a message to an interrupt source: POWER.


def test_a_source_above_16_bits_is_bound_as_it_is_or_refused() -> None:
    vm, irq = ModelledVm(frozenset({0x11300, 0x1300})), modelled_msix(2)
    with MsixForwarder(irq, vm) as forwarder:
        forwarder.msix[0] = MsixEntry(0, 0x11300, False)
        forwarder.msix.enabled = True
        irq.trigger(0)
        assert vm.take() == {0x11300}
        with pytest.raises(errors.ArgumentError, match="0 to 0xfffff, not 0x100000"):
            forwarder.msix[1] = MsixEntry(0, 0x100000, False)
        assert forwarder.msix[1].masked
        irq.trigger(0)
        assert vm.take() == {0x11300}
    irq.file.close()
    vm.close()


def test_qemu_of_2016_looks_at_16_bits_of_a_message() -> None:
    assert DirectGsis2016().add([MsiMessage(0, 0x11300)]) == [0x1300]
