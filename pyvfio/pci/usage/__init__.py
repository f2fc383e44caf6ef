"""What the host uses a PCI function for: whom it would be taken from.

Everything is found in sysfs, procfs and netlink, so it works where no udevd runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pyvfio._sys import sysfs
from pyvfio._sys.nodes import Node
from pyvfio._sys.text import printable
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio
from pyvfio.pci.usage import below, consoles, disks, interfaces
from pyvfio.pci.usage.disks import Claims
from pyvfio.pci.usage.holders import Holder, vfio_holders
from pyvfio.pci.usage.processes import Opener, describe, mount_tables, snapshot, unseen

__all__ = ["Claims", "Usage", "holders_of", "look", "users", "vfio_holders"]

# Classes whose drivers, when the device is taken from them, wait in the kernel until each of their
# nodes is closed, and cannot be interrupted: snd_card_free(), i2c_del_adapter(),
# dvb_unregister_frontend(), ib_uverbs_remove_one(), vhost_vdpa_remove(), and NVIDIA's own driver.
_WAITED_FOR = frozenset({"sound", "i2c-dev", "dvb", "infiniband_verbs", "vhost-vdpa", "nvidia"})


class Usage(NamedTuple):
    """What a function is used for, one phrase each.

    Attributes:
        uses: what the kernel does with it.
        openers: the processes that have a node of one of its devices open; they may close it soon.
        waited_for: those of them for which the driver would wait.
        unknown: what could not be looked at.
    """

    uses: tuple[str, ...]
    openers: tuple[str, ...]
    waited_for: tuple[str, ...]
    unknown: tuple[str, ...]


def users(function: Function) -> tuple[str, ...]:
    """What the host uses a function for, one phrase each; empty when nothing is known.

    Looks for

    - disks that are mounted, in any mount namespace, swapped to, exported or part of an array,
      volume or loop device;
    - network interfaces, in any network namespace, that are up with an address or part of another
      one;
    - consoles: the boot display, framebuffer, serial line or keyboard; a screen;
    - processes that have a node of one of its devices open (block, character, input, sound,
      graphics, terminal...), or one of its BARs;
    - enabled SR-IOV virtual functions and mediated devices.

    Only root is shown all of it. What no process has in its table of files is not seen: descriptors
    on their way through a socket, or registered with io_uring and closed.
    """
    with Claims(function) as claims:
        usage = look(function, claims)
    return usage.uses + usage.openers


def look(function: Function, claims: Claims) -> Usage:
    """Look at all that may use a function.

    Args:
        function: the function.
        claims: its disks, as far as nobody else has claimed them.
    """
    above = disks.all_of(function)
    characters = below.character_nodes(function)
    nodes: dict[Node, str] = dict(characters)
    nodes |= {disk.node: disk.title for disk in above if disk.node is not None}
    seen = snapshot(nodes, str(function.sysfs.resolve()), own=claims.descriptors)
    tables = mount_tables(seen)
    networks = {**interfaces.kept_namespaces(tables), **seen.networks}
    on_network, unknown = interfaces.users(function, networks)
    waited_for = [
        opener
        for opener in seen.openers
        if opener.node is not None and characters.get(opener.node) in _WAITED_FOR
    ]
    return Usage(
        (
            *disks.users(function, claims, tables),
            *on_network,
            *consoles.users(function),
            *_virtual_functions(function),
            *_mediated_devices(function),
        ),
        tuple(_in_words(seen.openers, nodes)),
        tuple(_in_words(waited_for, nodes)),
        (*claims.unknown, *unknown, *unseen(seen)),
    )


def holders_of(function: Function) -> tuple[Holder, ...]:
    """Who holds a function open, through VFIO or by a node of one of its devices."""
    if function.driver is None or is_vfio(function.driver):
        return vfio_holders(function)
    nodes = below.character_nodes(function)
    found = snapshot(nodes, str(function.sysfs.resolve())).openers
    return tuple(
        Holder(int(opener.process) == os.getpid(), f"{text}: close it")
        for opener in found
        for text in _in_words([opener], nodes)
    )


def _in_words(openers: tuple[Opener, ...] | list[Opener], nodes: Mapping[Node, str]) -> list[str]:
    """Who has what open, one phrase for each process."""
    files: dict[str, list[str]] = {}
    for opener in openers:
        file = printable(opener.file)
        title = nodes[opener.node] if opener.node is not None and opener.node.block else ""
        # "disk dm-0 on disk nvme0n1": what the node's own name does not tell.
        built_on = f" ({title})" if " on " in title else ""
        files.setdefault(opener.process, []).append(f"{file}{built_on}")
    return [f"{describe(process)} has {', '.join(names)} open" for process, names in files.items()]


def _virtual_functions(function: Function) -> Iterator[str]:
    if count := function.virtual_functions:
        yield f"{count} SR-IOV virtual function{'s are' if count > 1 else ' is'} enabled on it"


def _mediated_devices(function: Function) -> Iterator[str]:
    for name in sysfs.entries(function.sysfs):
        # A UUID: Documentation/driver-api/vfio-mediated-device.rst.
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) and (
            sysfs.link_name(function.sysfs / name / "mdev_type") is not None
        ):
            yield f"mediated device {name} is made on it"
