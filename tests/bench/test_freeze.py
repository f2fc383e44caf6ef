"""A PE's freeze and the way back, on an emulated POWER9 host."""

from __future__ import annotations

import re

import pytest

from tests.bench.conftest import Hosts

pytestmark = [pytest.mark.bench, pytest.mark.xdist_group("power9")]


def test_freeze_thaw_and_recovery_on_power9(hosts: Hosts) -> None:
    result = hosts.run("power9", "python3 -m pytest -rs hwtests/host/test_eeh.py")
    (totals,) = (line for line in result.stdout.splitlines() if re.search(r"\d+ passed", line))
    assert "skipped" not in totals
