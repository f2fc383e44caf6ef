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
    from pyvfio.eeh import HostState
    from pyvfio.pci import Function

_WATCH_INTERVAL = 0.5  # seconds


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "status",
        help="state of PEs, by sysfs and debugfs",
        description="Show the state of a function's PE, or of all. No device is opened. On PowerNV "
        "the kernel leaves a freeze to whoever looked at it first (isolated). So where a driver of "
        "the host uses the PE, the kernel is made to look first, and recovers what it finds "
        "frozen; that takes root and debugfs, and without them such a PE is not looked at. --watch "
        "shows its freeze when the kernel has noticed it.",
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
    watch = Watch()
    entries = []
    for function in chosen:
        try:
            entries.append(watch.look(function))
        except errors.DeviceNotFound:  # it went since it was listed
            if not everything:
                raise
    report = {**host(), "functions": entries}
    if options.json:
        print(json.dumps(report, indent=None if options.watch else 2), flush=True)
    else:
        _print(report)
    if options.watch:
        _watch(watch, chosen, options.json)


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


class Watch:
    """Looks at PEs, once and again, and leaves the host the recovery of its own."""

    def __init__(self) -> None:
        from pyvfio import eeh

        self._seen: dict[str, dict[str, Any]] = {}
        self._of_host = eeh.host_pes()
        self._freezes = self._count()
        self._noticed = False

    def again(self) -> None:
        """Begin another round."""
        from pyvfio import eeh

        before, self._freezes = self._freezes, self._count()
        self._noticed = self._freezes != before
        self._of_host = eeh.host_pes()

    def seen(self, function: Function) -> dict[str, Any]:
        """What the last look at a function saw."""
        return self._seen.get(str(function.address), _gone(function))

    def look(self, function: Function) -> dict[str, Any]:
        """A function's PE, in JSON's types; without one its state is None."""
        entry = self._look(function)
        self._seen[entry["address"]] = entry
        return entry

    def lose(self, function: Function) -> dict[str, Any]:
        """Take down that a function has gone."""
        self._seen.pop(str(function.address), None)
        return _gone(function)

    @staticmethod
    def _count() -> int | None:
        """How many freezes the kernel has noticed."""
        from pyvfio import eeh

        return eeh.counters().counts.get("eeh_slot_resets")

    def _look(self, function: Function) -> dict[str, Any]:
        from pyvfio import eeh

        found: dict[str, Any] = {"address": str(function.address), "driver": function.driver}
        try:
            pe = eeh.HostPe(function)
            found |= {"pe": pe.number, "mode": int(pe.mode)}
            before = self._seen.get(found["address"])
            if before is not None and eeh.is_of_host(pe, self._of_host):
                noted = eeh.Software(before.get("software") or 0)
                passing = eeh.Software.RECOVERING | eeh.Software.RESET | eeh.Software.CONFIG_BLOCKED
                if noted & eeh.Software.ISOLATED and not noted & eeh.Software.RECOVERING:
                    # Noted already: there is no recovery that a look could prevent.
                    return {**found, **_of_state(pe.state)}
                quiet = before.get("state") in ("normal", _NOT_LOOKED_AT) and not noted & passing
                if quiet and not self._noticed:
                    # The kernel has noticed no freeze since, and would log each look.
                    return {**before, **found}
            try:
                state = eeh.look(pe, self._of_host)
            except (errors.HostError, errors.AccessDenied) as error:
                found |= {"state": _NOT_LOOKED_AT, "noted": [], "hardware": None, "software": None}
                return {**found, "why": str(error)}
            return {**found, **_of_state(state)}
        except errors.Unsupported:
            return {**found, "pe": None, "state": None}


_NOT_LOOKED_AT = "not looked at"


def _of_state(state: HostState) -> dict[str, Any]:
    return {
        "state": str(state.state),
        "noted": list(state.flags),
        "hardware": int(state.hardware),
        "software": int(state.software),
    }


def _watch(watch: Watch, functions: tuple[Function, ...], as_json: bool) -> None:
    while True:
        time.sleep(_WATCH_INTERVAL)
        watch.again()
        for function in functions:
            before = watch.seen(function)
            try:
                entry = watch.look(function)
            except errors.DeviceNotFound:
                entry = watch.lose(function)
            if entry != before:
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
    reasons = {entry["why"] for entry in report["functions"] if "why" in entry}
    for reason in sorted(reasons):
        print(f"what the host drives is not looked at, since its recovery comes first: {reason}")
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
