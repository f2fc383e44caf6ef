"""Opening and closing: in any order and at any failure, nothing stays behind."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

import pyvfio
from hwtests.child import in_child
from hwtests.holdings import Holdings
from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.device import Device
from pyvfio.pci import Function
from pyvfio.pci.config import Command

MAY_DO_DMA = Command.MASTER


def mappable_bar(device: Device) -> pyvfio.device.Region:
    for bar in device.bars.values():
        if bar.areas:
            return bar
    pytest.skip("no BAR of the device can be mapped")


def test_close_leaves_nothing(function: Function) -> None:
    before = Holdings.now()
    with pyvfio.open(function) as device:
        buffer = device.dma.alloc(1 << 16)
        if any(bar.areas for bar in device.bars.values()):
            mappable_bar(device).view()
            assert Holdings.now().mappings != before.mappings
        device.req.enable()
        assert Holdings.now().locked > before.locked
        assert MAY_DO_DMA in function.config.command
    assert MAY_DO_DMA not in function.config.command
    assert device.closed
    assert buffer.closed or buffer.view is not None
    del buffer
    assert Holdings.now() == before
    device.close()


@pytest.mark.parametrize("order", ["device first", "space first", "irq last", "buffer last"])
def test_close_in_any_order(function: Function, order: str) -> None:
    before = Holdings.now()
    space = pyvfio.open_space()
    device = pyvfio.open(function, space=space)
    vectors = device.req.enable()
    buffer = space.alloc(4096)
    closers: dict[str, Callable[[], None]] = {
        "device": device.close,
        "space": space.close,
        "irq": vectors.close,
        "buffer": buffer.close,
    }
    last = order.partition(" ")[0]
    if order.endswith("first"):
        closers.pop(last)()
        for close in closers.values():
            close()
    else:
        close_last = closers.pop(last)
        for close in closers.values():
            close()
        close_last()
    del buffer
    assert Holdings.now() == before
    with pyvfio.open(function):
        pass


@pytest.mark.parametrize("first", ["own space", "device", "space"])
def test_views_end_with_the_device_and_do_not_keep_it(function: Function, first: str) -> None:
    def work() -> None:
        start = Holdings.now()
        space = None if first == "own space" else pyvfio.open_space()
        before = start if first == "space" else Holdings.now()
        device = pyvfio.open(function, space=space)
        bar = mappable_bar(device)
        area = bar.areas[0]
        view = bar.view(area.offset, area.size).cast("I")
        memory = device.dma.alloc(4096).view
        if space is not None and first == "space":
            space.close()
        device.close()
        left = Holdings.now()
        assert left.locked == before.locked, "its DMA mappings are gone"
        assert left.files == before.files
        assert left.mappings == before.mappings
        assert MAY_DO_DMA not in function.config.command
        # A bus error would end this process.
        for ended in (view, memory):
            with pytest.raises(ValueError, match="released"):
                ended[0]
        with pytest.raises(errors.Closed):
            bar.read32(area.offset)
        if space is None:
            pyvfio.open(function).close()
        if space is not None:
            if first == "device":
                pyvfio.open(function, space=space).close()
            space.close()
        pyvfio.open(function).close()
        assert Holdings.now() == start

    in_child(work)


def test_used_after_close_it_says_so(function: Function) -> None:
    with pyvfio.open(function) as device:
        vectors = device.req.enable()
        regions = list(device.regions.values())
    for region in regions:
        with pytest.raises(errors.Closed, match=str(function.address)):
            region.read32(0)
    with pytest.raises(errors.Closed):
        _ = device.bus_master
    with pytest.raises(errors.Closed):
        device.dma.alloc(4096)
    with pytest.raises(errors.Closed):
        vectors[0].wait(0)
    with pytest.raises(errors.Closed):
        device.req.enable()


def test_any_system_call_may_fail_while_opening(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sort of call, the first of its sort: opening fails, and leaves nothing."""
    before = Holdings.now()
    tried: set[tuple[str, str]] = set()
    refused = 0

    def faulty(name: str, real: Callable[..., Any], fault: list[tuple[str, str]]) -> Any:
        def call(*arguments: Any) -> Any:
            what = str(getattr(arguments[1], "name", "")) if name == "ioctl" else ""
            key = (name, what or str(arguments[0]) if name in ("open", "ioctl") else "")
            if not fault and key not in tried:
                tried.add(key)
                fault.append(key)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        return call

    while True:
        fault: list[tuple[str, str]] = []
        with monkeypatch.context() as patch:
            for name in ("open", "ioctl", "pread", "pwrite", "eventfd"):
                patch.setattr(calls, name, faulty(name, getattr(calls, name), fault))
            try:
                pyvfio.open(function).close()
            except errors.Error:
                refused += 1
        assert Holdings.now() == before, f"{fault} left something behind"
        if not fault:
            break
    assert refused >= 10, tried
    pyvfio.open(function).close()


def test_a_second_open_says_who_has_it(function: Function, device: Device) -> None:
    with pytest.raises(errors.Busy, match="this process holds"):
        pyvfio.open(function)
    parent = os.getpid()

    def work() -> None:
        with pytest.raises(errors.Busy, match=f"process {parent} "):
            pyvfio.open(function)

    in_child(work)
    assert MAY_DO_DMA in device.config.command


def test_a_fork_neither_breaks_nor_shares_the_device(device: Device) -> None:
    buffer = device.dma.alloc(4096)
    view = None
    for bar in device.bars.values():
        if bar.areas:
            view = bar.view(bar.areas[0].offset, bar.areas[0].size)

    def work() -> None:
        assert device.closed
        assert not Holdings.now().mappings
        assert not any("vfio" in file for file in Holdings.now().files)
        with pytest.raises(errors.Closed):
            _ = device.config.command
        for bar in device.bars.values():
            with pytest.raises(errors.Closed):
                bar.read32(0)
        with pytest.raises(errors.Closed):
            device.dma.alloc(4096)
        buffer.view[:5] = b"child"
        device.close()

    in_child(work)
    assert bytes(buffer.view[:5]) == b"child", "buffers are shared memory"
    assert device.bus_master
    with device.req.enable() as vectors:
        device.req.trigger()
        assert vectors[0].wait(10) == 1
    device.dma.alloc(1 << 16).close()
    if view is not None:
        assert isinstance(view.cast("I")[0], int)


def test_a_child_that_lives_on_does_not_keep_the_device(function: Function) -> None:
    device = pyvfio.open(function)
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        there.send(b"alive")
        there.recv(1)
        os._exit(0)
    there.close()
    try:
        assert here.recv(5) == b"alive"
        device.close()
        pyvfio.open(function).close()
    finally:
        here.close()
        os.waitpid(pid, 0)


def test_two_devices_in_one_address_space(function: Function, other: Function) -> None:
    before = Holdings.now()
    with pyvfio.open_space() as space:
        first = pyvfio.open(function, space=space)
        early = space.alloc(4096)
        second = pyvfio.open(other, space=space)
        assert len(space.groups) == 2
        late = space.alloc(4096)
        assert early.iova != late.iova
        first.close()
        assert not second.closed
        early.view[:4] = b"kept"
        assert not early.closed, "mappings stay while a device is left"
        second.close()
        with pytest.raises(errors.StateError):
            space.alloc(4096)
        with pyvfio.open(function, space=space):
            space.alloc(4096)
    del early, late
    assert Holdings.now() == before
