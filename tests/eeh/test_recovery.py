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
        "interrupts restored",
        "verified",
    ]
    assert told == recovery.steps.done
    assert all(step.seconds >= 0 and not step.failed for step in told)
    operations = [name for name in kernel.operations if name != "state"]
    assert operations == ["unfreeze_io", "hot", "deactivate", "configure"]
    assert device.config.registers[4] == 0x0107, "bus mastering is on again"
    assert "reads 0x8086; the PE is stopped" in told[0].said
    assert "1 of" in told[5].said


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
    assert said["MMIO enabled"] == "the PE is DMA stopped; it says ouch"
    assert said["interrupts restored"] == "vectors enabled"


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
    device.config.vendor_id = 0xFFFF
    with pytest.raises(errors.PeDead, match="ffff:10d3, and was 8086:10d3"):
        recovery.run()
    with pytest.raises(errors.StateError, match="while it is healthy"):
        Recovery(pe)


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
    except (errors.PeDead, errors.Unsupported, KeyboardInterrupt) as error:
        return type(error)
    return None
