"""/dev/kvm: what is said where it cannot be had."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.abi import kvm as abi
from pyvfio.kvm import VM, System

from .support import Faults, needs_kvm


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in /dev/kvm's place, so that what it answers can be made up on any host."""
    monkeypatch.setattr(calls, "open", lambda path, flags: os.open("/dev/null", os.O_RDWR))


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def open(path: str, flags: int) -> int:
        assert (path, flags) == ("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(calls, "open", open)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.ENXIO])
def test_a_host_without_kvm_is_told_what_to_load(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_to_open(monkeypatch, number)
    with pytest.raises(errors.NoKvm, match="modprobe kvm_intel, kvm_amd or kvm_hv"):
        VM()


def test_a_user_without_permission_is_told_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_open(monkeypatch, errno.EACCES)
    with pytest.raises(errors.AccessDenied, match="the group kvm") as caught:
        VM()
    assert isinstance(caught.value, PermissionError)
    assert caught.value.errno == errno.EACCES


def test_other_failures_to_open_keep_their_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_open(monkeypatch, errno.EIO)
    with pytest.raises(errors.KernelError, match="open on /dev/kvm") as caught:
        System()
    assert caught.value.errno == errno.EIO
    refuse_to_open(monkeypatch, errno.EMFILE)
    with pytest.raises(errors.OpenFilesLimit, match="ulimit -n"):
        System()


def test_another_version_of_the_interface_is_no_kvm(opened: None, faults: Faults) -> None:
    faults.answer[abi.KVM_GET_API_VERSION] = lambda _: 11
    with pytest.raises(errors.NoKvm, match="version 11 of KVM's interface, not 12"):
        System()


def test_a_file_that_is_not_kvm_is_closed_again(opened: None, faults: Faults) -> None:
    faults.refuse[abi.KVM_GET_API_VERSION] = errno.ENOTTY
    with pytest.raises(errors.KernelError, match="KVM_GET_API_VERSION on /dev/kvm"):
        System()


def test_another_hypervisor_may_hold_the_processor(opened: None, faults: Faults) -> None:
    faults.answer = {abi.KVM_GET_API_VERSION: lambda _: 12, abi.KVM_GET_VCPU_MMAP_SIZE: lambda _: 1}
    faults.refuse[abi.KVM_CREATE_VM] = errno.EBUSY
    with pytest.raises(errors.NoKvm, match="another hypervisor"):
        VM()
    faults.refuse[abi.KVM_CREATE_VM] = errno.ENOMEM
    with pytest.raises(errors.KernelError, match="KVM_CREATE_VM"):
        VM()


@needs_kvm
def test_the_real_one_tells_what_it_can() -> None:
    with System() as system:
        assert repr(system) == "<System /dev/kvm>"
        assert system.check_extension(abi.KVM_CAP_IRQFD) == 1
        assert system.check_extension(abi.KVM_CAP_IRQ_ROUTING) == 4096
        assert system.check_extension(9999) == 0
        assert system.vcpu_mmap_size % os.sysconf("SC_PAGE_SIZE") == 0
        with VM(system=system) as vm:
            assert vm.create_vcpu().id == 0
        assert not system.file.closed, "who opened it closes it"
        with pytest.raises(errors.KernelError, match="KVM_CREATE_VM"):
            system.create_vm(type=99)
    system.close()
    with pytest.raises(errors.Closed):
        system.check_extension(abi.KVM_CAP_IRQFD)


@needs_kvm
def test_no_descriptor_reaches_a_program_that_is_started() -> None:
    with System() as system, VM(system=system) as vm:
        files: list[Any] = [system.file, vm.file, vm.create_vcpu().file, vm.vfio.file]
        for file in files:
            assert fcntl.fcntl(file, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, file
