"""The interrupt that QEMU's d1f6af6 lost on POWER8, on an emulated POWER8 host.

VFIO, KVM's XICS and the EEH reset through the firmware are real; only the card is emulated.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench.conftest import Hosts
from tools._bench.profiles import POWER8

pytestmark = [pytest.mark.bench, pytest.mark.xdist_group("power8")]

CARD = POWER8.device("e1000e").address

ALONE = ["--policy", "d1f6af6"]
REPLAYS = {
    "history": [],
    "table kept": [*ALONE, "--keep-table"],
    "enable first": [*ALONE, "--order", "enable-first"],
    "more of others": [*ALONE, "--vectors", "5", "--base", "0x2000"],
}


@pytest.fixture
def replays(hosts: Hosts) -> dict[str, list[Any]]:
    """What each replay said."""
    if not _replays:
        replay = f"pyvfio irqroute replay --json --device {CARD}"
        script = " && echo ---- && ".join(" ".join([replay, *words]) for words in REPLAYS.values())
        kernel = "python3 -m pytest -q hwtests/test_replay.py --device " + CARD
        result = hosts.run("power8", f"{script} && {kernel} >&2")
        assert "passed" in result.stderr
        _replays.update(zip(REPLAYS, map(json.loads, result.stdout.split("----\n")), strict=True))
    return _replays


_replays: dict[str, list[Any]] = {}


def lost(life: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = life["verdict"]["lost"]
    return found


def test_vector_0_is_lost_under_d1f6af6_alone_and_a_real_rebind_would_have_saved_it(
    replays: dict[str, list[Any]],
) -> None:
    lives = {life["policy"]: life for life in replays["history"]}
    assert list(lives) == ["before", "d1f6af6", "d1f6af6-rebind", "patched", "today"]
    for name, life in lives.items():
        assert life["verdict"]["healthy"] == (name != "d1f6af6")
        assert life["kvm"].startswith("Linux ")
        assert life["vfio"] == life["kvm"]
        assert all(control["passed"] for control in life["controls"])
        assert len(life["controls"]) == 3, "a masked source is among them"
        reset = next(step for step in life["steps"] if step["name"] == "reset")
        assert "EEH: hot reset of its PE" in reset["what"]
    broken = lives["d1f6af6"]
    assert lost(broken) == {"restore": [0]}
    assert broken["steps"][-1]["gsis"] == {"0": 0, "1": 0x1301}
    assert broken["steps"][-1]["probe"]["arrived"] == [1]
    assert len(broken["verdict"]["chain"]) == 6


def test_a_table_that_survives_the_reset_saves_it(replays: dict[str, list[Any]]) -> None:
    (life,) = replays["table kept"]
    assert life["verdict"]["healthy"]


def test_a_guest_that_enables_before_it_fills_loses_it_at_once(
    replays: dict[str, list[Any]],
) -> None:
    (life,) = replays["enable first"]
    assert lost(life)["unmask"] == [0]


def test_other_sources_and_more_vectors_lose_vector_0_alone(
    replays: dict[str, list[Any]],
) -> None:
    (life,) = replays["more of others"]
    assert lost(life) == {"restore": [0]}
    assert life["steps"][-1]["gsis"] == {"0": 0} | {str(v): 0x2000 + v for v in range(1, 5)}
