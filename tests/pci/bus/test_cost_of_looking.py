"""How long it takes to look for who uses a device: printed, not asserted (pytest -rP)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyvfio.pci import paths, users

from .others import process
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

FUNCTIONS = 200
PROCESSES = 500
NODES = 1000

# Each with some files open, as services have.
FORK = """
files = [os.open(name, os.O_RDONLY) for name in ("/dev/null", "/etc/passwd", "/proc/self/status")]
files += [os.dup(files[number % 3]) for number in range(20)] + list(os.pipe())
stop, until = os.pipe()
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.close(until)
        os.read(stop, 1)  # until the parent has ended
        os._exit(0)
"""


def test_looking_at_one_of_many_functions(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    for number in range(FUNCTIONS):
        function = tree.function(f"0000:{number:02x}:00.0", driver="e1000e", group=number)
    for number in range(NODES):
        tree.child(function, "input", f"input/event{number}", dev=f"1{number:04}:{number}")
    tree.child(function, "net", "net/eth0", flags="0x1003", ifindex="99999")
    with process(FORK, str(PROCESSES)):
        count = len([name for name in os.listdir("/proc") if name.isdecimal()])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            assert users(function) == ()
            seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(
            f"\nlooked for users of 1 of {FUNCTIONS} functions, with {NODES} nodes, among {count} "
            f"processes: {min(seconds):.3f} s"
        )
