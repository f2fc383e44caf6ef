"""Vital Product Data: part and serial numbers, behind a window of four bytes (PCIe 5.0, 7.9.19)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pyvfio.abi import pci_regs as pci
from pyvfio.errors import MalformedConfig, Unsupported
from pyvfio.pci.capabilities.base import StandardCapability
from pyvfio.pci.registers import u16, u32

_IDENTIFIER = 0x82
_READ_ONLY = 0x90
_WRITABLE = 0x91
_LARGE = 0x80
_SMALL_END = 0x0F
_MAX_SIZE = pci.PCI_VPD_ADDR_MASK + 1
_MAX_SECONDS = 60.0
"""For loading all of it: a device that is just in time for each four bytes would take an hour."""


@dataclass(frozen=True)
class Vpd:
    """The product data of a device (PCIe 5.0, 6.28).

    Attributes:
        identifier: the product's name.
        read_only: by keyword: ``PN`` part number, ``SN`` serial number, ``EC`` engineering
            change, ``MN`` manufacturer, ``V0``.. vendor's own; the first, if one comes twice.
        writable: the same for what software may change (``YA`` asset tag, ...).
        checksum_ok: whether the bytes up to the checksum (the first ``RV``) sum up to zero; None
            without.
    """

    identifier: str = ""
    read_only: dict[str, bytes] = field(default_factory=dict)
    writable: dict[str, bytes] = field(default_factory=dict)
    checksum_ok: bool | None = None

    @classmethod
    def parse(cls, data: bytes) -> Vpd:
        """Decode it, e.g. the contents of the ``vpd`` file in sysfs.

        Raises:
            MalformedConfig: a resource or keyword runs beyond its end, or there is no end tag
                within the 32 KiB that VPD can have.
        """
        size = min(len(data), _MAX_SIZE)

        def fetch(offset: int, length: int) -> bytes:
            if offset + length > size:
                raise MalformedConfig(
                    f"the VPD ends after {size} bytes, inside of a resource: it has no end tag"
                )
            return data[offset : offset + length]

        return _decode(fetch)


Fetch = Callable[[int, int], bytes]


def _decode(fetch: Fetch) -> Vpd:
    identifier = ""
    checksum_ok: bool | None = None
    keywords: dict[int, dict[str, bytes]] = {_READ_ONLY: {}, _WRITABLE: {}}
    for tag, start, data in _resources(fetch):
        if tag == _IDENTIFIER:
            identifier = data.decode("latin-1").rstrip("\0 ")
        for keyword, at, value in _keywords(data) if tag in keywords else ():
            keywords[tag].setdefault(keyword, value)
            # The first one only: a sum for each of thousands would take seconds.
            if tag == _READ_ONLY and keyword == "RV" and value and checksum_ok is None:
                checksum_ok = sum(fetch(0, start + at + 1)) % 256 == 0
    return Vpd(identifier, keywords[_READ_ONLY], keywords[_WRITABLE], checksum_ok)


def _resources(fetch: Fetch) -> Iterator[tuple[int, int, bytes]]:
    """(tag, offset of the data, data) of each large resource up to the end tag."""
    at = 0
    while True:
        tag = fetch(at, 1)[0]
        if tag in (0x00, 0xFF):  # an EEPROM that nobody programmed
            raise MalformedConfig(f"the VPD reads {tag:#04x} at {at:#x}, before any end tag")
        if tag & _LARGE:
            length = int.from_bytes(fetch(at + 1, 2), "little")
            yield tag, at + 3, fetch(at + 3, length)
            at += 3 + length
        elif tag >> 3 == _SMALL_END:
            return
        else:
            at += 1 + (tag & 7)


def _keywords(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(keyword, offset of its value, value) of each entry of a VPD-R or VPD-W resource."""
    at = 0
    while at + 3 <= len(data):
        start, end = at + 3, at + 3 + data[at + 2]
        if end > len(data):
            raise MalformedConfig(
                f"the VPD keyword {data[at : at + 2]!r} runs beyond the end of its resource"
            )
        yield data[at : at + 2].decode("latin-1"), start, data[start:end]
        at = end


class VpdCapability(StandardCapability, id=pci.PCI_CAP_ID_VPD, length=pci.PCI_CAP_VPD_SIZEOF):
    """The window to the product data."""

    address = u16(pci.PCI_VPD_ADDR, pci.PCI_VPD_ADDR_MASK)
    completed = u16(pci.PCI_VPD_ADDR, pci.PCI_VPD_ADDR_F, bool)
    data = u32(pci.PCI_VPD_DATA)

    def load(self, timeout: float = 0.25) -> Vpd:
        """Read the product data through the window, up to its end tag; in a minute at most.

        Only on a live device; where the host's driver may use the window at the same time, read
        sysfs' ``vpd`` instead (:meth:`Vpd.parse`).

        Args:
            timeout: seconds that the device may take for each four bytes.

        Raises:
            MalformedConfig: it is not in the format of the specification.
            Unsupported: the device did not answer in time, or this is a saved dump.
        """
        loaded = bytearray()
        end = time.monotonic() + _MAX_SECONDS

        def fetch(offset: int, length: int) -> bytes:
            if offset + length > _MAX_SIZE:
                raise MalformedConfig(f"the VPD has no end tag within {_MAX_SIZE} bytes")
            while len(loaded) < offset + length:
                if time.monotonic() > end:
                    raise Unsupported(
                        f"the device delivered {len(loaded)} bytes of its VPD in "
                        f"{_MAX_SECONDS:g} s, and there is no end tag yet"
                    )
                loaded.extend(self._load4(len(loaded), timeout))
            return bytes(loaded[offset : offset + length])

        return _decode(fetch)

    def _load4(self, address: int, timeout: float) -> bytes:
        self.write(pci.PCI_VPD_ADDR, 2, address)
        deadline = time.monotonic() + timeout
        while not self.completed:
            if time.monotonic() > deadline:
                raise Unsupported(
                    f"the device did not deliver its VPD at {address:#x} within {timeout} s; "
                    "it may have none in spite of the capability"
                )
            time.sleep(0.0001)
        return self.data.to_bytes(4, "little")
