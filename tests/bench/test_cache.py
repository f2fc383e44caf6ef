"""The cache: the first origin that can be had whole is taken, remembered, and tried again later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("qemu.qmp")

from tools._bench import BenchError, Unavailable, cache

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVFIO_CACHE", str(tmp_path))


class Debian:
    """Suites of which some cannot be had; counts how often each is asked."""

    def __init__(self, *suites: str) -> None:
        self.suites = suites
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def candidates(self) -> Iterator[cache.Candidate[str]]:
        for suite in self.suites:
            yield cache.Candidate(suite, self._fetch(suite))

    def _fetch(self, suite: str) -> Callable[[], str]:
        def fetch() -> str:
            self.asked.append(suite)
            if suite in self.broken:
                raise Unavailable(f"E: all of {suite}\nis gone", f"{suite} is gone")
            return suite

        return fetch


def build(fetched: str, entry: Path, scratch: Path) -> None:
    (entry / "suite").write_text(fetched)


def select(debian: Debian, key: str = "key") -> str:
    entry = cache.select("A system", "system", key, debian.candidates, build)
    return (entry / "suite").read_text()


def test_first_whole_suite_is_taken_and_the_reason_said(capsys: pytest.CaptureFixture[str]) -> None:
    debian = Debian("one", "two", "three")
    debian.broken = {"one"}
    assert select(debian) == "two"
    assert debian.asked == ["one", "two"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "A system: two, because of one: one is gone"


def test_incomplete_mirror_is_worth_another_try() -> None:
    def candidates() -> Iterator[cache.Candidate[str]]:
        yield cache.Candidate("one", fetch)

    def fetch() -> str:
        raise Unavailable("404", passing=True)

    with pytest.raises(BenchError, match="try again later"):
        cache.select("A system", "system", "key", candidates, build)


def test_cached_entry_asks_nothing() -> None:
    debian = Debian("one")
    assert select(debian) == "one"
    debian.broken = {"one"}
    assert select(debian) == "one"
    assert debian.asked == ["one"]


def test_no_whole_suite_is_an_error_with_each_reason() -> None:
    debian = Debian("one", "two")
    debian.broken = {"one", "two"}
    with pytest.raises(BenchError, match=r"(?s)cannot be made\.\n.*one is gone.*two is gone"):
        select(debian)
    assert not any(path.is_dir() for path in cache.images().iterdir())


def pass_days(days: float) -> None:
    (record,) = cache.images().glob("*.json")
    choice = json.loads(record.read_text())
    choice["tried"] -= days * DAY
    choice["made"] -= days * DAY
    record.write_text(json.dumps(choice))


def test_better_suite_is_tried_again_after_a_day() -> None:
    debian = Debian("one", "two")
    debian.broken = {"one"}
    assert select(debian) == "two"
    debian.broken = set()
    assert select(debian) == "two"
    pass_days(1)
    assert select(debian) == "one"
    pass_days(40)
    assert select(debian) == "one"
    assert debian.asked == ["one", "two", "one"]


def test_age_is_said_where_no_better_suite_answers(capsys: pytest.CaptureFixture[str]) -> None:
    debian = Debian("one", "two")
    debian.broken = {"one"}
    select(debian)
    capsys.readouterr()
    pass_days(3)
    assert select(debian) == "two"
    said = capsys.readouterr().err
    assert said == "A system: still two, made 3 days ago, because of one: one is gone\n"
    assert select(debian) == "two"
    assert capsys.readouterr().err == ""


def test_damaged_record_makes_the_choice_again() -> None:
    debian = Debian("one")
    select(debian)
    (record,) = cache.images().glob("*.json")
    record.write_text("{")
    assert select(debian) == "one"
    assert debian.asked == ["one", "one"]


def test_interrupted_build_leaves_no_entry() -> None:
    debian = Debian("one")
    images = cache.images()
    (images / "unfinished@system@killed").mkdir()
    of_another = images / "unfinished@system-64k@running"
    of_another.mkdir()

    def interrupted(fetched: str, entry: Path, scratch: Path) -> None:
        (entry / "suite").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.select("A system", "system", "key", debian.candidates, interrupted)
    assert [path for path in images.iterdir() if path.is_dir()] == [of_another]
    assert select(debian) == "one"


def test_another_recipe_is_another_entry(tmp_path: Path) -> None:
    debian = Debian("one")
    source = tmp_path / "source"
    keys = set()
    for content, parts in (("a", [1]), ("b", [1]), ("b", [2])):
        source.write_text(content)
        keys.add(cache.recipe(parts, [source]))
    for key in keys:
        select(debian, key)
    assert len(keys) == 3
    assert debian.asked == ["one"] * 3


def test_unused_entries_are_removed_after_a_month() -> None:
    debian = Debian("one")
    old, recent = cache.images() / "x86-old", cache.images() / "x86-recent"
    for path in (old, recent):
        path.mkdir()
    os.utime(old, (0, 0))
    select(debian)
    assert recent.exists()
    assert not old.exists()


def test_clean_waits_for_no_running_bench() -> None:
    code = "from tools._bench import cache; cache._use(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BenchError, match="another bench is running"):
            cache.clean(None)
        other.communicate(b"\n")
    assert cache.clean(None) == 0


def test_clean_removes_what_was_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    select(Debian("one"))
    monkeypatch.setattr(cache, "_in_use", None)  # as in a process of its own
    old, environment = cache.images() / "old", tmp_path / "venv-1"
    for path in (old, environment):
        path.mkdir()
        (path / "file").write_bytes(bytes(5000))
    week = time.time() - 7 * DAY
    os.utime(old, (week, week))
    names = {entry.path.name: entry for entry in cache.entries()}
    assert set(names) == {"old", "venv-1", "system-one-key"}
    assert names["old"].size >= 5000
    assert cache.clean(unused_days=6) == names["old"].size
    assert {entry.path.name for entry in cache.entries()} == {"venv-1", "system-one-key"}
    cache.clean(None)
    assert {entry.path.name for entry in cache.entries()} == {"venv-1"}
