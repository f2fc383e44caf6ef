"""An opened device, on a stand-in of VFIO: its state under threads, faults and signals."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import pyvfio
from pyvfio import errors
from pyvfio._sys import File, calls, device_lock, memory
from pyvfio.abi import pci_regs, vfio
from pyvfio.device import Device
from tests.interruptions import HOW, WHEN
from tests.kernel.device import ADDRESS, DeviceKernel, function, stand_in


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> DeviceKernel:
    return stand_in(monkeypatch)


@pytest.fixture
def device(kernel: DeviceKernel) -> Iterator[Device]:
    with pyvfio.open(function()) as device:
        yield device


def mapped() -> int:
    """How many parts of devices this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:vfio-device" in line for line in maps)


# Threads.


def run(*works: Callable[[], None], rounds: int) -> list[Exception]:
    """Do each work that often, in a thread of its own; returns what was raised."""
    raised: list[Exception] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            for _ in range(rounds):
                work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.fixture
def switching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads have their turn in each system call."""
    real = calls.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        threading.Event().wait(0.0001)
        return data

    monkeypatch.setattr(calls, "pread", pread)


@pytest.mark.usefixtures("switching")
def test_bits_of_the_command_register_do_not_undo_each_other(device: Device) -> None:
    lost: list[str] = []

    def switch_mastering() -> None:
        for on in (False, True):
            device.bus_master = on
            if device.bus_master is not on:
                lost.append(f"bus_master = {on}")

    def switch_decoding() -> None:
        for on in (False, True):
            device.memory_decoding = on
            if device.memory_decoding is not on:
                lost.append(f"memory_decoding = {on}")

    assert run(switch_mastering, switch_decoding, rounds=30) == []
    assert lost == []


@pytest.mark.usefixtures("switching")
def test_readers_are_not_refused_while_other_bits_change(device: Device) -> None:
    bar = device.bars[0]
    value = bar.read32(4)

    def switch() -> None:
        device.bus_master = not device.bus_master

    def read() -> None:
        assert bar.read32(4) == value
        assert bar.view(4, 4).cast("I")[0] == value

    assert run(switch, read, read, rounds=50) == []


@pytest.mark.usefixtures("switching")
def test_cached_decoding_is_the_registers_afterwards(device: Device) -> None:
    def switch_decoding() -> None:
        device.memory_decoding = not device.memory_decoding

    def switch_mastering() -> None:
        device.bus_master = not device.bus_master

    def reset() -> None:
        device.reset()

    def sleep() -> None:
        device.power_state = 3
        device.power_state = 0

    assert run(switch_decoding, switch_mastering, reset, sleep, rounds=20) == []
    assert device._decoding == device.config.command


def test_failed_look_at_the_register_is_made_up_for(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a write has changed is unknown then: nothing is touched before it is known."""
    real = calls.pread
    left = [1]

    def pread(fd: int, size: int, offset: int) -> bytes:
        if offset & 0xFF == pci_regs.PCI_COMMAND:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    before = device.bars[0].read32(0)
    with monkeypatch.context() as patch:
        patch.setattr(calls, "pread", pread)
        device.bus_master = False
        with pytest.raises(errors.KernelError):
            device.bars[0].read32(0)
    assert device.bars[0].read32(0) == before


# Reset.


def locked(kernel: DeviceKernel, request: str, times: int, patch: pytest.MonkeyPatch) -> list[int]:
    """The kernel cannot get its lock of the device, this often."""
    tries: list[int] = []
    real = getattr(kernel, request.lower())

    def answer(file: object, arg: object) -> object:
        tries.append(1)
        if len(tries) <= times:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real(file, arg)

    patch.setattr(kernel, request.lower(), answer)
    return tries


def test_reset_waits_for_the_kernels_lock(
    device: Device, kernel: DeviceKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = locked(kernel, "VFIO_DEVICE_RESET", 3, monkeypatch)
    device.reset()
    assert len(tries) == 4
    assert kernel.resets == 1


def test_opening_waits_for_the_kernels_lock(
    kernel: DeviceKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = locked(kernel, "VFIO_GROUP_GET_DEVICE_FD", 3, monkeypatch)
    pyvfio.open(function()).close()
    assert len(tries) == 4


def test_lock_that_stays_held_is_explained(
    device: Device, kernel: DeviceKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lock, "_TIMEOUT", 0.05)
    kernel.fail["VFIO_DEVICE_RESET"] = errno.EAGAIN
    with pytest.raises(errors.Busy, match="close it here; otherwise try again") as caught:
        device.reset()
    assert caught.value.errno == errno.EAGAIN
    assert device.bars[0].read32(4) == 0x07060504, "it answers as before"


# What was given out.


@pytest.mark.parametrize("first", ["device", "space"])
def test_views_of_bars_end_with_the_device(kernel: DeviceKernel, first: str) -> None:
    device = pyvfio.open(function())
    bar = device.bars[0]
    views = [bar.view(), bar.view(8, 4).cast("I"), bar.u32, bar.u8[4:8]]
    bar.release()
    views.append(bar.view())
    assert mapped() == 2
    (device.dma if first == "space" else device).close()
    assert mapped() == 0
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
        with pytest.raises(ValueError, match="released"):
            view[0] = 0
    for use in (lambda: bar.read32(0), lambda: bar.write32(0, 0), bar.view, lambda: bar.u32):
        with pytest.raises(errors.Closed, match=ADDRESS):
            use()
    device.close()


def test_traceback_that_is_kept_keeps_no_device(kernel: DeviceKernel) -> None:
    def work() -> None:
        with pyvfio.open(function()) as device:
            view = device.bars[0].view()
            raise KeyError(view[0])

    with pytest.raises(KeyError) as caught:
        work()
    assert mapped() == 0
    assert kernel.files == {}
    assert caught.value.__traceback__ is not None


def test_array_over_a_bar_reads_ones_afterwards(kernel: DeviceKernel) -> None:
    numpy = pytest.importorskip("numpy")
    with pyvfio.open(function()) as device:
        array = numpy.frombuffer(device.bars[0].view(), "<u4")
        assert array[1] == 0x07060504
    assert mapped() == 0
    assert (array == 0xFFFFFFFF).all()
    array[:] = 7
    assert (array == 7).all()


def test_large_array_over_a_bar_reads_ones_afterwards(kernel: DeviceKernel) -> None:
    size = (4 << 20) + 4096
    fd = os.memfd_create("vfio-device")
    os.ftruncate(fd, size)
    with File(fd, "device") as file:
        view = memory.map_file(file, 0, size, writable=True)
    numpy = pytest.importorskip("numpy")
    array = numpy.frombuffer(view, "u1")
    memory.withdraw([weakref.ref(view.obj)])
    assert mapped() == 0
    assert (array == 0xFF).all()


def test_view_in_use_by_another_thread_is_no_fault(kernel: DeviceKernel) -> None:
    device = pyvfio.open(function())
    bar = device.bars[0]
    ended = []

    def read() -> None:
        view = bar.u32
        try:
            while True:
                view[1]
        except ValueError as error:
            ended.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    device.close()
    for thread in threads:
        thread.join()
    assert len(ended) == 2


def test_bar_that_devices_reach_ends_with_its_device(kernel: DeviceKernel) -> None:
    with pyvfio.open_space() as space:
        other = pyvfio.open(function("0000:01:00.1"), space=space)
        device = pyvfio.open(function(), space=space)
        mapping = space.map(device.bars[0].view(), iova=1 << 32)
        device.close()
        assert mapped() == 0
        mapping.close()
        assert kernel.mappings == {}
        space.map(other.bars[0].view(), iova=1 << 32)
        other.close()
        assert kernel.mappings == {}
        assert mapped() == 0


# Opening.


def test_device_is_not_opened_twice_in_one_space(device: Device, kernel: DeviceKernel) -> None:
    with pytest.raises(errors.StateError, match=f"{ADDRESS} is open in this address space"):
        pyvfio.open(function(), space=device.dma)
    assert len(kernel.devices) == 1
    with pyvfio.open(function("0000:01:00.1"), space=device.dma):
        assert len(kernel.devices) == 2
    assert device.bus_master


@pytest.mark.parametrize(
    "unknown",
    [
        f"region {vfio.VFIO_PCI_BAR0_REGION_INDEX}",
        f"region {vfio.VFIO_PCI_CONFIG_REGION_INDEX}",
        f"irq {vfio.VFIO_PCI_MSIX_IRQ_INDEX}",
    ],
)
def test_index_that_every_device_has_is_not_taken_for_absent(
    kernel: DeviceKernel, unknown: str
) -> None:
    kernel.einval.add(unknown)
    with pytest.raises(errors.KernelError) as caught:
        pyvfio.open(function())
    assert caught.value.errno == errno.EINVAL
    assert kernel.files == {}


@pytest.mark.parametrize(
    "unknown",
    [
        f"region {vfio.VFIO_PCI_VGA_REGION_INDEX}",
        f"irq {vfio.VFIO_PCI_ERR_IRQ_INDEX}",
        f"irq {vfio.VFIO_PCI_REQ_IRQ_INDEX}",
    ],
)
def test_index_that_the_kernel_need_not_know_is_absent(kernel: DeviceKernel, unknown: str) -> None:
    kernel.einval.add(unknown)
    with pyvfio.open(function()) as device:
        assert device.vga is None
        assert device.intx.count == 1


def test_space_without_information_is_not_opened(kernel: DeviceKernel) -> None:
    kernel.fail["VFIO_IOMMU_GET_INFO"] = errno.EINVAL
    with pytest.raises(errors.KernelError, match="VFIO_IOMMU_GET_INFO"):
        pyvfio.open(function())
    assert kernel.files == {}


# Interrupts.


def interrupt(when: str, how: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Let the next ioctl be interrupted, before or after the kernel has done it."""
    real = calls.ioctl

    def ioctl(fd: int, request: int, argument: object) -> int:
        patch.setattr(calls, "ioctl", real)
        if when == "before":
            how()
        result = real(fd, request, argument)
        if when == "after":
            how()
        return result

    patch.setattr(calls, "ioctl", ioctl)


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@HOW
@WHEN
@pytest.mark.parametrize("others", [0, 2], ids=["alone", "beside others"])
def test_interrupted_enable_enables_nothing(
    device: Device,
    kernel: DeviceKernel,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[], None],
    when: str,
    others: int,
) -> None:
    if others:
        device.msix.enable(others)
    before = descriptors()
    interrupt(when, how, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        device.msix.enable(3, start=4)
    assert descriptors() == before
    assert [vector.index for vector in device.msix.enabled] == list(range(others))
    (opened,) = kernel.devices.values()
    assert set(opened.irqs.get(vfio.VFIO_PCI_MSIX_IRQ_INDEX, {})) == set(range(others))
    with device.msix.enable(3, start=4) as vectors:
        device.msix.trigger(4)
        assert vectors[0].wait(10) == 1
    device.msix.disable()
    assert opened.irqs == {}


@HOW
@WHEN
def test_interrupted_disable_can_be_done_again(
    device: Device,
    kernel: DeviceKernel,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[], None],
    when: str,
) -> None:
    before = descriptors()
    device.msi.enable(2)
    interrupt(when, how, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        device.msi.disable()
    device.msi.disable()
    assert descriptors() == before
    with device.intx.enable():
        pass


def test_threads_enable_a_vector_once(device: Device, kernel: DeviceKernel) -> None:
    enabled = []
    start = threading.Barrier(4)

    def enable() -> None:
        start.wait()
        with suppress(errors.StateError):
            enabled.append(device.msix.enable(1))

    assert run(*[enable] * 4, rounds=20) == []
    assert len(enabled) == 1


@HOW
def test_interrupted_opening_leaves_nothing(
    kernel: DeviceKernel, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]
) -> None:
    before = descriptors()
    interrupt("after", how, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pyvfio.open(function())
    assert kernel.files == {}
    assert descriptors() == before
