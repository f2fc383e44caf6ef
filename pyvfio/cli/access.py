"""`pyvfio read` and `pyvfio write`: registers of BARs and config space."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio.cli import common

if TYPE_CHECKING:
    from pyvfio.device import Device, Region

_NUMBER = "0x[0-9a-f]{1,32}|[0-9]{1,32}"
_ACCESS = re.compile(
    rf"(?P<region>bar[0-5]|rom|config|vga)\+(?P<offset>{_NUMBER})"
    rf"(?:/(?P<bits>8|16|32|64))?(?:x(?P<count>[0-9]{{1,32}}))?(?:=(?P<value>{_NUMBER}))?",
    re.IGNORECASE | re.ASCII,
)
_MOST = 1 << 16
"""Accesses of one command."""
_HELP = """\
An ACCESS is REGION+OFFSET[/BITS][xCOUNT][=VALUE]:
  REGION  bar0 to bar5, rom, vga or config (as VFIO shows it)
  OFFSET  bytes, a multiple of the width
  BITS    8, 16, 32 (if not given) or 64: one access of exactly that width
  COUNT   so many registers, one after the other (reading only)
  VALUE   what to write; without it the register is read
Numbers are decimal, or hexadecimal after 0x; other leading zeros are refused. One command makes
65,536 accesses at most.

All accesses of one command happen in one open of the device, in order: opening and closing reset a
device.
"""


@dataclass(frozen=True)
class Access:
    """One read or write of one register; `value` None reads."""

    region: str
    offset: int
    bits: int = 32
    value: int | None = None

    @classmethod
    def parse(cls, text: str) -> list[Access]:
        """The accesses that one argument asks for.

        Raises:
            ArgumentError: it is not of the form that ``pyvfio read --help`` shows.
        """
        match = _ACCESS.fullmatch(text)
        if match is None:
            raise errors.ArgumentError(
                f"{text[:80]!r} is not an access: write REGION+OFFSET[/BITS][xCOUNT][=VALUE], "
                "as in bar0+0x10/32 or config+0x4/16=0x6"
            )
        bits = int(match["bits"] or 32)
        value = None if match["value"] is None else _number(text, match["value"])
        if value is not None and match["count"]:
            raise errors.ArgumentError(f"{text!r}: a count goes with reading only")
        offset = _number(text, match["offset"])
        count = _number(text, match["count"] or "1")
        if not 1 <= count <= _MOST:
            raise errors.ArgumentError(f"{text!r}: a count must be 1 to {_MOST}")
        return [
            cls(match["region"].lower(), offset + number * bits // 8, bits, value)
            for number in range(count)
        ]

    def __str__(self) -> str:
        return f"{self.region}+{self.offset:#x}/{self.bits}"


def _number(text: str, number: str) -> int:
    """A number of an access."""
    if number[0] == "0" and number[1:].isdecimal():
        raise errors.ArgumentError(
            f"{text!r}: {number} can be read as octal, decimal or hexadecimal: write 0x before a "
            "hexadecimal number, and no zeros before a decimal one"
        )
    value = int(number, 0)
    if value >> 64:
        raise errors.ArgumentError(f"{text!r}: {number} must have 64 bits at most")
    return value


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, what, example in (
        ("read", "read registers", "pyvfio read 01:00.0 bar0+0x0/64 bar0+0x14x4 config+0x0/16"),
        ("write", "write (and read) registers", "pyvfio write 01:00.0 bar0+0x14=0x1 bar0+0x1c"),
    ):
        parser = commands.add_parser(
            name,
            help=what,
            description=f"Open a device and {what}.",
            epilog=f"{_HELP}\nexample:\n  sudo {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        common.add_address(parser)
        parser.add_argument("access", metavar="ACCESS", nargs="+", help="see below")
        common.add_json(parser)
        parser.set_defaults(run=run, may_write=name == "write")


def run(options: argparse.Namespace) -> None:
    """Do the accesses in order; print what was read."""
    accesses: list[Access] = []
    for text in options.access:
        accesses += Access.parse(text)
        if len(accesses) > _MOST:
            raise errors.ArgumentError(f"one command makes {_MOST} accesses at most")
    for access in accesses:
        if access.value is not None and not options.may_write:
            raise errors.ArgumentError(f"{access} has a value: use `pyvfio write` to write")
    import pyvfio

    function = common.function(options.address)
    common.say_if_frozen(function)
    with pyvfio.open(function) as device:
        values = []
        for access, value in _perform(device, accesses):
            if options.json:
                values.append({**vars(access), "value": value})
            elif access.value is None:
                print(f"{access}  {value:#0{access.bits // 4 + 2}x}")
    if options.json:
        common.print_json(values)


def _perform(device: Device, accesses: list[Access]) -> Iterator[tuple[Access, int]]:
    for access in accesses:
        region = _region(device, access.region)
        if access.value is None:
            yield access, getattr(region, f"read{access.bits}")(access.offset)
        else:
            getattr(region, f"write{access.bits}")(access.offset, access.value)
            yield access, access.value


def _region(device: Device, name: str) -> Region:
    if name.startswith("bar"):
        return device.bars[int(name[3:])]
    for region in device.regions.values():
        if region.name.lower() == name:
            return region
    hidden = device.function.resources[6].size if name == "rom" else 0
    if hidden:
        raise errors.RangeError(
            f"VFIO shows no ROM of {device.address}: the device has a ROM BAR of {hidden} bytes, "
            "and what can be read there does not begin with 55 aa, as a PCI expansion ROM does"
        )
    raise errors.RangeError(f"{device.address} has no region {name}")
