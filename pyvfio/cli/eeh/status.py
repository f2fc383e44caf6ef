"""`pyvfio eeh status`: PEs as sysfs and debugfs show them."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys.text import printable
from pyvfio.cli import common

if TYPE_CHECKING:
    from pyvfio.pci import Function

_WATCH_INTERVAL = 0.5  # seconds


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "status",
        help="state of PEs, by sysfs and debugfs",
        description="Show the state of a function's PE, or of all. No device is opened. On PowerNV "
        "the kernel notes a freeze when the state is looked at (isolated), and leaves a PE with "
        "that note to whoever looked: thaw it, or let the host recover it.",
        epilog="example:\n  pyvfio eeh status all --watch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(parser, or_all=True)
    parser.add_argument(
        "--watch", action="store_true", help="go on, with a line for each change, until Ctrl-C"
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from pyvfio import eeh
    from pyvfio.pci import functions

    eeh.check_enabled()
    everything = options.address == "all"
    chosen = functions() if everything else (common.function(options.address),)
    if not everything:
        eeh.HostPe(chosen[0])  # says so, if it has none
    entries = []
    for function in chosen:
        try:
            entries.append(describe(function))
        except errors.DeviceNotFound:  # it went since it was listed
            if not everything:
                raise
    report = {**host(), "functions": entries}
    if options.json:
        print(json.dumps(report, indent=None if options.watch else 2), flush=True)
    else:
        _print(report)
    if options.watch:
        _watch(chosen, {entry["address"]: entry for entry in report["functions"]}, options.json)


def host() -> dict[str, Any]:
    """What holds for the whole host, in JSON's types."""
    from pyvfio.eeh import counters, debugfs

    counted = counters()
    try:
        settings: dict[str, Any] | None = debugfs.settings()._asdict()
        why = None
    except errors.Error as error:
        settings, why = None, str(error)
    return {
        "enabled": counted.enabled,
        "counters": counted.counts,
        "settings": settings,
        "no_settings": why,
    }


def describe(function: Function) -> dict[str, Any]:
    """A function's PE, in JSON's types; without one its state is None."""
    from pyvfio.eeh import HostPe

    found: dict[str, Any] = {"address": str(function.address), "driver": function.driver}
    try:
        pe = HostPe(function)
        state = pe.state
        return {
            **found,
            "pe": pe.number,
            "mode": int(pe.mode),
            "state": str(state.state),
            "noted": list(state.flags),
            "hardware": int(state.hardware),
            "software": int(state.software),
        }
    except errors.Unsupported:
        return {**found, "pe": None, "state": None}


def _watch(functions: tuple[Function, ...], before: dict[str, Any], as_json: bool) -> None:
    while True:
        time.sleep(_WATCH_INTERVAL)
        for function in functions:
            try:
                entry = describe(function)
            except errors.DeviceNotFound:
                entry = _gone(function)
            if entry != before.get(entry["address"], _gone(function)):
                before[entry["address"]] = entry
                now = time.strftime("%H:%M:%S")
                line = json.dumps({"time": now, **entry}) if as_json else f"{now} {_line(entry)}"
                print(line, flush=True)


def _gone(function: Function) -> dict[str, Any]:
    return {"address": str(function.address), "state": "gone"}


def _print(report: dict[str, Any]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in report["counters"].items() if count)
    print(f"EEH is on; counted since boot: {counts or 'nothing'}")
    settings = report["settings"]
    if settings is None:
        print(f"host's settings not shown: {printable(report['no_settings'])}")
    else:
        recovers = "recovers" if settings["recovery"] else "does not recover"
        print(
            f"the host {recovers} its own devices, up to {settings['max_freezes']} freezes an hour"
        )
    for entry in report["functions"]:
        print(_line(entry), flush=True)


def _line(entry: dict[str, Any]) -> str:
    if entry["state"] is None:
        return f"{entry['address']}  no PE"
    if "pe" not in entry:
        return f"{entry['address']}  {entry['state']}"
    noted = f" ({', '.join(entry['noted'])})" if entry["noted"] else ""
    return (
        f"{entry['address']}  PE {entry['pe']:#x}  {entry['state']}{noted}  "
        f"{printable(entry['driver'] or 'no driver')}"
    )
