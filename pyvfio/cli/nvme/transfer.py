"""`pyvfio nvme read` and `write`: blocks of a namespace, to and from files, pipes, the terminal."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio.cli import common
from pyvfio.cli.nvme import ends, holding, pipe, sizes
from pyvfio.cli.nvme.meter import Meter

if TYPE_CHECKING:
    from pyvfio.drivers.nvme import Namespace

_READ_EXAMPLES = """\
examples:
  sudo pyvfio nvme read 0000:01:00.0                             # block 0, as a hex dump
  sudo pyvfio nvme read 0000:01:00.0 --lba 2048 --blocks 8
  sudo pyvfio nvme read 0000:01:00.0 --offset 1M --size 64MiB -o part.img
  sudo pyvfio nvme read 0000:01:00.0 --size 1M | sha256sum
"""
_WRITE_EXAMPLES = """\
examples:
  sudo pyvfio nvme write 0000:01:00.0 --lba 2048 part.img
  printf hello | sudo pyvfio nvme write 0000:01:00.0 --lba 7 --pad --yes -
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    read = commands.add_parser(
        "read",
        help="read blocks: as a hex dump, into a file, or raw into a pipe",
        description="Read blocks of a namespace. A terminal shows them as a hex dump; a pipe gets "
        "the bytes themselves.",
        epilog=_READ_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(read)
    holding.add_namespace(read)
    _add_start(read, required=False)
    length = read.add_mutually_exclusive_group()
    length.add_argument("--blocks", type=int, metavar="N", help="how many (default: 1)")
    length.add_argument("--size", type=sizes.parse, help="the same in bytes, as 4K or 64MiB")
    read.add_argument("-o", "--output", metavar="FILE", help="write them to a file")
    read.add_argument("--hex", action="store_true", help="a hex dump, into a pipe as well")
    read.set_defaults(run=run_read)
    write = commands.add_parser(
        "write",
        help="overwrite blocks with a file or what comes from a pipe",
        description="Overwrite blocks of a namespace, and flush them. What is overwritten is shown "
        "and must be confirmed.",
        epilog=_WRITE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(write)
    write.add_argument("file", metavar="FILE|-", help="what to write; - is standard input")
    holding.add_namespace(write)
    _add_start(write, required=True)
    add_pad(write)
    holding.add_yes(write)
    write.set_defaults(run=run_write)


def add_pad(parser: argparse.ArgumentParser) -> None:
    """The option --pad."""
    parser.add_argument("--pad", action="store_true", help="fill the last block with zeros")


def _add_start(parser: argparse.ArgumentParser, *, required: bool) -> None:
    start = parser.add_mutually_exclusive_group(required=required)
    default = "" if required else " (default: 0)"
    start.add_argument("--lba", type=int, metavar="N", help=f"the first block{default}")
    start.add_argument("--offset", type=sizes.parse, help="the same in bytes, as 4K or 64MiB")


def run_read(options: argparse.Namespace) -> None:
    as_hex = options.hex or (options.output is None and sys.stdout.isatty())
    if options.hex and options.output is not None:
        raise errors.ArgumentError("--hex goes to standard output: redirect it instead of -o")
    pieces = pipe.Pieces(options.size)
    with holding.opened(options.address, pieces.memory) as controller, ExitStack() as stack:
        disk = holding.namespace(controller, options.namespace)
        lba = _first(disk, options)
        blocks = _blocks(disk, options)
        if lba + blocks > disk.blocks:
            raise errors.RangeError(
                f"blocks {lba} to {lba + blocks - 1} are not all there: namespace {disk.id} has "
                f"{disk.blocks}"
            )
        count = blocks * disk.block_size
        source = ends.DiskEnd(str(controller.device.address), disk, lba)
        target: ends.End = ends.HexEnd(lba * disk.block_size)
        if not as_hex:
            file = ends.FileEnd(options.output or "-", writing=True)
            target = stack.enter_context(closing(file))
        with Meter("read", count, shown=not (as_hex and sys.stdout.isatty())) as meter:
            pipe.copy(source, target, count, pieces, meter)


def run_write(options: argparse.Namespace) -> None:
    holding.check_can_ask(options)
    with closing(ends.FileEnd(options.file, writing=False)) as source:
        pieces = pipe.Pieces(source.size)
        with holding.opened(options.address, pieces.memory) as controller:
            disk = holding.namespace(controller, options.namespace)
            lba = _first(disk, options)
            target = ends.DiskEnd(str(controller.device.address), disk, lba)
            check_fits(source, target, source.size, pad=options.pad)
            if not options.yes:
                end = "on"
                if source.size is not None:
                    end = f"to {lba + max(-(-source.size // disk.block_size), 1) - 1}"
                holding.ask(f"blocks {lba} {end} of", controller, disk)
            with Meter("write", source.size) as meter:
                wrote = pipe.copy(source, target, None, pieces, meter, pad=options.pad)
            blocks = -(-wrote // disk.block_size)
            print(f"{sizes.words(wrote)} written, {blocks} blocks from {lba} on", file=sys.stderr)


def check_fits(source: ends.End, target: ends.End, size: int | None, *, pad: bool) -> None:
    """See before anything is written that it can be.

    Raises:
        RangeError: the target takes less.
        ArgumentError: it is no whole number of blocks, and `pad` is not set.
    """
    if size is None:
        return
    if target.size is not None and size > target.size:
        raise errors.RangeError(
            f"{sizes.words(size)} do not fit: {target.name} takes {sizes.words(target.size)} "
            f"({target.size} bytes) from there on"
        )
    if size % target.grain and not pad:
        raise pipe.not_whole(source.name, size, target)


def _first(disk: Namespace, options: argparse.Namespace) -> int:
    if options.offset is not None:
        return sizes.in_blocks("--offset", options.offset, disk.block_size)
    return sizes.at_least(0, "--lba", options.lba or 0)


def _blocks(disk: Namespace, options: argparse.Namespace) -> int:
    if options.size is not None:
        blocks = sizes.in_blocks("--size", options.size, disk.block_size)
        return sizes.at_least(1, "--size", blocks)
    return sizes.at_least(1, "--blocks", 1 if options.blocks is None else options.blocks)
