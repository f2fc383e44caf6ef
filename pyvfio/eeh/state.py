"""The state of a PE: as VFIO tells its holder, and as the host's sysfs shows it.

The two speak of the same thing in different numbers. sysfs has bits of the kernel's own, with a
second word that says what the kernel's software makes of it.
"""

from __future__ import annotations

import re
from enum import Enum, IntFlag
from typing import NamedTuple

from pyvfio import errors
from pyvfio.abi import vfio


class PeState(Enum):
    """What a PE does now; the values are those of ``VFIO_EEH_PE_GET_STATE``."""

    NORMAL = vfio.VFIO_EEH_PE_STATE_NORMAL
    """At work."""
    RESET = vfio.VFIO_EEH_PE_STATE_RESET
    """Its reset is asserted."""
    STOPPED = vfio.VFIO_EEH_PE_STATE_STOPPED
    """Frozen: reads give all ones, writes are dropped, DMA and interrupts are blocked."""
    DMA_STOPPED = vfio.VFIO_EEH_PE_STATE_STOPPED_DMA
    """Half thawed: registers can be read, DMA is still blocked."""
    UNAVAILABLE = vfio.VFIO_EEH_PE_STATE_UNAVAIL
    """Not to be told: a PE above it is frozen or being recovered. The host's own word for it in
    sysfs says so where registers alone are stopped; what the firmware calls unavailable, for now or
    for good, the kernel calls stopped."""

    @property
    def frozen(self) -> bool:
        """Whether something of it is stopped."""
        return self in (PeState.STOPPED, PeState.DMA_STOPPED)

    def __str__(self) -> str:
        return _WORDS[self]


_WORDS = {
    PeState.NORMAL: "normal",
    PeState.RESET: "reset",
    PeState.STOPPED: "stopped",
    PeState.DMA_STOPPED: "DMA stopped",
    PeState.UNAVAILABLE: "unavailable",
}


class Hardware(IntFlag):
    """What the firmware says (``EEH_STATE_*`` in the kernel's arch/powerpc/include/asm/eeh.h)."""

    UNAVAILABLE = 1 << 0
    NOT_SUPPORTED = 1 << 1
    RESET_ACTIVE = 1 << 2
    MMIO_ACTIVE = 1 << 3
    DMA_ACTIVE = 1 << 4
    MMIO_ENABLED = 1 << 5
    DMA_ENABLED = 1 << 6


class Software(IntFlag):
    """What the kernel has noted of a PE (``EEH_PE_*``, the states, in the same file)."""

    ISOLATED = 1 << 0
    """Seen frozen, and not cleared since."""
    RECOVERING = 1 << 1
    CONFIG_BLOCKED = 1 << 2
    """Config space reads all ones. A reset is asserted; or it is only frozen, where it is
    CONFIG_RESTRICTED as well: :attr:`HostState.reset_left` tells which."""
    RESET = 1 << 3
    KEEP = 1 << 8
    CONFIG_RESTRICTED = 1 << 9
    """Config space is blocked while it is frozen; some Broadcom network cards need that."""
    REMOVED = 1 << 10
    PRIMARY_BUS = 1 << 11
    """Its bus is known; says nothing of its health."""


class DeviceMode(IntFlag):
    """What ``eeh_mode`` shows of a function (``EEH_DEV_*`` in the same file)."""

    BRIDGE = 1 << 0
    ROOT_PORT = 1 << 1
    DOWNSTREAM_PORT = 1 << 2
    IRQ_DISABLED = 1 << 3
    DISCONNECTED = 1 << 4
    NO_HANDLER = 1 << 8
    SYSFS = 1 << 9
    REMOVED = 1 << 10


class HostState(NamedTuple):
    """One look at ``eeh_pe_state``.

    Attributes:
        hardware: what the firmware says.
        software: what the kernel has noted.
    """

    hardware: Hardware
    software: Software

    @classmethod
    def parse(cls, text: str) -> HostState:
        """Read what the file shows: two hexadecimal words.

        Bits that are not named here are kept.

        Raises:
            ArgumentError: it is something else.
        """
        match = _TWO_WORDS.fullmatch(text.strip())
        if match is None:
            raise errors.ArgumentError(
                f"{text[:40]!r} is not what eeh_pe_state shows: 0xHHHHHHHH twice"
            )
        return cls(Hardware(int(match[1], 16)), Software(int(match[2], 16)))

    @property
    def state(self) -> PeState:
        """The same in VFIO's words, as the kernel's eeh_pe_get_state() has it: the two bits that
        say what is enabled decide, unless a reset is active. Firmware that says UNAVAILABLE or
        NOT_SUPPORTED has nothing enabled, which is stopped.

        What this file does not show is the PE above: where that is isolated or being recovered, the
        holder is told UNAVAILABLE whatever stands here.
        """
        hardware = self.hardware
        if hardware & Hardware.RESET_ACTIVE:
            return PeState.RESET
        if hardware & Hardware.MMIO_ENABLED:
            dma = hardware & Hardware.DMA_ENABLED
            return PeState.NORMAL if dma else PeState.DMA_STOPPED
        return PeState.UNAVAILABLE if hardware & Hardware.DMA_ENABLED else PeState.STOPPED

    @property
    def failed(self) -> bool:
        """Whether the firmware does not know the PE or gave it up (NOT_SUPPORTED): it is stopped,
        and the kernel neither thaws nor resets it when a device of it is opened."""
        return self.hardware is Hardware.NOT_SUPPORTED

    @property
    def isolated(self) -> bool:
        """Whether the kernel has noted a freeze that nobody has cleared."""
        return bool(self.software & Software.ISOLATED)

    @property
    def reset_left(self) -> bool:
        """Whether a reset is asserted: one under way, or one whose process was killed.

        The kernel blocks config space for a reset. For a PE that is CONFIG_RESTRICTED it does so
        at each freeze as well (eeh_pe_mark_isolated()), so there that alone tells of no reset.
        """
        if self.hardware & Hardware.RESET_ACTIVE:
            return True
        frozen = Software.ISOLATED | Software.CONFIG_RESTRICTED
        blocked = bool(self.software & Software.CONFIG_BLOCKED)
        return blocked and self.software & frozen != frozen

    @property
    def flags(self) -> tuple[str, ...]:
        """What the kernel has noted, in words, without what says nothing of its health."""
        telling = self.software & ~Software.PRIMARY_BUS
        return tuple(
            flag.name.lower().replace("_", " ")
            for flag in Software
            if telling & flag and flag.name is not None
        )

    def __str__(self) -> str:
        noted = f" ({', '.join(self.flags)})" if self.flags else ""
        return f"{self.state}{noted}"


_TWO_WORDS = re.compile(r"0x([0-9a-f]{1,8}) 0x([0-9a-f]{1,8})", re.ASCII)
