"""Documents and examples that are run: what they show is compared with what happens.

In what a document shows, "..." stands for any text on that line, and a line of "..." alone for any
lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]


class Block(NamedTuple):
    """A fenced block of a document.

    Attributes:
        language: the word after the fence, such as "python" or "console".
        text: its lines, each with its end.
    """

    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, by its path in the checkout."""
    text = (CHECKOUT / document).read_text()
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)]


def run(*command: str, cwd: Path = CHECKOUT) -> str:
    """Run a command that succeeds; what it printed. What is in `cwd` is imported from there."""
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def run_code(code: str, cwd: Path = CHECKOUT) -> str:
    """Run a program as :func:`run`."""
    return run(sys.executable, "-c", code, cwd=cwd)


def check(printed: str, shown: str) -> None:
    """That `printed` is what was shown."""
    pattern = re.escape(shown.strip()).replace(r"\.\.\.", ".*")
    pattern = re.sub(r"^\.\*$", "(?:.*\n)*?.*", pattern.replace("\\\n", "\n"), flags=re.M)
    assert re.fullmatch(pattern, printed.strip()), f"shown:\n{shown}\nprinted:\n{printed}"
