"""What a row of the table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .peers import Peers


@dataclass(frozen=True)
class Aim:
    """What the ratio of our cost to another's should be at most.

    Attributes:
        limit: the aim is missed above it.
        wish: what would be better still.
    """

    limit: float
    wish: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two contenders of a row, by name. Without an aim the ratio is shown for information."""

    ours: str
    against: str
    aim: Aim | None = None


@dataclass
class Samples:
    """What the contenders of a row cost.

    Attributes:
        costs: by contender, one figure per round, in the row's unit; None in a round in which it
            had no turn.
        absent: by contender, why it could not be had.
        restarts: by contender that hung, how often it was started again; no cost has that time.
    """

    costs: Mapping[str, Sequence[float | None]]
    absent: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Where a row is measured.

    Attributes:
        peers: other projects.
        device: address of a PCI device to use through VFIO; "" where the row needs none.
        progress: takes a few words on how far the measurement is.
    """

    peers: Peers
    device: str
    progress: Callable[[str], None] = field(compare=False)


@dataclass(frozen=True)
class Row:
    """One subject and all comparisons that come from measuring it once.

    Attributes:
        name: what `tools/perf ROW` takes.
        title: for people.
        unit: of a cost: "ns", "ms", "MiB".
        measure: measures all contenders, taking turns.
        needs_device: it uses VFIO; without a device it runs on the bench.
        bench_device: the name of the device that it takes there.
        packages: of Debian, with its peers, that it wants there.
    """

    name: str
    title: str
    unit: str
    comparisons: tuple[Comparison, ...]
    measure: Callable[[Setting], Samples]
    needs_device: bool = False
    bench_device: str = "edu"
    packages: tuple[str, ...] = ()
