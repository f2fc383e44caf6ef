"""Register read and write.

The registers are a page of memory: what is measured is the way to the load or store, and no bus.
Every contender maps the same page in its own way, the one it offers for devices.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from pyvfio._sys import File, memory
from pyvfio.abi import vfio
from pyvfio.device import Area, Region
from tools._perf.measure import interleave, statement
from tools._perf.peers import Absent, Peers
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

PAGE = mmap.PAGESIZE
OFFSET = 0x40
VALUE = 0x12345678

BARE = "memoryview item"
VIEW = "u32 = bar.u32; u32[i]"
EACH = "bar.u32[i]"
TINYGRAD = "tinygrad MMIOInterface"
PERIPHERY = "python-periphery MMIO"

_BARE_COST = Aim(1.05)  # the same instruction; the rest is the machine's noise
_METHOD = Aim(3.5, wish=2.5)
_AHEAD = Aim(1.0)


@dataclass(frozen=True)
class _Access:
    """One direction: what a contender's user writes. `i` counts items, `offset` bytes."""

    name: str
    method: str
    item: str
    call: str

    @property
    def row(self) -> Row:
        comparisons = (
            Comparison(VIEW, BARE, _BARE_COST),
            Comparison(self.method, BARE, _METHOD),
            Comparison(self.method, TINYGRAD, _AHEAD),
            Comparison(self.method, PERIPHERY, _AHEAD),
            Comparison(EACH, BARE),
        )
        return Row(self.name, f"register {self.name}", "ns", comparisons, self.measure)

    def measure(self, setting: Setting) -> Samples:
        names = {"i": OFFSET // 4, "offset": OFFSET, "value": VALUE}
        fd = os.memfd_create("registers")
        os.ftruncate(fd, PAGE)
        with File(fd, "registers") as file:
            bar = _region(file)
            bar.write32(OFFSET, VALUE)  # maps it
            page = memoryview(mmap.mmap(fd, PAGE)).cast("I")
            contenders = {
                BARE: statement(self.item.format("page"), page=page, **names),
                VIEW: statement(self.item.format("u32"), u32=bar.u32, **names),
                self.method: statement(self.call.format("bar"), bar=bar, **names),
                EACH: statement(self.item.format("bar.u32"), bar=bar, **names),
            }
            absent = {}
            for name, make, code in (
                (TINYGRAD, _tinygrad, self.item),
                (PERIPHERY, _periphery, self.call),
            ):
                try:
                    peer = make(setting.peers, fd)
                except Absent as reason:
                    absent[name] = str(reason)
                else:
                    contenders[name] = statement(code.format("peer"), peer=peer, **names)
            return Samples(interleave(contenders, setting.progress), absent)


ROWS = (
    _Access("read", "bar.read32(offset)", "{}[i]", "{}.read32(offset)").row,
    _Access("write", "bar.write32(offset, v)", "{}[i] = value", "{}.write32(offset, value)").row,
)


def _region(file: File) -> Region:
    """A BAR that is this file; a device's has the same class, and a device's descriptor in it."""
    return Region(
        file,
        vfio.VFIO_PCI_BAR0_REGION_INDEX,
        "BAR0",
        flags=vfio.VFIO_REGION_INFO_FLAG_READ | vfio.VFIO_REGION_INFO_FLAG_WRITE,
        size=PAGE,
        offset=0,
        areas=(Area(0, PAGE),),
        refuse=lambda: None,
    )


def _tinygrad(peers: Peers, fd: int) -> object:
    """It takes an address and keeps nothing alive; made as tinygrad's PCIDevice makes it."""
    hcq = peers.load("tinygrad", "tinygrad.runtime.support.hcq")
    page = mmap.mmap(fd, PAGE)
    peer = hcq.MMIOInterface(memory.address_of(page), PAGE, fmt="I")
    peer.keeps = page
    return peer


def _periphery(peers: Peers, fd: int) -> object:
    """It opens /dev/mem, or the file that it is given."""
    return peers.load("python-periphery", "periphery").MMIO(0, PAGE, path=f"/proc/self/fd/{fd}")
