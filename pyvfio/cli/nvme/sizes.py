"""Sizes, rates and times, as people write them and read them."""

from __future__ import annotations

import argparse
import re

from pyvfio import errors

_SIZE = re.compile(
    r"(?P<number>0x[0-9a-f]{1,16}|0|[1-9][0-9]{0,18})\s*(?:(?P<unit>[kmgt])(?:ib)?|b)?",
    re.IGNORECASE | re.ASCII,
)
_MOST = (1 << 63) - 1  # bytes: an offset in a file has no more
_UNITS = "kmgt"


def parse(text: str) -> int:
    """The bytes that "4096", "0x1000", "4K", "64MiB" or "1G" spell: units are powers of 1,024.

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a size: write bytes, or 4K, 1M, 64MiB, 1G (powers of 1024)"
        )
    unit = (match["unit"] or "").lower()
    size = int(match["number"], 0) << 10 * (_UNITS.index(unit) + 1 if unit else 0)
    if size > _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is more than any disk or file has")
    return size


def at_least(least: int, option: str, number: int) -> int:
    """An option's number, which is not less.

    Raises:
        ArgumentError: it is.
    """
    if number < least:
        raise errors.ArgumentError(f"{option} is at least {least}, not {number}")
    return number


def in_blocks(option: str, size: int, block_size: int) -> int:
    """An option's bytes as a number of blocks.

    Raises:
        ArgumentError: it is no whole one.
    """
    if size % block_size:
        raise errors.ArgumentError(
            f"{option} {size} is no multiple of the disk's blocks, which have {block_size} bytes"
        )
    return size // block_size


def words(size: float) -> str:
    """A number of bytes: "512 bytes", "4 KiB", "1.5 GiB"."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1 << 10 * exponent:
            # A whole number where it is one.
            return f"{size / (1 << 10 * exponent):.1f}".removesuffix(".0") + f" {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """A time: "7 s", "2:05 min", "1:02:03 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
