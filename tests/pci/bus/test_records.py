"""Where what a device was bound to cannot be written down: on real file systems."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvfio import errors
from pyvfio.pci import Function, bind, paths, unbind

from .driver_core import DriverCore
from .others import needs_namespaces
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

ADDRESS = "0000:01:00.0"


@pytest.fixture
def function(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Function:
    for name in ("vfio-pci", "e1000e"):
        tree.driver(name)
    DriverCore(tree, monkeypatch)
    return tree.function(driver="e1000e", group=3)


@contextlib.contextmanager
def run(options: str) -> Iterator[Path]:
    """A file system of its own for the records."""
    paths.RECORDS.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", paths.RECORDS], check=True)
    try:
        yield paths.RECORDS
    finally:
        subprocess.run(["umount", paths.RECORDS], check=True)


def check_refused(function: Function, says: str) -> None:
    """Binding is refused for that reason, and nothing is left of it."""
    with pytest.raises(errors.KernelError, match=says) as caught:
        bind(ADDRESS)
    assert not isinstance(caught.value, errors.AccessDenied)
    assert function.driver == "e1000e"
    assert [name for name in os.listdir(paths.RECORDS) if ".json" in name] == []


@needs_namespaces
def test_full_file_system_is_named(function: Function) -> None:
    with run("size=4k") as records:
        bind(ADDRESS)
        unbind(ADDRESS)
        (records / "filler").write_bytes(b"x" * 4096)
        check_refused(function, "ENOSPC.*no space or no inode left.*df -i")


@needs_namespaces
def test_lack_of_inodes_is_named(function: Function) -> None:
    # One for the root of the file system.
    with run("nr_inodes=2") as records:
        (records / "filler").touch()
        check_refused(function, "ENOSPC.*no space or no inode left")
        (records / "filler").unlink()
        check_refused(function, "ENOSPC.*no space or no inode left")


@needs_namespaces
def test_read_only_file_system_is_named(function: Function) -> None:
    with run("size=64k"):
        subprocess.run(["mount", "-o", "remount,ro", paths.RECORDS], check=True)
        check_refused(function, "EROFS.*mounted read-only")
        subprocess.run(["mount", "-o", "remount,rw", paths.RECORDS], check=True)
        bind(ADDRESS)
        subprocess.run(["mount", "-o", "remount,ro", paths.RECORDS], check=True)
        with pytest.raises(errors.KernelError, match=r"EROFS.*mounted read-only"):
            unbind(ADDRESS)
        subprocess.run(["mount", "-o", "remount,rw", paths.RECORDS], check=True)
        assert unbind(ADDRESS) is True
        assert function.driver == "e1000e"


def test_file_in_the_place_of_the_directory_is_named(function: Function) -> None:
    paths.RECORDS.write_text("")
    with pytest.raises(errors.KernelError, match="not a directory: move the file away"):
        bind(ADDRESS)
    assert function.driver == "e1000e"
