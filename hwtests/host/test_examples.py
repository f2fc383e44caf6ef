"""The examples print what they say that they print."""

from __future__ import annotations

import ast
import os
import re
import textwrap
from pathlib import Path

import pytest

from hwtests.documents import CHECKOUT, check, run

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes devices from the host: only on the bench"
)

EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_prints_what_it_says(example: Path) -> None:
    text = ast.get_docstring(ast.parse(example.read_text())) or ""
    found = re.search(
        r"^    tools/bench run x86 -- ((?:.+\n)+)\nprints\n\n((?:    .*\n|\n)+)", text, re.M
    )
    assert found, "its docstring says how to run it and what it prints"
    command, shown = found.groups()
    check(run("sh", "-c", command), textwrap.dedent(shown))
