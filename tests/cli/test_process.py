"""Ctrl-C while a command imports its modules, runs, and ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Sends Ctrl-C to itself when the N-th module after pyvfio.cli.process is looked for.
INTERRUPTED_IMPORT = """\
import os, signal, sys

class Finder:
    left = None

    def find_spec(self, name, path=None, target=None):
        if name == "pyvfio.cli.process":
            self.left = int(os.environ["NUMBER"])
        elif self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from pyvfio.cli import main
sys.exit(main())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
def test_ctrl_c_during_imports_is_one_line(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBER", str(number))
    result = run(INTERRUPTED_IMPORT, "list")
    assert (result.returncode, result.stderr) == (130, "pyvfio: interrupted\n")


def test_nothing_slow_is_imported_before_ctrl_c_is_handled() -> None:
    code = "import sys, pyvfio.cli, pyvfio.cli.process; print('typing' in sys.modules)"
    assert run(code).stdout == "False\n"


def test_ctrl_c_that_python_drops_comes_again() -> None:
    code = """\
import os, signal, sys, time
from pyvfio.cli import process

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def command():
    finalized = Finalized()
    del finalized
    time.sleep(60)

sys.exit(process.run("pyvfio", command))
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (130, "pyvfio: interrupted\n")


def test_ctrl_c_after_the_end_changes_nothing() -> None:
    code = """\
import atexit, os, signal, sys
from pyvfio.cli import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.exit(main())
"""
    result = run(code, "list", "--json")
    assert (result.returncode, result.stderr) == (0, "")


def test_reader_that_has_gone_is_no_failure() -> None:
    code = "import sys; from pyvfio.cli import main; sys.exit(main())"
    command = f"'{sys.executable}' -c '{code}' list --json | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_package_runs_as_a_program() -> None:
    for name in ("pyvfio", "pyvfio.cli"):
        subprocess.run([sys.executable, "-m", name, "--help"], check=True, capture_output=True)
