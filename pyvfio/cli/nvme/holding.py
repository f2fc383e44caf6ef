"""A controller held for a command: taken from the kernel's driver, and given back."""

from __future__ import annotations

import argparse
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys.text import printable
from pyvfio.cli import common
from pyvfio.cli.nvme import contents
from pyvfio.cli.nvme.sizes import words

if TYPE_CHECKING:
    from pyvfio.drivers.nvme import Controller, Namespace


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """The option --namespace."""
    parser.add_argument(
        "--namespace",
        type=int,
        metavar="N",
        help="its number; not needed where there is only one",
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """The option --yes."""
    parser.add_argument(
        "--yes", action="store_true", help="overwrite without asking; needed without a terminal"
    )


@contextmanager
def opened(
    address: str,
    memory: mmap.mmap | None = None,
    *,
    queues: int = 1,
    depth: int = 128,
    interrupts: bool = True,
) -> Iterator[Controller]:
    """The controller at an address, for the while; SIGTERM and SIGHUP give it back as Ctrl-C does.

    Args:
        memory: whole pages that it is to reach, from before it is started until after it is
            stopped.
        queues: pairs of I/O queues.
        depth: entries of each.
        interrupts: False to poll.

    Raises:
        ArgumentError: the device is no NVMe controller.
        DeviceInUse: the host uses it.
        Error: it could not be taken, or does not start.
    """
    import pyvfio
    from pyvfio.drivers import nvme
    from pyvfio.drivers.nvme.spec import CLASS_CODE

    function = common.function(address)
    if function.class_code != CLASS_CODE:
        raise errors.ArgumentError(
            f"{function.address} is no NVMe controller (its class is {function.class_code:#08x}): "
            "`pyvfio list` shows what there is"
        )
    common.say_if_frozen(function)
    with (
        common.ended_as_by_ctrl_c(),
        pyvfio.bound(function.address, notice=common.notice),
        pyvfio.open(function) as device,
    ):
        if memory is not None:
            device.dma.map(memory)
        with nvme.Controller(
            device, queues=queues, depth=depth, interrupts=interrupts
        ) as controller:
            try:
                yield controller
            finally:
                _say_if_wrong(controller)


def _say_if_wrong(controller: Controller) -> None:
    """Say that a controller does not keep to the specification, if it was seen not to."""
    if count := controller.wrong_completions:
        common.notice(
            f"{controller.device.address} posted {count} completions that name no command under "
            "way: what it reads and writes cannot be relied on"
        )


def namespace(controller: Controller, number: int | None) -> Namespace:
    """A controller's namespace by number, or the only one.

    Raises:
        ArgumentError: there is none of that number, or not exactly one.
    """
    found = controller.namespaces
    if number is None and len(found) == 1:
        (only,) = found.values()
        return only
    if number not in found:
        there = ", ".join(f"{disk.id} ({words(disk.size)})" for disk in found.values()) or "none"
        wrong = "say which namespace" if number is None else f"there is no namespace {number}"
        raise errors.ArgumentError(f"{wrong}; active are: {there}")
    return found[number]


def check_can_ask(options: argparse.Namespace) -> None:
    """Refuse to overwrite a disk where nobody said that it may be, and nobody can be asked.

    Raises:
        ArgumentError: it is so.
    """
    if not options.yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise errors.ArgumentError(
            "this overwrites what is on the disk, and there is no terminal to ask at: add --yes"
        )


def ask(part: str, controller: Controller, disk: Namespace) -> None:
    """Say that a part of a namespace will be overwritten, and what it holds, and ask.

    Raises:
        StateError: the answer was not yes.
    """
    identity = controller.identity
    confirm(
        f"{part} namespace {disk.id} ({words(disk.size)}) of {controller.device.address}, "
        f"{identity.model}, serial {identity.serial}; it holds {contents.described(disk)}"
    )


def confirm(what: str) -> None:
    """Say what will be overwritten, and ask.

    Raises:
        StateError: the answer was not yes.
    """
    said = f"This overwrites {printable(what)}."
    print(f"{said}\nGo on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.StateError("not confirmed, so nothing was written")
