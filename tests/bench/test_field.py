"""The table of the field's own tests, without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hwtests.field.originals import ORIGINALS, not_shown

CHECKOUT = Path(__file__).resolve().parents[2]


def test_every_original_has_tests_or_a_reason() -> None:
    assert len(ORIGINALS) == len({original.name for original in ORIGINALS}) == 46
    assert not [original for original in ORIGINALS if bool(original.tests) == bool(original.later)]


def test_tests_of_the_originals_exist() -> None:
    collecting = subprocess.run(
        [sys.executable, "-m", "pytest", "hwtests", "--field", "--collect-only", "-q"],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert collecting.returncode == 0, collecting.stdout + collecting.stderr
    for original in ORIGINALS:
        for test in original.shown_by:
            assert test in collecting.stdout


def test_original_is_shown_where_a_variant_passed_and_none_failed() -> None:
    every = [test for original in ORIGINALS for test in original.shown_by]
    passed = [{"test": test, "outcome": "passed"} for test in every]
    assert not_shown(passed) == {}
    unmap_all = "hwtests/field/test_selftests.py::test_unmap_all"
    others = [result for result in passed if result["test"] != unmap_all]
    skipped = {"test": f"{unmap_all}[version 1]", "outcome": "skipped", "reason": "why"}
    assert not_shown([*others, skipped]) == {"unmap_all": "why"}
    variant = {"test": f"{unmap_all}[version 2]", "outcome": "passed"}
    assert not_shown([*others, skipped, variant]) == {}
    failed = {"test": f"{unmap_all}[version 2]", "outcome": "failed", "reason": "..."}
    assert not_shown([*passed, failed]) == {"unmap_all": f"{unmap_all} failed"}
    assert not_shown(others) == {"unmap_all": f"not of this device: {unmap_all}"}
