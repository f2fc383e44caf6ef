"""A tree like a host's /sys, /proc, /dev and /run, for what this machine's kernel cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvfio.pci import Function, paths


class Tree:
    """The tree, and the means to put devices into it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name in ("SYSFS", "PROC", "DEV", "RECORDS"):
            monkeypatch.setattr(paths, name, root / name.lower())
        self.sys, self.proc, self.dev = paths.SYSFS, paths.PROC, paths.DEV
        self.write(self.proc / "self/mountinfo", "")
        self.write(self.proc / "sys/kernel/random/boot_id", "0b00-7\n")
        for name in ("bus/pci/devices", "bus/pci/drivers", "kernel/iommu_groups", "class"):
            (self.sys / name).mkdir(parents=True)

    def write(self, path: Path, text: str) -> Path:
        """A file and the directories it lies in."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def driver(self, name: str) -> Path:
        """A registered driver."""
        directory = self.sys / "bus/pci/drivers" / name
        if not directory.exists():
            directory.mkdir()
            (directory / "bind").write_text("")
            (directory / "unbind").write_text("")
        return directory

    def function(
        self,
        address: str = "0000:01:00.0",
        *,
        driver: str | None = None,
        override: str | None = None,
        group: int | None = None,
        header_type: int = 0,
        **attributes: str,
    ) -> Function:
        """A function, and the group it is in."""
        directory = self.sys / "devices/pci0000:00" / address
        directory.mkdir(parents=True)
        (self.sys / "bus/pci/devices" / address).symlink_to(directory)
        defaults = {
            "vendor": "0x8086",
            "device": "0x10d3",
            "class": "0x020000",
            "driver_override": override or "(null)",
        }
        for name, text in {**defaults, **attributes}.items():
            (directory / name).write_text(f"{text}\n")
        config = bytearray(64)
        config[0x0E] = header_type
        (directory / "config").write_bytes(config)
        if driver is not None:
            (directory / "driver").symlink_to(self.driver(driver))
        function = Function(address)
        if group is not None:
            self.put_into_group(function, group)
        return function

    def put_into_group(self, function: Function, group: int) -> None:
        """Put a function into a group, whose node is there."""
        members = self.sys / "kernel/iommu_groups" / str(group) / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / str(function.address)).symlink_to(function.sysfs.resolve())
        (function.sysfs / "iommu_group").symlink_to(members.parent)
        self.write(self.dev / "vfio" / str(group), "")

    def child(self, function: Function, kind: str, path: str, **attributes: str) -> Path:
        """A device of a class below a function, e.g. kind "block", path "nvme/nvme0/nvme0n1"."""
        return self.device(kind, function.sysfs.resolve() / path, **attributes)

    def device(self, kind: str, directory: Path, **attributes: str) -> Path:
        """A device of a class somewhere; with "dev", the number of its node, one that has one."""
        for name, text in attributes.items():
            self.write(directory / name, f"{text}\n")
        links = [self.sys / "class" / kind / directory.name]
        if "dev" in attributes:
            numbers = self.sys / "dev" / ("block" if kind == "block" else "char")
            links.append(numbers / attributes["dev"])
            (self.sys / "class" / kind).mkdir(exist_ok=True)
            (directory / "subsystem").symlink_to(self.sys / "class" / kind)
        for link in links:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(directory)
        return directory

    def virtual_functions(self, function: Function, count: int) -> None:
        """SR-IOV virtual functions, enabled on a function."""
        for number in range(count):
            (function.sysfs / f"virtfn{number}").symlink_to(f"../0000:01:10.{number}")
