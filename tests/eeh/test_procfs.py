from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.eeh import Counters, check_enabled, counters
from tests.pci.bus.tree import Tree

SEEN = """\
EEH Subsystem is enabled
no device=0
no device node=0
no config address=0
check not wanted=0
eeh_total_mmio_ffs=512
eeh_false_positives=512
eeh_slot_resets=0
"""

names = st.text(st.characters(categories=["L", "Zs", "Pc"], max_codepoint=127), min_size=1)


def test_what_a_kernel_shows() -> None:
    found = Counters.parse(SEEN)
    assert found.enabled
    assert found.counts["eeh_total_mmio_ffs"] == 512
    assert len(found.counts) == 7


@given(st.booleans(), st.dictionaries(names, st.integers(0, (1 << 64) - 1)))
def test_counts_are_read_back(enabled: bool, counts: dict[str, int]) -> None:
    headline = "EEH Subsystem is " + ("enabled" if enabled else "globally disabled")
    lines = [headline, *(f"{name}={count}" for name, count in counts.items())]
    assert Counters.parse("\n".join(lines)) == Counters(enabled, counts)


@given(st.text())
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(errors.ArgumentError):
        Counters.parse(text)


@given(st.text(max_size=20))
def test_a_line_that_is_no_count_is_refused(line: str) -> None:
    try:
        found = Counters.parse(f"EEH Subsystem is enabled\n{line}")
    except errors.ArgumentError:
        return
    assert all(f"{name}=" in line for name in found.counts)


def test_a_host_without_eeh_and_one_where_it_is_off(tree: Tree) -> None:
    tree.write(
        tree.proc / "powerpc/eeh", "EEH Subsystem is globally disabled\neeh_total_mmio_ffs=3\n"
    )
    assert counters() == Counters(False, {"eeh_total_mmio_ffs": 3})
    with pytest.raises(errors.NoEeh, match="off on this host"):
        check_enabled()
    (tree.proc / "powerpc/eeh").unlink()
    with pytest.raises(errors.NoEeh, match="no EEH"):
        counters()


@pytest.mark.parametrize("number", ["1" * 21, "1" * 5000, "\u0663", "-1", "1_0", ""])
def test_number_longer_than_64_bits_is_refused(number: str) -> None:
    with pytest.raises(errors.ArgumentError, match="is no count"):
        Counters.parse(f"EEH Subsystem is enabled\nname={number}")
