"""Settings of the whole suite, and what its run says at the end: where the time went."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.left import set_right

# Emulated and shared machines are slow at times: how long an example takes says nothing.
settings.register_profile("pyvfio", deadline=None)
settings.load_profile("pyvfio")

# A run in the background of a script has Ctrl-C ignored, and tests of Ctrl-C would wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nothing_is_left_held() -> Iterator[None]:
    """The test that leaves a lock held fails, rather than a later one that would wait for it."""
    yield
    assert set_right() == []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the matrix of hosts, kernels and QEMUs where it was not asked for."""
    if "matrix" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("matrix")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each part of the suite took, and the matrix of what passed on which host."""
    counts: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    properties: dict[str, list[Any]] = defaultdict(list)
    for report in (it for group in terminalreporter.stats.values() for it in group):
        if isinstance(report, pytest.TestReport):
            part = "/".join(report.nodeid.partition("::")[0].split("/")[:2])
            counts[part] += report.when == "call"
            seconds[part] += report.duration
            if report.when == "teardown":
                for name, value in report.user_properties:
                    properties[name].append(value)
    if counts:
        terminalreporter.section("where the time went")
    for part in sorted(counts, key=lambda part: -seconds[part]):
        terminalreporter.line(f"{seconds[part]:7.1f} s  {counts[part]:5} tests  {part}")
    if boots := properties["boot"]:
        total = sum(took for _, took in boots)
        words = ", ".join(f"{host} {took:.0f} s" for host, took in boots)
        terminalreporter.line(f"{total:7.1f} s  {len(boots):5} boots  of these: {words}")
    for host in properties["failed boot"]:
        terminalreporter.line(f"a boot of {host} failed, and it was booted once more")
    for crash in properties["crash"]:
        terminalreporter.line(f"QEMU crashed, and the command was run once more: {crash}")
    if points := properties["points"]:
        kinds: Counter[str] = Counter()
        for found in points:
            kinds.update(found)
        listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        terminalreporter.line(f"campaigns of Ctrl-C: {kinds.total():,} points ({listed})")
    if cells := properties["cell"]:
        terminalreporter.section("hosts, kernels, QEMUs")
        for line in sorted(cells):
            terminalreporter.line(line)
