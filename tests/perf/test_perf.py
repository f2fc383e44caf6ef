"""tools/perf: what is computed from costs, and how it reads. Nothing is timed here."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from rich.console import Console

from tools._perf import cli
from tools._perf.measure import interleave, statement
from tools._perf.peers import Peers
from tools._perf.report import Report, result, table
from tools._perf.row import Aim, Comparison, Row, Samples, Setting


def row(*comparisons: Comparison, name: str = "row", fails: bool = False) -> Row:
    def measure(setting: Setting) -> Samples:
        if fails:
            raise RuntimeError("no such thing")
        costs = {"ours": [20.0, 30.0, 40.0], "theirs": [10.0] * 3}
        return Samples(costs, {"peer": "not on PyPI"}, {"theirs": 2})

    return Row(name, "a row[0]", "ns", comparisons, measure)


def report(*comparisons: Comparison) -> Report:
    measured = row(*comparisons)
    samples = measured.measure(Setting(Peers(), "", lambda words: None))
    return Report(peers={}, results=[result(measured, samples)], failed={})


def rendered(report: Report) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(report))
    return capture.get()


@pytest.mark.parametrize(
    ("aim", "met", "words"),
    [
        (Aim(3.5), True, ["at most 3.5", "yes"]),
        (Aim(3.0), True, ["at most 3", "yes"]),
        (Aim(3.5, wish=2.5), True, ["better 2.5", "yes, not 2.5"]),
        (Aim(2.9), False, ["at most 2.9", "MISSED"]),
        (Aim(1 / 20), False, ["at most 1/20", "MISSED"]),
        (None, None, ["3.00"]),
    ],
)
def test_an_aim_is_met_by_the_median_of_the_rounds_ratios(
    aim: Aim | None, met: bool | None, words: list[str]
) -> None:
    measured = report(Comparison("ours", "theirs", aim))
    [compared] = measured["results"][0]["compared"]
    assert compared["ratio"]["median"] == 3.0
    assert (compared["ratio"]["min"], compared["ratio"]["max"]) == (2.0, 4.0)
    assert compared["met"] is met
    text = rendered(measured)
    assert all(word in text for word in words)
    assert ("MISSED" in text) == (met is False)


def test_a_ratio_far_below_one_reads_as_a_fraction() -> None:
    text = rendered(report(Comparison("theirs", "ours", Aim(1 / 2))))
    assert "1/3.0" in text
    assert "1/4.0 to 1/2.0" not in text  # the middle half, not the extremes
    assert "1/3.4 to 1/2.4" in text


def test_an_absent_peer_is_named_and_the_row_still_measured() -> None:
    measured = report(Comparison("ours", "peer", Aim(1)), Comparison("ours", "theirs", Aim(4)))
    [compared] = measured["results"][0]["compared"]
    assert compared["against"] == "theirs"
    text = rendered(measured)
    assert "peer" in text.split("absent:")[1]
    assert "a row[0]" in text


def test_the_json_is_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ROWS", {"row": row(Comparison("ours", "theirs", Aim(2)))})
    assert cli.main(["--json"]) == 0  # a missed aim is no failure
    printed = json.loads(capsys.readouterr().out)
    [measured] = printed["results"]
    assert (measured["row"], measured["rounds"]) == ("row", 3)
    assert measured["compared"][0]["met"] is False
    assert measured["restarts"] == {"theirs": 2}
    assert printed["failed"] == {}
    assert cli.main([]) == 0
    assert "theirs hung and was started again: 2 times" in capsys.readouterr().out


def test_a_row_that_cannot_be_measured_leaves_the_others_and_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"bad": row(name="bad", fails=True), "good": row(name="good")}
    monkeypatch.setattr(cli, "ROWS", rows)
    assert cli.main(["--json", "bad", "good"]) == 1
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert [measured["row"] for measured in printed["results"]] == ["good"]
    assert "no such thing" in printed["failed"]["bad"]
    assert "no such thing" in captured.err


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def turn() -> float:
            turns.append(name)
            return float(len(turns))

        return turn

    costs = interleave({name: contender(name) for name in "abc"}, lambda words: None, rounds=5)
    rounds = ["".join(sorted(turns[start : start + 3])) for start in range(0, len(turns), 3)]
    assert rounds == ["abc"] * 6  # one to warm up
    assert all(len(cost) == 5 for cost in costs.values())
    assert min(cost or 0 for turns in costs.values() for cost in turns) == 4.0  # the first 3 do not


def test_what_takes_long_has_fewer_turns_and_is_compared_in_those() -> None:
    turns: list[str] = []

    def contender(name: str, cost: float) -> Callable[[], float]:
        def turn() -> float:
            turns.append(name)
            return cost

        return turn

    costs = interleave(
        {"often": contender("often", 10.0), "seldom": contender("seldom", 30.0)},
        lambda words: None,
        rounds=6,
        every={"seldom": 3},
    )
    assert (turns.count("often"), turns.count("seldom")) == (7, 3)  # one to warm up
    assert costs == {"often": [10.0] * 6, "seldom": [None, None, 30.0] * 2}
    measured = result(
        Row(
            "row", "a row", "ns", (Comparison("seldom", "often", Aim(3)),), lambda _: Samples(costs)
        ),
        Samples(costs),
    )
    [compared] = measured["compared"]
    assert compared["ratio"]["median"] == 3.0
    assert compared["met"]
    assert measured["rounds"] == 6


@pytest.mark.parametrize(
    ("cost", "words"), [(9_999.0, "9999 ns"), (47_100.0, "47.1 µs"), (31_800_000.0, "31.8 ms")]
)
def test_costs_are_told_in_units_of_their_size(cost: float, words: str) -> None:
    costs = {"ours": [cost] * 2, "theirs": [cost] * 2}
    timed = Row("row", "a row", "ns", (Comparison("ours", "theirs"),), lambda _: Samples(costs))
    measured = result(timed, Samples(costs))
    assert words in rendered(Report(peers={}, results=[measured], failed={}))


def test_a_statement_runs_with_its_names() -> None:
    seen: list[int] = []
    assert statement("seen.append(value)", seen=seen, value=7)() > 0
    assert set(seen) == {7}


def test_rows_are_measured_on_the_host_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[str], str]] = []

    def run(rows: list[Row], host: str, report: Report) -> None:
        asked.append(([row.name for row in rows], host))

    monkeypatch.setattr(cli, "_run_on_bench", run)
    assert cli.main(["--json", "--on", "power8"]) == 0
    assert cli.main(["--json", "--on", "x86", "dma"]) == 0
    assert cli.main(["--json", "--on", "x86", "nvme", "dma"]) == 0
    assert asked == [
        (["read", "write", "ioctl", "dma"], "power8"),
        (["dma"], "x86"),
        (["nvme"], "x86"),  # with another device, and more packages
        (["dma"], "x86"),
    ]
    with pytest.raises(SystemExit):
        cli.main(["--on", "vax"])
    assert "power9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dma", "--device", "0000:01:00.0", "--on", "power8"], "on another"),
        (["--device", "0000:01:00.0"], "which rows"),
        (["--on", "power8", "speed"], "no row 'speed'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(arguments)
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err
