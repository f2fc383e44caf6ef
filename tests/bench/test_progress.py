"""What a step shows where stderr is a pipe."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("rich")

from tools._bench import progress
from tools._bench.progress import say, step


@pytest.fixture(autouse=True)
def no_open_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_line_is_open", False)


def test_step_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Unpacking") as shown:
        shown.update("half of it")
        assert capsys.readouterr().err == "Unpacking ..."
    assert re.fullmatch(r" \d+ s\n", capsys.readouterr().err)


def test_message_in_a_step_has_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Fetching"):
        say("Waiting")
    shown = capsys.readouterr().err
    assert re.fullmatch(r"Fetching \.\.\.\nWaiting\nFetching \.\.\. \d+ s\n", shown)


def test_failed_step_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="no such file"), step("Fetching"):
        raise OSError("no such file")
    assert capsys.readouterr().err == "Fetching ...\n"
