"""QEMU's three orders of 2016, ioctl by ioctl.

Notation, as in `Event.text`: S(s,[..]) points VFIO's vectors from s on at eventfds, D disables
MSI-X, G{..} commits the table of routes, I+(fd,gsi) and I-(fd,gsi) bind an eventfd and unbind it.
kvmN is vector N's eventfd at KVM, intN the one that comes to us. With routes the kernel is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyvfio.irqroute import (
    BEFORE,
    D1F6AF6,
    PATCHED,
    POLICIES,
    TODAY,
    DirectGsis,
    GsiMapping,
    Policy,
)

from .rig import ENABLE, MASKALL, Guest, Rig

DUMMY_ROUTED = "S(0,[int0]); S(0,[int0])"

# step, then what is done before d1f6af6 and when patched, then at d1f6af6 (None: the same)
X86: list[tuple[str, str, str | None]] = [
    (
        "enable",
        "D EINVAL; S(0,[int0])",
        f"G{{24:0}}; I+(kvm0,24); D EINVAL; {DUMMY_ROUTED}",
    ),
    ("unmask 0", "G{24:m0}; I+(kvm0,24); S(0,[kvm0])", "G{24:m0}; S(0,[kvm0])"),
    ("unmask 1", "G{24:m0,25:m1}; I+(kvm1,25); D; S(0,[kvm0,kvm1])", None),
    ("mask 0", "S(0,[int0])", None),
    ("retarget 0", "G{24:m0',25:m1}; S(0,[kvm0])", None),
    ("disable", "S(0,[int0]); S(1,[int1]); D; I-(kvm0,24); I-(kvm1,25)", None),
]

POWER: list[tuple[str, str, str | None]] = [
    ("fill", "", None),  # ibm,change-msi: the table is filled, MSI-X still disabled
    (
        "enable",
        "D EINVAL; S(0,[int0])",
        f"I+(kvm0,0x1300); D EINVAL; {DUMMY_ROUTED}",
    ),
    ("unmask 0", "I+(kvm0,0x1300); S(0,[kvm0])", "S(0,[kvm0])"),
    ("unmask 1", "I+(kvm1,0x1301); D; S(0,[kvm0,kvm1])", None),
    # EEH: the host's reset of the PE, then a driver that keeps its vectors.
    ("disable", "S(0,[int0]); S(1,[int1]); D; I-(kvm0,0x1300); I-(kvm1,0x1301)", None),
    ("wipe", "", None),
    (
        "enable",
        "D EINVAL; S(0,[int0])",
        f"I+(kvm0,0); D EINVAL; {DUMMY_ROUTED}",
    ),
    ("restore", "", None),  # the function is masked
    (
        "clear MASKALL",
        "I+(kvm0,0x1300); S(0,[kvm0]); I+(kvm1,0x1301); D; S(0,[kvm0,kvm1])",
        "S(0,[kvm0]); I+(kvm1,0x1301); D; S(0,[kvm0,kvm1])",
    ),
]


def steps(rig: Rig) -> dict[str, Callable[[], object]]:
    msix = rig.msix

    def enable() -> None:
        msix.control = ENABLE | MASKALL

    def unmask(vector: int, *, moved: bool = False) -> None:
        msix.function_masked = False
        msix[vector] = rig.entry(vector, moved=moved)

    return {
        "fill": lambda: rig.fill(0, 1, masked=True),
        "enable": enable,
        "unmask 0": lambda: unmask(0),
        "unmask 1": lambda: unmask(1),
        "mask 0": lambda: msix.write_table(12, 1),
        "retarget 0": lambda: unmask(0, moved=True),
        "disable": lambda: setattr(msix, "enabled", False),
        "wipe": rig.forwarder.reset,
        "restore": lambda: rig.fill(0, 1),
        "clear MASKALL": lambda: setattr(msix, "function_masked", False),
    }


def traces(
    guest: Guest, policy: Policy, table: list[tuple[str, str, str | None]]
) -> Iterator[tuple[str, str, str]]:
    """Each step, with what was done and what is known of QEMU."""
    with Rig(guest, 3, policy=policy).watching() as rig:
        do = steps(rig)
        for step, known, broken in table:
            do[step]()
            yield step, rig.did(), known if policy is not D1F6AF6 or broken is None else broken


@pytest.mark.parametrize("policy", [BEFORE, D1F6AF6, PATCHED], ids=lambda policy: policy.name)
def test_with_routes_the_ioctls_are_qemus(routed: Guest, policy: Policy) -> None:
    for step, done, known in traces(routed, policy, X86):
        assert (step, done) == (step, known)


@pytest.mark.parametrize("policy", [BEFORE, D1F6AF6, PATCHED], ids=lambda policy: policy.name)
def test_with_computed_gsis_the_ioctls_are_qemus(direct: Guest, policy: Policy) -> None:
    for step, done, known in traces(direct, policy, POWER):
        assert (step, done) == (step, known)


def test_an_unchanged_message_is_committed_again_since_3f1fea0fb5(routed: Guest) -> None:
    for policy, commit in ((BEFORE, ""), (D1F6AF6, ""), (PATCHED, "G{24:m0}; ")):
        with Rig(routed, policy=policy).watching() as rig:
            rig.fill(0)
            rig.msix.enabled = True
            rig.msix.write_table(12, 1)
            rig.did()
            rig.msix.write_table(12, 0)
            assert rig.did() == commit + "S(0,[kvm0])"


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_with_routes_every_interrupt_arrives_under_every_policy(
    routed: Guest, policy: Policy
) -> None:
    """Read from the local APIC: d1f6af6 heals itself, since unmasking routes vector 0 anew."""
    with Rig(routed, 3, policy=policy).watching() as rig:
        do = steps(rig)
        messages = {routed.message(0), routed.message(1)}
        do["enable"]()
        if policy is D1F6AF6:
            path = rig.forwarder.paths.path(0)
            assert path is not None
            path.to_guest.signal()
            # The table's message, which is zero: KVM sees no more in it than vector 0 of APIC 0.
            assert {data for _, data in rig.arrivals()} == {0}
        do["unmask 0"]()
        assert rig.fire(0) == {routed.message(0)}
        do["unmask 1"]()
        assert rig.fire(0, 1) == messages
        do["mask 0"]()
        assert rig.fire(0, 1) == {routed.message(1)}
        do["retarget 0"]()
        assert rig.arrivals() == {routed.message(0, moved=True)}, "what came while masked"
        assert rig.fire(0, 1) == {routed.message(0, moved=True), routed.message(1)}
        do["disable"]()
        assert routed.bound() == 0
        do["wipe"]()
        do["enable"]()
        do["restore"]()
        do["clear MASKALL"]()
        assert rig.fire(0, 1) == messages


def recover(
    rig: Rig, *, wipe: bool = True, fill_first: bool = True
) -> tuple[list[int | None], set[int]]:
    """Boot, EEH reset, recovery: vector 0's and 1's GSIs then, and which of them arrive."""
    do = steps(rig)
    if fill_first:
        do["fill"]()
    do["enable"]()
    do["restore"]()
    do["clear MASKALL"]()
    if fill_first:
        assert rig.fire(0, 1) == {rig.guest.message(0), rig.guest.message(1)}, "boot"
        do["disable"]()
        if wipe:
            do["wipe"]()
        do["enable"]()
        do["restore"]()
        do["clear MASKALL"]()
    arrived = rig.fire(0, 1)
    gsis = [rig.forwarder.paths.gsi(vector) for vector in (0, 1)]
    return gsis, {vector for vector in (0, 1) if rig.guest.message(vector) in arrived}


GOOD = ([0x1300, 0x1301], {0, 1})
LOST = ([0, 0x1301], {1})


@pytest.mark.parametrize(
    ("policy", "gsis", "outcome"),
    [
        (BEFORE, None, GOOD),
        (D1F6AF6, None, LOST),
        (PATCHED, None, GOOD),
        (TODAY, None, GOOD),
        (D1F6AF6, DirectGsis(), GOOD),
    ],
    ids=["before", "d1f6af6", "patched", "today", "d1f6af6 that really rebinds"],
)
def test_only_d1f6af6_loses_vector_0_and_only_because_its_update_does_nothing(
    direct: Guest, policy: Policy, gsis: GsiMapping | None, outcome: tuple[list[int], set[int]]
) -> None:
    with Rig(direct, 3, policy=policy, gsis=gsis).watching() as rig:
        assert recover(rig) == outcome


def test_d1f6af6_delivers_where_the_table_outlives_the_reset(direct: Guest) -> None:
    with Rig(direct, 3, policy=D1F6AF6).watching() as rig:
        assert recover(rig, wipe=False) == GOOD


def test_a_guest_that_enables_before_it_fills_the_table_loses_vector_0_at_boot(
    direct: Guest,
) -> None:
    """As Linux does since about 5.14: no EEH needed where entry 0 is empty, as with e1000e."""
    for policy, outcome in ((D1F6AF6, LOST), (PATCHED, GOOD), (TODAY, GOOD)):
        with Rig(direct, 3, policy=policy).watching() as rig:
            assert recover(rig, fill_first=False) == outcome


def test_a_guest_that_enables_again_finds_the_message_of_the_time_before(direct: Guest) -> None:
    """As Linux's igb does at boot: it has one vector first, gives it back, and asks for more. No
    reset lies between, so the dummy is bound to the right GSI whatever the order."""
    for policy in (D1F6AF6, PATCHED, TODAY):
        with Rig(direct, 3, policy=policy).watching() as rig:
            rig.fill(0)
            rig.msix.enabled = True
            rig.msix.enabled = False
            assert recover(rig, fill_first=False) == GOOD


def test_a_driver_that_allocates_its_vectors_anew_after_the_reset_loses_none(direct: Guest) -> None:
    """The firmware fills the table before MSI-X is enabled, so the dummy finds the right message:
    it takes a driver that keeps its vectors to lose one."""
    with Rig(direct, 3, policy=D1F6AF6).watching() as rig:
        assert recover(rig, wipe=False) == GOOD
        do = steps(rig)
        for step in ("disable", "wipe", "fill", "enable", "restore", "clear MASKALL"):
            do[step]()
        messages = {direct.message(0), direct.message(1)}
        assert rig.fire(0, 1) == messages
        for step in ("disable", "wipe", "enable", "restore", "clear MASKALL"):
            do[step]()
        assert rig.fire(0, 1) == {direct.message(1)}


def test_a_real_rebind_is_deassign_then_assign(direct: Guest) -> None:
    with Rig(direct, 3, policy=D1F6AF6, gsis=DirectGsis()).watching() as rig:
        do = steps(rig)
        do["enable"]()
        do["restore"]()
        rig.did()
        do["clear MASKALL"]()
        assert rig.did().startswith("I-(kvm0,0); I+(kvm0,0x1300); S(0,[kvm0]); ")
