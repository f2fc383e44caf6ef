"""Bringing a device back after its PE froze.

The sequence is that of Linux for its own devices (Documentation/arch/powerpc/eeh-pci-error-recovery
and Documentation/PCI/pci-error-recovery.rst), which a guest drives through RTAS:

1. detected: a read that gives all ones, then the PE's state;
2. noted: whoever uses the device is told to stop;
3. MMIO enabled: the freeze of registers is lifted, DMA stays blocked, and the device can be asked;
4. reset: interrupts off, reset asserted and deactivated, which thaws the PE;
5. configured: bridges of the PE;
6. config restored: what was saved while the device was healthy;
7. set up by user: the device and its interrupts, by whoever uses it;
8. verified: the PE is normal, and the device is what it was.

An attempt that fails, from its reset on, is followed by one with a fundamental reset, and after
the last the device is declared dead: it is cut off from memory and interrupts. What fails before
the reset is reported, and the reset made all the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from pyvfio import errors
from pyvfio.abi import pci_regs
from pyvfio.device import Device
from pyvfio.eeh.pe import Pe, Reset
from pyvfio.eeh.saved import Identity, SavedConfig, error_reporting
from pyvfio.eeh.state import PeState
from pyvfio.eeh.steps import Step, Steps


class Handlers:
    """What the user of a device does during a recovery; the names are those of Linux's
    pci_error_handlers. These do what holds for any device; a subclass adds what its device needs.

    Args:
        pe: the PE.
    """

    def __init__(self, pe: Pe) -> None:
        self.pe = pe

    def probe(self, device: Device) -> int:
        """Read something that is never all ones as long as the device answers.

        This reads the class code and the revision, since VFIO answers the vendor ID from a copy of
        its own. PowerNV's PHBs do not block config space of a frozen PE, so a driver does better to
        read a register.
        """
        return device.config.read(pci_regs.PCI_CLASS_REVISION, 4)

    def error_detected(self) -> None:
        """Stop using the device; its memory may be all ones, its DMA is blocked."""

    def teardown(self) -> None:
        """Disable interrupts, before each reset; whoever has a guest clears the guest's MSI-X
        tables as well (:meth:`MsixForwarder.reset`). Those that are forwarded end here.
        """
        self.pe.disable_interrupts()

    def mmio_enabled(self) -> str:
        """Ask the device what happened, before it is reset.

        Returns:
            What it said.
        """
        return "; ".join(map(_diagnosis, self.pe.devices))

    def slot_reset(self) -> str:
        """Set the device up again, and its interrupts; config space is as it was.

        Returns:
            What was done.
        """
        return "nothing: the device and its interrupts are left to its user"


class Recovery:
    """Recovers a PE; made while it is healthy, since it saves the devices' config space.

    Args:
        pe: the PE, all of whose open devices it knows.
        handlers: what the devices' user does; None for :class:`Handlers`.
        attempts: how often a reset is tried before the device is declared dead.
        report: is told of each step as it ends.

    Attributes:
        steps: what was done.
        dead: whether it was declared dead.

    Raises:
        StateError: a device does not answer now.
        ArgumentError: no attempt at all.
    """

    def __init__(
        self,
        pe: Pe,
        handlers: Handlers | None = None,
        *,
        attempts: int = 3,
        report: Callable[[Step], object] | None = None,
    ) -> None:
        if attempts < 1:
            raise errors.ArgumentError(f"a recovery needs an attempt at least, not {attempts}")
        self.pe = pe
        self.handlers = Handlers(pe) if handlers is None else handlers
        self.attempts = attempts
        self.steps = Steps(report)
        self.dead = False
        self._resets = 0
        self._saved = [SavedConfig(device) for device in pe.devices]

    def run(self) -> None:
        """Recover, whatever the PE's state is now; one that is not frozen is reset all the same.

        Interrupted (Ctrl-C), it ends between two steps: the PE may be frozen still, and is not
        in reset.

        What fails before a reset (the diagnosis, the user's handlers, interrupts that cannot be
        disabled) is reported as a failed step, and the reset is made all the same. Whatever fails
        from the reset on, in a handler as well, makes the attempt fail.

        Raises:
            PeDead: no attempt succeeded; the device is cut off, as far as it could be.
            PeUnavailable: the PE's state cannot be told for now; nothing was done to it.
            StateError: a second group is in the container; nothing was done.
        """
        self.pe.check_one_group()
        if self.dead:
            raise errors.PeDead(f"{self.pe} was declared dead: close the device and look at it")
        self._resets = 0
        for attempt in range(1, self.attempts + 1):
            self._diagnose(first=attempt == 1)
            try:
                self._attempt(Reset.HOT if attempt == 1 else Reset.FUNDAMENTAL)
            except errors.Error as error:
                if attempt == self.attempts:
                    resets = f"{self._resets} reset{'' if self._resets == 1 else 's'}"
                    cut_off = (
                        "and cut off from memory and interrupts"
                        if self._declare_dead()
                        else "but could not be cut off entirely"
                    )
                    raise errors.PeDead(
                        f"{self.pe} did not come back after {resets} ({error}): it is declared "
                        f"dead, {cut_off}"
                    ) from error
            else:
                return

    def _diagnose(self, *, first: bool) -> None:
        attempt = self.steps.attempt
        try:
            self.steps.do("detected", self._detect)
        except errors.PeUnavailable:
            if first:
                raise
        except errors.Error:
            pass
        attempt("noted", self._note)
        with contextlib.suppress(errors.Error):  # it was reported with "detected"
            if self.pe.state is PeState.STOPPED:
                attempt("MMIO enabled", self._enable_mmio)

    def _attempt(self, kind: Reset) -> None:
        do = self.steps.do
        do("reset", lambda: self._reset(kind))
        do("configured", self._configure)
        do("config restored", self._restore)
        do("set up by user", self.handlers.slot_reset)
        do("verified", self._verify)

    def _detect(self) -> str:
        answers = []
        for device in self.pe.devices:
            try:
                answers.append(f"{device.address} reads {self.handlers.probe(device):#x}")
            except errors.Error as error:
                why = error.strerror if isinstance(error, errors.KernelError) else error
                answers.append(f"{device.address} cannot be read ({why})")
        return f"{'; '.join(answers)}; the PE is {self.pe.wait()}"

    def _note(self) -> str:
        self.handlers.error_detected()
        if type(self.handlers).error_detected is Handlers.error_detected:
            return "the device's user left no handler to be told by"
        return "the device's user was told"

    def _enable_mmio(self) -> str:
        self.pe.unfreeze_io()
        return f"the PE is {self.pe.state}; {self.handlers.mmio_enabled()}"

    def _reset(self, kind: Reset) -> str:
        before = "interrupts off before"

        def teardown() -> None:
            nonlocal before
            began = time.monotonic()
            try:
                self.handlers.teardown()
            except errors.Error as error:
                took = time.monotonic() - began
                self.steps.add(Step("interrupts off", str(error), took, failed=True))
                before = "interrupts could not all be switched off before"

        with self.pe.asserted(kind, teardown=teardown):
            self._resets += 1
        self.pe.check_normal()
        return f"{kind}, {before}; the PE is normal"

    def _configure(self) -> str:
        self.pe.configure()
        return "bridges of the PE"

    def _restore(self) -> str:
        return "; ".join(saved.restore() for saved in self._saved)

    def _verify(self) -> str:
        self.pe.check_normal()
        for device, saved in zip(self.pe.devices, self._saved, strict=True):
            if (found := Identity.of(device.config)) != saved.identity:
                raise errors.PeFrozen(f"{device.address} reads {found}, and was {saved.identity}")
        return "the PE is normal, and the device is the one it was"

    def _declare_dead(self) -> bool:
        self.dead = True
        return self.steps.attempt("declared dead", self._cut_off)

    def _cut_off(self) -> str:
        left = []  # what can still be done is done, whatever fails
        try:
            self.handlers.teardown()
        except errors.Error as error:
            left.append(f"interrupts may be on ({error})")
        for device in self.pe.devices:
            try:
                device.bus_master = False
                if device.bus_master:
                    left.append(f"bus mastering of {device.address} still reads as on")
            except errors.Error as error:
                left.append(f"bus mastering of {device.address} may be on ({error})")
        if left:
            raise errors.StateError("; ".join(left))
        return "bus mastering and interrupts are off"


def _diagnosis(device: Device) -> str:
    """What config space tells of an error."""
    config = device.config
    said = f"{device.address} status {config.status:#06x}"
    aer = error_reporting(config)
    if aer is not None:
        said += (
            f", AER uncorrectable {aer.uncorrectable_status:#x}"
            f", correctable {aer.correctable_status:#x}"
        )
    return said
