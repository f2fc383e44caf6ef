"""Names of vendors, devices and classes, from the system's pci.ids where there is one."""

from __future__ import annotations

from functools import lru_cache

from pyvfio._sys import sysfs
from pyvfio.errors import KernelError
from pyvfio.pci import paths

# Debian and Fedora; Arch and others; update-pciids(8).
_PLACES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids")

# PCI Code and ID Assignment Specification, section 1: enough to read a list without pci.ids.
_BASE_CLASSES = {
    0x00: "Unclassified device",
    0x01: "Mass storage controller",
    0x02: "Network controller",
    0x03: "Display controller",
    0x04: "Multimedia controller",
    0x05: "Memory controller",
    0x06: "Bridge",
    0x07: "Communication controller",
    0x08: "System peripheral",
    0x09: "Input device controller",
    0x0A: "Docking station",
    0x0B: "Processor",
    0x0C: "Serial bus controller",
    0x0D: "Wireless controller",
    0x0E: "Intelligent controller",
    0x0F: "Satellite communications controller",
    0x10: "Encryption controller",
    0x11: "Signal processing controller",
    0x12: "Processing accelerator",
    0x13: "Non-essential instrumentation",
}


class PciIds:
    """The text of a pci.ids file, looked up without parsing it as a whole.

    Args:
        text: the file's contents; an empty one names nothing.
    """

    def __init__(self, text: bytes) -> None:
        self._text = b"\n" + text

    def vendor(self, vendor: int) -> str | None:
        """A vendor's name."""
        return self._name(b"\n%04x  " % vendor)

    def device(self, vendor: int, device: int) -> str | None:
        """A device's name."""
        return self._name(b"\n%04x  " % vendor, b"\n\t%04x  " % device)

    def device_class(self, code: int) -> str | None:
        """The name of a class, of its subclass if that has one.

        Args:
            code: 24 bits: base class, subclass, programming interface.
        """
        base, subclass = b"\nC %02x  " % (code >> 16), b"\n\t%02x  " % (code >> 8 & 0xFF)
        return self._name(base, subclass) or self._name(base)

    def _name(self, *keys: bytes) -> str | None:
        """The name after the last key, each key looked for within the entry of the one before."""
        start, end = 0, len(self._text)
        for key in keys:
            found = self._text.find(key, start, end)
            if found < 0:
                return None
            start = found + len(key)
            # A top-level entry ends where the next one begins: a line without a tab or a comment.
            end = _end_of_entry(self._text, start, end)
        return self._text[start:].split(b"\n", 1)[0].decode(errors="replace").strip()


def _end_of_entry(text: bytes, start: int, end: int) -> int:
    position = start
    while (position := text.find(b"\n", position, end)) >= 0:
        if text[position + 1 : position + 2] not in (b"\t", b"#"):
            return position
        position += 1
    return end


def vendor_name(vendor: int) -> str | None:
    """A vendor's name, or None where the system does not know it."""
    return _system_ids().vendor(vendor)


def device_name(vendor: int, device: int) -> str | None:
    """A device's name, or None where the system does not know it."""
    return _system_ids().device(vendor, device)


def class_name(code: int) -> str | None:
    """The name of a 24-bit class code; without pci.ids, that of its base class."""
    return _system_ids().device_class(code) or _BASE_CLASSES.get(code >> 16)


@lru_cache(maxsize=1)
def _system_ids() -> PciIds:
    for place in _PLACES:
        try:
            return PciIds(sysfs.read_bytes(paths.ROOT / place))
        except KernelError:
            continue
    return PciIds(b"")
