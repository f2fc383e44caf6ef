"""What stands in the way of opening a device: each has an error that says what to do."""

from __future__ import annotations

import errno
import os
import resource

import pytest

import pyvfio
from hwtests.bench import changes_the_host
from hwtests.child import NOBODY, in_child
from hwtests.holdings import Holdings, lockable
from pyvfio import errors
from pyvfio.device import Device
from pyvfio.pci import Function, functions
from pyvfio.pci.group import is_vfio


@pytest.mark.parametrize("nonsense", ["", "edu", "0000:00:00", "0000:00:20.0", "00:00.8", "/dev"])
def test_nonsense_for_an_address(nonsense: str) -> None:
    with pytest.raises(errors.ArgumentError, match=r"no PCI address|lacks the function"):
        pyvfio.open(nonsense)


def test_nothing_at_the_address() -> None:
    with pytest.raises(errors.DeviceNotFound, match=r"fffe:ff:1f\.7; `pyvfio list`"):
        pyvfio.open("fffe:ff:1f.7")


def test_a_device_of_another_driver() -> None:
    for function in functions():
        if function.iommu_group and not function.is_bridge and not is_vfio(function.driver):
            driver = function.driver or "no driver"
            break
    else:
        pytest.skip("every other device of this host is vfio-pci's")
    before = Holdings.now()
    with pytest.raises(errors.NotBound, match=f"{driver}.*pyvfio bind {function.address}"):
        pyvfio.open(function)
    assert Holdings.now() == before


def test_a_user_without_permission(function: Function) -> None:
    group = function.iommu_group
    assert group is not None

    def work() -> None:
        before = Holdings.now()
        with pytest.raises(errors.AccessDenied, match=f"chown USER {group.path}") as info:
            pyvfio.open(function)
        assert info.value.errno == errno.EACCES
        assert Holdings.now() == before

    in_child(work, user=NOBODY)


@changes_the_host
def test_a_user_who_was_given_the_group(function: Function) -> None:
    group = function.iommu_group
    assert group is not None
    owner = os.stat(group.path).st_uid

    def work() -> int:
        with pyvfio.open(function) as device:
            return device.config.vendor_id

    os.chown(group.path, NOBODY, -1)
    try:
        # The tables of SPAPR TCE's windows count as locked memory.
        with lockable(256 << 20):
            assert in_child(work, user=NOBODY) == function.vendor_id
    finally:
        os.chown(group.path, owner, -1)


def test_no_descriptors_left(function: Function) -> None:
    before = Holdings.now()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    refused = 0
    # Opening needs a few at a time: it fails at each of them.
    for spare in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, limits[1]))
        try:
            pyvfio.open(function).close()
        except errors.OpenFilesLimit as error:
            assert "ulimit -n" in str(error)  # noqa: PT017 it fails or it does not
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert Holdings.now() == before
    assert 3 <= refused < 8


def test_an_error_of_the_kernel_names_the_call_and_the_file(device: Device) -> None:
    claim = device.req.claim(list)
    with pytest.raises(errors.KernelError) as info:
        claim.signal(0, [1 << 20])
    assert info.value.errno == errno.EBADF
    assert "VFIO_DEVICE_SET_IRQS" in str(info.value)
    assert str(device.address) in str(info.value)
    with pytest.raises(errors.KernelError, match="VFIO_DEVICE_SET_IRQS"):
        claim.signal(0, [0])
