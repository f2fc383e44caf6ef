from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator

import pytest

from pyvfio._sys import calls
from pyvfio.kvm import VM, SplitIrqchip, Vcpu

from .support import Faults, why_no_guest


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Whatever a test does, it leaves the descriptors it found, and closes all it opened."""
    gc.collect()  # what earlier tests left to it may have descriptors
    before = set(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
    assert set(os.listdir("/proc/self/fd")) == before
    assert [str(warning.message) for warning in caught] == []


@pytest.fixture
def vm() -> Iterator[VM]:
    """A VM with a full irqchip."""
    with VM() as vm:
        yield vm


@pytest.fixture
def split() -> Iterator[VM]:
    """A VM with a split irqchip: all routes are the test's own."""
    with VM(SplitIrqchip()) as vm:
        yield vm


@pytest.fixture
def vcpu(vm: VM) -> Vcpu:
    """The vCPU of `vm`, its local APIC taking interrupts."""
    vcpu = vm.create_vcpu()
    vcpu.enable_lapic()
    return vcpu


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Refuses ioctls, on the way to the real kernel."""
    faults = Faults(calls.ioctl)
    monkeypatch.setattr(calls, "ioctl", faults.ioctl)
    return faults


@pytest.fixture
def guest_code() -> None:
    """The test runs guest code; not every host's KVM can."""
    if why := why_no_guest():
        pytest.skip(why)
