from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyvfio._sys import calls
from pyvfio.iommu import Type1, container_space

from .standin import Kernel


def stand_in(patch: pytest.MonkeyPatch) -> Kernel:
    """Put the stand-in in the kernel's place."""
    kernel = Kernel()
    for name in ("open", "close", "ioctl"):
        patch.setattr(calls, name, getattr(kernel, name))
    patch.setattr(container_space, "check_openable", lambda function: function.iommu_group)
    return kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The stand-in, in the kernel's place."""
    return stand_in(monkeypatch)


@pytest.fixture
def function() -> Callable[..., Any]:
    """Makes PCI functions: function(group, "0000:01:00.0")."""
    return lambda group, address="0000:01:00.0": SimpleNamespace(
        address=address, iommu_group=SimpleNamespace(id=group)
    )


@pytest.fixture
def space(kernel: Kernel, function: Callable[..., Any]) -> Iterator[Type1]:
    """A space in which a device is open."""
    with Type1() as space:
        space.open_device(function(1))
        yield space


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Whatever the test does, it leaves the descriptors it found."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before
