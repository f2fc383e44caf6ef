"""The device's PE (POWER): operations, resets, recovery, and freezes where one can be made."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

import pyvfio
from hwtests.bench import ON_BENCH
from pyvfio import eeh, errors
from pyvfio.device import Device, Irq
from pyvfio.pci import Function
from pyvfio.pci.config import Command

WAIT = 30.0


class Working(NamedTuple):
    """An injector after which the PE was frozen."""

    name: str
    injector: eeh.Injector


@pytest.fixture
def pe(device: Device) -> eeh.Pe:
    try:
        return eeh.Pe(device)
    except errors.NoEeh as error:
        pytest.skip(str(error))


@pytest.fixture
def resets_in_time(function: Function) -> None:
    # The grandparent of what is below a root port is the host bridge.
    if ON_BENCH and not function.sysfs.resolve().parents[1].name.startswith("pci"):
        pytest.skip("below QEMU's switch the firmware waits for a link for more than a minute")


@pytest.fixture(scope="session")
def working(function: Function) -> Working:
    """The first injector that really freezes the PE; what the others did is the reason to skip."""
    try:
        eeh.check_enabled()
    except errors.NoEeh as error:
        pytest.skip(str(error))
    tried = []
    for name, injector in eeh.injectors().items():
        if (refusal := injector.refusal(function)) is not None:
            tried.append(f"{name}: {refusal}")
            continue
        with pyvfio.open(function) as device:
            try:
                eeh.inject(eeh.Pe(device), name, injector, None, eeh.Steps())
            except errors.Error as error:
                tried.append(f"{name}: {error}")
            else:
                return Working(name, injector)
    pytest.skip("no freeze can be made here; " + "; ".join(tried))


def freeze(pe: eeh.Pe, working: Working) -> None:
    """Freeze the PE, and see that it is frozen."""
    eeh.inject(pe, working.name, working.injector, None, eeh.Steps())


def interrupts_arrive(device: Device) -> None:
    """An interrupt by VFIO's loopback, and off again."""
    irq: Irq | None = next((irq for irq in (device.msix, device.msi) if irq.count), None)
    if irq is None:
        return
    with irq.enable(1) as vectors:
        irq.trigger()
        assert vectors[0].wait(WAIT) == 1


def test_a_host_without_eeh_says_so(device: Device) -> None:
    try:
        eeh.check_enabled()
    except errors.NoEeh:
        with pytest.raises(errors.NoEeh, match="without EEH"):
            eeh.Pe(device)
    else:
        pytest.skip("the host has EEH")


def test_both_sides_say_that_it_is_normal(function: Function, pe: eeh.Pe) -> None:
    assert pe.state is eeh.PeState.NORMAL
    host = eeh.HostPe(function)
    assert host.state.state is eeh.PeState.NORMAL
    assert function in host.members
    assert eeh.frozen_before_open(function) is None


def test_operations_that_change_nothing_on_a_healthy_pe(device: Device, pe: eeh.Pe) -> None:
    command = device.config.command
    for operation in (pe.enable, pe.unfreeze_io, pe.unfreeze_dma, pe.configure, pe.disable):
        operation()
        assert pe.state is eeh.PeState.NORMAL
    assert device.config.command == command


@pytest.mark.parametrize("kind", eeh.Reset, ids=str)
@pytest.mark.usefixtures("resets_in_time")
def test_a_reset(device: Device, pe: eeh.Pe, kind: eeh.Reset) -> None:
    saved = eeh.SavedConfig(device)
    bars = device.config.bars
    if device.msix.count:
        device.msix.enable(1)
    pe.reset(kind)
    assert pe.state is eeh.PeState.NORMAL
    assert not device.msix.enabled, "interrupts are off before a reset"
    assert device.config.bars == bars
    assert device.memory_decoding
    assert "not as before" not in saved.restore()
    assert device.bus_master
    for bar in device.bars.values():
        bar.read32(bar.areas[0].offset if bar.areas else 0)
    interrupts_arrive(device)


def refusal(action: Callable[[], object]) -> errors.Error | None:
    """The error that the action raises, if it raises one."""
    try:
        action()
    except errors.Error as error:
        return error
    return None


@pytest.mark.usefixtures("resets_in_time")
def test_while_a_reset_lasts_nothing_answers_and_ctrl_c_waits(
    function: Function, device: Device, pe: eeh.Pe
) -> None:
    host, config = eeh.HostPe(function), device.config
    bar = next((bar for bar in device.bars.values() if bar.areas), None)
    # What a BAR says then must not be to switch memory decoding on, which would not help.
    device.memory_decoding = False
    refused: dict[str, errors.Error | None] = {}
    answered: dict[str, object] = {}

    # Ctrl-C is raised at the end of the block in the place of an assertion that fails inside. So
    # inside things are only noted.
    def interrupted() -> None:
        with pe.asserted():
            signal.raise_signal(signal.SIGINT)
            answered["reset"] = host.state.reset_left
            if bar is not None:
                refused["BAR"] = refusal(lambda: bar.read32(bar.areas[0].offset))
            refused["thaw"] = refusal(host.thaw)
            refused["command"] = refusal(lambda: config.command)
            refused["class"] = refusal(lambda: config.class_code)
            answered["IDs"] = config.vendor_id, config.device_id
            answered["host"] = function.read_config()[:4]

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(refused.pop("thaw"), errors.StateError)
    for name, error in refused.items():
        assert isinstance(error, errors.DeviceGone), name
        assert error.errno == errno.ENODEV
    assert answered == {
        "reset": True,
        # VFIO answers these from a copy of its own.
        "IDs": (function.vendor_id, function.device_id),
        "host": bytes([0xFF] * 4),
    }
    assert pe.state is eeh.PeState.NORMAL
    assert not host.state.flags
    assert function.read_config()[:2] == function.vendor_id.to_bytes(2, "little")
    assert Command.MEMORY in config.command


@pytest.mark.usefixtures("resets_in_time")
def test_recovery_of_a_healthy_device(device: Device, pe: eeh.Pe) -> None:
    recovery = eeh.Recovery(pe)
    recovery.run()
    assert not any(step.failed for step in recovery.steps.done)
    assert recovery.steps.done[-1].name == "verified"
    assert device.bus_master
    interrupts_arrive(device)


def test_a_second_group_in_the_container_is_refused(
    function: Function, pe: eeh.Pe, other: Function
) -> None:
    space = pe.devices[0].dma
    try:
        second = pyvfio.open(other, space=space)
    except errors.Error as error:
        pytest.skip(f"a second group cannot join: {error}")
    with second:
        for work in (pe.unfreeze_io, pe.reset, lambda: pe.state):
            with pytest.raises(errors.StateError, match="in one address space"):
                work()
    assert pe.state is eeh.PeState.NORMAL


def test_a_freeze_is_seen_by_both_sides_and_thawed_in_two_steps(
    function: Function, pe: eeh.Pe, working: Working
) -> None:
    host = eeh.HostPe(function)
    freeze(pe, working)
    assert pe.state is eeh.PeState.STOPPED
    assert host.state.state is eeh.PeState.STOPPED
    assert host.state.isolated
    pe.unfreeze_io()
    assert (pe.state, host.state.state) == (eeh.PeState.DMA_STOPPED,) * 2
    pe.unfreeze_dma()
    assert (pe.state, host.state.state) == (eeh.PeState.NORMAL,) * 2
    # The kernel's note of the freeze stays: the host would not recover the next one.
    assert host.state.isolated
    assert not host.thaw().isolated


def test_a_freeze_is_thawed_from_the_hosts_side(
    function: Function, pe: eeh.Pe, working: Working
) -> None:
    freeze(pe, working)
    assert eeh.HostPe(function).thaw().state is eeh.PeState.NORMAL
    assert pe.state is eeh.PeState.NORMAL


@pytest.mark.usefixtures("resets_in_time")
def test_recovery_from_a_freeze(device: Device, pe: eeh.Pe, working: Working) -> None:
    recovery = eeh.Recovery(pe)
    freeze(pe, working)
    recovery.run()
    assert [step.name for step in recovery.steps.done if step.failed] == []
    assert "MMIO enabled" in [step.name for step in recovery.steps.done]
    assert pe.state is eeh.PeState.NORMAL
    assert device.bus_master
    interrupts_arrive(device)


def test_closing_and_opening_thaw(function: Function, pe: eeh.Pe, working: Working) -> None:
    device, host = pe.devices[0], eeh.HostPe(function)
    freeze(pe, working)
    device.close()
    assert host.state.state is eeh.PeState.NORMAL
    if working.injector.by_holder:
        pytest.skip("the injector works for the holder alone")
    working.injector.inject(function, None, None)
    eeh.wait_frozen(lambda: host.state.state, function.read_config)
    assert "Opening the device thaws it" in str(eeh.frozen_before_open(function))
    with pyvfio.open(function) as device:
        assert eeh.Pe(device).state is eeh.PeState.NORMAL
    assert eeh.frozen_before_open(function) is None


@pytest.mark.skipif(not ON_BENCH, reason="freezes a bridge, and all below it: only on the bench")
def test_the_state_is_unavailable_while_a_pe_above_is_frozen(
    function: Function, pe: eeh.Pe, working: Working
) -> None:
    above = Function(function.sysfs.resolve().parent.name)
    working.injector.inject(above, None, None)
    bridge = eeh.HostPe(above)
    assert bridge.state.state is eeh.PeState.STOPPED
    try:
        assert pe.state is eeh.PeState.UNAVAILABLE
        with pytest.raises(errors.PeUnavailable, match="a PE above it"):
            pe.wait(0.2)
    finally:
        bridge.thaw()
        eeh.HostPe(function).thaw()
    assert pe.wait() is eeh.PeState.NORMAL
