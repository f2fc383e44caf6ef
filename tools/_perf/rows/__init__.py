"""The rows of the table, in its order."""

from __future__ import annotations

from tools._perf.row import Row

from . import dma, imports, ioctl, nvme, registers, routes, wakeup

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *registers.ROWS,
        ioctl.ROW,
        dma.ROW,
        nvme.ROW,
        routes.ROW,
        wakeup.ROW,
        *imports.ROWS,
    )
}
