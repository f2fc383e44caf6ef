"""Who plays the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from pyvfio import eeh, errors
from pyvfio._sys.closing import Closing
from pyvfio.device import Device, Irq
from pyvfio.irqroute import assigned
from pyvfio.irqroute.model import modelled_msix
from pyvfio.kvm import VM
from pyvfio.kvm.xics import BYPASS


class DevicePart(Closing):
    """The device of a replay.

    Attributes:
        name: for people.
        modelled: no VFIO is behind it.
        irq: its MSI-X.
    """

    name: str
    modelled: bool
    irq: Irq

    @abstractmethod
    def reset(self) -> str:
        """Reset it, after its MSI-X was disabled; says how."""

    @contextmanager
    def known_to(self, vm: object) -> Iterator[None]:
        """While the block lasts, KVM knows that the VM has it."""
        yield


class ModelledDevice(DevicePart):
    """No device: its eventfds are real, VFIO is not."""

    name = "a modelled device"
    modelled = True

    def __init__(self, vectors: int, *, noresize: bool = False) -> None:
        """
        Args:
            vectors: how many its MSI-X has.
            noresize: as :attr:`pyvfio.device.Irq.noresize`.
        """
        self.irq = modelled_msix(vectors, noresize=noresize)

    def reset(self) -> str:
        return "modelled"

    def close(self) -> None:
        self.irq.file.close()


class HostDevice(DevicePart):
    """A device of this host, through VFIO; its interrupts are fired by VFIO's loopback.

    Where the host has EEH its reset is one of its PE, through the firmware.
    """

    modelled = False

    def __init__(self, device: Device) -> None:
        """
        Args:
            device: open; stays the caller's to close.

        Raises:
            Unsupported: it has no MSI-X.
            StateError: its container holds more than its group, which EEH refuses.
        """
        if not device.msix.count:
            raise errors.Unsupported(f"{device.address} has no MSI-X: take another device")
        self.name = str(device.address)
        self.irq = device.msix
        self._device = device
        try:
            self._pe: eeh.Pe | None = eeh.Pe(device)
        except errors.NoEeh:
            self._pe = None

    def reset(self) -> str:
        if self._pe is not None:
            # As QEMU has it, MSI-X is off by now and its table wiped; the kernel restores BARs.
            saved = eeh.SavedConfig(self._device)
            self._pe.reset(eeh.Reset.HOT, teardown=lambda: None)
            self._pe.configure()
            saved.restore()
            return f"EEH: hot reset of its PE, deactivated, configured; it is {self._pe.state}"
        if not self._device.can_reset:
            return "only its table is wiped: it cannot be reset alone"
        self._device.reset()
        return "VFIO_DEVICE_RESET"

    @contextmanager
    def known_to(self, vm: object) -> Iterator[None]:
        """As :meth:`DevicePart.known_to`.

        Raises:
            HostError: KVM drops what VFIO fires by loopback.
        """
        if not isinstance(vm, VM):
            yield
            return
        if vm.irqchip.bypass:
            raise errors.HostError(
                "on this host KVM drops the interrupts that VFIO fires by loopback, since those of "
                f"devices bypass software: echo 0 > {BYPASS} for the time of the replay"
            )
        with assigned(self._device, vm):
            yield

    def close(self) -> None:
        """Give its interrupts back."""
        self.irq.disable()
