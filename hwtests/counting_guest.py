"""A guest that counts its interrupts: a few bytes of x86 code, run by KVM.

One vCPU in 32-bit protected mode without paging. Each of the 256 interrupt vectors has a handler
that adds one to a counter in guest memory and acknowledges at the local APIC; between interrupts
the vCPU is halted. No Python runs between an interrupt and its counter.
"""

from __future__ import annotations

import struct
import threading
import time
from types import TracebackType

from pyvfio import errors
from pyvfio.abi import kvm as abi
from pyvfio.kvm import VM, Vcpu, apic_message

FIRST_VECTOR = 0x20
"""Those below are the processor's exceptions."""

LAST_VECTOR = 0xFD

_STOP = 0xFE  # its handler leaves the guest
_STOP_PORT = 0x10
_EOI = 0xFEE000B0  # the local APIC's end-of-interrupt register

# Where things lie in guest memory.
_GDT, _IDT, _HANDLERS, _MAIN, _COUNTERS, _STACK, _SIZE = (
    0x1000,
    0x2000,
    0x3000,
    0x5000,
    0x8000,
    0x10000,
    0x10000,
)
_HANDLER_SIZE = 32
_CODE, _DATA = 0x08, 0x10  # selectors
_FLAT = 0x00CF_0000_0000_FFFF  # a segment of 4 GiB from 0: type and present bits to be added


class CountingGuest:
    """The guest, running in a thread of its own while the block lasts.

    Attributes:
        vcpu: its vCPU.
        exits: how often it left to Python; 0 until it is stopped, whatever interrupts came.
    """

    def __init__(self, vm: VM) -> None:
        """
        Args:
            vm: without memory or vCPUs yet; with local APICs in the kernel.
        """
        self._vm = vm
        self._memory = vm.alloc_memory(_SIZE)
        self._counters = self._memory.view[_COUNTERS:].cast("I")
        self.vcpu = vm.create_vcpu()
        self._load()
        self._prepare(self.vcpu)
        self.exits = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="counting guest")

    def counts(self, vector: int) -> int:
        """How many interrupts of a vector the guest has handled."""
        return self._counters[vector]

    def total(self) -> int:
        """How many interrupts it has handled of all vectors."""
        return sum(self._counters[:_STOP])

    def wait(self, vector: int, count: int, timeout: float = 60.0) -> int:
        """Wait until it has handled `count` interrupts of a vector.

        Returns:
            How many it has handled; fewer than `count` if the time (seconds) ran out.
        """
        counters = self._counters
        end = 0.0
        while counters[vector] < count:
            time.sleep(0)  # lets the vCPU's thread go on where processors are few
            now = time.monotonic()
            end = end or now + timeout
            if now > end or self._failure is not None:
                break
        if self._failure is not None:
            raise self._failure
        return counters[vector]

    def __enter__(self) -> CountingGuest:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._failure is None:
            self._vm.signal_msi(apic_message(_STOP))
        self._thread.join(60)
        assert not self._thread.is_alive(), "the guest does not stop"

    def _run(self) -> None:
        try:
            while True:
                exit = self.vcpu.run()
                self.exits += exit.reason != abi.KVM_EXIT_INTR  # which is a signal, not the guest
                if exit.reason == abi.KVM_EXIT_IO and exit.address == _STOP_PORT:
                    return
                if exit.reason != abi.KVM_EXIT_INTR:
                    raise errors.CannotRunGuest(f"the guest left by {exit}")
        except BaseException as error:
            self._failure = error

    def _load(self) -> None:
        memory = self._memory.view
        executable, writable = 0x9B << 40, 0x93 << 40  # present, ring 0, accessed
        memory[_GDT : _GDT + 24] = struct.pack("<3Q", 0, _FLAT | executable, _FLAT | writable)
        for vector in range(256):
            address = _HANDLERS + vector * _HANDLER_SIZE
            handler = _stop() if vector == _STOP else _count(_COUNTERS + 4 * vector)
            memory[address : address + len(handler)] = handler
            # A 32-bit interrupt gate: further interrupts wait for its end.
            gate = struct.pack("<HHHH", address & 0xFFFF, _CODE, 0x8E00, address >> 16)
            memory[_IDT + 8 * vector : _IDT + 8 * vector + 8] = gate
        main = b"\xfb\xf4\xeb\xfd"  # sti; hlt; jmp to hlt
        memory[_MAIN : _MAIN + len(main)] = main

    def _prepare(self, vcpu: Vcpu) -> None:
        special = vcpu.special_registers
        special.cr0 |= 1  # protected mode
        for name, selector, kind in (
            ("cs", _CODE, 0xB),
            *((name, _DATA, 0x3) for name in ("ds", "es", "fs", "gs", "ss")),
        ):
            segment = getattr(special, name)
            segment.base, segment.limit = 0, 0xFFFFFFFF
            segment.selector, segment.type = selector, kind
            segment.present, segment.s, segment.dpl, segment.db, segment.g = 1, 1, 0, 1, 1
        special.gdt.base, special.gdt.limit = _GDT, 23
        special.idt.base, special.idt.limit = _IDT, 8 * 256 - 1
        vcpu.special_registers = special
        registers = vcpu.registers
        registers.rip, registers.rsp, registers.rflags = _MAIN, _STACK, 2
        vcpu.registers = registers
        vcpu.enable_lapic()


def _count(counter: int) -> bytes:
    return b"\xff\x05" + struct.pack("<I", counter) + _leave()  # inc dword [counter]


def _stop() -> bytes:
    return b"\xe6" + bytes([_STOP_PORT]) + _leave()  # out STOP_PORT, al


def _leave() -> bytes:
    # Not iret: what it would go back to is the halt in main, and KVM's own emulator, which some
    # hosts run all guest code with, has no iret in protected mode.
    return (
        b"\xc7\x05"
        + struct.pack("<II", _EOI, 0)  # mov dword [EOI], 0
        + b"\xbc"
        + struct.pack("<I", _STACK)  # mov esp, STACK
        + b"\xb8"
        + struct.pack("<I", _MAIN)  # mov eax, MAIN
        + b"\xff\xe0"  # jmp eax
    )
