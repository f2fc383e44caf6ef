"""Consoles: the boot display, screens, serial lines, and the text console's own devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio._sys.text import printable
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below

_KEY_ENTER = 28  # linux/input-event-codes.h


def users(function: Function) -> Iterator[str]:
    """Which consoles a function carries, one phrase each."""
    here = function.sysfs.resolve()
    if _text(function.sysfs / "boot_vga") == "1":
        yield "it is the boot display"
    if _framebuffer_console():
        for framebuffer in below.devices("graphics", here):
            yield f"framebuffer {framebuffer.name} may show the text console"
    for connector in below.devices("drm", here):
        # "card0-HDMI-A-1"; reading these does not ask the screen.
        if _text(connector / "enabled") == "enabled":
            yield f"graphics output {connector.name} shows a picture"
    yield from _keyboards(here)
    for line in _text(paths.PROC / "consoles").splitlines():
        # "ttyS0  -W- (EC  p a)  4:64"; a console without a terminal has no number.
        name, *_, number = line.split()
        if here in (paths.SYSFS / "dev/char" / number).resolve().parents:
            yield f"{name} is a console"


def _keyboards(here: Path) -> Iterator[str]:
    """The keyboards that type on the text console: no process has them open for that."""
    for text in _text(paths.PROC / "bus/input/devices").split("\n\n"):
        name, device, handlers, keys = (
            match[1] if (match := re.search(expression, text, re.MULTILINE)) else ""
            for expression in (
                r'^N: Name="(.*)"$',
                r"^S: Sysfs=/devices/(.*)$",
                r"^H: Handlers=(.*)$",
                r"^B: KEY=.*?([0-9a-f]+) *$",
            )
        )
        # Cameras and headsets with a button have that handler as well, but no key to end a line.
        types = "kbd" in handlers.split() and keys and int(keys, 16) >> _KEY_ENTER & 1
        if types and below.is_below(device, below.place(here)):
            yield f"keyboard {printable(name)} types on the console"


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
