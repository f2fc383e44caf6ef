"""A vCPU's local APIC: the registers, typed (Intel SDM volume 3, "Local APIC Registers").

Where each register lies: arch/x86/include/asm/apicdef.h. KVM gives them as xAPIC's page shows them,
in x2APIC mode too, save the ID.
"""

from __future__ import annotations

from pyvfio import errors
from pyvfio.abi import kvm_x86

_ID, _TPR, _SPURIOUS = 0x20, 0x80, 0xF0
_ISR, _TMR, _IRR = 0x100, 0x180, 0x200
_SOFTWARE_ENABLE = 1 << 8
_BITS = 32
_STRIDE = 16  # each register has 16 bytes to itself
_VECTORS = range(256)


class LocalApic:
    """The registers as they were when they were read; writing them back is :attr:`Vcpu.lapic`.

    Attributes:
        state: the kernel's structure, all registers.
    """

    __slots__ = ("_registers", "state")

    def __init__(self, state: kvm_x86.kvm_lapic_state) -> None:
        """
        Args:
            state: as ``KVM_GET_LAPIC`` fills it.
        """
        self.state = state
        self._registers = memoryview(state).cast("B").cast("I")

    def __getitem__(self, offset: int) -> int:
        """The 32-bit register at byte `offset` of the page.

        Raises:
            RangeError: none begins there.
        """
        return self._registers[_word(offset)]

    def __setitem__(self, offset: int, value: int) -> None:
        self._registers[_word(offset)] = value

    @property
    def id(self) -> int:
        """The APIC ID, in xAPIC mode."""
        return self[_ID] >> 24

    @property
    def task_priority(self) -> int:
        """Interrupts of this class (vector // 16) and below wait."""
        return self[_TPR] & 0xFF

    @property
    def spurious(self) -> int:
        """The spurious-interrupt register: vector, and bit 8 for "software-enabled"."""
        return self[_SPURIOUS]

    @spurious.setter
    def spurious(self, value: int) -> None:
        self[_SPURIOUS] = value

    @property
    def enabled(self) -> bool:
        """Software-enabled: otherwise it takes no interrupts."""
        return bool(self.spurious & _SOFTWARE_ENABLE)

    @enabled.setter
    def enabled(self, on: bool) -> None:
        # 0xff is the vector that firmware and kernels give to spurious interrupts.
        self.spurious = self.spurious & ~_SOFTWARE_ENABLE | (_SOFTWARE_ENABLE | 0xFF if on else 0)

    @property
    def requested(self) -> frozenset[int]:
        """IRR: the vectors that have arrived and that the vCPU has not taken yet."""
        return self._vectors(_IRR)

    @requested.setter
    def requested(self, vectors: frozenset[int]) -> None:
        self._set_vectors(_IRR, vectors)

    @property
    def in_service(self) -> frozenset[int]:
        """ISR: the vectors whose handlers run, not acknowledged yet."""
        return self._vectors(_ISR)

    @in_service.setter
    def in_service(self, vectors: frozenset[int]) -> None:
        self._set_vectors(_ISR, vectors)

    @property
    def level_triggered(self) -> frozenset[int]:
        """TMR: of the vectors that arrived, those that are level-triggered."""
        return self._vectors(_TMR)

    def __repr__(self) -> str:
        on = "enabled" if self.enabled else "disabled"
        requested, in_service = (
            " ".join(f"{vector:#x}" for vector in sorted(vectors)) or "none"
            for vectors in (self.requested, self.in_service)
        )
        return f"<LocalApic {self.id} {on}, requested {requested}, in service {in_service}>"

    def _vectors(self, base: int) -> frozenset[int]:
        return frozenset(
            word * _BITS + bit
            for word in range(len(_VECTORS) // _BITS)
            if (bits := self[base + word * _STRIDE])
            for bit in range(_BITS)
            if bits >> bit & 1
        )

    def _set_vectors(self, base: int, vectors: frozenset[int]) -> None:
        if beyond := [vector for vector in vectors if vector not in _VECTORS]:
            raise errors.RangeError(f"interrupt vectors are 0 to 0xff, not {beyond}")
        for word in range(len(_VECTORS) // _BITS):
            self[base + word * _STRIDE] = sum(
                1 << vector % _BITS for vector in vectors if vector // _BITS == word
            )


def _word(offset: int) -> int:
    if offset not in range(0, kvm_x86.KVM_APIC_REG_SIZE, _STRIDE):
        raise errors.RangeError(
            f"the local APIC has registers at multiples of {_STRIDE} bytes, below "
            f"{kvm_x86.KVM_APIC_REG_SIZE:#x}, not at {offset:#x}"
        )
    return offset // 4
