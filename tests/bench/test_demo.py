"""tools/demo shows as much as can be shown."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tools._demo import __main__ as demo

Bench = Callable[..., subprocess.CompletedProcess[str]]


def bench(**statuses: int) -> Bench:
    """Stand in for tools/bench: {"get_power8": its exit status}."""

    def run(verb: str, host: str, *arguments: str, stdout: int | None = None) -> object:
        status = statuses.get(f"{verb}_{host}", 0)
        printed = '{"error": "libc6 cannot be fetched"}' if status and verb == "get" else ""
        return subprocess.CompletedProcess([], status, printed)

    return run  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("statuses", "status", "says"),
    [
        ({}, 0, "The last act is on POWER8"),
        ({"get_power8": 125}, 0, "libc6 cannot be fetched"),
        ({"run_power8": 125}, 0, "status 125"),
        ({"run_x86": 125}, 125, "The demo did not run"),
        ({"get_power8": 130}, 130, ""),
        ({"run_power8": 130}, 130, ""),
    ],
)
def test_act_that_cannot_be_shown_is_named(
    statuses: dict[str, int],
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "_bench", bench(**statuses))
    assert demo.main([]) == status
    assert says in capsys.readouterr().out
