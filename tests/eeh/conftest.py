from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvfio._sys import calls
from pyvfio.eeh import Pe
from pyvfio.iommu import Type1, container_space
from tests.pci.bus.tree import Tree

from .standin import EehKernel, FakeDevice, SysfsPe


def stand_in(patch: pytest.MonkeyPatch) -> EehKernel:
    """Put the stand-in in the kernel's place."""
    kernel = EehKernel()
    for name in ("open", "close", "ioctl"):
        patch.setattr(calls, name, getattr(kernel, name))
    patch.setattr(container_space, "check_openable", lambda function: function.iommu_group)
    return kernel


def open_group(space: Type1, group: int) -> None:
    """Open a device of a group in a space."""
    function: Any = SimpleNamespace(
        address=f"0000:0{group}:00.0", iommu_group=SimpleNamespace(id=group)
    )
    space.open_device(function)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> EehKernel:
    return stand_in(monkeypatch)


@pytest.fixture
def device(kernel: EehKernel) -> Iterator[FakeDevice]:
    """A device open in a space of its own. Which IOMMU the space has is of no matter here."""
    with Type1() as space:
        open_group(space, 1)
        yield FakeDevice(space)


@pytest.fixture
def pe(device: Any) -> Pe:
    return Pe(device)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A host with EEH in place of this one."""
    tree = Tree(tmp_path, monkeypatch)
    tree.write(tree.proc / "powerpc/eeh", "EEH Subsystem is enabled\nno device=0\n")
    return tree


@pytest.fixture
def sysfs_pe(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SysfsPe]:
    """Makes a function with a PE."""
    return lambda address="0000:01:00.0", **more: SysfsPe(
        tree.function(address, **more), monkeypatch
    )
