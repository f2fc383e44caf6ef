"""What the tests of one device share."""

from __future__ import annotations

import pytest

import pyvfio
from pyvfio.drivers import nvme
from pyvfio.pci import Function


@pytest.fixture(scope="session")
def namespace(function: Function) -> None:
    """Skip where the NVMe controller has no namespace, as an SR-IOV one may."""
    with pyvfio.open(function) as device, nvme.Controller(device) as controller:
        if not controller.namespaces:
            pytest.skip("the controller has no namespace")
