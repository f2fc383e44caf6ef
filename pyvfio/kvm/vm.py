"""A virtual machine."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from pyvfio import errors
from pyvfio._sys import File, memory
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm
from pyvfio.kvm.irqchip import FullIrqchip, Irqchip
from pyvfio.kvm.irqfd import Irqfds
from pyvfio.kvm.message import MsiMessage, check_message
from pyvfio.kvm.routes import Routes
from pyvfio.kvm.system import System
from pyvfio.kvm.vcpu import Vcpu
from pyvfio.kvm.vfio_device import VfioDevice
from pyvfio.kvm.xics import XicsIrqchip


def _default_irqchip() -> Irqchip:
    return XicsIrqchip() if os.uname().machine.startswith("ppc") else FullIrqchip()


class MemorySlot(Closing):
    """Memory of this process that is the guest's too; leaving the block takes it away.

    Attributes:
        address: where the guest has it, bytes.
        view: the memory.
    """

    def __init__(self, vm: VM, number: int, address: int, view: memoryview) -> None:
        """Made by :meth:`VM.map_memory`."""
        self._vm = vm
        self._number = number
        self._uncertain = False  # whether the guest has it is unknown: a call was interrupted
        self.address = address
        self.view = view
        self._size = view.nbytes  # the view may end: it can be of a device's BAR

    def close(self) -> None:
        """Take it from the guest; doing it again does nothing."""
        self._vm._unmap_memory(self._number, self)

    def __repr__(self) -> str:
        return f"<MemorySlot {self.address:#x} {self._size:#x} bytes>"


class VM(Closing):
    """A virtual machine, with an interrupt controller in the kernel.

    Closing it ends all that it has: vCPUs, routes, irqfds. It belongs to the process that made it.
    Threads may share it. A signal (Ctrl-C) in the midst of a call comes after it.

    Attributes:
        file: its file.
        irqchip: its interrupt controller.
        routes: which message each GSI stands for.
        irqfds: which eventfds are interrupts.
    """

    def __init__(self, irqchip: Irqchip | None = None, *, system: System | None = None) -> None:
        """
        Args:
            irqchip: the interrupt controller; None takes what the host's guests have: XICS on
                POWER, a full one on x86.
            system: an open /dev/kvm, to share it; None opens one for the while.

        Raises:
            NoKvm, AccessDenied: there is no KVM for this process.
            Unsupported: this kernel does not have that irqchip, or this host's processor is
                neither x86 nor POWER.
            KernelError: the kernel refused.
        """
        self.irqchip = _default_irqchip() if irqchip is None else irqchip
        self._lock = threading.RLock()  # of what it has: vCPUs, memory, KVM-VFIO device
        self._vcpus: list[Vcpu] = []
        self._next_vcpu = 0
        self._slots: dict[int, MemorySlot] = {}
        self._vfio: VfioDevice | None = None
        with deferred_signals() as section, ExitStack() as stack:
            if system is None:
                system = stack.enter_context(System())
            self._vcpu_mmap_size = system.vcpu_mmap_size
            self.file = system.create_vm()
            section.undo(self.file.close)
            self.irqchip.create(self.file)
            section.undo(self.irqchip.close)
            limit = self.check_extension(kvm.KVM_CAP_IRQ_ROUTING)
            self.routes = Routes(
                self.file,
                limit if self.irqchip.routable else 0,
                self.irqchip.first_gsi,
                self.irqchip.default_routes(),
            )
            self.irqfds = Irqfds(self.file, self.irqchip)

    def check_extension(self, capability: int) -> int:
        """What KVM says of a ``KVM_CAP_*`` for this VM: 0 for "no", else 1 or a number."""
        return self.file.ioctl(kvm.KVM_CHECK_EXTENSION, capability)

    @property
    def vfio(self) -> VfioDevice:
        """The KVM-VFIO device, made when it is first asked for, and again if it was closed.

        Raises:
            Unsupported, KernelError: it cannot be had.
        """
        with deferred_signals(), self._lock:
            if self._vfio is None or self._vfio.file.closed:
                self._vfio = VfioDevice(self.file)
            return self._vfio

    def create_vcpu(self, number: int | None = None) -> Vcpu:
        """Add a vCPU.

        Args:
            number: its number, also its APIC ID; None takes the next one, from 0 on.

        Raises:
            KernelError: the kernel refused (EINVAL: as many as it can have, or no such number;
                EEXIST: the number is taken).
        """
        with deferred_signals() as section, self._lock:
            if number is None:
                number = self._next_vcpu
            file = File.made_by(
                partial(self.file.ioctl, kvm.KVM_CREATE_VCPU, number), f"vCPU {number}"
            )
            section.undo(file.close)
            # Taken from here on, whatever becomes of the descriptor.
            self._next_vcpu = max(self._next_vcpu, number + 1)
            vcpu = Vcpu(file, number, self._vcpu_mmap_size)
            section.undo(vcpu.close)
            self.irqchip.connect(vcpu.file, number)
            self._vcpus.append(vcpu)
            section.undo(self._vcpus.remove, vcpu)
            return vcpu

    def map_memory(self, address: int, buffer: Any, *, readonly: bool = False) -> MemorySlot:
        """Let the guest have memory of this process, a device's BAR included.

        Args:
            address: where the guest gets it: bytes, a multiple of the page size.
            buffer: anything with a writable, contiguous buffer that begins at a page and is whole
                pages long. Kept alive while it is mapped.
            readonly: the guest's writes come back from :meth:`Vcpu.run` instead ("MMIO").

        Raises:
            ArgumentError: address or buffer are not whole pages, or the buffer is not writable.
            RangeError: an address has 64 bits.
            KernelError: the kernel refused (EEXIST: it overlaps other memory of the guest).
        """
        if not 0 <= address < 1 << 64:
            raise errors.RangeError(f"a guest's address has 64 bits, {address:#x} does not fit")
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise errors.ArgumentError(
                "guest memory needs a writable buffer, even where the guest may only read it"
            )
        host = memory.address_of(view) if view.nbytes else 0
        page = memory.PAGE_SIZE
        if not view.nbytes or (address | host | view.nbytes) % page:
            raise errors.ArgumentError(
                f"guest memory is whole pages of {page:#x} bytes, not {view.nbytes:#x} bytes at "
                f"{host:#x} for {address:#x}: make it with mmap.mmap(-1, size)"
            )
        with deferred_signals() as section, self._lock:
            number = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
            # Recorded first, since the guest may have it whatever ends the call.
            slot = self._slots[number] = MemorySlot(self, number, address, view)
            section.undo(self._take_back, slot)
            region = kvm.kvm_userspace_memory_region(
                slot=number,
                flags=kvm.KVM_MEM_READONLY if readonly else 0,
                guest_phys_addr=address,
                memory_size=view.nbytes,
                userspace_addr=host,
            )
            try:
                self.file.ioctl(kvm.KVM_SET_USER_MEMORY_REGION, region)
            except errors.Error as error:
                del self._slots[number]
                if isinstance(error, errors.KernelError) and error.errno == errno.EEXIST:
                    raise errors.KernelError.from_call(
                        error, f"the guest has other memory at {address:#x}"
                    ) from None
                raise
            return slot

    def alloc_memory(self, size: int, address: int = 0) -> MemorySlot:
        """Give the guest zeroed memory.

        Args:
            size: bytes, a multiple of the page size.
            address: where the guest gets it.

        Raises:
            As :meth:`map_memory`.
        """
        if size <= 0:
            raise errors.ArgumentError(f"memory has a size, not {size}")
        with deferred_signals() as section:
            slot = self.map_memory(address, mmap.mmap(-1, size))
            section.undo(self._take_back, slot)
            return slot

    def signal_msi(self, message: MsiMessage) -> bool:
        """Send a message, without a route.

        Returns:
            Whether a local APIC took it; False where no vCPU has that APIC ID, or its local APIC
            is disabled.

        Raises:
            ArgumentError: the message does not fit the VM's format.
            NoIrqchip: the VM has no irqchip in the kernel.
            KernelError: the kernel refused.
        """
        check_message(message, x2apic_format=self.routes.x2apic_format)
        address, data = message
        msi = kvm.kvm_msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        try:
            return self.file.ioctl(kvm.KVM_SIGNAL_MSI, msi) > 0
        except errors.KernelError as error:
            # KVM's own -1 for "nobody there", which is also EPERM.
            if error.errno == errno.EPERM:
                return False
            raise self._without_irqchip(error) from None

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Raise or lower an interrupt line; where its GSI has no route, nothing happens.

        Raises:
            RangeError: a GSI has 32 bits.
            NoIrqchip: the VM has no irqchip in the kernel.
            KernelError: the kernel refused.
        """
        if not 0 <= gsi < 1 << 32:
            raise errors.RangeError(f"a GSI is a number of 32 bits, not {gsi}")
        line = kvm.kvm_irq_level(level=int(level))
        line.irq = gsi
        try:
            self.file.ioctl(kvm.KVM_IRQ_LINE, line)
        except errors.KernelError as error:
            raise self._without_irqchip(error) from None

    def use_x2apic_format(self) -> None:
        """x86: messages and APIC state have APIC IDs of 32 bits (``KVM_CAP_X2APIC_API``).

        Bits 63 to 40 of a message's address are then the upper ones of the ID, and bits 39 to 32
        must be 0.

        Raises:
            Unsupported: this kernel cannot.
            ArgumentError: a message that is routed does not have this format.
            KernelError: the kernel refused.
        """
        flags = kvm.KVM_X2APIC_API_USE_32BIT_IDS | kvm.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
        if self.check_extension(kvm.KVM_CAP_X2APIC_API) & flags != flags:
            raise errors.Unsupported("this kernel's KVM has no x2APIC format")
        enable = kvm.kvm_enable_cap(cap=kvm.KVM_CAP_X2APIC_API)
        enable.args[0] = flags
        with self.routes.requiring_x2apic_format():
            self.file.ioctl(kvm.KVM_ENABLE_CAP, enable)

    @property
    def closed(self) -> bool:
        """Whether it was closed (or was made before this process forked)."""
        return self.file.closed

    def close(self) -> None:
        """Close vCPUs, devices and the VM; closing again does nothing.

        Raises:
            KernelError: a step failed; the steps after it were done all the same.
        """
        with deferred_signals(), self._lock, ExitStack() as steps:
            steps.callback(self._slots.clear)
            steps.callback(self._vcpus.clear)
            steps.callback(self.file.close)
            steps.callback(self.irqchip.close)
            if self._vfio is not None:
                steps.callback(self._vfio.close)
            for vcpu in self._vcpus:
                steps.callback(vcpu.close)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.irqchip.name}, {len(self._vcpus)} vCPUs"
        return f"<VM {state}>"

    def _unmap_memory(self, number: int, slot: MemorySlot) -> None:
        with deferred_signals(), self._lock:
            if self._slots.get(number) is not slot:
                return
            if not self.closed:
                # Whatever ends the call, it may have taken the slot away.
                uncertain, slot._uncertain = slot._uncertain, True
                try:
                    # A size of 0 takes the slot away.
                    region = kvm.kvm_userspace_memory_region(slot=number)
                    self.file.ioctl(kvm.KVM_SET_USER_MEMORY_REGION, region)
                except errors.KernelError as error:
                    slot._uncertain = uncertain
                    if not uncertain or error.errno != errno.EINVAL:  # it is gone already
                        raise
            del self._slots[number]

    def _take_back(self, slot: MemorySlot) -> None:
        """Take memory away that the guest may have; where that is refused, closing the VM does."""
        slot._uncertain = True
        with suppress(errors.KernelError):
            slot.close()

    def _without_irqchip(self, error: errors.KernelError) -> errors.KernelError:
        if self.irqchip.irqfds or error.errno not in (errno.EINVAL, errno.ENXIO):
            return error
        return errors.NoIrqchip.from_call(error, f"the VM has {self.irqchip.name}")
