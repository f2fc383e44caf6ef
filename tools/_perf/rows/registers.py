"""Register read and write.

The registers are a page of memory: what is measured is the way to the load or store, and no bus.
Every contender maps the same page in its own way, the one it offers for devices.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvfio._sys import File, memory
from pyvfio.abi import vfio
from pyvfio.device import Area, Region
from tools._perf.measure import interleave, statement
from tools._perf.peers import Absent
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
        with File(fd, "registers") as file, mmap.mmap(fd, PAGE) as page:
            bar = _region(file)
            bar.write32(OFFSET, VALUE)  # maps it
            with memoryview(page) as bare, bare.cast("I") as items:
                contenders = {
                    BARE: statement(self.item.format("items"), items=items, **names),
                    VIEW: statement(self.item.format("u32"), u32=bar.u32, **names),
                    EACH: statement(self.item.format("bar.u32"), bar=bar, **names),
                    self.method: statement(self.call.format("bar"), bar=bar, **names),
                }
                absent = {}
                with contextlib.ExitStack() as stack:
                    for name, make, code in (
                        (TINYGRAD, _tinygrad, self.item),
                        (PERIPHERY, _periphery, self.call),
                    ):
                        try:
                            peer = stack.enter_context(make(setting, file))
                        except Absent as reason:
                            absent[name] = str(reason)
                        else:
                            contenders[name] = statement(code.format("peer"), peer=peer, **names)
                    costs = interleave(contenders, setting.progress)
                    contenders.clear()
                return Samples(costs, absent)
