"""tools/perf --svg: what is drawn is what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools._perf import cli, plot
from tools._perf.report import Report, result
from tools._perf.row import Row, Samples
from tools._perf.rows import nvme, routes

SVG = "{http://www.w3.org/2000/svg}"


def report(row: Row, costs: Mapping[str, Sequence[float]]) -> Report:
    only = Row(row.name, row.title, row.unit, (), row.measure)
    return Report(peers={}, results=[result(only, Samples(costs))], failed={})


def reads(*depths: int) -> Report:
    """The deeper, the faster: 1,000 reads a second for each; C's driver has twice that."""
    costs = {}
    for depth in depths:
        costs[nvme.of(nvme.MANY, depth, "polled")] = [1e6 / depth] * 3
        costs[nvme.of(nvme.QEMU, depth)] = [5e5 / depth] * 3
    return report(nvme.ROW, costs)


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """The lines of contenders, which are the thick ones."""
    return [
        [(float(x), float(y)) for x, y in (place.split(",") for place in line.split())]
        for element in ElementTree.fromstring(picture).iter(f"{SVG}polyline")
        if element.get("stroke-width") == "2" and (line := element.get("points"))
    ]


def words(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_what_is_faster_is_above_and_equal_ratios_are_equal_distances() -> None:
    faster, slower = lines(plot.svg(reads(*nvme.DEPTHS)))
    assert [x for x, _ in faster] == [x for x, _ in slower] == sorted(x for x, _ in slower)
    below = [theirs[1] - ours[1] for ours, theirs in zip(faster, slower, strict=True)]
    assert below == pytest.approx([below[0]] * 4, abs=0.2)
    rises = [before[1] - after[1] for before, after in itertools.pairwise(slower)]
    assert rises == pytest.approx([2 * below[0]] * 3, abs=0.2)  # each depth four times the last
    assert below[0] > 0


def test_who_is_absent_has_no_line() -> None:
    picture = plot.svg(reads(*nvme.DEPTHS))
    assert "read_many, polled" in words(picture)
    assert nvme.QEMU in words(picture)
    assert nvme.LINUX not in words(picture)
    assert {"NVMe, reading 4 KiB: reads per second", "queue depth"} <= set(words(picture))
    assert not any("vectors" in text for text in words(picture))


def test_routes_are_drawn_over_vectors() -> None:
    costs = {routes.of(routes.ENABLE, count): [count * 1e3] * 2 for count in routes.COUNTS}
    [line] = lines(plot.svg(report(routes.ROW, costs)))
    assert len(line) == len(routes.COUNTS)
    assert "2,048" in words(plot.svg(report(routes.ROW, costs)))


def test_without_what_grows_there_is_nothing_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = Row("row", "a row", "ns", (), lambda _: Samples({"ours": [1.0, 2.0]}))
    monkeypatch.setattr(cli, "ROWS", {"row": flat})
    assert cli.main(["--json", "--svg", str(tmp_path / "plot.svg")]) == 1
    assert "routes and nvme" in capsys.readouterr().err
    assert not (tmp_path / "plot.svg").exists()


def test_of_a_row_whose_contenders_were_all_absent_there_is_nothing_either() -> None:
    with pytest.raises(ValueError, match="routes and nvme"):
        plot.svg(report(nvme.ROW, {"undrawn": [1.0, 2.0]}))
