"""What forwarding costs today, and that no interrupt is lost or doubled on the way.

The trace's notation is that of test_history.py; "-" is a vector without eventfd.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvfio import errors, kvm
from pyvfio._sys import EventFd
from pyvfio.device import Irq
from pyvfio.device.msix import MsixEntry
from pyvfio.irqroute import (
    PATCHED,
    TODAY,
    DirectGsis,
    MsiForwarder,
    MsixForwarder,
    Policy,
    RoutedGsis,
)
from pyvfio.irqroute.forwarder import default_gsis
from pyvfio.irqroute.model import modelled_msix
from pyvfio.kvm import MsiMessage

from .rig import ENABLE, FIRST_SOURCE, MASKALL, Guest, Rig, open_files

CHECKOUT = Path(__file__).resolve().parents[2]


def test_many_vectors_cost_one_commit_and_one_call_to_vfio(routed: Guest) -> None:
    with Rig(routed, 64).watching() as rig:
        rig.fill(*range(64))
        rig.did()
        rig.msix.enabled = True
        kinds = [event.text[0] for event in rig.trace.take()]
        assert kinds == ["G", *["I"] * 64, "S"]
        assert rig.fire(*range(64)) == {routed.message(vector) for vector in range(64)}


def test_the_routes_are_there_before_the_irqfds_and_these_before_vfio(routed: Guest) -> None:
    with Rig(routed, 2).watching() as rig:
        rig.fill(0, 1)
        rig.msix.enabled = True
        assert rig.did() == "G{24:m0,25:m1}; I+(kvm0,24); I+(kvm1,25); S(0,[kvm0,kvm1])"
        rig.msix.enabled = False
        # VFIO first; then closing the eventfds unbinds them, one call waits for all of that.
        assert rig.did() == "D; I-(kvm1,25); G{}"


def test_enabled_without_a_vector_no_dummy_is_needed(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.msix.control = ENABLE | MASKALL
        assert rig.did() == "S(0,[-])"
        assert guest.bound() == 0


def test_where_vectors_can_be_added_a_hole_is_not_allocated(direct: Guest) -> None:
    with Rig(direct, 8).watching() as rig:
        rig.fill(5)
        rig.msix.enabled = True
        assert rig.did() == "I+(kvm5,0x1305); S(0,[-]); S(5,[kvm5])"
        rig.fill(2)
        assert rig.did() == "I+(kvm2,0x1302); S(2,[kvm2])"
        assert rig.fire(2, 5) == {direct.message(2), direct.message(5)}


def test_where_they_cannot_one_call_names_them_up_to_the_last(direct: Guest) -> None:
    with Rig(direct, 8, noresize=True).watching() as rig:
        rig.fill(1, 3)
        rig.msix.enabled = True
        assert rig.did().endswith("; S(0,[-,kvm1,-,kvm3])")
        rig.msix.write_table(16 + 12, 1)
        rig.did()
        rig.fill(4)
        assert rig.did() == "I+(kvm4,0x1304); D; S(0,[-,int1,-,kvm3,kvm4])", "growing disables"
        assert rig.fire(1, 3, 4) == {direct.message(3), direct.message(4)}
        assert rig.msix.is_pending(1)


def test_masking_a_range_is_one_call_and_keeps_irqfds_and_routes(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0, 1, 2, 3)
        rig.msix.enabled = True
        rig.did()
        rig.msix.function_masked = True
        assert rig.did() == "S(0,[int0,int1,int2,int3])"
        assert guest.bound() == 4
        rig.msix.function_masked = False
        assert rig.did() == "S(0,[kvm0,kvm1,kvm2,kvm3])", "an unchanged message commits nothing"


def test_masking_leaves_vectors_in_between_alone(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0, 1, 2, 3)
        rig.msix.enabled = True
        rig.msix.write_table(16 + 12, 1)
        rig.did()
        rig.msix.function_masked = True
        assert rig.did() == "S(0,[int0]); S(2,[int2,int3])"


def test_what_comes_while_masked_is_pending_and_delivered_once(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0, 1)
        rig.msix.enabled = True
        rig.msix.write_table(12, 1)
        assert rig.fire(0, 0, 1) == {guest.message(1)}
        assert rig.msix.is_pending(0)
        assert rig.msix.read_pending(0) == 1
        rig.msix.write_table(12, 0)
        assert rig.arrivals() == {guest.message(0)}
        assert not rig.msix.is_pending(0)
        assert rig.arrivals() == set()
        rig.msix.write_table(12, 1)
        rig.msix.write_table(12, 0)
        assert rig.arrivals() == set(), "nothing is left to deliver"


def test_many_new_messages_are_committed_once(routed: Guest) -> None:
    with Rig(routed).watching() as rig:
        rig.fill(0, 1, 2)
        rig.msix.enabled = True
        rig.msix.function_masked = True
        for vector in (0, 1):
            rig.msix[vector] = rig.entry(vector, moved=True)
        rig.fill(3)
        rig.did()
        rig.msix.function_masked = False
        assert rig.did() == (
            "G{24:m0',25:m1',26:m2,27:m3}; I+(kvm3,27); S(0,[kvm0,kvm1,kvm2,kvm3])"
        ), "also together with a new vector"
        assert rig.fire(0, 3) == {routed.message(0, moved=True), routed.message(3)}


def test_a_computed_gsi_is_moved_by_deassign_and_assign(direct: Guest) -> None:
    with Rig(direct).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        rig.did()
        rig.msix[0] = MsixEntry(0, 0, False)
        assert rig.did() == "S(0,[int0]); I-(kvm0,0x1300); I+(kvm0,0); S(0,[kvm0])"
        assert rig.forwarder.paths.gsi(0) == 0
        rig.fill(0)
        assert rig.did() == "S(0,[int0]); I-(kvm0,0); I+(kvm0,0x1300); S(0,[kvm0])"
        assert rig.fire(0) == {direct.message(0)}


def test_what_was_pending_goes_where_the_vector_goes_now(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        rig.msix.write_table(12, 1)
        assert rig.fire(0) == set()
        rig.msix[0] = rig.entry(0, moved=True)
        assert rig.arrivals() == {guest.message(0, moved=True)}


def test_a_reset_while_enabled_leaves_nothing_and_begins_anew(guest: Guest) -> None:
    files = open_files()
    with Rig(guest).watching() as rig:
        own = open_files()
        rig.fill(0, 1)
        rig.msix.enabled = True
        rig.forwarder.reset()
        assert open_files() == own
        assert guest.bound() == 0
        assert list(rig.msix) == [MsixEntry(0, 0, True)] * 4
        rig.fill(0, 1)
        rig.msix.enabled = True
        assert rig.fire(0, 1) == {guest.message(0), guest.message(1)}
    assert open_files() == files


def test_closing_twice_and_in_any_order(guest: Guest) -> None:
    for order in ("vdf", "vfd", "dvf", "dfv", "fvd", "fdv"):
        for policy in (TODAY, PATCHED):
            machine = type(guest)()
            rig = Rig(machine, policy=policy)
            before = open_files()
            rig.fill(0, 1)
            rig.msix.enabled = True
            closing = {"v": machine.close, "d": rig.irq.file.close, "f": rig.forwarder.close}
            for name in order:
                closing[name]()
                closing[name]()
            assert open_files() <= before
            with pytest.raises(errors.Closed):
                rig.msix.enabled = True
            assert not rig.msix.enabled


def test_two_devices_share_a_vm(guest: Guest) -> None:
    with Rig(guest).watching() as one, Rig(guest).watching() as other:
        one.fill(0, 1)
        one.msix.enabled = True
        for vector in (0, 1):
            other.msix[vector] = other.entry(vector, moved=True)
        other.msix.enabled = True
        assert one.fire(0, 1) == {guest.message(0), guest.message(1)}
        assert other.fire(1) == {guest.message(1, moved=True)}
        one.forwarder.close()
        assert other.fire(0) == {guest.message(0, moved=True)}
        one.msix.enabled = True
        assert one.fire(1) == {guest.message(1)}


def test_a_child_process_ends_nothing_of_its_parents(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        child = os.fork()
        if not child:
            try:
                rig.forwarder.close()
                rig.forwarder.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert rig.fire(0) == {guest.message(0)}


def test_a_device_that_has_gone_leaves_nothing_once_closed(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(guest).watching() as rig:
        before = open_files()
        rig.fill(0, 1)
        rig.msix.enabled = True
        with monkeypatch.context() as patch:
            patch.setattr(type(rig.device), "_answer", lambda *_: 19)
            with pytest.raises(errors.DeviceGone):
                rig.fill(2)
            with pytest.raises(errors.DeviceGone):
                rig.msix.function_masked = True
            assert not rig.msix.function_masked
            assert rig.msix[2].masked
            with pytest.raises(errors.DeviceGone):
                rig.forwarder.close()
            assert not rig.msix.enabled
            assert open_files() == before
            assert guest.bound() == 0
            rig.forwarder.close()


def test_vectors_enabled_for_this_process_are_not_ended_by_forwarding(direct: Guest) -> None:
    with Rig(direct).watching() as rig:
        rig.fill(0)
        with rig.irq.enable(1, start=3) as vectors:
            with pytest.raises(errors.StateError, match="close them first"):
                rig.msix.enabled = True
            assert vectors[0].enabled
        rig.msix.enabled = True


def test_the_kernels_own_tables_are_told_what_is_wrong(routed: Guest) -> None:
    with Rig(routed).watching() as rig:
        with pytest.raises(errors.RangeError):
            rig.msix[4] = rig.entry(0)
        rig.msix.enabled = True
        with pytest.raises(errors.ArgumentError):
            rig.msix[0] = MsixEntry(1 << 64, 0, False)
        assert rig.msix[0] == MsixEntry(0, 0, True)
        free = routed.vm.routes.limit - 40
        with routed.vm.routes.batch() as routes:
            routes.add_many([routed.message(0)] * (free - 1))
        rig.fill(0)
        with pytest.raises(errors.RoutesExhausted):
            rig.fill(1)
        assert rig.msix[1].masked
        assert rig.fire(0) == {routed.message(0)}


def test_a_vm_without_irqchip_says_so_and_nothing_is_left(routed: Guest) -> None:
    files = open_files()
    with kvm.VM(kvm.NoIrqchip()) as vm:
        forwarder = MsixForwarder(irq := modelled_msix(2), vm)
        forwarder.msix[0] = MsixEntry(*routed.message(0), False)
        with pytest.raises(errors.NoIrqchip):
            forwarder.msix.enabled = True
        assert not forwarder.msix.enabled
        irq.file.close()
    assert open_files() == files


def test_a_message_that_the_x2apic_format_forbids_is_refused(routed: Guest) -> None:
    with kvm.VM() as vm:
        try:
            vm.use_x2apic_format()
        except errors.Unsupported as error:
            pytest.skip(str(error))
        with MsixForwarder(irq := modelled_msix(2), vm) as forwarder:
            forwarder.msix.enabled = True
            with pytest.raises(errors.ArgumentError):
                forwarder.msix[0] = MsixEntry(0x1FEE00000, 0x41, False)
            assert forwarder.msix[0].masked
        irq.file.close()


def test_a_device_without_such_interrupts_has_no_forwarder(direct: Guest) -> None:
    nothing = modelled_msix(1)
    nothing.count = 0
    for forwarder in (MsixForwarder, MsiForwarder):
        with pytest.raises(errors.Unsupported, match="no MSI"):
            forwarder(nothing, direct.vm)
    nothing.file.close()


def test_a_copied_policy_is_the_policy(direct: Guest) -> None:
    with Rig(direct, policy=copy.copy(TODAY)).watching() as rig:
        rig.msix.enabled = True
        assert rig.did() == "S(0,[-])"


def test_the_mapping_is_the_irqchips(guest: Guest) -> None:
    kind = RoutedGsis if guest.vm.irqchip.routable else DirectGsis
    assert type(default_gsis(guest.vm)) is kind


LIMITED = """
import resource, os
from pyvfio import errors
from pyvfio.irqroute import MsixForwarder
from pyvfio.irqroute.model import ModelledVm, modelled_msix
vm, irq = ModelledVm(frozenset()), modelled_msix(64)
forwarder = MsixForwarder(irq, vm)
for vector in range(64):
    forwarder.msix[vector] = forwarder.msix[vector]._replace(data=vector, masked=False)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 4096))
before = os.listdir("/proc/self/fd")
try:
    forwarder.msix.enabled = True
except errors.OpenFilesLimit as error:
    print(error)
assert os.listdir("/proc/self/fd") == before
assert not forwarder.msix.enabled
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
forwarder.msix.enabled = True
forwarder.close(); irq.file.close(); vm.close()
"""


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_too_few_descriptors_is_a_clear_error() -> None:
    message = run(LIMITED)
    assert "64 vectors need 64 descriptors" in message
    assert "ulimit -n" in message


def test_forwarding_brings_in_no_terminal() -> None:
    loaded = run("import pyvfio.irqroute, sys; print(*sys.modules)").split()
    assert "pyvfio.irqroute" in loaded
    unwanted = {"rich", "argparse", "argcomplete", "curses", "readline", "click", "pygments"}
    assert not unwanted & set(loaded)
    assert not any(name.startswith(("pyvfio.cli", "pyvfio.replay")) for name in loaded)


# MSI: one message for all vectors.


class Msi:
    def __init__(self, guest: Guest, count: int = 4) -> None:
        self.rig = Rig(guest, count, noresize=True)
        self.rig.irq.name = "MSI"
        self.irq: Irq = self.rig.irq
        self.forwarder = MsiForwarder(self.irq, guest.vm)
        self.rig.forwarder.paths = self.forwarder.paths  # for the trace's names
        self.first = guest.message(0)
        self.moved = guest.message(0, moved=True)


def test_msi_vectors_differ_in_the_low_bits_of_the_data(guest: Guest) -> None:
    msi = Msi(guest)
    with msi.rig.watching() as rig, msi.forwarder as forwarder:
        forwarder.enable(msi.first, 4)
        done = rig.did()
        assert done.endswith("; S(0,[kvm0,kvm1,kvm2,kvm3])")
        assert done.count("G{") == (0 if guest.modelled else 1)
        assert rig.fire(0, 1, 2, 3) == {guest.message(vector) for vector in range(4)}
        with pytest.raises(errors.StateError, match="retarget"):
            forwarder.enable(msi.first)
    assert guest.bound() == 0


def test_msi_wants_a_power_of_two_and_room_in_the_data(direct: Guest) -> None:
    msi = Msi(direct)
    with msi.rig.watching() as rig, msi.forwarder as forwarder:
        for count in (0, 5, 8, -1):
            with pytest.raises(errors.RangeError, match="4 MSI vectors"):
                forwarder.enable(msi.first, count)
        with pytest.raises(errors.ArgumentError, match="low bits"):
            forwarder.enable(msi.first, 3)
        with pytest.raises(errors.ArgumentError, match="low bits"):
            forwarder.enable(MsiMessage(0, FIRST_SOURCE + 2), 4)
        for refused in (
            lambda: forwarder.mask(0),
            lambda: forwarder.unmask(0),
            lambda: forwarder.pending(0),
            lambda: forwarder.retarget(msi.first),
        ):
            with pytest.raises(errors.StateError, match="not enabled"):
                refused()
        forwarder.enable(msi.first, 2)
        rig.did()
        with pytest.raises(errors.RangeError, match="no 2"):
            forwarder.mask(1, 2)
        with pytest.raises(errors.ArgumentError, match="low bits"):
            forwarder.retarget(MsiMessage(0, FIRST_SOURCE + 1))
        assert rig.did() == ""
        assert rig.fire(0, 1) == {direct.message(0), direct.message(1)}


def test_msi_masked_is_pending_and_delivered_once(guest: Guest) -> None:
    msi = Msi(guest)
    with msi.rig.watching() as rig, msi.forwarder as forwarder:
        forwarder.enable(msi.first, 4)
        rig.did()
        forwarder.mask(1, 2, 2)
        forwarder.mask(2)
        assert rig.did() == "S(1,[int1,int2])"
        assert rig.fire(0, 1, 1) == {guest.message(0)}
        assert (forwarder.pending(1), forwarder.pending(2)) == (True, False)
        rig.did()
        forwarder.unmask(1, 2)
        assert rig.did() == "S(1,[kvm1,kvm2])"
        assert rig.arrivals() == {guest.message(1)}
        assert not forwarder.pending(1)
        forwarder.unmask(1)
        assert rig.did() == ""
        assert rig.arrivals() == set()


def test_msi_unmasking_leaves_vectors_in_between_alone(guest: Guest) -> None:
    msi = Msi(guest)
    with msi.rig.watching() as rig, msi.forwarder as forwarder:
        forwarder.enable(msi.first, 4)
        rig.did()
        forwarder.mask(0, 2)
        assert rig.did() == "S(0,[int0]); S(2,[int2])"
        forwarder.unmask(2, 0)
        assert rig.did() == "S(0,[kvm0]); S(2,[kvm2])"


def test_msi_retargets_without_a_word_to_vfio(guest: Guest) -> None:
    """VFIO would free and request the host's interrupt again, and MSI may lose one meanwhile."""
    msi = Msi(guest)
    with msi.rig.watching() as rig, msi.forwarder as forwarder:
        forwarder.enable(msi.first, 4)
        forwarder.mask(3)
        rig.fire(3)
        rig.did()
        forwarder.retarget(msi.moved)
        if guest.modelled:
            assert rig.did() == "; ".join(
                f"I-(kvm{n},{0x1300 + n:#x}); I+(kvm{n},{0x1360 + n:#x})" for n in range(3)
            )
        else:
            assert rig.did() == "G{24:m0',25:m1',26:m2',27:m3}"
        assert rig.fire(0, 1, 2) == {guest.message(n, moved=True) for n in range(3)}
        forwarder.unmask(3)
        assert rig.arrivals() == {guest.message(3, moved=True)}, "masked, it was retargeted too"


def test_msi_ends_at_close_and_can_begin_again(guest: Guest) -> None:
    msi = Msi(guest)
    with msi.rig.watching() as rig:
        before = open_files()
        for _ in range(2):
            msi.forwarder.enable(msi.first, 2)
            msi.forwarder.mask(0)
            rig.fire(0)
            msi.forwarder.close()
            msi.forwarder.close()
            assert open_files() == before
            assert guest.bound() == 0
        msi.forwarder.enable(msi.first, 2)
        assert not msi.forwarder.pending(0)
        assert rig.arrivals() == set()
        msi.forwarder.close()


@pytest.mark.parametrize("policy", [TODAY, PATCHED], ids=lambda each: each.name)
def test_pending_interrupt_is_sent_while_vfio_signals_another_eventfd(
    direct: Guest, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM on XIVE drops what software signals on an eventfd that VFIO signals as well."""
    monkeypatch.setattr(direct.vm.irqchip, "bypass", True)
    with Rig(direct, policy=policy).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        rig.msix.write_table(12, 1)
        rig.irq.trigger(0)
        assert rig.msix.is_pending(0)
        signal = EventFd.signal
        seen: list[bool] = []

        def watched(eventfd: EventFd, count: int = 1) -> None:
            seen.append(eventfd.fileno() in rig.device.signalled().values())
            signal(eventfd, count)

        monkeypatch.setattr(EventFd, "signal", watched)
        rig.msix.write_table(12, 0)
        assert seen == [False]
        assert direct.take() == {direct.message(0)}
        assert rig.fire(0) == {direct.message(0)}, "VFIO signals it again"
