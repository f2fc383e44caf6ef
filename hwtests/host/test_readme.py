"""What the README shows is what happens."""

from __future__ import annotations

import os

import pytest

from hwtests.documents import blocks, run_code

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes a device from the host: only on the bench"
)


def run_example(number: int) -> list[str]:
    """Run one of README's examples; the lines that it printed."""
    examples = [block.text for block in blocks("README.md") if block.language == "python"]
    return run_code("import pyvfio\n" + examples[number]).splitlines()


def test_the_first_example_runs_as_it_stands() -> None:
    factorial, memory, interrupts = run_example(0)
    assert factorial == "120 120"
    assert memory.startswith("0x")
    assert interrupts == "1"


def test_the_second_example_brings_an_interrupt_to_the_guest() -> None:
    assert run_example(1) == ["frozenset({65})"]
