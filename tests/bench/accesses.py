"""Run on the bench by test_access_width: touches registers, and prints what it touched.

Before each access a number is written to edu's liveness register, so that the emulator's trace can
be cut into one piece for each. The devices are those whose emulation takes accesses as they come:
pci-testdev bytes, nvme 16 to 64 bits, edu 32 and 64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack

import pyvfio
from pyvfio.device import Region
from pyvfio.pci import bound

EDU, TESTDEV, NVME = "0000:00:04.0", "0000:00:05.0", "0000:01:00.0"
LIVENESS = 0x04
ADMIN_QUEUE_SIZES, ADMIN_SUBMISSION = 0x24, 0x28  # of nvme; plain registers while it is disabled


def main() -> None:
    """Print {"bars": {BDF: [base, size]}, "accesses": [[BDF, "read", offset, width], ...]}."""
    with ExitStack() as stack:
        bars, where = {}, {}
        for address in (EDU, TESTDEV, NVME):
            function = stack.enter_context(bound(address))
            where[address] = (function.resources[0].start, function.resources[0].size)
            bars[address] = stack.enter_context(pyvfio.open(function)).bars[0]
        done: list[tuple[str, str, int, int]] = []

        def once(
            address: str, kind: str, offset: int, width: int, access: Callable[[], object]
        ) -> None:
            bars[EDU].write32(LIVENESS, len(done))
            access()
            done.append((address, kind, offset, width))

        def by_every_way(address: str, width: int, read: int, write: int, value: int) -> None:
            """Read and write by method (the first access and a later one) and by view."""
            bar: Region = bars[address]
            read_method = getattr(bar, f"read{8 * width}")
            write_method = getattr(bar, f"write{8 * width}")
            view: memoryview = getattr(bar, f"u{8 * width}")
            for _ in range(2):
                once(address, "read", read, width, lambda: read_method(read))
                once(address, "write", write, width, lambda: write_method(write, value))
            once(address, "read", read, width, lambda: view[read // width])
            once(address, "write", write, width, lambda: view.__setitem__(write // width, value))

        by_every_way(TESTDEV, 1, 17, 0, 0)
        by_every_way(NVME, 2, 0x0A, ADMIN_QUEUE_SIZES + 2, 7)
        by_every_way(NVME, 4, 0x08, ADMIN_QUEUE_SIZES, 0x70007)
        by_every_way(NVME, 8, 0x00, ADMIN_SUBMISSION, 0x1234_5678_9ABC_D000)
        by_every_way(EDU, 4, 0x00, 0x08, 1)
        by_every_way(EDU, 8, 0x80, 0x88, 0x1234_5678_9ABC_DEF0)
        bars[EDU].write32(LIVENESS, len(done))  # the end of the last one
        print(json.dumps({"bars": where, "accesses": done}))


if __name__ == "__main__":
    main()
