"""Whether the host is one where there is nothing to lose."""

from __future__ import annotations

import os

import pytest

ON_BENCH = "PYVFIO_BENCH" in os.environ

changes_the_host = pytest.mark.skipif(
    not ON_BENCH, reason="changes settings of the whole host for a moment: only on the bench"
)

#: How many times more often, or longer, a test goes on that repeats something at random.
REPEAT = int(os.environ.get("PYVFIO_REPEAT", "1"))
