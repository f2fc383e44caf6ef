"""Recovery, whatever fails and whenever it is interrupted."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.abi import pci_regs
from pyvfio.eeh import Handlers, Pe, PeState, Recovery, Step
from pyvfio.iommu import Type1

from .conftest import open_group, stand_in
from .standin import EehKernel, FakeDevice


def test_the_sequence(kernel: EehKernel, pe: Pe, device: FakeDevice) -> None:
    told: list[Step] = []
    recovery = Recovery(pe, report=told.append)
    kernel.freeze()
    device.config.registers[4] = 0x0003  # what a reset leaves
    recovery.run()
    assert [step.name for step in told] == [
        "detected",
        "noted",
        "MMIO enabled",
        "reset",
        "configured",
        "config restored",
        "set up by user",
        "verified",
    ]
    assert told == recovery.steps.done
    assert all(step.seconds >= 0 and not step.failed for step in told)
    operations = [name for name in kernel.operations if name != "state"]
    assert operations == ["unfreeze_io", "hot", "deactivate", "configure"]
    assert device.config.registers[4] == 0x0107, "bus mastering is on again"
    assert "reads 0x2000001; the PE is stopped" in told[0].said
    assert "1 of" in told[5].said
    assert "no handler" in told[1].said


def test_what_is_not_frozen_is_reset_all_the_same(kernel: EehKernel, pe: Pe) -> None:
    Recovery(pe).run()
    assert "unfreeze_io" not in kernel.operations
    assert "hot" in kernel.operations


def test_the_devices_user_is_asked_at_each_point(kernel: EehKernel, pe: Pe) -> None:
    called: list[str] = []

    class Mine(Handlers):
        def probe(self, device: Any) -> int:
            return 0xFFFFFFFF

        def error_detected(self) -> None:
            called.append("error_detected")

        def teardown(self) -> None:
            called.append("teardown")

        def mmio_enabled(self) -> str:
            called.append("mmio_enabled")
            return "it says ouch"

        def slot_reset(self) -> str:
            called.append("slot_reset")
            return "vectors enabled"

    recovery = Recovery(pe, Mine(pe))
    kernel.freeze()
    recovery.run()
    assert called == ["error_detected", "mmio_enabled", "teardown", "slot_reset"]
    said = {step.name: step.said for step in recovery.steps.done}
    assert "reads 0xffffffff" in said["detected"]
    assert said["noted"] == "the device's user was told"
    assert said["MMIO enabled"] == "the PE is DMA stopped; it says ouch"
    assert said["set up by user"] == "vectors enabled"


def test_after_the_last_attempt_it_is_dead_and_cut_off(
    kernel: EehKernel, pe: Pe, device: FakeDevice
) -> None:
    recovery = Recovery(pe, attempts=2)
    kernel.freeze()
    kernel.stuck = True
    with pytest.raises(errors.PeDead, match="after 2 resets"):
        recovery.run()
    assert [name for name in kernel.operations if name in ("hot", "fundamental")] == [
        "hot",
        "fundamental",
    ]
    assert recovery.dead
    assert not device.bus_master
    assert recovery.steps.done[-1].name == "declared dead"
    with pytest.raises(errors.PeDead, match="was declared dead"):
        recovery.run()


def test_a_device_that_comes_back_as_another(kernel: EehKernel, pe: Pe, device: FakeDevice) -> None:
    recovery = Recovery(pe, attempts=1)
    # Its vendor ID reads as before: VFIO answers that from a copy.
    device.config.registers[pci_regs.PCI_CLASS_REVISION] = 0xFFFF_FFFF
    with pytest.raises(errors.PeDead, match=r"class ffffff revision ff.*, and was class 020000"):
        recovery.run()
    with pytest.raises(errors.StateError, match="while it is healthy"):
        Recovery(pe)


@pytest.mark.parametrize("at", ["probe", "error_detected", "mmio_enabled", "teardown"])
def test_what_fails_before_the_reset_does_not_keep_it_from_being_made(
    kernel: EehKernel, pe: Pe, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise errors.MemoryDisabled("injected")

    handlers = Handlers(pe)
    monkeypatch.setattr(handlers, at, fail)
    recovery = Recovery(pe, handlers, attempts=1)
    kernel.freeze()
    recovery.run()
    assert "hot" in kernel.operations
    told = [step for step in recovery.steps.done if "injected" in step.said]
    assert len(told) == 1
    assert told[0].failed is (at != "probe")


@pytest.mark.parametrize(
    "error",
    [
        errors.StateError("injected"),
        errors.Unsupported("injected"),
        errors.MalformedConfig("injected"),
        errors.MemoryDisabled("injected"),
        errors.PeUnavailable("injected"),
    ],
)
def test_a_handler_that_fails_after_the_reset_makes_the_attempt_fail(
    kernel: EehKernel, pe: Pe, error: errors.Error
) -> None:
    class Mine(Handlers):
        def slot_reset(self) -> str:
            raise error

    recovery = Recovery(pe, Mine(pe), attempts=2)
    with pytest.raises(errors.PeDead, match=r"after 2 resets \(injected\)"):
        recovery.run()
    assert recovery.dead
    assert "fundamental" in kernel.operations


def test_only_resets_that_were_asserted_are_counted(kernel: EehKernel, pe: Pe) -> None:
    def fail(name: str) -> None:
        if name == "fundamental":
            raise OSError(errno.EIO, "injected")

    kernel.before = fail
    kernel.stuck = True
    with pytest.raises(errors.PeDead, match="after 1 reset "):
        Recovery(pe, attempts=3).run()


def test_a_second_group_is_refused_before_anything(
    kernel: EehKernel, pe: Pe, device: FakeDevice
) -> None:
    recovery = Recovery(pe)
    open_group(device.dma, 2)
    with pytest.raises(errors.StateError, match="groups 1, 2"):
        recovery.run()
    assert not recovery.dead
    assert recovery.steps.done == []


def test_config_space_that_does_not_come_back_fails_its_step(
    kernel: EehKernel, pe: Pe, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = Recovery(pe, attempts=1)
    device.config.registers[0x3C] = 0
    monkeypatch.setattr(device.config, "write", lambda *_: None)
    with pytest.raises(errors.PeDead, match="not as before: 0x3c"):
        recovery.run()


def test_what_could_not_be_cut_off_is_told(
    kernel: EehKernel, pe: Pe, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise errors.KernelError(errno.EIO, "VFIO_DEVICE_SET_IRQS", "msi", "injected")

    monkeypatch.setattr(device.msi, "disable", fail)
    recovery = Recovery(pe, attempts=1)
    kernel.stuck = True
    monkeypatch.setattr(device.config, "write", lambda *_: None)
    with pytest.raises(errors.PeDead, match="could not be cut off"):
        recovery.run()
    last = recovery.steps.done[-1]
    assert (last.name, last.failed) == ("declared dead", True)
    assert "interrupts may be on" in last.said
    assert "still reads as on" in last.said


def test_unavailable_is_not_dead(
    kernel: EehKernel, pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = Recovery(pe)
    kernel.state = 5
    monkeypatch.setattr(pe, "wait", lambda wait=pe.wait: wait(0.01))
    with pytest.raises(errors.PeUnavailable):
        recovery.run()
    assert not recovery.dead
    assert "hot" not in kernel.operations
    kernel.state = None
    recovery.run()


def test_no_attempt_at_all_is_no_recovery(pe: Pe) -> None:
    with pytest.raises(errors.ArgumentError):
        Recovery(pe, attempts=0)


@given(
    attempts=st.integers(1, 3),
    frozen=st.booleans(),
    stuck=st.integers(0, 4),
    failures=st.dictionaries(
        st.integers(0, 40), st.sampled_from([errno.EIO, errno.EINVAL, errno.ENODEV]), max_size=6
    ),
    interrupt=st.none() | st.integers(0, 40),
)
def test_however_it_goes(
    attempts: int,
    frozen: bool,
    stuck: int,
    failures: dict[int, int],
    interrupt: int | None,
) -> None:
    """Operations fail, resets do not help, Ctrl-C comes at any operation."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        kernel = stand_in(patch)
        with Type1() as space:
            open_group(space, 1)
            device: Any = FakeDevice(space)
            pe = Pe(device)
            recovery = Recovery(pe, attempts=attempts)
            if frozen:
                kernel.freeze()
            kernel.before = _trouble(kernel, stuck, failures, interrupt)
            outcome = _outcome(recovery)
            kernel.before = lambda name: None
            operations = kernel.operations
            resets = [name for name in operations if name in ("hot", "fundamental")]
            assert "hot" not in resets[1:], "one that did not help is not tried again"
            assert len(resets) <= attempts
            for place, name in enumerate(operations):
                if name in resets:
                    assert "deactivate" in operations[place + 1 :][:1], "nothing between the two"
            assert device.msix.disabled >= len(resets)
            assert recovery.dead is (outcome is errors.PeDead)
            if outcome is None:
                assert pe.state is PeState.NORMAL
                assert device.bus_master
            if outcome is errors.PeDead:
                assert not device.bus_master
            if interrupt is None:
                assert outcome is not KeyboardInterrupt
            if not failures:
                assert not kernel.in_reset
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(os.listdir("/proc/self/fd")) == descriptors


def _trouble(
    kernel: EehKernel, stuck: int, failures: dict[int, int], interrupt: int | None
) -> Callable[[str], None]:
    def before(name: str) -> None:
        number = len(kernel.operations) - 1
        done = sum(name in ("hot", "fundamental") for name in kernel.operations)
        kernel.stuck = done <= stuck
        if number == interrupt:
            signal.raise_signal(signal.SIGINT)
        if number in failures:
            raise OSError(failures[number], "injected")

    return before


def _outcome(recovery: Recovery) -> type[BaseException] | None:
    try:
        recovery.run()
    except (errors.PeDead, KeyboardInterrupt) as error:
        return type(error)
    return None
