"""docs/the-lost-interrupt.md and its picture say what the replay shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pyvfio.cli import main
from pyvfio.irqroute import D1F6AF6, PATCHED, POLICIES, TODAY
from pyvfio.replay import VARIANTS, Life, ModelledDevice, ModelledDirectMachine, live, svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "the-lost-interrupt.md").read_text()
TEXT = " ".join(PAGE.split())
PICTURE = (DOCS / "the-lost-interrupt.svg").read_text()

# How its device was reset in the run that was drawn.
EEH = "EEH: hot reset of its PE, deactivated, configured; it is normal"


def power8(name: str) -> Life:
    """A life as on POWER8, where VFIO reports that MSI-X cannot grow; modelled."""
    with ModelledDevice(2, noresize=True) as device, ModelledDirectMachine(2) as machine:
        return live(VARIANTS[name], device, machine, 2)


def section(title: str) -> str:
    """What stands under a heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The cells of its table, without the heading."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_picture_is_what_is_drawn_of_such_lives() -> None:
    """The run that is drawn was a real one: all else in it is as the code has it today."""
    title = ElementTree.fromstring(PICTURE)[0].text
    assert title is not None
    kernel = title.rpartition(", ")[2]
    lives = []
    for name in VARIANTS:
        life = power8(name)
        steps = (replace(s, what=s.what.replace("(modelled)", f"({EEH})")) for s in life.steps)
        lives.append(replace(life, steps=tuple(steps), kvm=kernel, vfio=kernel))
    assert svg(title, lives) == PICTURE


@pytest.mark.parametrize(
    ("step", "done", "not_done"),
    [("enable again", "I+(kvm0,0)", None), ("restore", "S(0,[kvm0])", "I+(kvm0,0x1300)")],
)
def test_the_ioctls_of_the_chain_are_those_of_the_replay(
    step: str, done: str, not_done: str | None
) -> None:
    said = f"`{step}: {done}`" + (f", and no `{not_done}`" if not_done else "")
    assert said in " ".join(section("The chain").split())
    events = [event.text for event in power8("d1f6af6").step(step).events]
    assert done in events
    assert not_done not in events


def test_gsi_0_is_bound_so_that_each_later_use_is_an_update() -> None:
    """Before d1f6af6 nothing was bound, and the first use with a message added the right GSI."""
    before, broken = power8("before"), power8("d1f6af6")
    assert before.step("enable again").gsis == {}
    assert before.step("restore").events[0].text == "I+(kvm0,0x1300)"
    assert broken.step("enable again").gsis == {0: 0}
    assert broken.step("restore").gsis[0] == 0


OUTCOMES: dict[str, tuple[dict[str, list[int]], int]] = {
    # As the page words it: what is lost at which step, and the number of vectors.
    "arrives": ({}, 2),
    "lost": ({"restore": [0]}, 2),
    "lost, it alone": ({"restore": [0]}, 5),
}


@pytest.mark.parametrize("row", table(section("How it is shown that this is the cause")))
def test_each_change_has_the_outcome_that_the_page_gives(
    row: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed, outcome, _ = row
    options = re.search(r"`(.*)`", changed)
    assert options is not None
    command = ["irqroute", "replay", "--json", "--mapping", "direct", *options[1].split()]
    assert main(command) == 0
    (life,) = json.loads(capsys.readouterr().out)
    if outcome == "lost at the first enabling":
        assert life["verdict"]["lost"]["unmask"] == [0]
        return
    lost, vectors = OUTCOMES[outcome]
    assert life["verdict"]["lost"] == lost
    assert life["vectors"] == vectors


def test_the_commits_are_those_of_the_policies() -> None:
    named = re.findall(r"^- \*\*(?:Before )?(\w+)\*\*", section("The dummy"), re.M)
    assert named == ["d1f6af6a17", *(policy.commit for policy in (D1F6AF6, PATCHED, TODAY))]
    # Of these the fix alone has 3f1fea0fb5.
    assert "At d1f6af6a17 an update that changes nothing commits nothing; since 3f1fea0fb5" in TEXT
    assert [name for name, policy in POLICIES.items() if policy.commit_unchanged] == ["patched"]


def test_the_ioctls_of_today_are_as_many_as_the_page_says_and_why() -> None:
    with ModelledDevice(2) as device, ModelledDirectMachine(2) as machine:
        growing = live(VARIANTS["today"], device, machine, 2)
    fixed = power8("today")
    assert (fixed.noresize, growing.noresize) == (True, False)
    said = f"takes {fixed.ioctls} ioctls on POWER8, and {growing.ioctls} on x86 or without a device"
    assert said in TEXT

    def disabled(life: Life, step: str) -> int:
        return [event.text for event in life.step(step).events].count("D")

    for step in ("unmask", "restore"):
        assert disabled(fixed, step) == disabled(growing, step) + 1
    assert fixed.ioctls == growing.ioctls + 2
    for name in ("before", "d1f6af6", "patched"):
        with ModelledDevice(2) as device, ModelledDirectMachine(2) as machine:
            assert live(VARIANTS[name], device, machine, 2).ioctls == power8(name).ioctls


def test_whether_its_msix_can_grow_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["irqroute", "replay", "--mapping", "direct", "--policy", "today"]
    assert main([*command, "--json"]) == 0
    life: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
    assert life["noresize"] is False
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "cannot grow" not in said
    assert "today where VFIO says NORESIZE" in " ".join(said.split())
