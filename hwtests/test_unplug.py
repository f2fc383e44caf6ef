"""The device is taken out while it is open: the host asks for it, waits, and gets it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from hwtests.bench import ON_BENCH
from hwtests.holdings import Holdings
from pyvfio import errors
from pyvfio.pci import Function, bind
from pyvfio.pci.config import BarKind

WAIT = 60.0
RESCAN = Path("/sys/bus/pci/rescan")


@pytest.mark.skipif(
    not ON_BENCH, reason="removes the device from the host's bus: on the bench only"
)
def test_the_host_waits_until_we_let_go(function: Function) -> None:
    if function.physical_function is not None:
        pytest.skip("a virtual function comes back only with all others of its physical function")
    before = Holdings.now()
    with pyvfio.open(function) as device, device.req.enable() as vectors:
        device.dma.alloc(4096)
        with removed(function) as removing:
            assert vectors[0].wait(WAIT), "REQ tells that the host wants the device"
            assert removing.poll() is None, "and waits for it"
            assert device.config.class_code == function.class_code
            for bar in device.config.bars:
                if bar.kind is not BarKind.IO:
                    device.bars[bar.index].read32(0)
            device.close()
            assert removing.wait(WAIT) == 0
            assert Holdings.now() == before
            assert not function.sysfs.exists()
            for address in (function, str(function.address)):
                with pytest.raises(errors.DeviceNotFound, match="pyvfio list"):
                    pyvfio.open(address)
    with pyvfio.open(function) as device:
        assert device.config.class_code == function.class_code


@contextlib.contextmanager
def removed(function: Function) -> Iterator[subprocess.Popen[bytes]]:
    """The host removes the device, and finds it again at the end."""
    process = subprocess.Popen(["sh", "-c", f"echo 1 > {function.sysfs}/remove"])
    try:
        yield process
    finally:
        try:
            process.wait(WAIT)
        finally:
            RESCAN.write_text("1")
            bind(function.address)
