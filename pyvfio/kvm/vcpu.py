"""A vCPU: its registers, running it, and why it stopped."""

from __future__ import annotations

import errno
import weakref
from contextlib import ExitStack
from dataclasses import dataclass

from pyvfio import errors
from pyvfio._sys import File, memory
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm, kvm_x86
from pyvfio.kvm.lapic import LocalApic

_EXIT_PREFIX = "KVM_EXIT_"
_EXIT_NAMES = {
    value: name.removeprefix(_EXIT_PREFIX)
    for name, value in vars(kvm).items()
    if name.startswith(_EXIT_PREFIX) and not name.startswith(("KVM_EXIT_IO_", "KVM_EXIT_HYPERV_"))
}


@dataclass(frozen=True)
class Exit:
    """Why :meth:`Vcpu.run` came back.

    Attributes:
        reason: ``KVM_EXIT_*``.
        address: of a memory access that no memory answers, or the I/O port; None otherwise.
        size: bytes of one access.
        write: whether the guest wrote.
        data: for an access: what the guest wrote; for a read, put there what it shall read, before
            running on. Empty otherwise.
    """

    reason: int
    address: int | None
    size: int
    write: bool
    data: memoryview

    @property
    def name(self) -> str:
        """The reason in the kernel's word: "HLT", "IO", "MMIO", "INTR" ..."""
        return _EXIT_NAMES.get(self.reason, str(self.reason))

    def __repr__(self) -> str:
        if self.address is None:
            return f"<Exit {self.name}>"
        way = "write" if self.write else "read"
        return f"<Exit {self.name} {way} {self.address:#x} {bytes(self.data).hex()}>"


class Vcpu(Closing):
    """A virtual processor. One thread runs it; other threads may do so after that, and close it.

    Attributes:
        file: its file.
        id: its number, also its APIC ID.
    """

    def __init__(self, file: File, id: int, mmap_size: int) -> None:
        """Made by :meth:`pyvfio.kvm.VM.create_vcpu`; `mmap_size` in bytes."""
        self.file = file
        self.id = id
        with deferred_signals() as section:
            section.undo(file.close)
            self._shared = memory.map_file(file, 0, mmap_size, writable=True)
            self._memory = [weakref.ref(self._shared.obj)]
            section.undo(memory.withdraw, self._memory)
            self._run: kvm.kvm_run | None = kvm.kvm_run.from_buffer(self._shared)

    @property
    def registers(self) -> kvm_x86.kvm_regs:
        """The general registers, a copy; set it to write them all."""
        registers = kvm_x86.kvm_regs()
        self.file.ioctl(kvm_x86.KVM_GET_REGS, registers)
        return registers

    @registers.setter
    def registers(self, registers: kvm_x86.kvm_regs) -> None:
        self.file.ioctl(kvm_x86.KVM_SET_REGS, registers)

    @property
    def special_registers(self) -> kvm_x86.kvm_sregs:
        """Segments, descriptor tables, control registers: a copy; set it to write them all."""
        registers = kvm_x86.kvm_sregs()
        self.file.ioctl(kvm_x86.KVM_GET_SREGS, registers)
        return registers

    @special_registers.setter
    def special_registers(self, registers: kvm_x86.kvm_sregs) -> None:
        self.file.ioctl(kvm_x86.KVM_SET_SREGS, registers)

    @property
    def lapic(self) -> LocalApic:
        """The local APIC, a copy; set it to write it all.

        Raises:
            NoIrqchip: the VM has no local APICs in the kernel.
        """
        state = kvm_x86.kvm_lapic_state()
        try:
            self.file.ioctl(kvm_x86.KVM_GET_LAPIC, state)
        except errors.KernelError as error:
            raise _no_lapic(error) from None
        return LocalApic(state)

    @lapic.setter
    def lapic(self, lapic: LocalApic) -> None:
        try:
            self.file.ioctl(kvm_x86.KVM_SET_LAPIC, lapic.state)
        except errors.KernelError as error:
            if error.errno == errno.EINVAL:
                self.lapic  # noqa: B018 (raises NoIrqchip where there is none)
            raise

    def enable_lapic(self) -> None:
        """Software-enable the local APIC, as a guest's kernel does; before, it takes nothing.

        Raises:
            NoIrqchip: the VM has no local APICs in the kernel.
        """
        lapic = self.lapic
        lapic.enabled = True
        self.lapic = lapic

    def run(self) -> Exit:
        """Run guest code until something is to be done outside.

        The call blocks, other Python threads go on. With an irqchip in the kernel a halted vCPU
        waits there for its next interrupt: let the guest end with a write to an I/O port, or send
        the thread a signal that has a handler (exit "INTR").

        Raises:
            CannotRunGuest: this KVM cannot execute guest code, or not in this state.
            KernelError: EFAULT, the guest touched memory that this process has unmapped or may
                not write.
            Closed: the vCPU is closed.
        """
        self.file.fileno()  # refuses when closed
        run, shared = self._run, self._shared
        assert run is not None
        try:
            self.file.ioctl(kvm.KVM_RUN, retry=False)  # a signal ends it: "INTR"
        except errors.KernelError as error:
            if error.errno == errno.EFAULT:
                raise errors.KernelError.from_call(
                    error, "the guest touched memory that this process has not, or may not write"
                ) from None
            # EAGAIN: a vCPU that waited for another one to start it has been started.
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise _cannot_run(f"{error}") from None
            return Exit(kvm.KVM_EXIT_INTR, None, 0, False, memoryview(b""))
        reason = run.exit_reason
        if reason == kvm.KVM_EXIT_IO:
            start = run.io.data_offset
            data = shared[start : start + run.io.size * run.io.count]
            write = run.io.direction == kvm.KVM_EXIT_IO_OUT
            return Exit(reason, run.io.port, run.io.size, write, data)
        if reason == kvm.KVM_EXIT_MMIO:
            data = memoryview(run.mmio.data).cast("B")[: run.mmio.len]
            return Exit(reason, run.mmio.phys_addr, run.mmio.len, bool(run.mmio.is_write), data)
        if reason == kvm.KVM_EXIT_FAIL_ENTRY:
            why = run.fail_entry.hardware_entry_failure_reason
            raise _cannot_run(f"the processor refused to enter the guest, reason {why:#x}")
        if reason == kvm.KVM_EXIT_INTERNAL_ERROR:
            what = run.internal.suberror
            raise _cannot_run(f"KVM could not emulate an instruction or event, suberror {what}")
        return Exit(reason, None, 0, False, memoryview(b""))

    def close(self) -> None:
        """Close it; closing again does nothing. The VM keeps its number taken.

        The data of an :class:`Exit` ends with it, or reads all ones.
        """
        with deferred_signals(), ExitStack() as steps:
            # Its mapping would keep the VM, and all the guest's memory, in the kernel.
            steps.callback(memory.withdraw, self._memory)
            steps.callback(self.file.close)
            self._run, self._shared = None, memoryview(b"")

    def __repr__(self) -> str:
        return f"<Vcpu {self.id}{' closed' if self.file.closed else ''}>"


def _no_lapic(error: errors.KernelError) -> errors.KernelError:
    if error.errno == errno.EINVAL:
        return errors.NoIrqchip.from_call(error, "the VM has no local APICs in the kernel")
    return error


def _cannot_run(why: str) -> errors.CannotRunGuest:
    return errors.CannotRunGuest(
        f"this host's KVM does not execute the guest: {why}. Routes and irqfds work without"
    )
