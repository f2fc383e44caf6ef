"""What the holder of a device can do with its PE, through the container of its address space."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum

from pyvfio import errors
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.device import Device, Irq
from pyvfio.eeh.error import InjectedError
from pyvfio.eeh.operation import check_one_group, in_reset, operate
from pyvfio.eeh.state import PeState
from pyvfio.iommu import Container, ContainerSpace

_POLL = 0.1  # seconds
_UNAVAILABLE_FOR = 30.0  # seconds: the host's own recovery of a PE above takes about 10


class Reset(Enum):
    """How a PE is reset."""

    HOT = vfio.VFIO_EEH_PE_RESET_HOT
    """By the bus: the link stays up, or is trained anew."""
    FUNDAMENTAL = vfio.VFIO_EEH_PE_RESET_FUNDAMENTAL
    """By the slot's reset signal (PERST#), where the firmware can raise it."""

    def __str__(self) -> str:
        return self.name.lower()


class Pe:
    """The PE of opened devices, as their holder drives it.

    While a process holds a device the kernel leaves its PE's errors to that process: it recovers
    nothing by itself, and opening, closing and :meth:`enable` thaw a PE that they find frozen.

    Args:
        devices: the device, and the others of its PE that are open in the same address space.

    Attributes:
        devices: the same.
        container: the container that the operations are asked of.

    Raises:
        NoEeh: the host has no EEH, or the address space is none of SPAPR TCE.
        StateError: the devices are in different address spaces, or their address space holds more
            than one group.
        ArgumentError: no device is given.
    """

    def __init__(self, *devices: Device) -> None:
        if not devices:
            raise errors.ArgumentError("name the devices of the PE")
        space = devices[0].dma
        if any(device.dma is not space for device in devices):
            raise errors.StateError(
                "the devices are open in different address spaces, and a PE is driven through one: "
                "open them with the same `space`"
            )
        if not isinstance(space, ContainerSpace) or not space.container.check_extension(
            vfio.VFIO_EEH
        ):
            raise errors.NoEeh(
                f"{devices[0].address} is on a host without EEH: POWER hosts have it, with a "
                "kernel built with CONFIG_EEH and the module vfio_iommu_spapr_tce"
            )
        self.devices = devices
        self.container: Container = space.container
        self._space = space
        check_one_group(space)

    @property
    def state(self) -> PeState:
        """What it does now (``VFIO_EEH_PE_GET_STATE``).

        Raises:
            StateError: a second group is in the container.
            Unsupported: the device has no PE.
            KernelError: the kernel refused, or says what there is no word for (EPROTO).
        """
        number = self._operate(vfio.VFIO_EEH_PE_GET_STATE)
        try:
            return PeState(number)
        except ValueError:
            raise errors.KernelError(
                errno.EPROTO,
                "VFIO_EEH_PE_GET_STATE",
                self.container.file.path,
                f"the kernel knows a state {number} that pyvfio does not know",
            ) from None

    def wait(self, timeout: float = _UNAVAILABLE_FOR) -> PeState:
        """Its state, once that can be told.

        Args:
            timeout: seconds to wait at most.

        Raises:
            PeUnavailable: it could not be told in that time.
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        deadline = time.monotonic() + timeout
        while (state := self.state) is PeState.UNAVAILABLE:
            if time.monotonic() >= deadline:
                raise errors.PeUnavailable(
                    f"the state of {self} has been unavailable for {timeout:g} s: a PE above it is "
                    "frozen or being recovered by the host (`pyvfio eeh status all` shows which; "
                    "`pyvfio eeh thaw` on that bridge clears it)"
                )
            time.sleep(_POLL)
        return state

    def enable(self) -> None:
        """Take EEH over for the PE; a frozen PE is thawed or reset thereby.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_ENABLE)

    def disable(self) -> None:
        """Give EEH up for the PE; today's kernels do nothing, and say so to nobody.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_DISABLE)

    def unfreeze_io(self) -> None:
        """Let registers be read again; DMA stays blocked. Does nothing to a PE that is not frozen.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_UNFREEZE_IO)

    def unfreeze_dma(self) -> None:
        """Let the device do DMA again. Does nothing to a PE that is not frozen.

        The kernel's own note of the freeze stays (``Software.ISOLATED``): once nobody holds the
        device, the host would not recover its next one. :meth:`pyvfio.eeh.HostPe.thaw` clears it,
        and so does a reset.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_UNFREEZE_DMA)

    def configure(self) -> None:
        """Set up the bridges of the PE anew, after a reset; on PowerNV there is nothing to do.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_CONFIGURE)

    def inject(self, error: InjectedError) -> None:
        """Ask the firmware to make an error happen; whether the PE froze is for :attr:`state`.

        Raises:
            KernelError: the firmware refused (EIO), or knows no such error (EINVAL, ERANGE).
            StateError, Unsupported: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_INJECT_ERR, error)

    def reset(self, kind: Reset = Reset.HOT, *, teardown: Callable[[], None] | None = None) -> None:
        """Reset the PE: assert, hold, deactivate. Takes 2 to 10 seconds.

        Interrupts are off before the reset, as QEMU has it (commit 6319b1dad0): afterwards a
        device's MSI-X table is empty, and what was set up before would be stale. Those that are
        forwarded end as well, and their guest's table says that MSI-X is disabled. The kernel
        restores BARs and decoding, thaws the PE, and clears its note of a freeze. Bus mastering and
        all else is the caller's to restore, or :func:`~pyvfio.eeh.recover`'s.

        Ctrl-C during the reset is answered after it, so that no PE stays in reset.

        Args:
            kind: hot or fundamental.
            teardown: called first, for a caller who has more to end than interrupts, or who wipes
                the table that a guest has (:meth:`MsixForwarder.reset`). Interrupts that are on
                after it are disabled. None is :meth:`disable_interrupts`.

        Raises:
            StateError, Unsupported: as :attr:`state`.
            KernelError: the kernel refused; the PE is not left in reset if it can be helped.
            PeFrozen, PeUnavailable: it is not normal afterwards.
        """
        with self.asserted(kind, teardown=teardown):
            pass
        self.check_normal()

    def check_normal(self) -> None:
        """Check that the PE is at work, as it must be after a reset.

        Raises:
            PeFrozen: it is not.
            PeUnavailable, StateError, Unsupported, KernelError: as :meth:`wait`.
        """
        if (state := self.wait()) is not PeState.NORMAL:
            raise errors.PeFrozen(f"{self} is {state} after the reset")

    def check_one_group(self) -> None:
        """Check that the PE can be driven: a group opened later may be in the address space.

        Raises:
            StateError: a second group is in the container.
        """
        check_one_group(self._space)

    @contextmanager
    def asserted(
        self, kind: Reset = Reset.HOT, *, teardown: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """The PE in reset for as long as the block lasts; :meth:`reset` is this with no block.

        While it lasts the device answers nothing. What is read from a BAR says nothing: a PHB
        gives all ones, QEMU's gives zeros. Registers of config space that VFIO reads from the
        device raise :class:`~pyvfio.errors.DeviceGone` (ENODEV), as do writes. Those that it
        answers from a copy of its own, the vendor ID, the device ID and the BARs among them, read
        as ever (docs/config-space.md).

        Arguments and errors are those of :meth:`reset`. Ctrl-C waits for the end of the block; it
        is then raised in the place of an exception that ended the block, which is its
        ``__context__``.
        """
        check_one_group(self._space)
        with deferred_signals():
            (self.disable_interrupts if teardown is None else teardown)()
            # A teardown that disables nothing must not leave a guest with vectors that the reset
            # wipes. One that was refused has its vectors recorded as off, and is not asked again.
            for irq in self._used():
                irq.disable()
            with in_reset(self._space, self.devices[0].address, kind.value, self.deactivate):
                yield

    def assert_reset(self, kind: Reset) -> None:
        """Assert a reset and leave it so: for those who relay a guest's calls one by one.

        Interrupts must be off, the guest's MSI-X table cleared; :meth:`deactivate` must follow. A
        process that ends before it leaves the device's config space blocked
        (:func:`~pyvfio.eeh.end_leftover_reset`).

        Raises:
            StateError: interrupts of the devices are enabled or forwarded; and as :attr:`state`.
            Unsupported, KernelError: as :attr:`state`.
        """
        for irq in self._used():
            raise errors.StateError(
                f"{irq.name} interrupts are on, and the reset wipes the device's table of them: "
                "call disable_interrupts() first"
            )
        self._operate(kind.value)

    def deactivate(self) -> None:
        """End a reset: the kernel restores BARs and decoding, and thaws the PE.

        Raises:
            StateError, Unsupported, KernelError: as :attr:`state`.
        """
        self._operate(vfio.VFIO_EEH_PE_RESET_DEACTIVATE)
        for device in self.devices:
            # Writing the register makes the device ask anew what it answers at.
            device.config.command = device.config.command

    def disable_interrupts(self) -> None:
        """Disable INTx, MSI and MSI-X of the devices: all of them, even if one fails.

        Raises:
            KernelError: the kernel refused.
        """
        with ExitStack() as stack:
            for device in reversed(self.devices):
                for irq in (device.msix, device.msi, device.intx):
                    stack.callback(irq.disable)

    def _used(self) -> list[Irq]:
        """INTx, MSI and MSI-X of the devices that somebody takes for enabled."""
        return [
            irq
            for device in self.devices
            for irq in (device.intx, device.msi, device.msix)
            if irq.enabled or irq.claimed
        ]

    def __str__(self) -> str:
        return f"the PE of {self.devices[0].address}"

    def __repr__(self) -> str:
        return f"<Pe {' '.join(str(device.address) for device in self.devices)}>"

    def _operate(self, operation: int, error: InjectedError | None = None) -> int:
        return operate(self._space, self.devices[0].address, operation, error)
