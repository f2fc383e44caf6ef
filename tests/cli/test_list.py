"""`pyvfio list` of functions in a tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvfio.cli import main
from pyvfio.pci import names, paths
from tests.pci.bus.tree import Tree

NAME = "Happy Meal 10/100 Ethernet [hme]"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree(tmp_path, monkeypatch)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    tree.write(tmp_path / "usr/share/misc/pci.ids", f"8086  Maker\n\t10d3  {NAME}\n")
    names._system_ids.cache_clear()
    tree.function(driver="e1000e", group=3)
    return tree


@pytest.fixture(autouse=True)
def _names_are_read_again() -> object:
    yield
    names._system_ids.cache_clear()


def test_brackets_of_a_name_are_shown(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize("columns", [None, "40"])
def test_device_is_one_line_in_a_pipe(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: str | None,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    long = "A name that is longer than any terminal is wide, " * 10
    tree.write(tree.root / "usr/share/misc/pci.ids", f"8086  Maker\n\t10d3  {long}\n")
    assert main(["list"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.startswith("address")
    assert line.endswith(f"Maker {long.rstrip()}")


def test_line_in_a_pipe_is_cut_by_nobody() -> None:
    # On this machine's own bus.
    code = "import sys; from pyvfio.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code]
    whole = subprocess.run([*command, "list"], capture_output=True, text=True, check=True).stdout
    devices = Path("/sys/bus/pci/devices")
    count = len(list(devices.iterdir())) if devices.exists() else 0
    assert len(whole.splitlines()) == 1 + count
