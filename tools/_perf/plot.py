"""What grows: two charts of a report, as one SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from .report import Report, Result
from .rows import nvme, routes

_WIDTH, _HEIGHT = 380, 300
_LEFT, _TOP, _LEGEND = 70, 50, 230
_CHART = _LEFT + _WIDTH + _LEGEND
_LINE = 17
_COLOURS = ("#1f6fb2", "#3c9d4e", "#a05a00", "#b3261e", "#7a4fbf")


@dataclass(frozen=True)
class Chart:
    """One chart, both of its axes logarithmic.

    Attributes:
        row: the row that it is of.
        title: above it.
        across: what the horizontal axis counts.
        at: the horizontal axis's values, each twice or more the last.
        lines: (what it is called, a contender's name by the horizontal axis's value).
        value: what is drawn, of a cost in nanoseconds and the horizontal axis's value.
    """

    row: str
    title: str
    across: str
    at: tuple[int, ...]
    lines: tuple[tuple[str, Callable[[int], str]], ...]
    value: Callable[[float, int], float]


def _route(contender: str) -> tuple[str, Callable[[int], str]]:
    return contender, lambda count: routes.of(contender, count)


def _read(contender: str, way: str = "") -> tuple[str, Callable[[int], str]]:
    name = f"{contender}{', ' * bool(way)}{way}"
    return name, lambda depth: nvme.of(contender, depth, way)


CHARTS = (
    Chart(
        "routes",
        "Forwarding vectors to a VM: milliseconds",
        "vectors",
        routes.COUNTS,
        tuple(map(_route, (routes.ENABLE, routes.BARE, routes.FORWARD, routes.EACH))),
        lambda cost, count: cost / 1e6,
    ),
    Chart(
        "nvme",
        "NVMe, reading 4 KiB: reads per second",
        "queue depth",
        nvme.DEPTHS,
        (
            *(_read(nvme.MANY, way) for way in reversed(nvme.WAYS)),
            _read(nvme.QEMU),
            _read(nvme.LINUX),
        ),
        lambda cost, depth: 1e9 / cost,
    ),
)


def svg(report: Report) -> str:
    """Draw the charts whose rows were measured, side by side.

    Returns:
        The SVG document.

    Raises:
        ValueError: nothing was measured of what they draw.
    """
    measured = {row["row"]: row for row in report["results"]}
    charts = [
        (chart, lines)
        for chart in CHARTS
        if chart.row in measured and (lines := _lines(chart, measured[chart.row]))
    ]
    if not charts:
        rows = " and ".join(chart.row for chart in CHARTS)
        raise ValueError(f"a plot is made of the rows {rows}, and neither was measured")
    height = _TOP + _HEIGHT + 60
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {len(charts) * _CHART} {height}",
            "width": str(len(charts) * _CHART),
            "height": str(height),
            "font-family": "ui-monospace, 'DejaVu Sans Mono', monospace",
            "font-size": "12",
        },
    )
    titles = "; ".join(chart.title for chart, _ in charts)
    ElementTree.SubElement(root, "title").text = f"pyvfio: {titles}"
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    for number, (chart, lines) in enumerate(charts):
        place = {"transform": f"translate({number * _CHART} 0)"}
        _draw(ElementTree.SubElement(root, "g", place), chart, lines)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


_Line = tuple[str, list[tuple[int, float]]]


def _lines(chart: Chart, row: Result) -> list[_Line]:
    """What each of a chart's lines is called, and its points; without those that have none."""
    lines = [
        (
            name,
            [
                (at, chart.value(row["costs"][contender(at)]["median"], at))
                for at in chart.at
                if contender(at) in row["costs"]
            ],
        )
        for name, contender in chart.lines
    ]
    return [(name, points) for name, points in lines if points]


def _draw(group: ElementTree.Element, chart: Chart, lines: Sequence[_Line]) -> None:
    values = [value for _, points in lines for _, value in points]
    lowest = math.floor(math.log10(min(values)))
    highest = max(math.ceil(math.log10(max(values))), lowest + 1)

    def x(at: float) -> float:
        return _LEFT + _WIDTH * math.log(at / chart.at[0]) / math.log(chart.at[-1] / chart.at[0])

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (highest - math.log10(value)) / (highest - lowest)

    _text(group, _LEFT, _TOP - 20, chart.title, "start", weight="bold")
    for power in range(lowest, highest + 1):
        _stroke(group, [(_LEFT, y(10.0**power)), (_LEFT + _WIDTH, y(10.0**power))], "#dddddd")
        _text(group, _LEFT - 8, y(10.0**power) + 4, f"{10.0**power:,.10g}", "end")
    for at in chart.at:
        _stroke(group, [(x(at), _TOP), (x(at), _TOP + _HEIGHT)], "#eeeeee")
        _text(group, x(at), _TOP + _HEIGHT + 20, f"{at:,}", "middle")
    _text(group, _LEFT + _WIDTH / 2, _TOP + _HEIGHT + 40, chart.across, "middle")
    # Names stand where their lines end, moved apart where they would lie on each other.
    below = 0.0
    ended = zip(_COLOURS, lines, strict=False)
    for colour, (name, points) in sorted(ended, key=lambda it: y(it[1][1][-1][1])):
        places = [(x(at), y(value)) for at, value in points]
        _stroke(group, places, colour, width=2)
        for place in places:
            ElementTree.SubElement(
                group, "circle", {"cx": f"{place[0]:.1f}", "cy": f"{place[1]:.1f}", "r": "3"}
            ).set("fill", colour)
        below = max(places[-1][1] + 4, below + _LINE)
        _text(group, _LEFT + _WIDTH + 10, below, name, "start", colour=colour)


def _stroke(
    group: ElementTree.Element,
    places: Sequence[tuple[float, float]],
    colour: str,
    *,
    width: int = 1,
) -> None:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    attributes = {"points": points, "stroke": colour, "stroke-width": str(width), "fill": "none"}
    ElementTree.SubElement(group, "polyline", attributes)


def _text(
    group: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    anchor: str,
    *,
    colour: str = "#222222",
    weight: str = "normal",
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": colour}
    ElementTree.SubElement(group, "text", {**attributes, "font-weight": weight}).text = text
