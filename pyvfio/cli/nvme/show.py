"""`pyvfio nvme identify` and `smart`: what a controller tells of itself."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyvfio._sys.text import printable
from pyvfio.cli import common
from pyvfio.cli.nvme import holding
from pyvfio.cli.nvme.sizes import words

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from pyvfio.drivers.nvme import Controller, SmartLog

_ZERO_CELSIUS = 273  # kelvins, as NVMe rounds it
_WORN = 90  # per cent of the endurance


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, what, run in (
        ("identify", "the controller and its namespaces", run_identify),
        ("smart", "the controller's health", run_smart),
    ):
        parser = commands.add_parser(
            name,
            help=what,
            description=f"Show {what}. The device is taken from its driver meanwhile, and reset.",
            epilog=f"example:\n  sudo pyvfio nvme {name} 0000:01:00.0",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        common.add_address(parser)
        common.add_json(parser)
        parser.set_defaults(run=run)


def run_identify(options: argparse.Namespace) -> None:
    console = None if options.json else common.console(width=120)
    with holding.opened(options.address) as controller:
        entry = describe(controller)
    if console is None:
        common.print_json(entry)
    else:
        console.print(_controller(entry))
        console.print(_namespaces(entry))


def describe(controller: Controller) -> dict[str, Any]:
    """What `identify` knows of a controller, in JSON's types."""
    identity = _plain(controller.identity)
    return {
        "address": str(controller.device.address),
        "highest_namespace": identity.pop("namespaces"),
        **identity,
        "max_transfer": controller.max_transfer,
        "namespaces": [
            {
                "id": disk.id,
                "size": disk.size,
                "blocks": disk.blocks,
                "block_size": disk.block_size,
                **_plain(disk.identity),
            }
            for disk in controller.namespaces.values()
        ],
    }


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass in JSON's types: bytes as hexadecimal digits."""
    return {
        name: item.hex() if isinstance(item, bytes) else item
        for name, item in dataclasses.asdict(value).items()
    }


def _controller(entry: dict[str, Any]) -> Table:
    can = [what for what in ("format", "deallocate") if entry[f"can_{what}"]]
    rows = [
        ("address", entry["address"]),
        ("model", entry["model"]),
        ("serial", entry["serial"]),
        ("firmware", entry["firmware"]),
        ("vendor", f"{entry['vendor_id']:04x}"),
        ("NVMe", ".".join(map(str, entry["version"])) if any(entry["version"]) else "before 1.2"),
        ("capacity", words(entry["capacity"]) if entry["capacity"] else "not told"),
        ("one command", f"up to {words(entry['max_transfer'])}"),
        ("write cache", "volatile: flush what must last" if entry["volatile_cache"] else "none"),
        ("it can", ", ".join(can) or "neither format nor deallocate"),
    ]
    return pairs(rows)


def _namespaces(entry: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in ("namespace", "size", "blocks", "of bytes", "metadata", "allocated"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("other formats")
    for disk in entry["namespaces"]:
        formats = disk["formats"]
        metadata = formats[disk["format"]]["metadata_size"]
        others = [
            f"{form['block_size']}" + (f"+{form['metadata_size']}" if form["metadata_size"] else "")
            for index, form in formats.items()
            if index != disk["format"]
        ]
        table.add_row(
            str(disk["id"]),
            words(disk["size"]),
            f"{disk['blocks']:,}",
            f"{disk['block_size']:,}",
            str(metadata or "none"),
            f"{100 * disk['used'] // disk['blocks']} %" if disk["blocks"] else "-",
            ", ".join(others) or "-",
        )
    return table


def run_smart(options: argparse.Namespace) -> None:
    console = None if options.json else common.console(width=120)
    with holding.opened(options.address) as controller:
        log = controller.smart()
    if console is None:
        common.print_json({**_plain(log), "warnings": log.warnings})
    else:
        console.print(_health(log))


def _health(log: SmartLog) -> Table:
    from rich.text import Text

    return pairs(
        (name, Text(value, "bold red" if worrying else "")) for name, value, worrying in rows(log)
    )


def rows(log: SmartLog) -> list[tuple[str, str, bool]]:
    """A health log as people read it: name, value, and whether it is a reason to worry."""
    warnings = log.warnings
    hours = log.power_on_hours
    return [
        ("health", "; ".join(warnings) or "no warnings", bool(warnings)),
        ("temperature", _celsius(log.temperature), bool(log.critical_warning & 2)),
        *(
            (f"sensor {number}", _celsius(kelvins), False)
            for number, kelvins in log.sensors.items()
        ),
        (
            "spare",
            f"{log.available_spare} % (warns below {log.spare_threshold} %)",
            log.available_spare < log.spare_threshold,
        ),
        ("endurance used", f"{log.percentage_used} %", log.percentage_used >= _WORN),
        ("media errors", f"{log.media_errors:,}", log.media_errors > 0),
        ("errors logged", f"{log.error_entries:,}", False),
        ("read", f"{_decimal(log.data_read)} in {log.read_commands:,} commands", False),
        ("written", f"{_decimal(log.data_written)} in {log.write_commands:,} commands", False),
        ("busy", f"{log.busy_minutes:,} min", False),
        ("powered on", f"{hours:,} h" + (f" ({hours // 24:,} days)" if hours >= 48 else ""), False),
        ("power cycles", f"{log.power_cycles:,}", False),
        ("unsafe shutdowns", f"{log.unsafe_shutdowns:,}", False),
        ("too warm", f"{log.warning_minutes:,} min", log.warning_minutes > 0),
        ("critically warm", f"{log.critical_minutes:,} min", log.critical_minutes > 0),
    ]


def _celsius(kelvins: int) -> str:
    return f"{kelvins - _ZERO_CELSIUS} °C"


def _decimal(size: int) -> str:
    """Bytes in powers of 1,000, as disks are sold and their data counted."""
    for exponent, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if size >= 1000**exponent:
            return f"{size / 1000**exponent:.2f} {unit}"
    return f"{size / 1000:.0f} kB"


def pairs(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, side by side; a value that is a text is a device's, and no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(printable(value)) if isinstance(value, str) else value)
    return table
