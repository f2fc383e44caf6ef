"""Random sequences of what a guest does to its MSI-X and of what is done behind its back.

After each step all vectors are fired by loopback: exactly those arrive that the guest's table lets
through, where its messages say. What was masked is pending. The sequences are the same at each run.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

import pyvfio
from hwtests.bench import ON_BENCH, loopback_reaches_guests
from hwtests.holdings import Holdings
from hwtests.test_unplug import WAIT, removed
from pyvfio import eeh, errors
from pyvfio.device import Device, MsixEntry, Vectors
from pyvfio.irqroute import MsixForwarder
from pyvfio.kvm import MsiMessage
from pyvfio.pci import Function
from pyvfio.replay.machines import ApicMachine, MachinePart, XicsMachine

SEQUENCES = 8
STEPS = 25
FEW = 4

_POWER = platform.machine().startswith("ppc")
_NETWORK = 0x02  # base class


@pytest.fixture
def machine(function: Function, request: pytest.FixtureRequest) -> Iterator[MachinePart]:
    """A VM with two messages for each vector that is used."""
    if function.config.msix is None:
        pytest.skip("the device has no MSI-X")
    bypass = getattr(request, "param", False)
    with ExitStack() as stack:
        if not bypass:
            stack.enter_context(loopback_reaches_guests())
        try:
            made = XicsMachine(2 * FEW) if _POWER else ApicMachine(2 * FEW)
        except errors.Error as error:
            pytest.skip(f"no VM can be had here: {error}")
        yield stack.enter_context(made)


class Sequence:
    """A device, its forwarder, and what the guest should find there."""

    def __init__(self, function: Function, machine: MachinePart, seed: int) -> None:
        self.function = function
        self.machine = machine
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.open()

    def open(self) -> None:
        self.device: Device = pyvfio.open(self.function)
        self.irq = self.device.msix
        self.forwarder = MsixForwarder(self.irq, self.machine.vm)
        self.msix = self.forwarder.msix
        self.vectors = range(min(FEW, self.irq.count))
        self.own: Vectors | None = None
        self.enabled = self.function_masked = False
        self.entries: dict[int, MsixEntry] = {}
        self.pending: set[int] = set()

    def off(self) -> None:
        """MSI-X is disabled, which forgets what was pending; the table stays."""
        self.enabled = False
        self.pending.clear()

    def sends(self, vector: int) -> bool:
        entry = self.entries.get(vector)
        return self.enabled and not self.function_masked and entry is not None and not entry.masked

    # The guest's.

    def write_an_entry(self) -> None:
        vector = self.random.choice(self.vectors)
        message = self.machine.message(vector + self.random.choice((0, FEW)))
        self.msix[vector] = self.entries[vector] = MsixEntry(
            *message, masked=self.random.random() < 0.3
        )

    def write_a_mask(self) -> None:
        if self.entries:
            vector = self.random.choice(sorted(self.entries))
            masked = not self.entries[vector].masked
            self.msix.write_table(16 * vector + 12, int(masked))
            self.entries[vector] = self.entries[vector]._replace(masked=masked)

    def mask_the_function(self) -> None:
        self.function_masked = not self.function_masked
        self.msix.function_masked = self.function_masked

    def enable(self) -> None:
        if self.own is not None:
            with pytest.raises(errors.StateError, match="close them first"):
                self.msix.enabled = True
        else:
            self.msix.enabled = self.enabled = True

    def disable(self) -> None:
        self.msix.enabled = False
        self.off()

    def reset_the_table(self) -> None:
        self.forwarder.reset()
        self.function_masked = False
        self.entries.clear()
        self.off()

    # Others'.

    def disable_the_devices(self) -> None:
        self.irq.disable()
        self.own = None
        self.off()

    def take_for_this_process(self) -> None:
        if self.enabled:
            with pytest.raises(errors.StateError, match="forwarded"):
                self.irq.enable(1)
        elif self.own is None:
            self.own = self.irq.enable(1)
        else:
            self.own.close()
            self.own = None

    def reset_the_device(self) -> None:
        """The kernel restores the MSI-X table, so all goes on."""
        with suppress(errors.Unsupported):
            self.device.reset()

    def close_the_device(self) -> None:
        self.device.close()
        assert not self.msix.enabled
        self.open()

    def reset_the_pe(self) -> None:
        saved = eeh.SavedConfig(self.device)
        eeh.Pe(self.device).reset()
        saved.restore()
        self.own = None
        self.off()

    def recover_the_pe(self) -> None:
        eeh.Recovery(eeh.Pe(self.device)).run()
        self.own = None
        self.off()

    # What must hold.

    def check(self) -> None:
        due = {vector for vector in self.pending if self.sends(vector)}
        self.pending -= due
        if due:
            expected = {self.message(vector) for vector in due}
            assert self.machine.arrivals(expected) == expected, "what was pending"
        assert self.msix.enabled == self.enabled
        expected = set()
        for vector in self.vectors:
            if self.own is not None:
                continue
            try:
                self.irq.trigger(vector)
            except errors.StateError:
                assert not self.sends(vector), f"vector {vector} may send, and cannot"
            else:
                if self.sends(vector):
                    expected.add(self.message(vector))
                else:
                    self.pending.add(vector)
        assert self.machine.arrivals(expected) == expected
        assert {v for v in self.vectors if self.msix.is_pending(v)} == self.pending

    def message(self, vector: int) -> MsiMessage:
        return MsiMessage(*self.entries[vector][:2])

    def run(self, steps: list[Callable[[], None]]) -> None:
        for step in steps:
            self.log.append(step.__name__)
            step()
            self.check()


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_exactly_what_the_table_lets_through_arrives(
    function: Function, machine: MachinePart, seed: int
) -> None:
    before = Holdings.now()
    sequence = Sequence(function, machine, seed)
    try:
        often = [sequence.write_an_entry, sequence.write_a_mask, sequence.enable]
        seldom = [
            sequence.mask_the_function,
            sequence.disable,
            sequence.reset_the_table,
            sequence.disable_the_devices,
            sequence.take_for_this_process,
            sequence.reset_the_device,
            sequence.close_the_device,
        ]
        steps = sequence.random.choices([*often, *often, *often, *seldom], k=STEPS)
        # Each takes some ten seconds: one in each sequence, for one kind of device.
        if _POWER and function.class_code >> 16 == _NETWORK:
            of_eeh = (sequence.reset_the_pe, sequence.recover_the_pe)[seed % 2]
            steps.insert(sequence.random.randrange(5, STEPS), of_eeh)
        try:
            sequence.run(steps)
        except BaseException:
            print("steps:", *sequence.log)
            raise
        sequence.disable()
    finally:
        sequence.device.close()
    assert len(sequence.forwarder.paths.irqfds) == 0
    assert Holdings.now() == before


@pytest.mark.skipif(not ON_BENCH, reason="removes the device from the host's bus")
def test_unplugging_the_device_ends_its_forwarding(
    function: Function, machine: MachinePart
) -> None:
    if function.physical_function is not None:
        pytest.skip("a virtual function comes back only with all others of its physical function")
    sequence = Sequence(function, machine, 0)
    message = machine.message(0)
    with sequence.device as device, device.req.enable() as vectors:
        sequence.msix[0] = MsixEntry(*message, masked=False)
        sequence.msix.enabled = True
        with removed(function) as removing:
            assert vectors[0].wait(WAIT)
            sequence.irq.trigger(0)
            assert machine.arrivals({message}) == {message}, "until it is given back"
            device.close()
            assert removing.wait(WAIT) == 0
            assert not sequence.msix.enabled
            assert len(sequence.forwarder.paths.irqfds) == 0
            with pytest.raises(errors.Closed):
                sequence.msix.enabled = True


@pytest.mark.parametrize("machine", [True], ids=["bypass"], indirect=True)
def test_pending_interrupt_arrives_where_those_of_devices_bypass_software(
    function: Function, machine: MachinePart
) -> None:
    if not machine.vm.irqchip.bypass:
        pytest.skip("interrupts of devices do not bypass software here")
    sequence = Sequence(function, machine, 0)
    message = machine.message(0)
    with sequence.device:
        sequence.msix[0] = MsixEntry(*message, masked=False)
        sequence.msix.enabled = True
        sequence.irq.trigger(0)
        assert machine.arrivals(set()) == set(), "KVM drops it: what is tested is needed"
        sequence.msix.write_table(12, 1)
        sequence.irq.trigger(0)
        assert sequence.msix.is_pending(0)
        sequence.msix.write_table(12, 0)
        assert machine.arrivals({message}) == {message}
        sequence.msix.enabled = False
