"""What a report says of kernel, host and device, in JSON's types."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from pyvfio import errors
from pyvfio.device import Device
from pyvfio.pci import Function

_SYSFS = Path("/sys")
# What /proc/cpuinfo has of it on x86, on POWER, and on arm64, where it has no name.
_PROCESSOR = ("model name", "cpu", "CPU implementer", "CPU part")


def describe_host() -> dict[str, Any]:
    """Kernel, processor, IOMMU and versions."""
    setup = ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    os_release = dict(
        line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line
    )
    cpuinfo: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        cpuinfo.setdefault(key.strip(), value.strip())
    return {
        "pyvfio": setup["metadata"]["version"],
        "python": platform.python_version(),
        "kernel": {
            "release": platform.release(),
            "version": platform.version(),
            "command_line": _read("/proc/cmdline"),
            "vfio": _parameters("vfio*"),
        },
        "host": {
            "machine": platform.machine(),
            "processor": " ".join(cpuinfo[key] for key in _PROCESSOR if key in cpuinfo),
            "processors_online": os.cpu_count(),
            "board": " ".join(
                _read(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")
            ).strip(),
            "distribution": os_release.get("PRETTY_NAME", "").strip('"'),
            "page_size": os.sysconf("SC_PAGE_SIZE"),
        },
        "iommu": sorted(path.name for path in (_SYSFS / "class/iommu").glob("*")),
    }


def describe_function(function: Function) -> dict[str, Any]:
    """What the bus shows of a device, before anything is changed."""
    group = function.iommu_group
    described: dict[str, Any] = {
        "address": str(function.address),
        "vendor": [function.vendor_id, function.vendor_name],
        "device": [function.device_id, function.device_name],
        "subsystem": [function.subsystem_vendor_id, function.subsystem_device_id],
        "class": [function.class_code, function.class_name],
        "revision": function.revision,
        "driver": function.driver,
        "reset_methods": list(function.reset_methods),
        "numa_node": function.numa_node,
        "resources": [
            [f"{resource.start:#x}", resource.size, f"{resource.flags:#x}"]
            for resource in function.resources
            if resource.size
        ],
        "config": function.read_config().hex(),
        "lspci": _lspci(function),
    }
    if group is not None:
        directory = _SYSFS / "kernel/iommu_groups" / str(group.id)
        described["iommu_group"] = {
            "id": group.id,
            "type": _read(directory / "type"),
            "members": [f"{member.address} {member.driver}" for member in group.members],
            "reserved_regions": _read(directory / "reserved_regions").splitlines(),
        }
    faults: list[str] = []
    described["capabilities"] = []
    with contextlib.suppress(errors.Error):
        config = function.config
        for capability in (*config.capabilities, *config.extended_capabilities):
            fields = capability.fields(faults)
            named = {"name": capability.name, "offset": capability.offset, **fields}
            described["capabilities"].append(named)
    described["faults"] = faults
    return described


def describe_device(device: Device) -> dict[str, Any]:
    """What VFIO shows of an opened device."""
    return {
        "regions": [
            {
                "name": region.name,
                "index": region.index,
                "size": region.size,
                "writable": region.writable,
                "mappable": [[area.offset, area.size] for area in region.areas],
            }
            for region in device.regions.values()
        ],
        "interrupts": [
            {
                "name": irq.name,
                "count": irq.count,
                "maskable": irq.maskable,
                "automasked": irq.automasked,
                "noresize": irq.noresize,
            }
            for irq in device.irqs
        ],
        "can_reset": device.can_reset,
        "iova_ranges": [str(iova_range) for iova_range in device.dma.iova_ranges],
        "page_sizes": f"{device.dma.page_sizes:#x}",
        "mappings_available": device.dma.mappings_available,
    }


def _lspci(function: Function) -> str:
    try:
        command = ["lspci", "-s", str(function.address), "-vvv", "-nn"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def _parameters(modules: str) -> dict[str, str]:
    return {
        f"{path.parts[-3]}.{path.name}": _read(path)
        for path in sorted((_SYSFS / "module").glob(f"{modules}/parameters/*"))
    }


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\n\0")
    except OSError:
        return ""
