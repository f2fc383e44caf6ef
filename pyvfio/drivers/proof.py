"""Whether a device works: that it does DMA and interrupts, as its driver here can show."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio import errors
from pyvfio.device import Device
from pyvfio.drivers import e1000e, edu

_TIMEOUT = 30.0  # seconds


def prove(device: Device) -> str:
    """Use a device: let it read and write memory, and interrupt. It is reset, if its driver needs
    that; interrupts are off before and after.

    Returns:
        What works, in words. Of a device without a driver here DMA cannot be told; that the kernel
        delivers its interrupts can (VFIO's loopback).

    Raises:
        StateError: DMA or an interrupt did not arrive.
        Error: the device could not be used.
    """
    ids = device.config.vendor_id, device.config.device_id
    return _PROOFS.get(ids, _of_any)(device)


def _of_edu(device: Device) -> str:
    driver = edu.Edu(device)
    data = bytes(range(256))
    with device.dma.alloc(256, max_iova=edu.LAST_IOVA) as buffer, device.msi.enable(1) as vectors:
        buffer.view[:] = data
        driver.read_memory(buffer.iova, len(data), vectors[0])
        buffer.view[:] = bytes(len(data))
        driver.write_memory(buffer.iova, len(data), vectors[0])
        if bytes(buffer.view) != data:
            raise errors.StateError(f"{device.address} wrote other data than it had read")
    return "256 bytes read and written by DMA, an MSI for each"


def _of_e1000e(device: Device) -> str:
    driver = e1000e.Intel82574(device)
    size = driver.transmit()
    driver.interrupt()
    return f"a frame of {size} bytes fetched by DMA, its descriptor written back, an MSI-X arrived"


def _of_any(device: Device) -> str:
    no_dma = "DMA is not proven (pyvfio has no driver for the device)"
    for irq in (device.msix, device.msi):
        if irq.count:
            with irq.enable(1) as vectors:
                irq.trigger()
                if not vectors[0].wait(_TIMEOUT):
                    raise errors.StateError(
                        f"{device.address}: {irq.name} vector 0 is not signalled"
                    )
            return f"{irq.name} vector 0 arrives by VFIO's loopback; {no_dma}"
    return f"it has neither MSI nor MSI-X; {no_dma}"


_PROOFS: dict[tuple[int, int], Callable[[Device], str]] = {
    (edu.VENDOR_ID, edu.DEVICE_ID): _of_edu,
    (e1000e.VENDOR_ID, e1000e.DEVICE_ID): _of_e1000e,
}
