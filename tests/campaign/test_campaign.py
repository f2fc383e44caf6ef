"""Ctrl-C at each step, and each failure of each system call: nothing is left, and all works on.

A sample by default; all points with ``PYVFIO_CAMPAIGN=every``, another sample with a seed there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import pytest

from tests.kvm.support import needs_kvm

from .driver import Campaign, Operation
from .operations import DEVICE, IOMMU, KVM, SYS

_ASKED = os.environ.get("PYVFIO_CAMPAIGN", "1")


@pytest.mark.parametrize(
    "operation",
    [
        *(pytest.param(each, id=each.name) for each in (*SYS, *IOMMU, *DEVICE)),
        *(pytest.param(each, id=each.name, marks=needs_kvm) for each in KVM),
    ],
)
def test_nothing_is_left(
    operation: Operation, record_property: Callable[[str, object], None]
) -> None:
    every = _ASKED == "every"
    campaign = Campaign(every=every, seed=1 if every else int(_ASKED))
    with warnings.catch_warnings():
        # What Python closes for an exception that came as a function returned.
        warnings.simplefilter("ignore", ResourceWarning)
        leaks = campaign.run(operation)
    record_property("points", dict(campaign.points))
    assert not leaks, "\n".join(leaks)
    assert campaign.points["steps"]
