"""Bringing a device back after its PE froze.

The sequence is that of Linux for its own devices (Documentation/arch/powerpc/eeh-pci-error-recovery
and Documentation/PCI/pci-error-recovery.rst), which a guest drives through RTAS:

1. detected: a read that gives all ones, then the PE's state;
2. noted: whoever uses the device is told to stop;
3. MMIO enabled: the freeze of registers is lifted, DMA stays blocked, and the device can be asked;
4. reset: interrupts off, reset asserted and deactivated, which thaws the PE;
5. configured: bridges of the PE;
6. config restored: what was saved while the device was healthy;
7. interrupts restored: by whoever uses the device;
8. verified: the PE is normal, and the device is what it was.

An attempt that fails is followed by another, with a fundamental reset, and after the last the
device is declared dead: it is cut off from memory and interrupts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pyvfio import errors
from pyvfio.device import Device
from pyvfio.eeh.pe import Pe, Reset
from pyvfio.eeh.saved import SavedConfig, error_reporting
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

        This reads the vendor ID. PowerNV's PHBs do not block config space of a frozen PE, so a
        driver does better to read a register.
        """
        return device.config.vendor_id

    def error_detected(self) -> None:
        """Stop using the device; its memory may be all ones, its DMA is blocked."""

    def teardown(self) -> None:
        """Disable interrupts, before each reset; whoever has a guest clears the guest's MSI-X
        tables as well.
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
        return "left to the device's user"


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
        self._saved = [SavedConfig(device) for device in pe.devices]

    def run(self) -> None:
        """Recover, whatever the PE's state is now; one that is not frozen is reset all the same.

        Interrupted (Ctrl-C), it ends between two steps: the PE may be frozen still, and is not
        in reset.

        Raises:
            PeDead: no attempt succeeded; the device is cut off.
            PeUnavailable: the PE's state cannot be told for now; nothing was done to it.
            StateError: a second group is in the container.
        """
        if self.dead:
            raise errors.PeDead(f"{self.pe} was declared dead: close the device and look at it")
        for attempt in range(1, self.attempts + 1):
            try:
                self._attempt(Reset.HOT if attempt == 1 else Reset.FUNDAMENTAL)
            except (errors.KernelError, errors.PeFrozen) as error:
                if attempt == self.attempts:
                    self._declare_dead()
                    raise errors.PeDead(
                        f"{self.pe} did not come back after {attempt} resets ({error}): it is "
                        "declared dead, and cut off from memory and interrupts"
                    ) from error
            else:
                return

    def _attempt(self, kind: Reset) -> None:
        do, pe = self.steps.do, self.pe
        do("detected", self._detect)
        do("noted", self._note)
        if pe.state is PeState.STOPPED:
            do("MMIO enabled", self._enable_mmio)
        do("reset", lambda: self._reset(kind))
        do("configured", self._configure)
        do("config restored", lambda: "; ".join(saved.restore() for saved in self._saved))
        do("interrupts restored", self.handlers.slot_reset)
        do("verified", self._verify)

    def _detect(self) -> str:
        answers = []
        for device in self.pe.devices:
            try:
                answers.append(f"{device.address} reads {self.handlers.probe(device):#x}")
            except errors.KernelError as error:
                answers.append(f"{device.address} cannot be read ({error.strerror})")
        return f"{'; '.join(answers)}; the PE is {self.pe.wait()}"

    def _note(self) -> str:
        self.handlers.error_detected()
        return "the device's user was told"

    def _enable_mmio(self) -> str:
        self.pe.unfreeze_io()
        return f"the PE is {self.pe.state}; {self.handlers.mmio_enabled()}"

    def _reset(self, kind: Reset) -> str:
        self.pe.reset(kind, teardown=self.handlers.teardown)
        return f"{kind}, interrupts off before; the PE is {self.pe.state}"

    def _configure(self) -> str:
        self.pe.configure()
        return "bridges of the PE"

    def _verify(self) -> str:
        state = self.pe.wait()
        if state is not PeState.NORMAL:
            raise errors.PeFrozen(f"{self.pe} is {state} after the reset")
        for device, saved in zip(self.pe.devices, self._saved, strict=True):
            found = device.config.vendor_id, device.config.device_id
            if found != (saved.vendor_id, saved.device_id):
                raise errors.PeFrozen(f"{device.address} reads {found[0]:04x}:{found[1]:04x}")
        return "the PE is normal, and the device is the one it was"

    def _declare_dead(self) -> None:
        self.dead = True

        def cut_off() -> str:
            # What can still be done is done, whatever fails.
            with contextlib.suppress(errors.Error):
                self.handlers.teardown()
            for device in self.pe.devices:
                with contextlib.suppress(errors.Error):
                    device.bus_master = False
            return "bus mastering and interrupts are off"

        self.steps.do("declared dead", cut_off)


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
