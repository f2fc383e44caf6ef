"""Few words for what was done and seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pyvfio.irqroute import Event
from pyvfio.irqroute.trace import gsi_text
from pyvfio.kvm import MsiMessage
from pyvfio.replay.life import DUMMY_STEPS, Step

_MOST = 4

LEGEND = (
    ("G{24:m0}", "KVM_SET_GSI_ROUTING: the whole table, GSI 24 leads to vector 0's message"),
    ("I+(kvm0,24)", "KVM_IRQFD: eventfd kvm0 is bound to GSI 24; I- unbinds it"),
    ("S(0,[kvm0])", "VFIO_DEVICE_SET_IRQS: vectors from 0 on signal these eventfds, - none"),
    ("D", "VFIO_DEVICE_SET_IRQS: MSI-X is disabled"),
    ("", "before more vectors are enabled: always in 2016, today where VFIO says NORESIZE"),
    ("", "closing an eventfd unbinds it too: no ioctl, and one I- waits for all"),
    ("int0, kvm0", "eventfds of vector 0: to userspace, and to KVM"),
)


def calls(events: Sequence[Event], labels: Mapping[MsiMessage, str], most: int = 12) -> list[str]:
    """The ioctls of a step, each in a word; of very many, the first and a count of the rest.

    Args:
        events: of the step.
        labels: what messages are called.
        most: how many words at the most.
    """
    texts = [_text(event, labels) for event in events]
    if len(texts) <= most:
        return texts
    shown = most - 1
    rest = Counter(event.ioctl for event in events[shown:])
    return [*texts[:shown], "and " + ", ".join(f"{n} {ioctl}" for ioctl, n in rest.items())]


def summary(step: Step) -> str:
    """What was seen after a step; empty where nothing was fired."""
    probe = step.probe
    if probe is None:
        return ""
    if probe.refused:
        return f"VFIO fires nothing: {probe.refused}"
    words = []
    if probe.arrived:
        words.append(f"{spans(probe.arrived)} arrived")
    if probe.pending:
        words.append(f"{spans(probe.pending)} pending")
    if probe.lost:
        words.append(f"{spans(probe.lost)} LOST")
    words += [f"stray {message}" for message in probe.strays]
    seen = ", ".join(words) or "nothing arrived"
    return f"kvm0 by hand: {seen}" if step.name in DUMMY_STEPS else seen


def spans(numbers: Iterable[int]) -> str:
    """Numbers, consecutive ones as "0-3"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)


def gsis(bound: Mapping[int, int]) -> str:
    """The GSI that each vector's irqfd is bound to."""
    return _few([f"{vector}→{gsi_text(number)}" for vector, number in bound.items()], " ") or "none"


def _text(event: Event, labels: Mapping[MsiMessage, str]) -> str:
    text = event.text
    if "messages" in event.arguments:
        routes = (
            f"{number}:{labels.get(MsiMessage(*message)) or MsiMessage(*message)}"
            for number, message in event.arguments["messages"].items()
        )
        text = "G{" + _few(list(routes), ",") + "}"
    elif "eventfds" in event.arguments:
        names = [name or "-" for name in event.arguments["eventfds"]]
        text = f"S({event.arguments['start']},[{_few(names, ',')}])"
    return f"{text} {event.error}" if event.error else text


def _few(words: Sequence[str], separator: str) -> str:
    if len(words) <= _MOST:
        return separator.join(words)
    return separator.join((*words[: _MOST - 2], "…", words[-1])) + f" ({len(words)})"
