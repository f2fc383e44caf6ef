"""Address spaces of type1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pyvfio
from hwtests.spaces import ON_POWER, of_version
from pyvfio.device import Device
from pyvfio.iommu import Type1
from pyvfio.pci import Function

# Named here, the folder is collected where it is asked for by its path.
collect_ignore: list[str] = []


@pytest.fixture
def type1() -> None:
    """Skip where the host has another IOMMU interface: the originals are of type1."""
    if ON_POWER:
        pytest.skip("needs type1, which POWER does not have")


@pytest.fixture(params=[2, 1], ids=["version 2", "version 1"])
def type1_device(
    request: pytest.FixtureRequest, function: Function, type1: None
) -> Iterator[Device]:
    """The device, opened in each version of type1."""
    with of_version(request.param) as space, pyvfio.open(function, space=space) as device:
        yield device


@pytest.fixture
def space(type1_device: Device) -> Type1:
    """Each version of type1, with the device open in it."""
    assert isinstance(type1_device.dma, Type1)
    return type1_device.dma
