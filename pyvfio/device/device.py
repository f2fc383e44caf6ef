"""A PCI device opened through VFIO."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.closing import Closing
from pyvfio._sys.device_lock import retry_while_locked
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import pci_regs, vfio
from pyvfio.device import info
from pyvfio.device.config import ConfigRegion, LiveConfig
from pyvfio.device.irq import Irq
from pyvfio.device.msix import Msix
from pyvfio.device.region import Region
from pyvfio.iommu import AddressSpace, open_space
from pyvfio.pci import Address, Function, check_openable
from pyvfio.pci.config import Command, ConfigSpace

_REGION_NAMES = {
    **{vfio.VFIO_PCI_BAR0_REGION_INDEX + bar: f"BAR{bar}" for bar in range(6)},
    vfio.VFIO_PCI_ROM_REGION_INDEX: "ROM",
    vfio.VFIO_PCI_CONFIG_REGION_INDEX: "config",
    vfio.VFIO_PCI_VGA_REGION_INDEX: "VGA",
}
_IRQ_NAMES = {
    vfio.VFIO_PCI_INTX_IRQ_INDEX: "INTx",
    vfio.VFIO_PCI_MSI_IRQ_INDEX: "MSI",
    vfio.VFIO_PCI_MSIX_IRQ_INDEX: "MSI-X",
    vfio.VFIO_PCI_ERR_IRQ_INDEX: "ERR",
    vfio.VFIO_PCI_REQ_IRQ_INDEX: "REQ",
}


class Bars(dict[int, Region]):
    """A device's BARs by number; asking for one it has not got says which it has."""

    def __missing__(self, number: int) -> Region:
        have = ", ".join(f"BAR{bar}" for bar in self) or "no BARs"
        raise errors.RangeError(f"the device has no BAR{number}; it has {have}")


def open(
    address: str | Address | Function,
    *,
    space: AddressSpace | None = None,
    bus_master: bool = True,
) -> Device:
    """Open a device that is bound to vfio-pci.

    Opening resets the device where it can be reset, and so does closing. Memory and I/O decoding
    are switched on.

    Args:
        address: "0000:01:00.0", "01:00.0", or what :mod:`pyvfio.pci` gave.
        space: the address space for its DMA, to share one between devices; None makes one for this
            device, closed with it.
        bus_master: let the device do DMA and send MSI interrupts at once; what is not mapped stays
            out of its reach. Set :attr:`Device.bus_master` later otherwise.

    Returns:
        The device, a context manager.

    Raises:
        ArgumentError: the address makes no sense.
        DeviceNotFound, NotBound, NoIommu, NoVfio, GroupNotViable: the host is not set up for it.
        Unsupported: it is a bridge.
        DeviceGone: it does not answer.
        MalformedConfig: its capabilities make no sense.
        StateError: it is open in this address space already.
        AccessDenied, Busy, NoInterruptRemapping, OpenFilesLimit, KernelError: the kernel refused.
    """
    function = address if isinstance(address, Function) else Function(address)
    with deferred_signals() as section:
        stack = ExitStack()
        section.undo(stack.close)
        if space is None:
            # What the device itself lacks is said before what the host lacks.
            check_openable(function)
            space = stack.enter_context(open_space())
        file = space.open_device(function)
        stack.callback(space.close_device, file)
        device = Device(function, file, space)
        stack.callback(device._stop)
        space.stop_with(file, device._stop)
        device._start(bus_master)
        device._cleanup = stack
        return device


class Device(Closing):
    """An opened device.

    Made by :func:`open`, closed by :meth:`close` or by leaving the ``with`` block: interrupts are
    disabled, bus mastering switched off, DMA mappings removed, views of BARs and of buffers ended
    (:class:`~pyvfio.device.region.Region` says what touching one does then) and descriptors closed
    at once. Whatever somebody still holds of it, the kernel does not keep the device open.

    Threads may share it, with its regions and interrupts. Setting :attr:`bus_master`,
    :attr:`memory_decoding` or :attr:`power_state`, a write to the Command register and
    :meth:`reset` exclude each other, and accesses to the regions by methods wait for them. What a
    caller computes from ``config.command`` and writes back is not one step: use the attributes.

    After a fork the device belongs to the parent; in the child everything of it is closed.

    Attributes:
        function: the device as the bus shows it (:class:`pyvfio.pci.Function`).
        dma: the address space in which it does DMA (:class:`pyvfio.iommu.AddressSpace`).
        regions: all regions it has, by VFIO index.
        bars: its BARs, by number.
        rom: the expansion ROM, or None.
        vga: the legacy VGA range, or None.
        config: config space, typed (:class:`pyvfio.pci.config.ConfigSpace`), as VFIO shows it.
        intx, msi, msix, err, req: its interrupts (:class:`~pyvfio.device.irq.Irq`).
        irqs: these five.
        can_reset: whether :meth:`reset` works.
    """

    def __init__(self, function: Function, file: File, space: AddressSpace) -> None:
        """For :func:`open`; `file` stays the caller's to close."""
        self.function = function
        self.dma = space
        self._file = file
        self._cleanup = ExitStack()
        # Held over each change of the Command register, the power state and the device as a whole,
        # and of what is cached of them: what the device answers at. Its regions have the same lock.
        self._lock = threading.RLock()
        self._decoding = Command(0)
        self._irq_lock = threading.RLock()  # held over each change of its interrupts
        device = info.device_info(file)
        if not device.flags & vfio.VFIO_DEVICE_FLAGS_PCI:
            raise errors.Unsupported(f"{function.address} is not a PCI device")
        self.can_reset = bool(device.flags & vfio.VFIO_DEVICE_FLAGS_RESET)
        self.regions: dict[int, Region] = {}
        # Config space first: it tells which BARs are memory and which I/O.
        self._config_region = self._add_config_region()
        self.config = ConfigSpace(LiveConfig(self._config_region))
        self._refuse_gone()
        power = self.config.pm
        self._pm_control = None if power is None else power.offset + pci_regs.PCI_PM_CTRL
        for index in range(device.num_regions):
            if index not in self.regions:
                self._add_region(index)
        self.bars = Bars(
            (index, region)
            for index, region in sorted(self.regions.items())
            if index <= vfio.VFIO_PCI_BAR5_REGION_INDEX
        )
        self.rom = self.regions.get(vfio.VFIO_PCI_ROM_REGION_INDEX)
        self.vga = self.regions.get(vfio.VFIO_PCI_VGA_REGION_INDEX)
        self.irqs: list[Irq] = []
        for index, name in _IRQ_NAMES.items():
            self.irqs.append(self._irq(index, name))
        self.intx, self.msi, msix, self.err, self.req = self.irqs
        assert isinstance(msix, Msix)
        self.msix = msix

    @property
    def address(self) -> Address:
        """Where the device is on the bus."""
        return self.function.address

    @property
    def closed(self) -> bool:
        """Whether the device is closed (or was opened before this process forked)."""
        return self._file.closed

    @property
    def bus_master(self) -> bool:
        """Whether the device may do DMA and send MSI; off, it is cut off from memory."""
        return Command.MASTER in self.config.command

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self._set_command(Command.MASTER, on)

    @property
    def memory_decoding(self) -> bool:
        """Whether the device answers at its memory BARs; off, touching them is refused."""
        return Command.MEMORY in self.config.command

    @memory_decoding.setter
    def memory_decoding(self, on: bool) -> None:
        self._set_command(Command.MEMORY, on)

    @property
    def power_state(self) -> int:
        """The PCI power state, 0 (D0, at work) to 3 (D3hot, asleep).

        Setting it needs the power-management capability, or raises
        :class:`~pyvfio.errors.Unsupported`. A sleeping device's memory cannot be touched.
        """
        offset = self._pm_control
        if offset is None:
            return 0
        return self._config_region.read16(offset) & (pci_regs.PCI_PM_CTRL_STATE_MASK)

    @power_state.setter
    def power_state(self, state: int) -> None:
        if not 0 <= state <= 3:
            raise errors.RangeError(f"power states are 0 (D0) to 3 (D3hot), not {state}")
        offset = self._pm_control
        if offset is None:
            raise errors.Unsupported(f"{self.address} has no power-management capability")
        with deferred_signals(), self._lock:
            config = self._config_region
            control = config.read16(offset) & ~pci_regs.PCI_PM_CTRL_STATE_MASK
            config.write16(offset, control | state)
            if self.power_state != state:
                raise errors.Unsupported(f"{self.address} did not enter D{state}")

    def reset(self) -> None:
        """Reset the device, by function-level reset where it has one.

        What its registers held is gone; interrupts stay enabled, and config space is restored by
        the kernel.

        Raises:
            Unsupported: the device cannot be reset alone.
            Busy: the host holds its lock of the device.
            DeviceGone, KernelError: the kernel refused.
        """
        if not self.can_reset:
            raise errors.Unsupported(
                f"{self.address} cannot be reset alone: it has no function-level reset, and other "
                "devices share its bus"
            )
        with self._changing():
            retry_while_locked(lambda: self._file.ioctl(vfio.VFIO_DEVICE_RESET))

    def close(self) -> None:
        """Stop the device and let go of it; closing again does nothing.

        Raises:
            KernelError: a step failed; the steps after it were done all the same.
        """
        with deferred_signals():
            self._cleanup.close()

    def __bool__(self) -> bool:
        return not self.closed

    def __repr__(self) -> str:
        return f"<Device {self.address}{' closed' if self.closed else ''}>"

    def _start(self, bus_master: bool) -> None:
        self._set_command(Command.MEMORY | Command.IO, True)
        self._set_command(Command.MASTER, bus_master)

    def _stop(self) -> None:
        """Silence the device: no interrupt, no DMA, no access. Each step runs whatever fails."""
        with deferred_signals(), ExitStack() as steps:
            for region in self.regions.values():
                if region is not self._config_region:
                    steps.callback(region.close)
            steps.callback(self._stop_dma)
            for irq in self.irqs:
                steps.callback(irq.disable)

    def _stop_dma(self) -> None:
        if self._file.closed:
            return
        try:
            self.bus_master = False
        except errors.KernelError as error:
            # A device that has gone does no DMA.
            if error.errno not in (errno.ENODEV, errno.EIO):
                raise

    def _add_config_region(self) -> ConfigRegion:
        index = vfio.VFIO_PCI_CONFIG_REGION_INDEX
        found = info.region_info(self._file, index)
        if found is None or not found.size:
            raise errors.Unsupported(f"VFIO shows no config space of {self.address}")
        region = ConfigRegion(
            self._file,
            index,
            "config",
            flags=found.flags,
            size=found.size,
            offset=found.offset,
            areas=(),
            refuse=self._refuse_closed,
            writing=self._config_writing,
        )
        self.regions[index] = region
        return region

    def _add_region(self, index: int) -> None:
        found = info.region_info(self._file, index)
        if found is None or not found.size:
            return
        decoding = Command.MEMORY
        if index <= vfio.VFIO_PCI_BAR5_REGION_INDEX:
            bar = self._config_region.read32(pci_regs.PCI_BASE_ADDRESS_0 + 4 * index)
            if bar & pci_regs.PCI_BASE_ADDRESS_SPACE_IO:
                decoding = Command.IO

        def refuse() -> None:
            if decoding not in self._decoding:
                self._refuse_access(decoding)

        self.regions[index] = Region(
            self._file,
            index,
            _REGION_NAMES.get(index, f"region {index}"),
            flags=found.flags,
            size=found.size,
            offset=found.offset,
            areas=found.areas,
            refuse=refuse,
            kind=found.kind,
            lock=self._lock,
        )

    def _irq(self, index: int, name: str) -> Irq:
        found = info.irq_info(self._file, index)
        flags, count = (found.flags, found.count) if found is not None else (0, 0)
        if index != vfio.VFIO_PCI_MSIX_IRQ_INDEX:
            return Irq(
                self._file,
                index,
                name,
                flags=flags,
                count=count,
                siblings=self.irqs,
                lock=self._irq_lock,
            )
        table = pending = None
        msix = self.config.msix if count else None
        if msix is not None:
            # A device under development may name a BAR that it has not got.
            table = self.bars.get(msix.table_bar), msix.table_offset
            pending = self.bars.get(msix.pba_bar), msix.pba_offset
        return Msix(
            self._file,
            index,
            name,
            flags=flags,
            count=count,
            siblings=self.irqs,
            lock=self._irq_lock,
            table=table,
            pending=pending,
        )

    def _set_command(self, bits: Command, on: bool) -> None:
        with deferred_signals(), self._lock:
            command = self.config.command
            self.config.command = command | bits if on else command & ~bits

    @contextmanager
    def _config_writing(self, offset: int, size: int) -> Iterator[None]:
        """Around a write to config space, which may change what can be touched."""
        registers = [pci_regs.PCI_COMMAND]
        if self._pm_control is not None:
            registers.append(self._pm_control)
        if any(offset < register + 2 and register < offset + size for register in registers):
            with self._changing():
                yield
        else:
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around what may change what the device answers at."""
        with deferred_signals(), self._lock:
            # First nobody touches it, then it changes: another thread may be reading a BAR.
            self._set_decoding(Command(0))
            try:
                yield
            finally:
                # Where that fails nobody touches it, until _refuse_access() asks again.
                with suppress(errors.Error):
                    self._refresh()

    def _refresh(self) -> None:
        """Find out what the device answers at."""
        self._set_decoding(Command(0) if self.power_state else self.config.command)

    def _set_decoding(self, decoding: Command) -> None:
        self._decoding = decoding
        if Command.MEMORY not in decoding:
            for region in self.regions.values():
                region.release()

    def _refuse_closed(self) -> None:
        if self._file.closed:
            raise errors.Closed(
                f"the device {self.address} is closed (or was opened before this process forked)"
            )

    def _refuse_gone(self) -> None:
        if not self.config.answers:
            raise errors.DeviceGone(
                errno.ENODEV,
                "pread",
                str(self.address),
                "config space reads all ones: the device was removed, or its link is down",
            )

    def _refuse_access(self, decoding: Command) -> None:
        # Another thread may be changing it: what counts is how the device is afterwards.
        with deferred_signals(), self._lock:
            self._refuse_closed()
            self._refuse_gone()
            self._refresh()
            if decoding in self._decoding:
                return
            if self.power_state:
                raise errors.MemoryDisabled(
                    f"{self.address} sleeps in D{self.power_state}: set its power_state to 0 first"
                )
            if decoding is Command.IO:
                raise errors.MemoryDisabled(
                    f"{self.address} does not decode I/O ports: set Command.IO in config.command "
                    "first"
                )
            raise errors.MemoryDisabled(
                f"{self.address} does not decode memory: set its memory_decoding to True first"
            )
