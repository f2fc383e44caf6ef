"""The kernel's driver core, as far as binding a PCI function asks of it, over a tree of files.

It serves to break binding at each of its steps; that it works is shown on a real kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvfio._sys import calls
from pyvfio.pci import Function

from .tree import Tree


class DriverCore:
    """Stands in for pwrite(2) on driver_override, bind and unbind.

    Attributes:
        writes: each write: (file, text).
        refuse: the errno with which a driver's probe fails, by the driver's name.
        probed: called with a function that a driver is probed for.
        interfere: called before and after each write with its number and "before" or "after".
    """

    def __init__(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree = tree
        self.writes: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}
        self.probed: Callable[[Function], None] = lambda function: None
        self.interfere: Callable[[int, str], None] = lambda number, moment: None
        monkeypatch.setattr(calls, "pwrite", self._pwrite)

    def _pwrite(self, fd: int, data: bytes, offset: int) -> int:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        number = len(self.writes)
        self.writes.append((path.name, data.decode()))
        self.interfere(number, "before")
        getattr(self, f"_{path.name}")(path, data.decode())
        self.interfere(number, "after")
        return len(data)

    def _driver_override(self, path: Path, text: str) -> None:
        path.write_text(f"{text.strip() or '(null)'}\n")

    def _unbind(self, path: Path, text: str) -> None:
        function = Function(text)
        if function.driver != path.parent.name:
            raise OSError(19, "No such device")
        (function.sysfs / "driver").unlink()

    def _bind(self, path: Path, text: str) -> None:
        function, driver = Function(text), path.parent.name
        if function.driver is not None or function.driver_override not in (None, driver):
            raise OSError(19, "No such device")
        self.probed(function)
        if driver in self.refuse:
            raise OSError(self.refuse[driver], os.strerror(self.refuse[driver]))
        (function.sysfs / "driver").symlink_to(path.parent)
