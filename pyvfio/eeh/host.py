"""A PE as the host shows it to root, in sysfs. Nothing here opens the device."""

from __future__ import annotations

import errno

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.eeh.procfs import check_enabled
from pyvfio.eeh.state import DeviceMode, HostState, PeState, Software
from pyvfio.pci import Function, functions
from pyvfio.pci.group import is_vfio


class HostPe:
    """The PE of a function, through its sysfs attributes.

    Properties are read each time, so they show what is true now. On PowerNV reading the state of a
    PE that is frozen makes the kernel note the freeze (:attr:`HostState.isolated`), and the host
    never recovers a freeze that was noted so: :func:`pyvfio.eeh.look` leaves the host its recovery.

    Args:
        function: a function of this host; a bridge has a PE as well.

    Attributes:
        function: the same.

    Raises:
        NoEeh: the host has no EEH, or it is off.
        Unsupported: the function has no PE.
        DeviceNotFound: the function has gone.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        if not (function.sysfs / "eeh_pe_state").exists():
            check_enabled()
            Function(function.address)  # says so if it has gone
            raise self._no_pe()

    @property
    def number(self) -> int:
        """The PE's number within its PHB (``eeh_pe_config_addr``)."""
        return self._word("eeh_pe_config_addr")

    @property
    def mode(self) -> DeviceMode:
        """What the kernel notes of the function (``eeh_mode``)."""
        return DeviceMode(self._word("eeh_mode"))

    @property
    def state(self) -> HostState:
        """What the PE does now, and what the kernel has noted of it (``eeh_pe_state``).

        For a PE that a driver of the host uses, take :func:`pyvfio.eeh.look` instead.
        """
        return HostState.parse(self._read("eeh_pe_state"))

    @property
    def members(self) -> tuple[Function, ...]:
        """All functions of the PE, in the order of their addresses."""
        found = []
        for function in functions():
            if function.address.domain == self.function.address.domain:
                try:
                    number = HostPe(function).number
                except (errors.Unsupported, errors.DeviceNotFound):
                    continue
                if number == self.number:
                    found.append(function)
        return tuple(found)

    def check_unused(self) -> None:
        """Check that the host uses no member of the PE: a freeze is for all of them.

        Raises:
            DeviceInUse: it uses one.
        """
        from pyvfio.pci import users  # here, since it is slow to import

        for member in self.members:
            if found := users(member):
                raise errors.DeviceInUse(
                    f"{member.address} of {self} is in use: {'; '.join(found)}. Release it, or "
                    "freeze it regardless: --force",
                    found,
                )

    def thaw(self) -> HostState:
        """Thaw the PE, and clear the kernel's note of the freeze.

        The kernel thaws at a write only if it has noted the freeze, and otherwise succeeds and does
        nothing: so the state is read, written, read again. What the device's registers hold is as
        the freeze found it; a device in the middle of something needs a reset or recovery.

        Returns:
            The state afterwards: normal.

        Raises:
            PeFrozen: it is as frozen as before.
            PeUnavailable: its registers alone are stopped.
            StateError: the kernel itself is recovering it, or its reset is asserted, or was never
                ended.
            AccessDenied: only root may.
            KernelError: the kernel refused; EIO where the firmware did.
        """
        before = self.state
        if before.software & Software.RECOVERING:
            raise errors.StateError(
                f"the host is recovering {self}: wait for its end, which "
                f"`pyvfio eeh status {self.function.address} --watch` shows"
            )
        if before.state.frozen or before.isolated:
            try:
                sysfs.write(self.function.sysfs / "eeh_pe_state", "0")
            except errors.AccessDenied as error:
                raise errors.AccessDenied.from_call(error, "run as root") from None
            except errors.KernelError as error:
                if error.errno == errno.EIO:
                    raise errors.KernelError.from_call(
                        error, f"the firmware did not thaw {self}: recover it instead"
                    ) from None
                raise
        after = self.state
        self._check_thawed(after)
        return after

    def _check_thawed(self, after: HostState) -> None:
        if after.failed:
            raise errors.PeFrozen(
                f"{self} is still {after}: the firmware gave it up, or does not know it, and "
                "nothing thaws it from here"
            )
        if after.state.frozen:
            raise errors.PeFrozen(
                f"{self} is still {after}: what froze it may have done so again; recover it with "
                f"`pyvfio eeh recover {self.function.address}`"
            )
        if after.reset_left:
            raise errors.StateError(
                f"config space of {self} is blocked: it is being reset, or whoever reset it was "
                "killed before the reset's end; in that case end it with "
                f"`pyvfio eeh reset {self.function.address}`"
            )
        if after.state is not PeState.NORMAL:
            raise errors.PeUnavailable(
                f"{self} is {after}: its DMA is on and its registers are stopped; recover it with "
                f"`pyvfio eeh recover {self.function.address}`"
            )

    def __str__(self) -> str:
        return f"PE {self.number:#x} of {self.function.address}"

    def __repr__(self) -> str:
        return f"HostPe({self.function!r})"

    def _word(self, name: str) -> int:
        text = self._read(name)
        if not text:
            raise self._no_pe()
        return sysfs.number(text, self.function.sysfs / name)

    def _read(self, name: str) -> str:
        try:
            return sysfs.read(self.function.sysfs / name)
        except errors.KernelError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                Function(self.function.address)  # says so if it has gone
                raise self._no_pe() from None
            raise

    def _no_pe(self) -> errors.Unsupported:
        return errors.Unsupported(
            f"{self.function.address} has no PE: the kernel did not set up EEH for it; "
            "`pyvfio eeh status all` shows the functions that have one"
        )


def frozen_before_open(function: Function) -> str | None:
    """What opening the function is about to undo, in words; None if its PE is not frozen, or if
    the function is not bound to VFIO.

    VFIO's open (and close) thaws a PE that is frozen, or resets it for some network cards
    (eeh_pe_change_owner() in the kernel), so afterwards nobody can see that it was.
    """
    # What the host drives cannot be opened, and its freeze is left to the host to notice.
    if not (function.sysfs / "eeh_pe_state").exists() or not is_vfio(function.driver):
        return None
    try:
        pe = HostPe(function)
        state = pe.state
    except errors.Unsupported:
        return None
    if not state.state.frozen:
        return None
    if state.failed:
        return (
            f"{pe} is frozen: {state}. The firmware gave it up, or does not know it, and opening "
            "the device leaves it so"
        )
    return (
        f"{pe} is frozen: {state}. Opening the device thaws it; a BCM5719 and two Emulex cards are "
        "reset instead"
    )
