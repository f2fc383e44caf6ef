"""A local APIC's registers, typed: as structure, and as the kernel keeps them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.abi import kvm_x86
from pyvfio.kvm import VM, LocalApic, Vcpu, apic_message

from .support import needs_kvm

VECTORS = st.frozensets(st.integers(0, 255))


def blank() -> LocalApic:
    return LocalApic(kvm_x86.kvm_lapic_state())


@given(VECTORS, VECTORS)
def test_vectors_read_as_they_were_written(
    requested: frozenset[int], serving: frozenset[int]
) -> None:
    lapic = blank()
    lapic.requested, lapic.in_service = frozenset(range(256)), frozenset()
    lapic.requested, lapic.in_service = requested, serving
    assert (lapic.requested, lapic.in_service) == (requested, serving)
    assert lapic.level_triggered == frozenset()
    assert (lapic.id, lapic.task_priority, lapic.spurious) == (0, 0, 0)


@given(st.integers(0, 255))
def test_a_vector_lies_where_the_manual_says(vector: int) -> None:
    """32 vectors in each register, a register every 16 bytes, from 0x200 on for the IRR."""
    lapic = blank()
    lapic.requested = frozenset({vector})
    assert lapic[0x200 + vector // 32 * 16] == 1 << vector % 32
    assert bytes(lapic.state).count(0) == kvm_x86.KVM_APIC_REG_SIZE - 1


@given(st.integers(0, 0xFFFFFFFF), st.booleans())
def test_enabling_is_bit_8_of_the_spurious_register(before: int, on: bool) -> None:
    lapic = blank()
    lapic.spurious = before
    lapic.enabled = on
    assert lapic.enabled is on
    assert lapic.spurious == (before | 0x1FF if on else before & ~0x100)


def test_registers_begin_every_16_bytes() -> None:
    lapic = blank()
    lapic[0x3F0] = 5
    assert lapic[0x3F0] == 5
    for offset in (-16, 1, 4, 0x400):
        with pytest.raises(errors.RangeError, match=f"not at {offset:#x}"):
            lapic[offset]
        with pytest.raises(errors.RangeError, match=f"not at {offset:#x}"):
            lapic[offset] = 1


@pytest.mark.parametrize("vector", [-1, 256])
def test_there_are_256_vectors(vector: int) -> None:
    lapic = blank()
    lapic.requested = frozenset({0x41})
    with pytest.raises(errors.RangeError, match="0 to 0xff"):
        lapic.requested = frozenset({0x42, vector})
    assert lapic.requested == {0x41}


def test_it_reads_as_people_would_say_it() -> None:
    lapic = blank()
    assert repr(lapic) == "<LocalApic 0 disabled, requested none, in service none>"
    lapic[0x20] = 3 << 24
    lapic.enabled = True
    lapic.requested, lapic.in_service = frozenset({0x41, 0x30}), frozenset({0x50})
    assert repr(lapic) == "<LocalApic 3 enabled, requested 0x30 0x41, in service 0x50>"


# In the kernel.


@needs_kvm
@given(vectors=st.frozensets(st.integers(16, 255)), serving=st.frozensets(st.integers(16, 255)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_kernel_keeps_what_is_written(
    vcpu: Vcpu, vectors: frozenset[int], serving: frozenset[int]
) -> None:
    lapic = vcpu.lapic
    lapic.requested, lapic.in_service = vectors, serving
    vcpu.lapic = lapic
    again = vcpu.lapic
    assert (again.requested, again.in_service) == (vectors, serving)
    assert again.enabled


@needs_kvm
@given(vectors=st.lists(st.integers(16, 255), min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_irr_has_one_bit_for_a_vector_however_often_it_came(
    vm: VM, vcpu: Vcpu, vectors: list[int]
) -> None:
    lapic = vcpu.lapic
    lapic.requested = frozenset()
    vcpu.lapic = lapic
    for vector in vectors:
        assert vm.signal_msi(apic_message(vector)) is True
    assert vcpu.lapic.requested == set(vectors)


@needs_kvm
def test_a_copy_changes_nothing_until_it_is_written_back(vm: VM) -> None:
    vcpu = vm.create_vcpu()
    other = vm.create_vcpu()
    assert other.lapic.id == 1
    lapic = vcpu.lapic
    assert not lapic.enabled, "after reset"
    lapic.enabled = True
    lapic[0x80] = 0x50
    assert not vcpu.lapic.enabled
    vcpu.lapic = lapic
    assert vcpu.lapic.enabled
    assert vcpu.lapic.task_priority == 0x50
    assert not other.lapic.enabled
    mark: Any = vcpu.lapic.state
    assert len(bytes(mark)) == kvm_x86.KVM_APIC_REG_SIZE
