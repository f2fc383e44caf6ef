"""`pyvfio show`: one function in full, as sysfs shows it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys.text import printable
from pyvfio.cli import buslist, common
from pyvfio.pci.group import is_vfio
from pyvfio.pci.registers import plain

if TYPE_CHECKING:
    from rich.tree import Tree

    from pyvfio.pci import Function
    from pyvfio.pci.capabilities import Capability
    from pyvfio.pci.config import ConfigSpace

_INTX = ("none", "INTA", "INTB", "INTC", "INTD")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "show",
        help="one function: regions, interrupts, capabilities",
        description="Show a function's IOMMU group, regions, interrupts and capabilities. Reads "
        "sysfs only: the device is not opened, so it is not reset. Root sees all of config "
        "space, others its first 64 bytes.",
        epilog="example:\n  sudo pyvfio show 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    entry = describe(common.function(options.address))
    if options.json:
        common.print_json(entry)
    else:
        common.print_wide(_tree(entry))


def describe(function: Function) -> dict[str, Any]:
    """Everything `show` knows of a function, in JSON's types."""
    config = function.config
    group = function.iommu_group
    faults: list[str] = []
    entry = {
        **buslist.describe(function),
        "revision": function.revision,
        "subsystem_vendor_id": function.subsystem_vendor_id,
        "subsystem_device_id": function.subsystem_device_id,
        "numa_node": function.numa_node,
        "power_state": function.power_state,
        "reset_methods": function.reset_methods,
        "group_members": []
        if group is None
        else [
            {"address": str(member.address), "driver": member.driver} for member in group.members
        ],
        "in_the_way": [] if group is None else [str(culprit.address) for culprit in group.culprits],
        "command": plain(config.command),
        "regions": _regions(function, config, faults),
        "bridge": None if config.bridge is None else config.bridge.fields(faults),
        "interrupts": _interrupts(config),
        "capabilities": _capabilities(config, faults),
    }
    # Several lists may end at the same fault.
    return {**entry, "faults": list(dict.fromkeys(faults))}


def _regions(function: Function, config: ConfigSpace, faults: list[str]) -> list[dict[str, Any]]:
    bars, malformed = config.try_bars()
    faults += map(str, malformed)
    kinds = {bar.index: bar for bar in bars}
    regions = []
    for index, resource in enumerate(function.resources[:7]):
        if not resource.size:
            continue
        bar = kinds.get(index)
        regions.append(
            {
                "name": "ROM" if index == 6 else f"BAR{index}",
                "size": resource.size,
                "address": resource.start,
                "kind": str(bar.kind) if bar else None,
                "prefetchable": bar.prefetchable if bar else None,
            }
        )
    return regions


def _interrupts(config: ConfigSpace) -> dict[str, Any]:
    interrupts: dict[str, Any] = {"INTx": _INTX[min(config.interrupt_pin, 4)]}
    for name in ("MSI", "MSI-X"):
        try:
            found = config.msi if name == "MSI" else config.msix
            interrupts[name] = 0 if found is None else found.vectors
        except errors.Error:
            # Not all of config space can be seen, or it is malformed; `faults` says so.
            interrupts[name] = None
    return interrupts


def _capabilities(config: ConfigSpace, faults: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    lists: tuple[Iterable[Capability], ...] = (config.capabilities, config.extended_capabilities)
    for capabilities in lists:
        # A broken chain is shown as far as it goes.
        try:
            for capability in capabilities:
                found.append(_capability(capability, faults))
        except errors.Error as error:
            faults.append(str(error))
    return found


def _capability(capability: Capability, faults: list[str]) -> dict[str, Any]:
    return {
        "offset": capability.offset,
        "id": capability.id,
        "extended": capability.extended,
        "name": capability.name,
        "fields": capability.fields(faults),
    }


def _tree(entry: dict[str, Any]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    ids = f"{entry['vendor_id']:04x}:{entry['device_id']:04x}"
    tree = Tree(f"[bold]{entry['address']}[/]  {ids}  {escape(buslist.title(entry))}")
    driver = printable(entry["driver"] or "none")
    tree.add(f"driver {escape(driver + _next_step(entry))}")
    if entry["bridge"] is not None:
        bridge = tree.add("bridge")
        for line in _bridge(entry["bridge"]):
            bridge.add(line)
    if entry["iommu_group"] is None and entry["bridge"] is None:
        tree.add("[yellow]no IOMMU group: VFIO cannot drive it[/]")
    elif entry["iommu_group"] is not None:
        group = tree.add(f"IOMMU group {entry['iommu_group']}")
        for member in entry["group_members"]:
            text = f"{member['address']} {printable(member['driver'] or 'no driver')}"
            blocked = member["address"] in entry["in_the_way"]
            group.add(f"[yellow]{text}, in the way[/]" if blocked else text)
    regions = tree.add("regions")
    for region in entry["regions"]:
        words = [region["name"], _size(region["size"])]
        words += [region["kind"]] if region["kind"] else []
        words += ["prefetchable"] if region["prefetchable"] else []
        words += [f"at {region['address']:#x}"] if region["address"] else []
        regions.add(" ".join(words))
    tree.add(
        "interrupts "
        + ", ".join(
            f"{name} {'unknown' if value is None else value}"
            for name, value in entry["interrupts"].items()
        )
    )
    methods = printable(", ".join(entry["reset_methods"]))
    tree.add(f"reset by {escape(methods) or 'nothing'}")
    capabilities = tree.add("capabilities")
    for capability in entry["capabilities"]:
        branch = capabilities.add(
            f"[{capability['offset']:#05x}] {escape(capability['name'])}".replace("[0", "\\[0")
        )
        for name, value in capability["fields"].items():
            branch.add(f"[dim]{name}[/] {escape(_value(value))}")
    for fault in entry["faults"]:
        tree.add(f"[yellow]{escape(printable(fault))}[/]")
    return tree


def _next_step(entry: dict[str, Any]) -> str:
    """What keeps VFIO from a function, or what hands it to VFIO."""
    if entry["removal"] is not None:
        return f" ({entry['removal']})"
    if entry["bridge"] is not None:
        return " (a bridge: VFIO drives the devices below it)"
    if entry["iommu_group"] is None or is_vfio(entry["driver"]):
        return ""
    return f" (pyvfio bind {entry['address']} hands it to vfio-pci)"


def _bridge(fields: dict[str, Any]) -> Iterator[str]:
    """A bridge's buses and windows, one line each."""
    if {"primary_bus", "secondary_bus", "subordinate_bus"} <= fields.keys():
        yield (
            f"from bus {fields['primary_bus']:02x} to buses {fields['secondary_bus']:02x} to "
            f"{fields['subordinate_bus']:02x}"
        )
    for name, title in (
        ("io_window", "I/O ports"),
        ("memory_window", "memory"),
        ("prefetchable_window", "prefetchable memory"),
    ):
        window = fields.get(name)
        yield f"{title} " + (
            "none" if window is None else f"{window['base']:#x}-{window['last']:#x}"
        )


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift and not size & ((1 << shift) - 1):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:#x}" if value > 9 else str(value)
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    return printable(str(value))
