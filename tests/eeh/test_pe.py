"""The holder's side, over containers that know EEH."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.abi import vfio
from pyvfio.eeh import ErrorFunction, InjectedError, Pe, PeState, Reset

from .conftest import open_group
from .standin import EehKernel, FakeDevice, press_ctrl_c


def test_each_state(kernel: EehKernel, pe: Pe) -> None:
    for state in PeState:
        kernel.state = state.value
        assert pe.state is state
    assert [state for state in PeState if state.frozen] == [PeState.STOPPED, PeState.DMA_STOPPED]


def test_a_state_that_there_is_no_word_for(kernel: EehKernel, pe: Pe) -> None:
    kernel.state = 3
    with pytest.raises(errors.KernelError, match="state 3") as caught:
        _ = pe.state
    assert caught.value.errno == errno.EPROTO


def test_thawed_in_two_steps(kernel: EehKernel, pe: Pe) -> None:
    kernel.freeze()
    seen = [pe.state]
    for step in (pe.unfreeze_io, pe.unfreeze_dma):
        step()
        seen.append(pe.state)
    assert seen == [PeState.STOPPED, PeState.DMA_STOPPED, PeState.NORMAL]


def test_the_plain_operations(kernel: EehKernel, pe: Pe) -> None:
    pe.enable()
    pe.disable()
    pe.configure()
    pe.assert_reset(Reset.FUNDAMENTAL)
    pe.deactivate()
    assert kernel.operations == ["enable", "disable", "configure", "fundamental", "deactivate"]


def test_an_injected_error_arrives_whole(kernel: EehKernel, pe: Pe) -> None:
    pe.inject(InjectedError(ErrorFunction.DMA_WRITE_TARGET, 64, 1 << 63, (1 << 64) - 1))
    assert kernel.injected == (1, 19, 1 << 63, (1 << 64) - 1)


def test_interrupts_are_off_before_a_reset(kernel: EehKernel, pe: Pe, device: FakeDevice) -> None:
    before: list[int] = []
    kernel.before = lambda name: before.append(device.msix.disabled) if name == "hot" else None
    pe.reset()
    assert before == [1]
    assert kernel.operations == ["hot", "deactivate", "state"]
    assert (device.intx.disabled, device.msi.disabled) == (1, 1)


def test_the_callers_own_teardown_takes_its_place(pe: Pe, device: FakeDevice) -> None:
    calls: list[str] = []
    pe.reset(Reset.FUNDAMENTAL, teardown=lambda: calls.append("mine"))
    assert calls == ["mine"]
    assert device.msix.disabled == 0


@pytest.mark.parametrize("at", ["hot", "deactivate"])
def test_ctrl_c_does_not_leave_a_pe_in_reset(kernel: EehKernel, pe: Pe, at: str) -> None:
    kernel.before = lambda name: press_ctrl_c(name, at)
    with pytest.raises(KeyboardInterrupt):
        pe.reset()
    assert kernel.operations == ["hot", "deactivate"]
    assert not kernel.in_reset


def test_a_reset_that_fails_is_ended(kernel: EehKernel, pe: Pe) -> None:
    def fail(name: str) -> None:
        if name == "hot":
            raise OSError(errno.EIO, "injected")

    kernel.before = fail
    with pytest.raises(errors.KernelError, match="VFIO_EEH_PE_RESET_HOT: the firmware refused"):
        pe.reset()
    assert kernel.operations == ["hot", "deactivate"]


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENODEV, errors.Unsupported, "has no PE"),
        (errno.EIO, errors.KernelError, "firmware refused"),
        (errno.EINVAL, errors.KernelError, "knows no such"),
        (errno.ERANGE, errors.KernelError, "cannot inject"),
        (errno.ENOENT, errors.KernelError, "cannot do it"),
    ],
)
def test_what_the_kernel_refuses(
    kernel: EehKernel, pe: Pe, number: int, kind: type[errors.Error], says: str
) -> None:
    kernel.fail["VFIO_EEH_PE_OP"] = number
    with pytest.raises(kind, match=says):
        pe.inject(InjectedError())


def test_a_second_group_is_refused_before_the_kernel_is_asked(
    kernel: EehKernel, pe: Pe, device: Any
) -> None:
    open_group(device.dma, 2)
    for work in (lambda: pe.state, pe.unfreeze_io, pe.reset, lambda: Pe(device)):
        with pytest.raises(errors.StateError, match="groups 1, 2 are in one address space"):
            work()
    assert kernel.operations == []
    assert device.msix.disabled == 0, "not even the interrupts were touched"


def test_a_host_without_eeh(kernel: EehKernel, device: Any) -> None:
    kernel.extensions.remove(vfio.VFIO_EEH)
    with pytest.raises(errors.NoEeh, match="host without EEH"):
        Pe(device)


def test_devices_of_several_address_spaces(kernel: EehKernel, device: Any) -> None:
    with pytest.raises(errors.StateError, match="different address spaces"):
        Pe(device, FakeDevice(object()))  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError):
        Pe()


def test_a_state_that_stays_unavailable(kernel: EehKernel, pe: Pe) -> None:
    kernel.state = 5
    with pytest.raises(errors.PeUnavailable, match=r"for 0\.2 s.*a PE above it"):
        pe.wait(0.2)
    looks = 0

    def after_a_while(name: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            kernel.state = None

    kernel.before = after_a_while
    assert pe.wait(10) is PeState.NORMAL


@pytest.mark.parametrize("stays", ["stopped", "unavailable"])
def test_a_reset_that_does_not_help_is_told(
    kernel: EehKernel, pe: Pe, stays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pe, "wait", lambda wait=pe.wait: wait(0.01))
    if stays == "stopped":
        kernel.stuck = True
        with pytest.raises(errors.PeFrozen, match="is stopped after the reset"):
            pe.reset()
    else:
        kernel.state = 5
        with pytest.raises(errors.PeUnavailable):
            pe.reset()


def test_an_interrupt_that_cannot_be_disabled_leaves_no_other_enabled(
    pe: Pe, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise errors.KernelError(errno.EIO, "VFIO_DEVICE_SET_IRQS", "intx", "injected")

    monkeypatch.setattr(device.intx, "disable", fail)
    with pytest.raises(errors.KernelError):
        pe.disable_interrupts()
    assert device.msi.disabled == device.msix.disabled == 1
