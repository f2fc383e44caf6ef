"""What people type."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from tools._bench.profiles import PROFILES, X86
from tools._bench.progress import say, step

from . import plot
from .peers import Peers
from .report import Report, result, table
from .row import Row, Setting
from .rows import ROWS

# Without the rows that want peers from PyPI, which an emulated host does not reach, to be of use,
# and those of x86's KVM.
_ON_A_HOST = ("read", "write", "ioctl", "dma")

_BENCH = Path(__file__).parents[1] / "bench"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every row was measured, whatever came out, and plotted; 1 otherwise."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"there is no row {name!r}; the rows are {', '.join(ROWS)}")
    if options.device and options.on:
        parser.error("--device is one of this machine, --on measures on another, with its own")
    if options.device and not options.rows:
        parser.error("--device: which rows? `nvme` wants a disk, `dma` any device")
    rows = [ROWS[name] for name in options.rows or (_ON_A_HOST if options.on else ROWS)]
    report = Report(peers={}, results=[], failed={})
    here = [row for row in rows if options.device or not (row.needs_device or options.on)]
    _run_here(here, options.device, report)
    on_bench: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in rows:
        if row not in here:
            on_bench.setdefault((row.bench_device, row.packages), []).append(row)
    for alike in on_bench.values():  # a host for each device, with what is wanted beside it
        _run_on_bench(alike, options.on or X86.name, report)
    report["results"].sort(key=lambda measured: list(ROWS).index(measured["row"]))
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        _show(report)
    for name, reason in report["failed"].items():
        say(f"error: {name} was not measured: {reason}")
    drawn = not options.svg or _plotted(report, options.svg)
    return 0 if drawn and not report["failed"] else 1


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, ROWS))
    rows = "\n".join(
        f"  {name:{width}}  {row.title}{' (VFIO: on the bench)' * row.needs_device}"
        for name, row in ROWS.items()
    )
    parser = argparse.ArgumentParser(
        prog="tools/perf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What pyvfio costs beside its peers, which are fetched from PyPI, once.\n\n"
        "A ratio is our cost divided by the other's: the median of many short rounds in which\n"
        "all contenders take turns, then the range of the middle half of them (--json has the\n"
        "smallest and the largest too). docs/performance.md says how to read it.",
        epilog=f"rows:\n{rows}\n\n"
        "examples:\n"
        "  tools/perf                            the whole table\n"
        "  tools/perf read write --json\n"
        "  tools/perf routes nvme --svg plot.svg\n"
        "  tools/perf dma --device 0000:01:00.0  with a device of your own, as root\n"
        "  tools/perf --on power8                on an emulated host: only ratios mean anything\n\n"
        "exit status: 0 if every row was measured, also where an aim is missed; 1 otherwise.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all rows, if none is named")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="FILE",
        help="also plot routes over vectors and nvme over depth, as far as they were measured",
    )
    parser.add_argument(
        "--device",
        default="",
        metavar="BDF",
        help="measure the rows that are named here, those that need VFIO with this device (bound "
        "to vfio-pci meanwhile), not on the bench",
    )
    parser.add_argument(
        "--on",
        choices=tuple(PROFILES),
        metavar="HOST",
        help=f"measure on this emulated host ({', '.join(PROFILES)}): {', '.join(_ON_A_HOST)}, if "
        "no row is named; peers from PyPI are absent there",
    )
    return parser


def _run_here(rows: list[Row], device: str, report: Report) -> None:
    peers = Peers()
    for row in rows:
        try:
            with step(f"Measuring {row.title}") as progress:
                samples = row.measure(Setting(peers, device, progress.update))
        except Exception as error:  # one row that fails does not take the others with it
            report["failed"][row.name] = f"{type(error).__name__}: {error}"
        else:
            report["results"].append(result(row, samples))
    report["peers"].update(peers.versions)


def _run_on_bench(rows: list[Row], host: str, report: Report) -> None:
    """Measure rows that take the same device and packages."""
    wanted, packages = rows[0].bench_device, rows[0].packages
    device = PROFILES[host].device(wanted)
    names = [row.name for row in rows]
    inside = ("python3", "-m", "tools._perf", *names, "--device", device.address, "--json")
    more = [f"--with={package}" for package in packages]
    run = subprocess.run(
        (str(_BENCH), "run", host, *more, "--", *inside), stdout=subprocess.PIPE, text=True
    )
    try:
        from_bench: Report = json.loads(run.stdout)
    except json.JSONDecodeError:
        reason = f"tools/bench failed with status {run.returncode}; its messages are above"
        report["failed"].update(dict.fromkeys(names, reason))
        return
    report["results"] += from_bench["results"]
    report["failed"] |= from_bench["failed"]


def _plotted(report: Report, file: Path) -> bool:
    try:
        file.write_text(plot.svg(report))
    except (ValueError, OSError) as error:
        say(f"error: --svg {file}: {error}")
        return False
    return True


def _show(report: Report) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(report))
    absent = {name: why for row in report["results"] for name, why in row["absent"].items()}
    for name, reason in absent.items():
        console.print(f"[yellow]{name} is absent: {reason}")
    for row in report["results"]:
        for name, times in row["restarts"].items():
            console.print(f"[yellow]{row['row']}: {name} hung and was started again: {times} times")
    for where in dict.fromkeys(row["where"] for row in report["results"]):
        names = ", ".join(row["row"] for row in report["results"] if row["where"] == where)
        console.print(f"[dim]{names}: {where}")
    if report["peers"]:
        versions = ", ".join(f"{name} {version}" for name, version in report["peers"].items())
        console.print(f"[dim]peers: {versions}")
