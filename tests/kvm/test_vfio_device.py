"""The KVM-VFIO device. Groups are added for real by hwtests/; here is what is refused."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

import pytest

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import kvm as abi
from pyvfio.kvm import VM, NoIrqchip, VfioDevice

from .support import Faults, needs_kvm

pytestmark = needs_kvm


@pytest.fixture
def group() -> Iterator[File]:
    """A file in a group's place."""
    with File(os.memfd_create("group"), "group 1") as file:
        yield file


class Groups:
    """KVM_SET_DEVICE_ATTR, as virt/kvm/vfio.c answers it."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def set(self, argument: abi.kvm_device_attr) -> int:
        assert argument.group == abi.KVM_DEV_VFIO_GROUP
        fd = ctypes.c_int32.from_address(argument.addr).value
        if argument.attr == abi.KVM_DEV_VFIO_GROUP_ADD:
            if fd in self.known:
                raise OSError(errno.EEXIST, "")
            self.known.append(fd)
        elif fd in self.known:
            self.known.remove(fd)
        else:
            raise OSError(errno.ENOENT, "")
        return 0


@pytest.fixture
def groups(faults: Faults) -> Groups:
    groups = Groups()
    faults.answer[abi.KVM_SET_DEVICE_ATTR] = groups.set
    return groups


def test_a_vm_has_one_made_when_it_is_asked_for(vm: VM) -> None:
    device = vm.vfio
    assert vm.vfio is device
    with pytest.raises(errors.Busy, match="the VM has a KVM-VFIO device") as caught:
        VfioDevice(vm.file)
    assert caught.value.errno == errno.EBUSY


def test_it_needs_no_irqchip() -> None:
    with VM(NoIrqchip()) as vm, vm.vfio as device:
        assert not device.file.closed


def test_a_closed_one_is_made_anew(vm: VM) -> None:
    with vm.vfio as device:
        pass
    assert device.file.closed
    assert not vm.vfio.file.closed
    assert vm.vfio is not device


def test_what_is_no_group_is_refused(vm: VM, group: File) -> None:
    with pytest.raises(errors.ArgumentError, match="no VFIO group's"):
        vm.vfio.add(group)
    gone = type("Gone", (), {"fileno": lambda self: 99999})()
    with pytest.raises(errors.ArgumentError, match="no VFIO group's"):
        vm.vfio.add(gone)
    group.close()
    with pytest.raises(errors.Closed, match="group 1 is closed"):
        vm.vfio.add(group)


def test_a_kernel_without_it_is_unsupported(vm: VM, faults: Faults) -> None:
    faults.refuse[abi.KVM_CREATE_DEVICE] = errno.ENODEV
    with pytest.raises(errors.Unsupported, match="no KVM-VFIO device"):
        _ = vm.vfio
    faults.refuse[abi.KVM_CREATE_DEVICE] = errno.EPERM
    with pytest.raises(errors.KernelError, match="KVM_CREATE_DEVICE"):
        _ = vm.vfio


def test_a_group_is_known_while_its_block_lasts(vm: VM, group: File, groups: Groups) -> None:
    with vm.vfio.add(group):
        assert groups.known == [group.fileno()]
        with pytest.raises(errors.Busy, match="KVM knows of this group"):
            vm.vfio.add(group)
    assert groups.known == []


def test_taking_a_group_out_again_leaves_it_to_who_added_it_later(
    vm: VM, group: File, groups: Groups
) -> None:
    first = vm.vfio.add(group)
    first.close()
    with vm.vfio.add(group):
        first.close()
        assert groups.known == [group.fileno()]


def test_a_group_that_is_not_taken_out_stays_to_be(
    vm: VM, group: File, groups: Groups, faults: Faults
) -> None:
    membership = vm.vfio.add(group)
    faults.refuse[abi.KVM_SET_DEVICE_ATTR] = errno.EIO
    with pytest.raises(errors.KernelError, match="KVM_SET_DEVICE_ATTR"):
        membership.close()
    with pytest.raises(errors.KernelError, match="KVM_SET_DEVICE_ATTR"):
        vm.vfio.add(group)
    faults.refuse.clear()
    membership.close()
    assert groups.known == []


def test_groups_go_with_the_device(vm: VM, group: File, groups: Groups) -> None:
    membership = vm.vfio.add(group)
    vm.vfio.close()
    membership.close()
    assert groups.known == [group.fileno()], "nothing was asked: there is nobody to ask"
