"""Other processes, network namespaces and loop devices, all of them real."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x4000_0000  # linux/sched.h


def _can_make_namespaces() -> bool:
    code = f"import ctypes, sys; sys.exit(bool(ctypes.CDLL(None).unshare({_CLONE_NEWNET})))"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _can_make_namespaces(), reason="needs root with CAP_SYS_ADMIN, to make namespaces"
)


@contextlib.contextmanager
def process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has run Python code, and goes on until the context ends."""
    code = f"import ctypes, mmap, os, sys\n{code}\nprint(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "\n", "the process failed"
            yield child
        finally:
            if child.stdin is not None:
                child.stdin.close()


def who(child: subprocess.Popen[str]) -> str:
    """A process in the words of pyvfio."""
    return f"process {child.pid} ({Path(f'/proc/{child.pid}/comm').read_text().rstrip()})"


@contextlib.contextmanager
def network(name: str) -> Iterator[str]:
    """A network namespace by a name, without a process in it (ip-netns(8))."""
    ip("netns", "add", name)
    try:
        yield name
    finally:
        ip("netns", "del", name)


def ip(*arguments: str) -> None:
    """ip(8)."""
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def loop(backing: Path) -> Iterator[Path]:
    """A loop device over a file or another disk."""
    done = subprocess.run(
        ["losetup", "--show", "--find", str(backing)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this machine has no loop device to spare: {done.stderr.strip()}")
    node = Path(done.stdout.strip())
    try:
        yield node
    finally:
        subprocess.run(["losetup", "--detach", str(node)], check=True)


def number(node: Path) -> str:
    """The number of a device's node, "major:minor"."""
    status = os.stat(node).st_rdev
    return f"{os.major(status)}:{os.minor(status)}"
