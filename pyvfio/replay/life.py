"""The life of a device's MSI-X: enabled, masked, moved, reset with its table wiped, enabled again.

After each step the interrupts are fired and it is looked where they arrive. What is told of a life
is what was seen: the ioctls as the kernel got them, and the interrupts as the VM got them.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from pyvfio import errors
from pyvfio._sys import EventFd
from pyvfio.abi import pci_regs
from pyvfio.device import MsixEntry
from pyvfio.irqroute import (
    BEFORE,
    D1F6AF6,
    PATCHED,
    TODAY,
    Event,
    MsixForwarder,
    Policy,
    Trace,
)
from pyvfio.irqroute.trace import gsi_text
from pyvfio.kvm import MsiMessage
from pyvfio.replay.devices import DevicePart
from pyvfio.replay.machines import MachinePart

_ENABLE = pci_regs.PCI_MSIX_FLAGS_ENABLE
_MASKALL = pci_regs.PCI_MSIX_FLAGS_MASKALL

TABLE_FIRST, ENABLE_FIRST = "table-first", "enable-first"
ORDERS = (TABLE_FIRST, ENABLE_FIRST)
"""What a guest does first when it sets MSI-X up: fill the table (Linux in 2016), or set the enable
bit with the function masked (Linux since 438553958ba1, about 5.14)."""


DUMMY_STEPS = ("enable", "enable again")
"""The steps at whose end there is a dummy, or none; their probes fire it by hand."""


@dataclass(frozen=True)
class Variant:
    """What is replayed.

    Attributes:
        name: for the command line.
        policy: for the dummy vector.
        rebinding: a policy of 2016 with an update that moves the irqfd, which QEMU had not.
    """

    name: str
    policy: Policy
    rebinding: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("before", BEFORE),
        Variant("d1f6af6", D1F6AF6),
        Variant("d1f6af6-rebind", D1F6AF6, rebinding=True),
        Variant("patched", PATCHED),
        Variant("today", TODAY),
    )
}
"""By name, in the order of history."""


@dataclass(frozen=True)
class Probe:
    """What was fired and what came of it, by vectors of the device.

    Attributes:
        fired: by the device; or, for a probe between dummy and update, by hand.
        expected: those that should arrive.
        arrived: those that did, each as its own message.
        pending: those that are pending.
        strays: what arrived and is no vector's message.
        refused: the kernel's refusal to fire ("EINVAL"), or None.
    """

    fired: tuple[int, ...]
    expected: tuple[int, ...]
    arrived: tuple[int, ...]
    pending: tuple[int, ...] = ()
    strays: tuple[MsiMessage, ...] = ()
    refused: str | None = None

    @property
    def lost(self) -> tuple[int, ...]:
        """Expected, and neither arrived nor pending."""
        return tuple(v for v in self.expected if v not in (*self.arrived, *self.pending))


@dataclass(frozen=True)
class Step:
    """One step of a life.

    Attributes:
        name: short.
        what: what driver and guest did.
        events: the ioctls that it took.
        gsis: the GSI that each vector's irqfd is bound to after it.
        probe: what was seen then, or None.
    """

    name: str
    what: str
    events: tuple[Event, ...]
    gsis: Mapping[int, int]
    probe: Probe | None = None


@dataclass(frozen=True)
class Control:
    """Something that must come out one way, or what is seen cannot be believed.

    Attributes:
        name: what was tried.
        passed: whether it came out so.
        seen: what was seen.
        events: the ioctls that it took.
    """

    name: str
    passed: bool
    seen: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Life:
    """One life, as it was seen.

    Attributes:
        variant: which policy.
        mapping: "routed" or "direct".
        device: its name.
        machine: what the VM is.
        vfio, kvm: the kernel that was behind them, or "modelled".
        vectors: how many the device used.
        noresize: to have more of them enabled, VFIO wants MSI-X disabled first. QEMU of 2016 does
            that in any case; of today's order it is two ioctls of a life.
        order: the guest's, at the first enabling.
        kept_table: the reset left the table as it was, which no reset does: a counterfactual.
        controls: tried first, with the same VM.
        steps: of it.
        closing: the ioctls with which all was given back.
        labels: what messages are called: "m0", and "m0'" after moving.
    """

    variant: Variant
    mapping: str
    device: str
    machine: str
    vfio: str
    kvm: str
    vectors: int
    noresize: bool
    order: str
    kept_table: bool
    controls: tuple[Control, ...]
    steps: tuple[Step, ...]
    closing: tuple[Event, ...]
    labels: Mapping[MsiMessage, str] = field(repr=False)

    @property
    def ioctls(self) -> int:
        """How many it took."""
        return sum(len(step.events) for step in self.steps)

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


def live(
    variant: Variant,
    device: DevicePart,
    machine: MachinePart,
    vectors: int,
    *,
    order: str = TABLE_FIRST,
    keep_table: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Life:
    """Let a device live under a policy.

    Args:
        variant: the policy.
        device: with MSI-X disabled.
        machine: a fresh VM.
        vectors: how many of the device's to use.
        order: of the guest, at the first enabling.
        keep_table: do not wipe the table at the reset: a counterfactual.
        progress: is told of each step's name.

    Returns:
        What was seen.

    Raises:
        RangeError: the device has fewer vectors.
        Error: whatever VFIO and KVM refuse.
    """
    if not 1 <= vectors <= device.irq.count:
        raise errors.RangeError(f"{device.name} has {device.irq.count} vectors, not {vectors}")
    return _Life(variant, device, machine, vectors, order, keep_table, progress).live()


class _Life:
    """One life while it is lived."""

    def __init__(
        self,
        variant: Variant,
        device: DevicePart,
        machine: MachinePart,
        vectors: int,
        order: str,
        keep_table: bool,
        progress: Callable[[str], None],
    ) -> None:
        self._variant = variant
        self._device = device
        self._machine = machine
        self._vectors = range(vectors)
        self._order = order
        self._keep_table = keep_table
        self._progress = progress
        self._trace = Trace()
        self._forwarder = MsixForwarder(
            device.irq,
            machine.vm,
            policy=variant.policy,
            gsis=machine.gsis(variant.policy, rebinding=variant.rebinding),
        )
        # The message that each vector has now, as its driver knows it.
        self._messages = {vector: machine.message(vector) for vector in self._vectors}
        self._labels = {message: f"m{vector}" for vector, message in self._messages.items()}
        self._steps: list[Step] = []
        # By eventfd, the GSI that the kernel has bound it to, or None.
        self._bound: dict[str, int | None] = {}

    def live(self) -> Life:
        names = self._forwarder.paths.names
        with ExitStack() as stack:
            stack.enter_context(self._device.known_to(self._machine.vm))
            for file, modelled in (
                (self._device.irq.file, self._device.modelled),
                (self._machine.file, self._machine.modelled),
            ):
                stack.enter_context(self._trace.watching(file, names=names, modelled=modelled))
            with self._forwarder:
                controls = (
                    self._control_that_arrives(),
                    self._control_that_does_not(),
                    *itertools.starmap(self._control, self._machine.controls()),
                )
                self._enable()
                self._mask_and_move()
                self._disable()
                self._reset()
                self._enable_again()
        return Life(
            self._variant,
            self._machine.mapping,
            self._device.name,
            self._machine.title,
            _kernel(self._device.modelled),
            _kernel(self._machine.modelled),
            len(self._vectors),
            self._device.irq.noresize,
            self._order,
            self._keep_table,
            controls,
            tuple(self._steps),
            tuple(self._trace.take()),
            self._labels,
        )

    # The steps.

    def _enable(self) -> None:
        msix = self._forwarder.msix
        if self._order == TABLE_FIRST:
            self._fill(masked=True)
            what = "the driver fills the table, then sets ENABLE and MASKALL"
        else:
            what = "the driver sets ENABLE and MASKALL, the table still empty"
        msix.control = _ENABLE | _MASKALL
        self._done("enable", what, self._probe_dummy())
        if self._order == ENABLE_FIRST:
            self._fill(masked=True)
        msix.function_masked = False
        for vector in self._vectors:
            msix[vector] = self._entry(vector)
        self._done("unmask", "MASKALL cleared, then each vector unmasked", self._probe())

    def _mask_and_move(self) -> None:
        msix = self._forwarder.msix
        msix[0] = self._entry(0, masked=True)
        self._done("mask 0", "the guest masks vector 0; all fire", self._probe(masked={0}))
        # The interrupt that came while masked is due now, where vector 0 goes from now on.
        if self._machine.retargets:
            self._messages[0] = moved = self._machine.message(0, moved=True)
            self._labels[moved] = "m0'"
            what = "vector 0 gets another message and is unmasked; what was pending arrives"
        else:
            what = "vector 0 is unmasked; what was pending arrives"
        msix[0] = self._entry(0)
        self._done("move 0", what, self._seen((0,), expected={0}))
        self._done("moved", "all fire", self._probe())

    def _disable(self) -> None:
        self._forwarder.msix.enabled = False
        refused = None
        try:
            self._device.irq.trigger(0, len(self._vectors), ask=True)
        except errors.DeviceGone:
            raise
        except errors.KernelError as error:
            refused = errno.errorcode.get(error.errno or 0, str(error.errno))
        fired = () if refused else tuple(self._vectors)
        probe = replace(self._seen(fired, expected=set()), refused=refused)
        self._done("disable", "the guest clears ENABLE; all are told to fire", probe)

    def _reset(self) -> None:
        how = self._device.reset()
        table = "kept, as no reset does" if self._keep_table else "wiped"
        if not self._keep_table:
            self._forwarder.reset()
        self._done("reset", f"the device is reset ({how}), its table {table}", None)

    def _enable_again(self) -> None:
        """As Linux restores MSI-X for a driver that kept its vectors (__pci_restore_msix_state)."""
        msix = self._forwarder.msix
        msix.control = _ENABLE | _MASKALL
        self._done(
            "enable again", "ENABLE and MASKALL first, the messages not yet", self._probe_dummy()
        )
        self._fill(masked=False)
        msix.function_masked = False
        self._done(
            "restore",
            "the messages written as they were, vectors unmasked, MASKALL cleared",
            self._probe(),
        )

    # What they are made of.

    def _entry(self, vector: int, *, masked: bool = False) -> MsixEntry:
        return MsixEntry(*self._messages[vector], masked)

    def _fill(self, *, masked: bool) -> None:
        for vector in self._vectors:
            self._forwarder.msix[vector] = self._entry(vector, masked=masked)

    def _done(self, name: str, what: str, probe: Probe | None) -> None:
        # By the kernel's own account: what it accepted, of eventfds that are still open.
        for event in self._trace.events:
            if event.ioctl == "KVM_IRQFD" and event.error is None:
                self._bound[event.arguments["eventfd"]] = (
                    None if event.arguments["deassign"] else event.arguments["gsi"]
                )
        open_ = set(self._forwarder.paths.names().values())
        gsis = {
            vector: gsi
            for vector in self._vectors
            if (gsi := self._bound.get(f"kvm{vector}")) is not None and f"kvm{vector}" in open_
        }
        # What the probe itself fired is no part of the step.
        events = [event for event in self._trace.take() if not event.text.startswith("T")]
        self._steps.append(Step(name, what, tuple(events), gsis, probe))
        self._progress(name)

    def _probe(self, masked: Set[int] = frozenset()) -> Probe:
        """Fire all the device's vectors."""
        self._device.irq.trigger(0, len(self._vectors))
        pending = {v for v in masked if self._forwarder.msix.is_pending(v)}
        return self._seen(tuple(self._vectors), set(self._vectors) - masked, pending)

    def _probe_dummy(self) -> Probe | None:
        """Between dummy and update: fire vector 0's eventfd, if the dummy bound it."""
        path = self._forwarder.paths.path(0)
        if path is None or path.irqfd is None:
            return None
        path.to_guest.signal()
        return self._seen((0,), expected=set())

    def _seen(
        self, fired: tuple[int, ...], expected: Set[int], pending: Set[int] = frozenset()
    ) -> Probe:
        arrived = self._machine.arrivals({self._messages[vector] for vector in expected})
        by_message = {message: vector for vector, message in self._messages.items()}
        return Probe(
            fired,
            tuple(sorted(expected)),
            tuple(sorted(by_message[message] for message in arrived if message in by_message)),
            tuple(sorted(pending)),
            tuple(sorted(message for message in arrived if message not in by_message)),
        )

    def _control_that_arrives(self) -> Control:
        machine = self._machine
        message = machine.message(0)
        mapping = machine.gsis(TODAY)
        (gsi,) = gsis = mapping.add([message])
        with EventFd("control") as eventfd, machine.vm.irqfds.assign(eventfd, gsi):
            eventfd.signal()
            arrived = machine.arrivals({message})
        mapping.remove(gsis)
        return self._control(
            f"an irqfd on GSI {gsi_text(gsi)}, which leads to {message}, arrives",
            arrived == {message},
            _list(arrived),
        )

    def _control_that_does_not(self) -> Control:
        machine = self._machine
        gsi = machine.dead_gsi()
        with EventFd("control") as eventfd, machine.vm.irqfds.assign(eventfd, gsi):
            eventfd.signal()
            # Waited for as long as for what does arrive.
            arrived = machine.arrivals({machine.message(0)})
        return self._control(
            f"an irqfd on GSI {gsi_text(gsi)}, which leads nowhere, is accepted and drops",
            not arrived,
            _list(arrived),
        )

    def _control(self, name: str, passed: bool, seen: str) -> Control:
        return Control(name, passed, seen, tuple(self._trace.take()))


def _list(messages: Set[MsiMessage]) -> str:
    return ", ".join(map(str, sorted(messages))) or "nothing"


def _kernel(modelled: bool) -> str:
    return "modelled" if modelled else f"Linux {os.uname().release}"
