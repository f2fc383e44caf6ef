"""What happens to a device's vectors through a reset, under each policy for the dummy vector."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio import errors, kvm
from pyvfio.kvm import MsiMessage
from pyvfio.replay import (
    VARIANTS,
    ApicMachine,
    Life,
    ModelledDevice,
    ModelledDirectMachine,
    judge,
    live,
)

HISTORIC = ("before", "d1f6af6", "patched")


def routed(name: str, vectors: int = 2, *, order: str = "table-first") -> Life:
    with ModelledDevice(vectors) as device, ApicMachine(vectors) as machine:
        return live(VARIANTS[name], device, machine, vectors, order=order)


def direct(
    name: str,
    vectors: int = 2,
    *,
    base: int = 0x1300,
    order: str = "table-first",
    keep_table: bool = False,
) -> Life:
    with ModelledDevice(vectors) as device, ModelledDirectMachine(vectors, base) as machine:
        return live(VARIANTS[name], device, machine, vectors, order=order, keep_table=keep_table)


def texts(life: Life, step: str) -> list[str]:
    return [str(event) for event in life.step(step).events]


# Routed, on the real KVM.


@pytest.mark.usefixtures("real_kvm")
@pytest.mark.parametrize("order", ["table-first", "enable-first"])
@pytest.mark.parametrize("name", ["before", "d1f6af6", "patched", "today"])
def test_with_routes_every_policy_delivers_every_vector(name: str, order: str) -> None:
    life = routed(name, 3, order=order)
    assert all(control.passed for control in life.controls)
    assert judge(life).healthy
    for step in ("unmask", "moved", "restore"):
        probe = life.step(step).probe
        assert probe is not None
        assert probe.arrived == (0, 1, 2), step
        assert not probe.strays
    assert life.steps[-1].gsis == {0: 24, 1: 25, 2: 26}


@pytest.mark.usefixtures("real_kvm")
def test_patched_is_before_again_call_by_call() -> None:
    before, patched = routed("before"), routed("patched")
    for step in before.steps:
        assert texts(before, step.name) == texts(patched, step.name)


@pytest.mark.usefixtures("real_kvm")
def test_d1f6af6_binds_the_dummy_by_the_wiped_table_and_heals_when_the_route_is_rewritten() -> None:
    life = routed("d1f6af6")
    dummy, restored = life.step("enable again"), life.step("restore")
    assert texts(life, "enable again")[:2] == ["G{24:0x0=0x0}", "I+(kvm0,24)"]
    # Between dummy and update the kernel itself shows that the binding leads elsewhere.
    assert dummy.probe is not None
    assert dummy.probe.arrived == ()
    assert dummy.probe.strays == (MsiMessage(0xFEE00000, 0),)
    assert texts(life, "restore")[0].startswith("G{24:")
    assert restored.probe is not None
    assert restored.probe.arrived == (0, 1)
    assert "healed itself" in judge(life).why


@pytest.mark.usefixtures("real_kvm")
def test_at_d1f6af6_an_update_that_changes_nothing_commits_nothing() -> None:
    """The unconditional commit came with 3f1fea0fb5. With the table filled first the dummy has the
    right route already."""
    assert texts(routed("d1f6af6"), "unmask")[0] == "S(0,[kvm0])"
    assert texts(routed("patched"), "move 0")[0].startswith("G{24:")


@pytest.mark.usefixtures("real_kvm")
@pytest.mark.parametrize("name", ["before", "patched", "today"])
def test_the_others_bind_nothing_for_the_dummy(name: str) -> None:
    life = routed(name)
    for step in ("enable", "enable again"):
        assert not [event for event in life.step(step).events if event.ioctl.startswith("KVM")]
        assert life.step(step).gsis == {}


@pytest.mark.usefixtures("real_kvm")
def test_masked_means_pending_and_delivered_once_where_the_vector_goes_by_then() -> None:
    life = routed("today")
    masked, moved = life.step("mask 0").probe, life.step("move 0").probe
    assert masked is not None
    assert masked.arrived == (1,)
    disabled = life.step("disable").probe
    assert disabled is not None
    assert disabled.refused == "EINVAL", "VFIO itself says that nothing is enabled"
    assert masked.pending == (0,)
    assert moved is not None
    assert moved.arrived == (0,)
    assert not moved.strays


@pytest.mark.usefixtures("real_kvm")
def test_more_vectors_than_a_local_apic_has_go_to_several() -> None:
    life = routed("today", 400)
    probe = life.step("restore").probe
    assert probe is not None
    assert probe.arrived == tuple(range(400))


@pytest.mark.usefixtures("real_kvm")
def test_a_control_that_fails_is_told() -> None:
    class Blind(ApicMachine):
        """Sees nothing."""

        def look(self) -> frozenset[MsiMessage]:
            return frozenset()

    class Everywhere(ApicMachine):
        """Takes a live GSI for a dead one."""

        def dead_gsi(self) -> int:
            return self.vm.routes.add(self.message(0))

    for machine, failing in ((Blind, 0), (Everywhere, 1)):
        with ModelledDevice(2) as device, machine(2) as vm:
            life = live(VARIANTS["today"], device, vm, 2)
        assert [control.passed for control in life.controls].index(False) == failing


@pytest.mark.usefixtures("real_kvm")
def test_a_life_leaves_no_descriptor() -> None:
    routed("today")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("d1f6af6", "today"):
        routed(name, 8)
    assert len(os.listdir("/proc/self/fd")) == before


# Direct, on a model of what the kernel does.


@pytest.mark.parametrize("name", ["before", "patched", "today"])
def test_with_computed_gsis_the_others_deliver(name: str) -> None:
    life = direct(name)
    assert judge(life).healthy
    assert life.steps[-1].gsis == {0: 0x1300, 1: 0x1301}


def test_d1f6af6_loses_vector_0_after_the_reset_and_it_alone() -> None:
    life = direct("d1f6af6", 4)
    verdict = judge(life)
    assert not verdict.healthy
    assert verdict.lost == {"restore": (0,)}
    assert life.steps[-1].gsis == {0: 0, 1: 0x1301, 2: 0x1302, 3: 0x1303}
    assert "I+(kvm0,0)" in texts(life, "enable again")
    assert texts(life, "restore")[0] == "S(0,[kvm0])", "the update did nothing"
    steps = [link.partition(": ")[0] for link in verdict.chain]
    assert steps == ["reset", *["enable again"] * 3, "restore", "restore"]
    assert "I+(kvm0,0)" in verdict.chain[2]
    assert "1-3 arrived, 0 did not" in verdict.chain[-1]


def test_an_update_that_rebinds_would_have_saved_it_so_the_idle_update_is_the_cause() -> None:
    life = direct("d1f6af6-rebind")
    assert judge(life).healthy
    assert judge(life).chain == ()
    assert texts(life, "restore")[:2] == ["I-(kvm0,0)", "I+(kvm0,0x1300)"]


def test_a_guest_that_enables_before_it_fills_loses_it_at_once() -> None:
    verdict = judge(direct("d1f6af6", order="enable-first"))
    assert verdict.lost["unmask"] == (0,)
    assert "at the first enabling already" in verdict.why
    for name in ("before", "patched", "today"):
        assert judge(direct(name, order="enable-first")).healthy


def test_a_table_that_survives_the_reset_saves_it_so_the_wiping_is_the_other_half() -> None:
    life = direct("d1f6af6", keep_table=True)
    assert judge(life).healthy
    assert life.steps[-1].gsis[0] == 0x1300


@settings(deadline=None, max_examples=20)
@given(vectors=st.integers(1, 12), base=st.integers(16, 0xFFF0 - 12))
def test_whatever_base_and_number_vector_0_is_the_lost_one(vectors: int, base: int) -> None:
    life = direct("d1f6af6", vectors, base=base)
    assert judge(life).lost == {"restore": (0,)}
    assert life.steps[-1].gsis == {0: 0} | {v: base + v for v in range(1, vectors)}
    assert judge(direct("patched", vectors, base=base)).healthy


def test_what_no_kernel_stood_behind_is_labelled() -> None:
    life = direct("d1f6af6")
    assert (life.kvm, life.vfio) == ("modelled", "modelled")
    assert all(event.modelled for step in life.steps for event in step.events)


@pytest.mark.usefixtures("real_kvm")
def test_what_a_kernel_stood_behind_is_labelled_too() -> None:
    life = routed("d1f6af6")
    assert life.kvm == f"Linux {os.uname().release}"
    assert life.vfio == "modelled"
    for step in life.steps:
        for event in step.events:
            assert event.modelled == event.ioctl.startswith("VFIO")


def test_more_vectors_than_the_device_has_are_refused() -> None:
    with (
        ModelledDevice(2) as device,
        ModelledDirectMachine(3) as machine,
        pytest.raises(errors.RangeError, match="has 2 vectors, not 3"),
    ):
        live(VARIANTS["today"], device, machine, 3)


def test_a_kernel_that_refuses_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ModelledDevice(2) as device, ModelledDirectMachine(2) as machine:
        monkeypatch.setattr(
            kvm.Irqfds, "assign", lambda *_, **__: (_ for _ in ()).throw(errors.Unsupported("no"))
        )
        with pytest.raises(errors.Unsupported):
            live(VARIANTS["today"], device, machine, 2)
    assert len(os.listdir("/proc/self/fd")) == before
