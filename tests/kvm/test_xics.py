"""POWER's XICS: how sources and servers are written as the kernel's 64 bits, and what it refuses.

That interrupts reach them is shown on a POWER kernel, on the bench.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import File, calls
from pyvfio.abi import kvm as abi
from pyvfio.abi import kvm_powerpc
from pyvfio.kvm import VM, Server, Source, Vcpu, XicsIrqchip

sources = st.builds(
    Source,
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 255),
    *[st.booleans()] * 5,
)


@given(sources)
def test_a_source_is_read_as_it_was_written(source: Source) -> None:
    assert Source.from_kernel(source.to_kernel()) == source


def test_the_bits_are_where_the_kernel_has_them() -> None:
    source = Source(server=3, priority=5, masked=True, pending=True)
    assert source.to_kernel() == 3 | 5 << 32 | 1 << 41 | 1 << 42
    assert Source.from_kernel(1 << 43 | 0xFF << 32) == Source(0, 0xFF, presented=True)


class Kernel:
    """Answers ioctls as told, and keeps what device attributes were set."""

    def __init__(self) -> None:
        self.refusal = 0
        self.refused_capability: int | None = None
        self.registers: dict[int, int] = {}
        self.attributes: dict[int, int] = {}
        self.enabled: list[tuple[int, int]] = []

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        import ctypes

        if self.refused_capability is not None and argument == self.refused_capability:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        if request == abi.KVM_CHECK_EXTENSION:
            return 1
        if request == abi.KVM_CREATE_DEVICE:
            argument.fd = os.memfd_create("xics")
        elif request == abi.KVM_ENABLE_CAP:
            self.enabled.append((argument.cap, argument.args[1]))
        else:
            value = ctypes.c_uint64.from_address(argument.addr)
            if request == abi.KVM_SET_DEVICE_ATTR:
                self.attributes[argument.attr] = value.value
            elif request == abi.KVM_GET_DEVICE_ATTR:
                value.value = self.attributes[argument.attr]
            elif request == abi.KVM_SET_ONE_REG:
                self.registers[argument.id] = value.value
            elif request == abi.KVM_GET_ONE_REG:
                value.value = self.registers[argument.id]
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(calls, "ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def xics(kernel: Kernel) -> Iterator[XicsIrqchip]:
    xics = XicsIrqchip()
    with File(os.memfd_create("vm"), "a VM") as vm:
        xics.create(vm)
        yield xics
        xics.close()


def test_a_vcpu_makes_hypercalls_before_it_gets_its_server(
    xics: XicsIrqchip, kernel: Kernel
) -> None:
    with File(os.memfd_create("vcpu"), "vCPU 2") as vcpu:
        xics.connect(vcpu, 2)
    assert kernel.enabled == [(abi.KVM_CAP_PPC_PAPR, 0), (abi.KVM_CAP_IRQ_XICS, 2)]


def test_sources_are_entries(xics: XicsIrqchip, kernel: Kernel) -> None:
    xics[0x1300] = Source(server=0, priority=4)
    assert kernel.attributes == {0x1300: 4 << 32}
    assert xics[0x1300] == Source(0, 4)


@given(st.builds(Server, st.integers(0, 0xFFFFFF), *[st.integers(0, 255)] * 3))
def test_a_server_is_read_as_it_was_written(server: Server) -> None:
    kernel = Kernel()
    with pytest.MonkeyPatch.context() as patch, File(os.memfd_create("vcpu"), "vCPU") as file:
        patch.setattr(calls, "ioctl", kernel.ioctl)
        vcpu = Vcpu.__new__(Vcpu)
        vcpu.file = file
        XicsIrqchip().set_server(vcpu, server)
        assert list(kernel.registers) == [kvm_powerpc.KVM_REG_PPC_ICP_STATE]
        assert XicsIrqchip().server(vcpu) == server


@pytest.mark.parametrize(
    ("number", "source", "error"),
    [
        (0, Source(0, 4), errors.RangeError),
        (15, Source(0, 4), errors.RangeError),
        (1 << 20, Source(0, 4), errors.RangeError),
        ((1 << 64) + 16, Source(0, 4), errors.RangeError),
        (16, Source(0, 256), errors.RangeError),
        (16, Source(1 << 32, 4), errors.RangeError),
    ],
)
def test_what_cannot_be_a_source_is_refused_before_the_kernel_is_asked(
    xics: XicsIrqchip, kernel: Kernel, number: int, source: Source, error: type[Exception]
) -> None:
    with pytest.raises(error):
        xics[number] = source
    assert kernel.attributes == {}


def test_a_server_that_is_no_vcpu_is_named(xics: XicsIrqchip, kernel: Kernel) -> None:
    kernel.refusal = errno.EINVAL
    with pytest.raises(errors.ArgumentError, match="no vCPU has that number"):
        xics[16] = Source(server=7, priority=4)


def test_another_refusal_is_not_put_down_to_the_server(xics: XicsIrqchip, kernel: Kernel) -> None:
    with File(os.memfd_create("vcpu"), "vCPU 7") as vcpu:
        xics.connect(vcpu, 7)
    kernel.refusal = errno.EINVAL
    with pytest.raises(errors.KernelError) as info:
        xics[16] = Source(server=7, priority=4)
    assert info.value.errno == errno.EINVAL


def test_reading_a_number_of_more_than_32_bits(xics: XicsIrqchip, kernel: Kernel) -> None:
    xics[0x1300] = Source(server=0, priority=4)
    for number in (1 << 32 | 0x1300, 1 << 64 | 0x1300):
        with pytest.raises(errors.RangeError, match="no source"):
            xics[number]


@pytest.mark.parametrize("capability", [abi.KVM_CAP_IRQFD_RESAMPLE, abi.KVM_CAP_IRQ_ROUTING])
def test_a_vm_that_cannot_be_made_leaves_no_xics(kernel: Kernel, capability: int) -> None:
    kernel.refused_capability = capability
    before = os.listdir("/proc/self/fd")
    system: Any = SimpleNamespace(
        vcpu_mmap_size=0, create_vm=lambda: File(os.memfd_create("vm"), "a VM")
    )
    irqchip = XicsIrqchip()
    with pytest.raises(errors.KernelError):
        VM(irqchip, system=system)
    assert os.listdir("/proc/self/fd") == before


def test_reading_a_source_that_is_not_there(xics: XicsIrqchip, kernel: Kernel) -> None:
    kernel.refusal = errno.ENOENT
    with pytest.raises(errors.RangeError, match="no source 0x1300"):
        xics[0x1300]


def test_a_xics_that_no_vm_has() -> None:
    with pytest.raises(errors.StateError, match=r"kvm\.VM"):
        XicsIrqchip()[16]


def test_a_kernel_without_xics_says_so(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ioctl", lambda *_: 0)
    with (
        File(os.memfd_create("vm"), "a VM") as vm,
        pytest.raises(errors.Unsupported, match="no XICS"),
    ):
        XicsIrqchip().create(vm)
