"""The originals for which there is no test yet: each is skipped, with the reason."""

from __future__ import annotations

import pytest

from hwtests.field.originals import ORIGINALS, Original

_LATER = [original for original in ORIGINALS if original.later]


@pytest.mark.parametrize("original", _LATER, ids=[original.name for original in _LATER])
def test_later(original: Original) -> None:
    pytest.skip(original.later)
