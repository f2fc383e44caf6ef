"""Consoles: the boot display, a framebuffer with the text console, a serial console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below


def users(function: Function) -> Iterator[str]:
    """Which consoles a function carries, one phrase each."""
    here = function.sysfs.resolve()
    if _text(function.sysfs / "boot_vga") == "1":
        yield "it is the boot display"
    if _framebuffer_console():
        for framebuffer in below.devices("graphics", here):
            yield f"framebuffer {framebuffer.name} may show the text console"
    for line in _text(paths.PROC / "consoles").splitlines():
        # "ttyS0  -W- (EC  p a)  4:64"; a console without a terminal has no number.
        name, *_, number = line.split()
        if here in (paths.SYSFS / "dev/char" / number).resolve().parents:
            yield f"{name} is a console"


def _framebuffer_console() -> bool:
    consoles = paths.SYSFS / "class/vtconsole"
    return any(
        "frame buffer" in _text(consoles / name / "name") and _text(consoles / name / "bind") == "1"
        for name in sysfs.entries(consoles)
    )


def _text(path: Path) -> str:
    try:
        return sysfs.read(path)
    except errors.KernelError:
        return ""
