"""The `pyvfio` command in a fork of this process.

It is a process of its own, with its exit status and its descriptors. But it starts with Python and
all that the command imports, which takes an emulated host some seconds each time.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile

from hwtests.child import in_child

_IMPORTED = (
    "pyvfio.cli.process",
    "pyvfio.device",
    "pyvfio.drivers.nvme",
    "pyvfio.eeh",
    "pyvfio.pci.usage",
    "rich.console",
    "rich.progress",
    "rich.table",
    "rich.tree",
)


def said(*arguments: object, status: int = 0, stdin: str = "") -> str:
    """Run the command, which must end with `status`.

    Returns:
        Its stdout, or its stderr where `status` is not 0.
    """
    result = in_text(*arguments, stdin=stdin)
    print(result.stdout, result.stderr)  # shown when the test fails
    assert result.returncode == status
    return result.stderr if status else result.stdout


def in_text(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """As :func:`pyvfio`, in text."""
    result = pyvfio(*arguments, stdin=stdin.encode())
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


def pyvfio(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command, without a terminal.

    Args:
        arguments: Its arguments.
        stdin: What it reads there.

    Returns:
        What it printed and its exit status.

    Raises:
        ChildProcessError: It died of a signal, or never ended.
    """
    _import_all()
    words = ["pyvfio", *map(str, arguments)]
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as messages,
    ):
        given.write(stdin)
        given.seek(0)
        files = [given.fileno(), output.fileno(), messages.fileno()]
        status = in_child(lambda: _become(words, files))
        output.seek(0)
        messages.seek(0)
        return subprocess.CompletedProcess(words, status, output.read(), messages.read())


@functools.cache
def _import_all() -> None:
    """Import what commands import, here instead of in each fork."""
    from pyvfio.cli.command import parser

    parser()
    for name in _IMPORTED:
        importlib.import_module(name)


def _become(words: list[str], files: list[int]) -> int:
    """Be the command, with these files for stdin, stdout and stderr; returns its exit status."""
    from pyvfio.cli import main

    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = words
    try:
        return main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
