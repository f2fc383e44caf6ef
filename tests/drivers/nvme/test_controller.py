"""A controller's life, good and bad, on a modelled one."""

from __future__ import annotations

from pyvfio.drivers import nvme

from .model import BLOCK, BLOCKS, Device


def test_what_is_written_is_read(device: Device, disk: nvme.Namespace) -> None:
    data = bytes(range(256)) * 2 * 20
    disk.write(3, data)
    assert device.nvme.disk[3 * BLOCK : 23 * BLOCK] == data
    assert disk.read(3, 20) == data
    assert disk.blocks == BLOCKS
