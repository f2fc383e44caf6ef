"""The result as JSON, and the table made of it."""

from __future__ import annotations

import platform
import statistics
from typing import TypedDict

from rich.table import Table
from rich.text import Text

from .row import Row, Samples


class Spread(TypedDict):
    """Over all rounds; half of them lie between `quarter` and `three_quarters`."""

    min: float
    quarter: float
    median: float
    three_quarters: float
    max: float


class Compared(TypedDict):
    """`ratio` is our cost divided by the other's, round by round; `met` is None without an aim."""

    ours: str
    against: str
    ratio: Spread
    limit: float | None
    wish: float | None
    met: bool | None


class Result(TypedDict):
    """One row, measured."""

    row: str
    title: str
    unit: str
    where: str
    rounds: int
    costs: dict[str, Spread]
    absent: dict[str, str]
    restarts: dict[str, int]
    compared: list[Compared]


class Report(TypedDict):
    """One run. `failed` says, by row, why it could not be measured."""

    peers: dict[str, str]
    results: list[Result]
    failed: dict[str, str]


def result(row: Row, samples: Samples) -> Result:
    """What the samples of a row say."""
    compared: list[Compared] = []
    for comparison in row.comparisons:
        if comparison.ours in samples.absent or comparison.against in samples.absent:
            continue
        ratio = _spread(
            [
                ours / theirs
                for ours, theirs in zip(
                    samples.costs[comparison.ours], samples.costs[comparison.against], strict=True
                )
                if ours is not None and theirs is not None
            ]
        )
        aim = comparison.aim
        compared.append(
            Compared(
                ours=comparison.ours,
                against=comparison.against,
                ratio=ratio,
                limit=aim.limit if aim else None,
                wish=aim.wish if aim else None,
                met=ratio["median"] <= aim.limit if aim else None,
            )
        )
    return Result(
        row=row.name,
        title=row.title,
        unit=row.unit,
        where=f"Linux {platform.release()}, Python {platform.python_version()}",
        rounds=max(map(len, samples.costs.values())),
        costs={
            name: _spread([cost for cost in costs if cost is not None])
            for name, costs in samples.costs.items()
        },
        absent=samples.absent,
        restarts=samples.restarts,
        compared=compared,
    )


def table(report: Report) -> Table:
    """The report for people."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in ("row", "ours", "", "against", "", "ratio", "half of rounds", "aim", "met"):
        table.add_column(heading, justify="left" if heading in _WORDS else "right")
    for row in report["results"]:
        title = row["title"]
        for compared in row["compared"]:
            ratio = compared["ratio"]
            table.add_row(
                title,
                Text(compared["ours"]),  # not markup: it may have brackets
                _cost(row, compared["ours"]),
                Text(compared["against"]),
                _cost(row, compared["against"]),
                Text(_ratio(ratio["median"]), "bold"),
                f"{_ratio(ratio['quarter'])} to {_ratio(ratio['three_quarters'])}",
                _aim(compared),
                _met(compared),
            )
            title = ""
        for name in row["absent"]:
            table.add_row("", Text("absent:", "yellow"), "", name)
        table.add_row()
    return table


_WORDS = {"row", "ours", "against", "aim", "met"}


def _spread(values: list[float]) -> Spread:
    quarter, median, three_quarters = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(
        min=min(values),
        quarter=quarter,
        median=median,
        three_quarters=three_quarters,
        max=max(values),
    )


def _cost(row: Result, contender: str) -> str:
    cost = row["costs"][contender]["median"]
    unit = row["unit"]
    for larger in ("µs", "ms"):
        if unit in ("ns", "µs") and cost >= 10_000:
            cost, unit = cost / 1000, larger
    return f"{cost:{'.0f' if cost >= 100 else '.1f'}} {unit}"


def _ratio(value: float) -> str:
    """2.41, or 1/17: what is far below 1 reads better as "17 times cheaper"."""
    return f"{value:.2f}" if value > 0.5 else f"1/{1 / value:.{0 if value < 0.1 else 1}f}"


def _aim(compared: Compared) -> str:
    if compared["limit"] is None:
        return ""
    wish = "" if compared["wish"] is None else f", better {_number(compared['wish'])}"
    return f"at most {_number(compared['limit'])}{wish}"


def _number(value: float) -> str:
    return f"{value:g}" if value > 0.5 else f"1/{1 / value:g}"


def _met(compared: Compared) -> Text:
    if compared["met"] is None:
        return Text("")
    if not compared["met"]:
        return Text("MISSED", "bold red")
    wish = compared["wish"]
    if wish is not None and compared["ratio"]["median"] > wish:
        return Text(f"yes, not {_number(wish)}", "yellow")
    return Text("yes", "green")
