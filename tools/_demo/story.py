"""One device's part of the demo."""

from __future__ import annotations

import mmap
import os
import time

import pyvfio
from pyvfio import errors, pci
from pyvfio._sys.text import printable
from pyvfio.device import Device, Irq
from pyvfio.drivers import edu

_MANY = 16  # vectors that are shown at work; a device may have thousands


def tell(address: str) -> None:
    """Bind a device, show it at work, give it back."""
    function = pci.Function(address)
    is_edu = (function.vendor_id, function.device_id) == (edu.VENDOR_ID, edu.DEVICE_ID)
    name = "edu, QEMU's teaching device" if is_edu else function.device_name or "unknown device"
    name = printable(name)
    print(f"── {function.address}: {name} ".ljust(72, "─"))
    before = function.driver
    with pci.bound(function.address):
        group = function.iommu_group
        assert group is not None  # or bound() had refused
        _say("bound", f"{before or 'no driver'} -> {function.driver}, IOMMU group {group.id}")
        with pyvfio.open(function) as device:
            _regions(device)
            _memory(device)
            for irq in device.irqs:
                _interrupts(irq)
            if is_edu:
                _edu(device)
            if device.can_reset:
                device.reset()
                _say("reset", "by the kernel, config space restored")
    _say("given back", f"{function.driver or 'no driver'}\n")


def _say(what: str, text: str) -> None:
    print(f"  {what:<11} {text}", flush=True)


def _regions(device: Device) -> None:
    for bar in device.bars.values():
        how = "mapped" if bar.areas else "by pread"
        word = bar.read32(0) if bar.size >= 4 else bar.read8(0)
        _say("registers", f"{bar.name} {bar.size:,} bytes, {how}; at 0x0 it reads {word:#010x}")


def _memory(device: Device) -> None:
    reach = ", ".join(map(str, device.dma.iova_ranges))
    _say("DMA", f"the IOMMU lets it reach {reach}")
    with device.dma.alloc(64 << 10) as buffer:
        _say("DMA", f"a buffer of {buffer.size:,} bytes at IOVA {buffer.iova:#x}")


def _interrupts(irq: Irq) -> None:
    if not irq.count:
        return
    wanted = min(irq.count, _MANY)
    with irq.enable(wanted) as vectors:
        start = time.perf_counter()
        irq.trigger(0, wanted)
        arrived = sum(vector.wait(10) for vector in vectors)
        took = time.perf_counter() - start
    if arrived != wanted:
        raise errors.StateError(f"{arrived} of {wanted} {irq.name} interrupts arrived")
    _say(
        "interrupts",
        f"{irq.name} has {irq.count}; {wanted} fired by loopback, all arrived, "
        f"{took * 1e6:,.0f} us",
    )


def _edu(device: Device) -> None:
    chip = edu.Edu(device)
    vectors = device.msi.enable(1)
    _say("computing", f"the device says 12! = {chip.factorial(12, vectors[0]):,}, and interrupts")
    size = edu.LARGEST
    secret = os.urandom(size)
    with device.dma.alloc(2 * size, max_iova=edu.LAST_IOVA) as buffer:
        source, target = buffer.view[:size], buffer.view[size:]
        source[:] = secret
        chip.read_memory(buffer.iova, size, vectors[0])
        chip.write_memory(buffer.iova + size, size, vectors[0])
        if target != secret:
            raise errors.StateError("the device's DMA did not bring back what was sent")
        _say("DMA", f"{size:,} random bytes to the device and back: identical")
    memory = mmap.mmap(-1, device.dma.page_size)
    with device.dma.map(memory, max_iova=edu.LAST_IOVA) as mapping:
        chip.write_memory(mapping.iova, size)
        reached = memory[:size] == secret
    memory[:] = bytes(len(memory))
    chip.write_memory(mapping.iova, size)
    if not reached or memory[:] != bytes(len(memory)):
        raise errors.StateError("the IOMMU did not isolate the device")
    _say("isolation", "the same DMA after unmapping: stopped by the IOMMU, memory untouched")
    vectors.close()
