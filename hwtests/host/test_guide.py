"""The guide to writing a driver, done as it says."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwtests.documents import CHECKOUT, Block, blocks, check, run, run_code

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes a device from the host: only on the bench"
)

END = "\f"  # between what one block prints and what the next one does


def test_every_step_shows_what_it_says(tmp_path: Path) -> None:
    # A checkout that may be written to, since the guide adds files to it.
    for room in ("pyvfio", "hwtests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / room, tmp_path / room, ignore=ignored)
    shutil.copy(CHECKOUT / "setup.cfg", tmp_path)
    for step in steps(blocks("docs/writing-a-driver.md")):
        first = step[0]
        name = file_name(first)
        if name is not None:
            (tmp_path / name).write_text(first.text)
        elif first.language == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", first.text, re.M):
                check(run("sh", "-c", command, cwd=tmp_path), shown)
        else:
            at_a_prompt(step, tmp_path)


def file_name(block: Block) -> str | None:
    """The file that a block is, if it begins with its name."""
    found = re.match(r"# (\S+\.py)\n", block.text)
    return found[1] if block.language == "python" and found else None


def steps(found: list[Block]) -> Iterator[list[Block]]:
    """Commands and files one by one; what is typed at one prompt, with what it prints, together."""
    typed: list[Block] = []
    for block in found:
        if block.language == "console" or file_name(block):
            if typed:
                yield typed
            typed = []
            yield [block]
        else:
            typed.append(block)
    if typed:
        yield typed


def at_a_prompt(step: list[Block], directory: Path) -> None:
    """What is typed at one prompt: each block prints what the block of text after it shows."""
    code = [block.text for block in step if block.language == "python"]
    shown: list[str] = []
    for block in step:
        if block.language == "python":
            shown.append("")
        else:
            assert block.language == "text"
            assert not shown[-1]
            shown[-1] = block.text
    program = "".join(f"{text}\nprint({END!r}, end='')\n" for text in code)
    *printed, rest = run_code(program, cwd=directory).split(END)
    assert rest == ""
    for one_printed, one_shown in zip(printed, shown, strict=True):
        check(one_printed, one_shown)
