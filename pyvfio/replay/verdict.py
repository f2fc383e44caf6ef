"""What a life shows, in one sentence; read off what was seen, never off the policy's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyvfio.irqroute.trace import gsi_text
from pyvfio.replay.life import DUMMY_STEPS, Life, Probe
from pyvfio.replay.wording import spans


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        healthy: every interrupt that should arrive did, and none arrived elsewhere.
        lost: by step, the vectors whose interrupts did not arrive.
        why: one sentence.
        chain: where vector 0 was lost, how it came to it, step by step, with what shows it.
    """

    healthy: bool
    lost: dict[str, tuple[int, ...]]
    why: str
    chain: tuple[str, ...]


def judge(life: Life) -> Verdict:
    """What a life shows.

    The dummy's own probe counts for the reason, not for health: no driver has vector 0 fire then.
    """
    probes = {
        step.name: step.probe
        for step in life.steps
        if step.probe is not None and step.name not in DUMMY_STEPS
    }
    lost = {name: probe.lost for name, probe in probes.items() if probe.lost}
    healthy = not lost and not any(_astray(probe) for probe in probes.values())
    return Verdict(healthy, lost, _why(life, lost), tuple(_chain(life, lost)))


def _astray(probe: Probe) -> bool:
    return bool(probe.strays) or bool(set(probe.arrived) - set(probe.expected))


def _why(life: Life, lost: dict[str, tuple[int, ...]]) -> str:
    enabled, restored = life.step("enable again"), life.step("restore")
    early = enabled.gsis.get(0)
    late = gsi_text(restored.gsis[0]) if 0 in restored.gsis else "none"
    if early is None:
        return (
            f"the dummy: {life.variant.policy.dummy.value}; so vector 0 is bound when it has its "
            f"message, to GSI {late}{_also(lost)}"
        )
    table = "kept" if life.kept_table else "wiped"
    bound = (
        f"the dummy bound vector 0 to GSI {gsi_text(early)}, by the message in the {table} table"
    )
    if late != gsi_text(early):
        return f"{bound}; the update after it moved it to GSI {late}{_also(lost)}"
    if any(event.ioctl == "KVM_SET_GSI_ROUTING" for event in restored.events):
        return f"{bound}; the update after it rewrote that GSI's route: it healed itself" + _also(
            lost
        )
    if 0 not in lost.get("restore", ()):
        return f"{bound}; the update after it did nothing, and nothing was needed{_also(lost)}"
    first = ", at the first enabling already" if 0 in lost.get("unmask", ()) else ""
    return (
        f"{bound}, and the update after it did nothing: its interrupts go to GSI {late}, "
        f"where nobody is, and are dropped without a word{first}"
    )


def _chain(life: Life, lost: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """The links from the reset to the loss; nothing where vector 0 is not lost by the dummy."""
    enabled, restored = life.step("enable again"), life.step("restore")
    gsi = enabled.gsis.get(0)
    if 0 not in lost.get("restore", ()) or gsi is None:
        return
    yield f"reset: {life.step('reset').what}"
    yield "enable again: the driver kept its vectors: it sets ENABLE first, and writes them after"
    bind = next(e for e in enabled.events if e.ioctl == "KVM_IRQFD")
    yield (
        f"enable again: {bind.text}: the dummy is bound to GSI {gsi_text(gsi)}, by the message in "
        f"entry 0, and the kernel {'refuses' if bind.error else 'accepts'} it"
    )
    if enabled.probe is not None and not enabled.probe.arrived:
        strays = ", ".join(map(str, enabled.probe.strays)) or "nothing"
        yield f"enable again: kvm0 fired by hand arrives nowhere it should: {strays} is seen"
    moved = [e.text for e in restored.events if e.ioctl == "KVM_IRQFD" and "kvm0" in e.text]
    pointed = next(e.text for e in restored.events if "kvm0" in e.text)
    yield (
        "restore: vector 0 has its message and is unmasked; the update does "
        + (
            f"{', '.join(moved)}"
            if moved
            else f"nothing at KVM, and VFIO is pointed there: {pointed}"
        )
    )
    vectors = lost["restore"]
    assert restored.probe is not None
    others = [vector for vector in restored.probe.arrived if vector not in vectors]
    yield (
        "restore: all fire; "
        + (f"{spans(others)} arrived, " if others else "")
        + f"{spans(vectors)} did not: GSI {gsi_text(gsi)} has no source, and KVM drops its events"
    )


def _also(lost: dict[str, tuple[int, ...]]) -> str:
    if not lost:
        return ""
    return "; lost all the same: " + ", ".join(
        f"{_numbers(vectors)} after {name!r}" for name, vectors in lost.items()
    )


def _numbers(vectors: tuple[int, ...]) -> str:
    return "vector " + ", ".join(map(str, vectors))
