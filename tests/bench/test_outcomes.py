from __future__ import annotations

from typing import Any

from tests.bench.outcomes import unexpected

MODULE = "hwtests/test_eeh.py"


def outcome(name: str, outcome: str = "passed", **reason: str) -> dict[str, Any]:
    return {"test": f"{MODULE}::{name}", "outcome": outcome, **reason}


def test_a_module_that_passes_but_for_what_may_skip() -> None:
    tests = [outcome("a"), outcome("b", "skipped", reason="the host has EEH")]
    assert unexpected(tests, MODULE, ("has EEH",)) == []


def test_a_skip_for_another_reason_is_shown() -> None:
    tests = [outcome("a"), outcome("b", "skipped", reason="no PE")]
    assert unexpected(tests, MODULE, ("has EEH",)) == [f"{MODULE}::b skipped: no PE"]


def test_a_failure_is_never_allowed() -> None:
    tests = [outcome("a"), outcome("b", "failed", reason="the host has EEH")]
    assert len(unexpected(tests, MODULE, ("has EEH",))) == 1


def test_a_module_that_only_skips_is_shown() -> None:
    tests = [outcome("a", "skipped", reason="the host has EEH")]
    nothing = [f"nothing of {MODULE} passed"]
    assert unexpected(tests, MODULE, ("has EEH",)) == nothing
    assert unexpected([], MODULE, ("has EEH",)) == nothing
    assert unexpected([outcome("a")], "hwtests/test_spapr.py", ()) != []
