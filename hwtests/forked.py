"""The `pyvfio` command in a fork of this process.

It is a process of its own, with its exit status and its descriptors. But it starts with Python and
all that the command imports, which takes an emulated host some seconds each time.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from typing import NoReturn

_IMPORTED = (
    "pyvfio.cli.command",
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


def pyvfio(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command, without a terminal.

    Args:
        arguments: Its arguments.
        stdin: What it reads there.

    Returns:
        What it printed and its exit status, negative for the signal that ended it.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    words = ["pyvfio", *map(str, arguments)]
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as messages,
    ):
        given.write(stdin)
        given.seek(0)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _become(words, given.fileno(), output.fileno(), messages.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        messages.seek(0)
        return subprocess.CompletedProcess(words, status, output.read(), messages.read())


def _become(words: list[str], stdin: int, stdout: int, stderr: int) -> NoReturn:
    status = 1
    try:
        for number, file in enumerate((stdin, stdout, stderr)):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, closefd=False)
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.argv = words
        from pyvfio.cli import main

        try:
            status = main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
