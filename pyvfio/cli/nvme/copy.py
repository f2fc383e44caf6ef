"""`pyvfio nvme copy`: a whole disk to a file, a file to a disk, a disk to a disk."""

from __future__ import annotations

import argparse
import glob
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from pyvfio import errors
from pyvfio._sys.text import printable
from pyvfio.cli import common
from pyvfio.cli.nvme import ends, holding, pipe, sizes, transfer
from pyvfio.cli.nvme.meter import Meter
from pyvfio.pci import Address

_DISK = re.compile(
    r"(?P<address>(?:[0-9a-f]{1,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-9a-f])"
    r"(?::(?P<namespace>[0-9]+))?",
    re.IGNORECASE | re.ASCII,
)
_MOST_DIGITS = 10  # of a namespace's number, which has 32 bits
_EPILOG = """\
SOURCE and DESTINATION are each
  BDF[:NAMESPACE]   an NVMe disk, driven from here: 0000:01:00.0, 01:00.0:2
  a path            a file; or a disk of the kernel's, if nobody uses it: backup.img, /dev/sda
  -                 standard input or output
A file whose name looks like an address is written ./01:00.0.

A file is made, or overwritten, without asking; a disk is not. Everything is flushed at the end.

examples:
  sudo pyvfio nvme copy 0000:01:00.0 backup.img --verify
  sudo pyvfio nvme copy backup.img 0000:01:00.0
  sudo pyvfio nvme copy 0000:01:00.0 0000:03:00.0 --yes --verify
  sudo pyvfio nvme copy 0000:01:00.0 - | zstd > backup.zst
"""


@dataclass(frozen=True)
class Place:
    """What an argument names: a disk, or a file where `address` is None."""

    text: str
    address: Address | None = None
    namespace: int | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """What a text names; what does not look like an address is a file.

        Raises:
            ArgumentError: it looks like an address, and its numbers are out of range.
        """
        match = _DISK.fullmatch(text)
        if match is None:
            return cls(text)
        namespace = None
        if match["namespace"] is not None:
            if len(match["namespace"]) > _MOST_DIGITS:
                raise errors.ArgumentError(
                    f"{text[:40]!r}: a namespace's number must have {_MOST_DIGITS} digits at most"
                )
            namespace = int(match["namespace"])
        return cls(text, Address.parse(match["address"]), namespace)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "copy",
        help="a whole disk to a file, a file to a disk, a disk to a disk",
        description="Copy a disk or a file. The device reads and writes the very memory that the "
        "file is read into, with many transfers under way.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("source", "destination"):
        argument = parser.add_argument(name, metavar=name.upper(), help="see below")
        argument.completer = _places  # type: ignore[attr-defined]
    parser.add_argument(
        "--size", type=sizes.parse, help="so many bytes, as 64MiB (default: all of the source)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read both again afterwards, and compare"
    )
    transfer.add_pad(parser)
    holding.add_yes(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    source_place, target_place = Place.parse(options.source), Place.parse(options.destination)
    _check_places(source_place, target_place)
    if target_place.address is not None:
        holding.check_can_ask(options)
    with ExitStack() as stack:
        pieces = pipe.Pieces(options.size)
        # Files first: a disk of the kernel's is claimed thereby, and is not taken from under us.
        files = {
            place: stack.enter_context(closing(ends.FileEnd(place.text, writing=writing)))
            for place, writing in ((source_place, False), (target_place, True))
            if place.address is None
        }
        is_kernels = target_place in files and files[target_place].is_disk
        if is_kernels:
            holding.check_can_ask(options)
        # Two namespaces may have the same controller, which is held once.
        held = {
            address: stack.enter_context(holding.opened(str(address), pieces.memory))
            for address in dict.fromkeys((source_place.address, target_place.address))
            if address is not None
        }
        disks = {
            place: holding.namespace(held[place.address], place.namespace)
            for place in (source_place, target_place)
            if place.address is not None
        }
        source, target = (
            files.get(place) or ends.DiskEnd(f"{place.address}:{disks[place].id}", disks[place])
            for place in (source_place, target_place)
        )
        size = _size(options, source, target)
        if not options.yes:
            part = "some or all of" if size is None else f"the first {sizes.words(size)} of"
            if target_place.address is not None:
                holding.ask(part, held[target_place.address], disks[target_place])
            elif is_kernels:
                holding.confirm(f"{part} the disk {target.name}")
        with _progress_told(source, target, size) as meter:
            wrote = pipe.copy(source, target, size, pieces, meter, pad=options.pad)
        said = f"{sizes.words(wrote)} copied from {source.name} to {target.name}"
        if options.verify:
            with Meter("verify", wrote) as meter:
                pipe.compare(source, target, wrote, pieces, meter)
            said += ", read back and found the same"
        print(printable(said), file=sys.stderr)


def _check_places(source: Place, target: Place) -> None:
    if source.address is None and target.address is None:
        raise errors.ArgumentError(
            f"neither {source.text} nor {target.text} is a PCI address: copy files with cp or dd"
        )
    namespaces = {source.namespace, target.namespace}
    if source.address == target.address and (None in namespaces or len(namespaces) == 1):
        raise errors.ArgumentError(f"source and destination are both {source.address}")


def _size(options: argparse.Namespace, source: ends.End, target: ends.End) -> int | None:
    """Bytes to copy; None for all that comes."""
    if options.verify and not (source.again and target.again):
        name = target.name if source.again else source.name
        raise errors.ArgumentError(f"--verify reads both again, and {name} cannot be")
    size: int | None = options.size if options.size is not None else source.size
    if size is not None and source.size is not None and size > source.size:
        raise errors.RangeError(
            f"{source.name} has {sizes.words(source.size)} ({source.size} bytes), not "
            f"{sizes.words(size)}"
        )
    if size is not None:
        sizes.in_blocks("--size", size, source.grain)
    transfer.check_fits(source, target, size, pad=options.pad)
    return size


@contextmanager
def _progress_told(source: ends.End, target: ends.End, size: int | None) -> Iterator[Meter]:
    """A meter; whatever ends the copy early, it is said how far it got."""
    with Meter("copy", size) as meter:
        try:
            yield meter
        except BaseException:
            of = "" if size is None else f" of {size:,}"
            common.notice(
                f"stopped after {meter.done:,}{of} bytes from {source.name}; {target.name} is not "
                "complete"
            )
            raise


def _places(prefix: str = "", **_: object) -> list[str]:
    """What an end may be, for tab completion."""
    return [*common.addresses(), *glob.glob(glob.escape(prefix) + "*")]
