"""The summary on the terminal, and the one file that someone with rare hardware can send."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hwtests import machine
from hwtests.field import originals
from pyvfio._sys.text import printable

_OUTCOMES = ("passed", "failed", "skipped")


class Report:
    """A pytest plugin that collects the results.

    Attributes:
        device: what is known of the device.
        kernel_log: what the kernel logged during the tests.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.time()
        self._results: dict[str, dict[str, Any]] = {}
        path: Path | None = config.getoption("report")
        if path is not None:
            # Found out now, not after the device was at work for minutes.
            try:
                path.touch()
            except OSError as error:
                raise pytest.UsageError(f"--report: {error}") from None
        self.device: dict[str, Any] = {}
        self.kernel_log: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has three phases; the worst outcome of them is its result."""
        result = self._results.setdefault(
            report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0}
        )
        result["seconds"] = round(result["seconds"] + report.duration, 3)
        if report.skipped and isinstance(report.longrepr, tuple):
            result |= {"outcome": "skipped", "reason": report.longrepr[2].removeprefix("Skipped: ")}
        elif report.failed:
            result |= {"outcome": "failed", "reason": report.longreprtext}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the file, if one was asked for."""
        path: Path | None = self._config.getoption("report")
        if path is None:
            return
        document = {
            "format": 1,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "exit_status": int(exitstatus),
            **machine.describe_host(),
            "device": self.device,
            "totals": Counter(result["outcome"] for result in self._results.values()),
            "tests": list(self._results.values()),
            "kernel_log": self.kernel_log,
        }
        if self._config.getoption("field"):
            missing = originals.not_shown(self._results.values())
            document["field"] = {"originals": len(originals.ORIGINALS), "not_shown": missing}
        path.write_text(json.dumps(document, indent=1) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Host, device, and a line for each subject."""
        if not self.device:
            return
        host = machine.describe_host()
        name = self.device["device"][1] or "{:04x}:{:04x}".format(
            self.device["vendor"][0], self.device["device"][0]
        )
        facts = {
            "Device": f"{self.device['address']} {name}, driver {self.device['driver'] or 'none'}",
            "Host": f"{host['host']['processor']}, Linux {host['kernel']['release']}",
            "IOMMU": ", ".join(host["iommu"]) or "none",
        }
        facts = {title: printable(value) for title, value in facts.items()}
        rows = []
        subjects = {result["test"].partition("::")[0] for result in self._results.values()}
        for subject in sorted(subjects):
            of_it = [r for r in self._results.values() if r["test"].startswith(f"{subject}::")]
            counts = Counter(result["outcome"] for result in of_it)
            seconds = sum(result["seconds"] for result in of_it)
            title = Path(subject).stem.removeprefix("test_").replace("_", " ")
            rows.append((title, [counts[outcome] for outcome in _OUTCOMES], seconds))
        try:
            _print_rich(facts, rows)
        except ImportError:
            _print_plain(facts, rows, terminalreporter)
        if self._config.getoption("field"):
            self._print_field(terminalreporter)
        if path := self._config.getoption("report"):
            terminalreporter.write_line(f"Report: {path}")

    def _print_field(self, out: pytest.TerminalReporter) -> None:
        """How many of the field's own tests were shown, and why not the others."""
        missing = originals.not_shown(self._results.values())
        count = len(originals.ORIGINALS)
        out.write_line(f"Field's own tests: {count - len(missing)} of {count} shown; not shown:")
        for name, reason in missing.items():
            out.write_line(f"  {name:<32} {printable(reason)}")


Row = tuple[str, list[int], float]


def _print_rich(facts: dict[str, str], rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for name, value in facts.items():
        console.print(f"[bold]{name:<7}[/] ", end="")
        console.print(value, markup=False)
    table = Table("Subject")
    for title in (*_OUTCOMES, "seconds"):
        table.add_column(title, justify="right")
    for subject, counts, seconds in rows:
        style = "bold red" if counts[1] else "yellow" if not counts[0] else None
        table.add_row(subject, *(str(n or "") for n in counts), f"{seconds:.1f}", style=style)
    console.print(table)


def _print_plain(facts: dict[str, str], rows: list[Row], out: pytest.TerminalReporter) -> None:
    for name, value in facts.items():
        out.write_line(f"{name:<7} {value}")
    out.write_line("{:<20}{:>8}{:>8}{:>8}{:>9}".format("subject", *_OUTCOMES, "seconds"))
    for subject, counts, seconds in rows:
        out.write_line(f"{subject:<20}{counts[0]:>8}{counts[1]:>8}{counts[2]:>8}{seconds:>9.1f}")
