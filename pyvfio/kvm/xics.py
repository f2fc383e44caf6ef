"""POWER's XICS in the kernel (arch/powerpc/kvm/book3s_xics.c; on a XIVE host book3s_xive.c).

There is no table of routes: a GSI is the number of an interrupt source, and the message that a
device is given names the source in its data.
"""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm
from pyvfio.abi import kvm_powerpc as abi
from pyvfio.abi.ioctl import Request
from pyvfio.kvm.irqchip import Irqchip
from pyvfio.kvm.vfio_device import create_device

if TYPE_CHECKING:
    from pyvfio.kvm.vcpu import Vcpu

BYPASS = Path("/sys/module/kvm_hv/parameters/kvm_irq_bypass")
"""Whether KVM lets interrupts of devices bypass software: 0 or 1. Root may write it; what is bound
already keeps what it has."""

FIRST_SOURCE = 16
"""Sources below are no interrupts (``KVMPPC_XICS_FIRST_IRQ``): number 0 never exists."""

LAST_SOURCE = (1 << 20) - 1
"""There are none above (``KVMPPC_XICS_NR_IRQS``)."""

NEVER = 0xFF
"""The priority of a source that interrupts nobody."""


class Source(NamedTuple):
    """An interrupt source, as it is.

    Attributes:
        server: the vCPU that it interrupts.
        priority: 0 is the highest, NEVER none at all.
        masked: what comes is kept.
        level: level-triggered; else by message.
        pending: an interrupt is kept.
        presented: an interrupt was given to the server, and is not acknowledged yet.
        queued: another one came meanwhile.
    """

    server: int
    priority: int
    masked: bool = False
    level: bool = False
    pending: bool = False
    presented: bool = False
    queued: bool = False

    @classmethod
    def from_kernel(cls, value: int) -> Source:
        """Of the kernel's 64 bits."""
        return cls(
            value >> abi.KVM_XICS_DESTINATION_SHIFT & abi.KVM_XICS_DESTINATION_MASK,
            value >> abi.KVM_XICS_PRIORITY_SHIFT & abi.KVM_XICS_PRIORITY_MASK,
            *(bool(value & bit) for bit in _BITS),
        )

    def to_kernel(self) -> int:
        """As the kernel's 64 bits."""
        bits = sum(bit for bit, on in zip(_BITS, self[2:], strict=True) if on)
        server = self.server << abi.KVM_XICS_DESTINATION_SHIFT
        return bits | server | self.priority << abi.KVM_XICS_PRIORITY_SHIFT


_BITS = (
    abi.KVM_XICS_MASKED,
    abi.KVM_XICS_LEVEL_SENSITIVE,
    abi.KVM_XICS_PENDING,
    abi.KVM_XICS_PRESENTED,
    abi.KVM_XICS_QUEUED,
)


class Server(NamedTuple):
    """A vCPU's presentation controller (ICP), as it is.

    Attributes:
        source: the interrupt that the vCPU is to take, or 0 for none.
        priority: interrupts of a lower number than this are presented; 0 presents none, as a new
            vCPU's, 0xff all.
        ipi_priority: of the interrupt that another vCPU asks for; 0xff for none.
        source_priority: the priority of `source`; 0xff for none.
    """

    source: int = 0
    priority: int = 0xFF
    ipi_priority: int = 0xFF
    source_priority: int = 0xFF


_ICP = (
    (abi.KVM_REG_PPC_ICP_XISR_SHIFT, abi.KVM_REG_PPC_ICP_XISR_MASK),
    (abi.KVM_REG_PPC_ICP_CPPR_SHIFT, abi.KVM_REG_PPC_ICP_CPPR_MASK),
    (abi.KVM_REG_PPC_ICP_MFRR_SHIFT, abi.KVM_REG_PPC_ICP_MFRR_MASK),
    (abi.KVM_REG_PPC_ICP_PPRI_SHIFT, abi.KVM_REG_PPC_ICP_PPRI_MASK),
)


class XicsIrqchip(Irqchip):
    """The interrupt controller of a POWER guest; each vCPU is a server.

    A source is an entry: ``xics[0x1300] = Source(server=0, priority=4)`` makes one, and reading it
    tells what has become of its interrupts.

    Attributes:
        on_xive: the host's interrupt controller is XIVE (POWER9), on which the guest's XICS is put;
            a masked source's interrupts and what a server has cannot be seen then.
    """

    name = "XICS"
    first_gsi = FIRST_SOURCE

    def __init__(self) -> None:
        self._device: File | None = None
        self._servers: set[int] = set()

    def create(self, vm: File) -> None:
        if not vm.ioctl(kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_IRQ_XICS):
            raise errors.Unsupported("this kernel's KVM has no XICS")
        with deferred_signals() as section:
            device = create_device(vm, kvm.KVM_DEV_TYPE_XICS, "the VM's XICS")
            section.undo(device.close)
            # On XIVE KVM cannot resample, and says so (arch/powerpc/kvm/powerpc.c).
            self.resample = bool(vm.ioctl(kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_IRQFD_RESAMPLE))
            self.on_xive = not self.resample
            # kvmppc_xive_set_irq() refuses a source that has a device's interrupt (pt_number).
            self.bypass = self.on_xive and _bypass_is_on()
            self._device = device
            self._servers.clear()

    def connect(self, vcpu: File, number: int) -> None:
        # Hypervisor KVM wants a vCPU that makes hypercalls before it gives it a XICS server.
        vcpu.ioctl(kvm.KVM_ENABLE_CAP, kvm.kvm_enable_cap(cap=kvm.KVM_CAP_PPC_PAPR))
        enable = kvm.kvm_enable_cap(cap=kvm.KVM_CAP_IRQ_XICS)
        enable.args[0], enable.args[1] = self._file().fileno(), number
        vcpu.ioctl(kvm.KVM_ENABLE_CAP, enable)
        self._servers.add(number)

    def close(self) -> None:
        if self._device is not None:
            self._device.close()

    def __setitem__(self, number: int, source: Source) -> None:
        """Make a source, or set its state.

        Raises:
            RangeError: the number is none of a source (16 to LAST_SOURCE), or the priority or
                server does not fit.
            ArgumentError: no vCPU is that server.
            KernelError: the kernel refused.
        """
        if not FIRST_SOURCE <= number <= LAST_SOURCE:
            raise errors.RangeError(
                f"sources are {FIRST_SOURCE} to {LAST_SOURCE:#x}, not {number:#x}"
            )
        if not (0 <= source.priority <= NEVER and 0 <= source.server < 1 << 32):
            raise errors.RangeError(f"priorities are 0 to 255, servers 32 bits: not {source}")
        value = ctypes.c_uint64(source.to_kernel())
        try:
            self._attribute(kvm.KVM_SET_DEVICE_ATTR, number, value)
        except errors.KernelError as error:
            if error.errno == errno.EINVAL and source.server not in self._servers:
                raise errors.ArgumentError(
                    f"source {number:#x} cannot interrupt server {source.server}: no vCPU has that "
                    "number; make it first"
                ) from None
            raise

    def __getitem__(self, number: int) -> Source:
        """A source as it is.

        Raises:
            RangeError: there is no such source.
            KernelError: the kernel refused.
        """
        # Of a larger number KVM looks at 32 bits, and finds another source.
        if not FIRST_SOURCE <= number <= LAST_SOURCE:
            raise errors.RangeError(f"there is no source {number:#x}")
        value = ctypes.c_uint64()
        try:
            self._attribute(kvm.KVM_GET_DEVICE_ATTR, number, value)
        except errors.KernelError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                raise errors.RangeError(f"there is no source {number:#x}") from None
            raise
        return Source.from_kernel(value.value)

    def server(self, vcpu: Vcpu) -> Server:
        """What a vCPU's presentation controller has.

        Raises:
            KernelError: the kernel refused.
        """
        value = ctypes.c_uint64()
        vcpu.file.ioctl(kvm.KVM_GET_ONE_REG, _icp_register(value))
        return Server(*(value.value >> shift & mask for shift, mask in _ICP))

    def set_server(self, vcpu: Vcpu, server: Server) -> None:
        """Set what a vCPU's presentation controller has.

        Raises:
            KernelError: the kernel refused (EINVAL: it contradicts itself).
        """
        value = sum(field << shift for field, (shift, _) in zip(server, _ICP, strict=True))
        held = ctypes.c_uint64(value)
        vcpu.file.ioctl(kvm.KVM_SET_ONE_REG, _icp_register(held))

    def _attribute(self, request: Request, number: int, value: ctypes.c_uint64) -> None:
        attribute = kvm.kvm_device_attr(
            group=abi.KVM_DEV_XICS_GRP_SOURCES, attr=number, addr=ctypes.addressof(value)
        )
        self._file().ioctl(request, attribute)

    def _file(self) -> File:
        if self._device is None:
            raise errors.StateError("this XICS is no VM's: give it to kvm.VM()")
        return self._device


def _bypass_is_on() -> bool:
    try:
        return sysfs.read(BYPASS) != "0"
    except errors.KernelError:
        return False  # KVM without kvm_hv has none


def _icp_register(value: ctypes.c_uint64) -> kvm.kvm_one_reg:
    return kvm.kvm_one_reg(id=abi.KVM_REG_PPC_ICP_STATE, addr=ctypes.addressof(value))
