"""`pyvfio list`: the functions of this host and who holds them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pyvfio._sys.text import printable
from pyvfio.cli import common

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pyvfio.pci import Function


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "list",
        help="the PCI functions of this host",
        description="List the PCI functions of this host, their IOMMU groups and drivers. "
        "Reads sysfs only; no device is opened.",
        epilog="example:\n  pyvfio list --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from pyvfio.pci import functions

    found = [describe(function) for function in functions()]
    if options.json:
        common.print_json(found)
        return
    common.print_wide(_table(found))
    for entry in found:
        if entry["removal"] is not None:
            common.notice(entry["removal"])


def _table(found: list[dict[str, Any]]) -> RenderableType:
    common.require_rich()
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("address", "ids", "group", "driver", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for entry in found:
        removed = "being removed" if entry["removal"] is not None else None
        row = (
            entry["address"],
            f"{entry['vendor_id']:04x}:{entry['device_id']:04x}",
            "-" if entry["iommu_group"] is None else str(entry["iommu_group"]),
            printable(entry["driver"] or removed or "-"),
            title(entry),
        )
        # As Text: names have brackets, which rich takes for its markup.
        table.add_row(*map(Text, row), style="green" if entry["driver"] == "vfio-pci" else None)
    return table


def describe(function: Function) -> dict[str, Any]:
    """What `list` knows of a function, in JSON's types."""
    from pyvfio.pci.usage import removal

    group = function.iommu_group
    return {
        "address": str(function.address),
        "vendor_id": function.vendor_id,
        "device_id": function.device_id,
        "class_code": function.class_code,
        "vendor": function.vendor_name,
        "device": function.device_name,
        "class": function.class_name,
        "driver": function.driver,
        "removal": removal.removal(function),
        "iommu_group": None if group is None else group.id,
    }


def title(entry: dict[str, Any]) -> str:
    """A function in words: its class and, where pci.ids knows them, maker and model."""
    maker = " ".join(entry[name] for name in ("vendor", "device") if entry[name])
    return printable(": ".join(part for part in (entry["class"], maker) if part))
