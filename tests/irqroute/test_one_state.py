"""The device's interrupts and the forwarder have one state, whoever changes it.

Random sequences of what a guest writes and of what is done behind its back: afterwards exactly the
vectors arrive that the guest's table lets through, where its messages say, or nothing is forwarded
and the table says so.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import pyvfio
from pyvfio import eeh, errors
from pyvfio._sys import calls
from pyvfio.abi.ioctl import Request
from pyvfio.device import Irq
from pyvfio.device.msix import MsixEntry
from pyvfio.iommu import Type1, container_space
from pyvfio.irqroute import BEFORE, D1F6AF6, PATCHED, TODAY, MsiForwarder, MsixForwarder, Policy
from pyvfio.kvm import MsiMessage
from tests.eeh.conftest import open_group
from tests.eeh.standin import EehKernel, FakeDevice
from tests.kernel import device as device_stand_in

from .rig import Guest, Rig, make_guest, open_files

VECTORS = 4
NUMBERS = st.integers(0, VECTORS - 1)


@pytest.mark.parametrize("policy", [BEFORE, D1F6AF6, PATCHED, TODAY], ids=lambda each: each.name)
def test_disabling_the_devices_msix_disables_the_guests(guest: Guest, policy: Policy) -> None:
    with Rig(guest, policy=policy).watching() as rig:
        files = open_files()
        rig.fill(0, 1)
        rig.msix.enabled = True
        rig.irq.disable()
        assert not rig.msix.enabled
        assert rig.msix[1] == rig.entry(1), "the entries stay, as where a guest disables"
        assert (guest.bound(), open_files()) == (0, files)
        rig.fill(0)
        with pytest.raises(errors.StateError, match="not enabled"):
            rig.irq.trigger(0)
        rig.msix.enabled = True
        assert rig.fire(0, 1) == {guest.message(0), guest.message(1)}


def test_disabling_the_devices_msi_ends_its_forwarding(guest: Guest) -> None:
    rig = Rig(guest, noresize=True)
    forwarder = MsiForwarder(rig.irq, guest.vm)
    with rig.watching():
        forwarder.enable(guest.message(0), 2)
        forwarder.mask(1)
        rig.irq.disable()
        assert forwarder.count == 0
        assert guest.bound() == 0
        forwarder.enable(guest.message(0), 2)
        assert rig.fire(0, 1) == {guest.message(0), guest.message(1)}
        forwarder.close()


def test_a_second_forwarder_does_not_take_the_vectors_of_the_first(guest: Guest) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        second = MsixForwarder(rig.irq, guest.vm)
        with pytest.raises(errors.StateError, match="forwarded"):
            second.msix.enabled = True
        with pytest.raises(errors.StateError, match="forwarded"):
            rig.irq.enable(1, start=2)
        second.close()
        assert rig.fire(0) == {guest.message(0)}


def test_a_refused_disable_leaves_the_guests_msix_off(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(guest).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        with monkeypatch.context() as patch:
            patch.setattr(type(rig.device), "_answer", lambda *_: 19)
            with pytest.raises(errors.DeviceGone):
                rig.irq.disable()
        assert not rig.msix.enabled
        assert guest.bound() == 0
        rig.msix.enabled = True
        assert rig.fire(0) == {guest.message(0)}


def test_closing_the_device_ends_its_forwarding(
    direct: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = device_stand_in.stand_in(monkeypatch)
    device = pyvfio.open(device_stand_in.function())
    msix, msi = MsixForwarder(device.msix, direct.vm), MsiForwarder(device.msi, direct.vm)
    msix.msix[0] = MsixEntry(*direct.message(0), False)
    msix.msix.enabled = True
    with pytest.raises(errors.StateError, match="MSI-X is enabled"):
        msi.enable(direct.message(0))
    device.close()
    assert not msix.msix.enabled
    assert direct.bound() == 0
    assert not kernel.devices
    with pytest.raises(errors.Closed):
        msix.msix.enabled = True
    assert not msix.msix.enabled
    device = pyvfio.open(device_stand_in.function())
    msi = MsiForwarder(device.msi, direct.vm)
    msi.enable(direct.message(0), 2)
    device.close()
    assert msi.count == 0
    assert direct.bound() == 0


def test_a_guests_writes_in_one_thread_and_disabling_in_another(direct: Guest) -> None:
    with Rig(direct).watching() as rig:
        stop = threading.Event()

        def disable() -> None:
            while not stop.is_set():
                rig.irq.disable()

        thread = threading.Thread(target=disable)
        thread.start()
        try:
            for turn in range(300):
                rig.msix.enabled = True
                rig.msix[turn % 4] = rig.entry(turn % 4, moved=bool(turn % 8 // 4))
                with suppress(errors.StateError):
                    rig.irq.trigger(turn % 4)
                rig.msix.is_pending(turn % 4)
                rig.msix.function_masked = bool(turn % 3)
        finally:
            stop.set()
            thread.join()
        assert rig.msix.enabled == rig.irq.claimed
        rig.irq.disable()
        assert not rig.msix.enabled
        assert direct.bound() == 0
        rig.arrivals()
        rig.msix.function_masked = False
        rig.fill(0, 1, 2, 3)
        rig.msix.enabled = True
        assert rig.fire(0, 1, 2, 3) == {direct.message(vector) for vector in range(4)}


class Host(EehKernel):
    """A device's container with EEH, in front of the kernel that the VM is of."""

    def ioctl(self, fd: int, request: Request, arg: Any) -> int:
        if fd in self.files:
            return super().ioctl(fd, request, arg)
        return self.real(fd, request, arg)

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.real = calls.ioctl
        for name in ("open", "close", "ioctl"):
            patch.setattr(calls, name, getattr(self, name))
        patch.setattr(container_space, "check_openable", lambda function: function.iommu_group)


class OneState(RuleBasedStateMachine):
    """A guest's writes to its table, and what others do to the device meanwhile."""

    mapping: str

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.guest = make_guest(self.mapping)
        self.stack.callback(self.guest.close)
        self.stack.callback(self._same_files, open_files())
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.kernel = Host(patch)
        space = self.stack.enter_context(Type1())
        open_group(space, 1)
        self.rig = Rig(self.guest, VECTORS)
        self.stack.callback(self.rig.irq.file.close)
        device: Any = FakeDevice(space)
        device.msix = self.rig.irq
        self.pe = eeh.Pe(device)
        self.irq: Irq = self.rig.irq
        self.forwarder = self.rig.forwarder
        self.msix = self.rig.msix
        # What the guest knows that it wrote, and what the device should have noted for it.
        self.enabled = self.function_masked = False
        self.table: dict[int, tuple[MsiMessage, bool]] = {}
        self.pending: set[int] = set()
        self.own: Any = None

    def entry(self, vector: int) -> tuple[MsiMessage, bool]:
        return self.table.get(vector, (MsiMessage(0, 0), True))

    def sends(self, vector: int) -> bool:
        return self.enabled and not self.function_masked and not self.entry(vector)[1]

    def due(self) -> set[MsiMessage]:
        """What was pending of those that may send now; it is not pending any more."""
        now = {vector for vector in self.pending if self.sends(vector)}
        self.pending -= now
        return {self.entry(vector)[0] for vector in now}

    def off(self) -> None:
        self.enabled = False
        self.pending.clear()

    def arrived(self, expected: set[MsiMessage]) -> None:
        assert self.rig.arrivals() == expected

    # The guest's.

    @rule(vector=NUMBERS, masked=st.booleans(), moved=st.booleans())
    def write_an_entry(self, vector: int, masked: bool, moved: bool) -> None:
        message = self.guest.message(vector, moved=moved)
        self.msix[vector] = MsixEntry(*message, masked)
        self.table[vector] = message, masked
        self.arrived(self.due())

    @rule(vector=NUMBERS, masked=st.booleans())
    def write_a_mask(self, vector: int, masked: bool) -> None:
        message, _ = self.entry(vector)
        if vector not in self.table:
            return  # the message would be none of this guest's
        self.msix.write_table(16 * vector + 12, int(masked))
        self.table[vector] = message, masked
        self.arrived(self.due())

    @rule(masked=st.booleans())
    def mask_the_function(self, masked: bool) -> None:
        self.msix.function_masked = masked
        self.function_masked = masked
        self.arrived(self.due())

    @rule()
    def enable(self) -> None:
        if self.own is not None:
            with pytest.raises(errors.StateError, match="close them first"):
                self.msix.enabled = True
            return
        self.msix.enabled = True
        self.enabled = True

    @rule()
    def disable(self) -> None:
        self.msix.enabled = False
        self.off()

    @rule()
    def reset_the_table(self) -> None:
        self.forwarder.reset()
        self.off()
        self.function_masked = False
        self.table.clear()

    # Others'.

    @rule()
    def disable_the_devices(self) -> None:
        self.irq.disable()
        self.own = None
        self.off()

    @rule(kind=st.sampled_from(eeh.Reset), teardown=st.none() | st.just(lambda: None))
    def reset_the_pe(self, kind: eeh.Reset, teardown: Any) -> None:
        self.pe.reset(kind, teardown=teardown)
        self.own = None
        self.off()

    @rule(kind=st.sampled_from(eeh.Reset))
    def assert_a_reset(self, kind: eeh.Reset) -> None:
        if self.enabled or self.own is not None:
            with pytest.raises(errors.StateError, match="disable_interrupts"):
                self.pe.assert_reset(kind)
        else:
            self.pe.assert_reset(kind)
            self.pe.deactivate()

    @rule(frozen=st.booleans(), stuck=st.booleans())
    def recover_the_pe(self, frozen: bool, stuck: bool) -> None:
        recovery = eeh.Recovery(self.pe, attempts=1)
        if frozen:
            self.kernel.freeze()
        self.kernel.stuck = stuck
        try:
            recovery.run()
        except errors.PeDead:
            assert stuck
        self.kernel.stuck = self.kernel.mmio = self.kernel.dma = False
        self.own = None
        self.off()

    @rule(vector=NUMBERS)
    def enable_for_this_process(self, vector: int) -> None:
        if self.enabled:
            with pytest.raises(errors.StateError, match="forwarded"):
                self.irq.enable(1, start=vector)
        elif self.own is None:
            self.own = self.irq.enable(1, start=vector)

    @precondition(lambda self: self.own is not None)
    @rule()
    def close_this_processs(self) -> None:
        self.own.close()
        self.own = None

    @rule()
    def enable_a_second_forwarder(self) -> None:
        if self.enabled:
            with pytest.raises(errors.StateError, match="forwarded"):
                MsixForwarder(self.irq, self.guest.vm).msix.enabled = True

    @rule()
    def close_the_forwarder(self) -> None:
        self.forwarder.close()
        self.off()

    # What must hold.

    @invariant()
    def exactly_what_the_table_lets_through_arrives(self) -> None:
        assert self.msix.enabled == self.enabled == self.irq.claimed
        for vector in range(VECTORS):
            try:
                self.irq.trigger(vector)
            except errors.StateError:
                assert not self.sends(vector), f"vector {vector} may send, and cannot"
                self.arrived(set())
                continue
            if self.sends(vector):
                self.arrived({self.entry(vector)[0]})
            else:
                self.arrived(set())
                # A vector that was never unmasked has no eventfd; pending is what has one.
                if self.enabled:
                    self.pending.add(vector)
        for vector in range(VECTORS):
            assert self.msix.is_pending(vector) == (vector in self.pending)

    def _same_files(self, files: int) -> None:
        assert open_files() == files

    def teardown(self) -> None:
        with self.stack:
            if self.own is not None:
                self.own.close()
            self.forwarder.close()
            assert self.guest.bound() == 0


class RoutedState(OneState):
    mapping = "routed"


class DirectState(OneState):
    mapping = "direct"


SETTINGS = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRouted = RoutedState.TestCase
TestRouted.settings = SETTINGS
TestDirect = DirectState.TestCase
TestDirect.settings = SETTINGS
