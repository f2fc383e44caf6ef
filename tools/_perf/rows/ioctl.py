"""An ioctl that does next to nothing: FIONREAD on an empty pipe, which fills its argument."""

from __future__ import annotations

import ctypes
import fcntl
import os

from pyvfio._sys import File
from pyvfio.abi.ioctl import HOST, IO, IOR, POWERPC
from tools._perf.measure import interleave, statement
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

OURS = "File.ioctl"
FCNTL = "fcntl.ioctl"
CTYPES = "ctypes libc.ioctl"

FIONREAD = (
    IOR("FIONREAD", ord("f"), 127, ctypes.c_int) if HOST is POWERPC else IO("FIONREAD", 0x54, 0x1B)
)


def _measure(setting: Setting) -> Samples:
    reader, writer = os.pipe()
    os.close(writer)
    answer = ctypes.c_int()
    with File(reader, "pipe") as pipe:
        held = {"fd": reader, "request": int(FIONREAD), "answer": answer}
        contenders = {
            OURS: statement(
                "pipe.ioctl(request, answer)", **{**held, "request": FIONREAD}, pipe=pipe
            ),
            FCNTL: statement("ioctl(fd, request, answer)", **held, ioctl=fcntl.ioctl),
            CTYPES: statement(
                "ioctl(fd, request, pointer)",
                **held,
                ioctl=ctypes.CDLL(None, use_errno=True).ioctl,
                pointer=ctypes.byref(answer),
            ),
        }
        return Samples(interleave(contenders, setting.progress))


ROW = Row(
    "ioctl",
    "ioctl call",
    "ns",
    (Comparison(OURS, FCNTL, Aim(1.5)), Comparison(OURS, CTYPES)),
    _measure,
)
