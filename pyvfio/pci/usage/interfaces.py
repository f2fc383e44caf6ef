"""Network interfaces in use: up with an address, part of another one, given to a container."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import namespaces, sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below, netlink
from pyvfio.pci.usage.processes import describe

_IFF_UP = 1  # linux/if.h

# Kinds of interface that are not made of the one that they name as their link.
_PEERS = frozenset({"veth", "netkit"})


class _Interface(NamedTuple):
    """A network interface of the function.

    Attributes:
        name: its name in its namespace.
        number: its number there.
        uses: what uses it, as far as its own namespace knows.
    """

    name: str
    number: int
    uses: list[str]


class _View(NamedTuple):
    """What a network namespace shows.

    Attributes:
        interfaces: those of the function.
        parts: interfaces that are made of one of another namespace, as a container's macvlan is.
    """

    interfaces: list[_Interface]
    parts: list[netlink.Link]


def users(function: Function, files: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What uses the network interfaces of a function.

    Args:
        function: the function.
        files: the network namespaces of the host: a file that stands for each, by the kernel's
            name for it.

    Returns:
        One phrase for each use, and one for each namespace that cannot be looked into.
    """
    here = function.sysfs.resolve()
    own = _link(f"{paths.PROC}/thread-self/ns/net") or ""
    others = {file: name for name, file in files.items() if name != own}
    views = {files.get(own, ""): _look(here, paths.SYSFS)}
    looks = namespaces.look_into(others, lambda root: _look(here, root)) if others else {}
    unknown = []
    for file, view in looks.items():
        if isinstance(view, _View):
            views[file] = view
        # One that has ended has given its interfaces back.
        elif os.path.exists(file):
            unknown.append(f"what uses the network interfaces of the {_namespace(file)}: {view}")
    first = _link(f"{paths.PROC}/1/ns/net")
    said = []
    for file, name, use in _parts(views, others):
        said.append(f"network interface {name}{_where(file, others)} {use}")
    for file, view in views.items():
        for interface in view.interfaces:
            where = _where(file, others)
            said += [f"network interface {interface.name}{where} {use}" for use in interface.uses]
            # The host's own namespace is where an interface is that nobody uses.
            if file in others and others[file] != first and not interface.uses:
                said.append(f"network interface {interface.name} is{where}")
    return said, unknown


def _look(here: Path, root: Path) -> _View:
    """What the network namespace of this thread shows.

    Args:
        here: the function's directory.
        root: the sysfs of this namespace.
    """
    links = netlink.links()
    parts = [
        link
        for link in links
        if link.link is not None and link.link_namespace is not None and link.kind not in _PEERS
    ]
    interfaces: list[_Interface] = []
    addresses = None
    for interface in below.devices("net", here, root=root):
        if addresses is None:
            addresses = netlink.addresses()
        name = interface.name
        try:
            number = int(sysfs.read(interface / "ifindex"))
            is_up = int(sysfs.read(interface / "flags"), 16) & _IFF_UP
        except errors.KernelError:  # it goes just now
            continue
        uses = []
        if is_up:
            if held := addresses.get(number):
                uses.append(f"is up with {', '.join(held)}")
            # Bridges, bonds, VLANs and the like.
            uses += [
                f"is up as part of {entry[6:]}"
                for entry in sysfs.entries(interface)
                if entry.startswith("upper_")
            ]
            if any(link.number == number and link.has_program for link in links):
                uses.append("is up with an XDP program")
            if name in _sessions():
                uses.append("is up with a PPPoE session")
        interfaces.append(_Interface(name, number, uses))
    return _View(interfaces, parts)


def _parts(views: Mapping[str, _View], others: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """The interfaces of the function that one of another namespace is made of.

    Sysfs does not show them; the other one has the number of the interface, and a number that its
    own namespace has for the interface's (``IFLA_LINK_NETNSID``).

    Returns:
        The namespace's file, the interface's name, and its use.
    """
    homes = [file for file, view in views.items() if view.interfaces]
    indexes = {interface.number for view in views.values() for interface in view.interfaces}
    for file, view in views.items():
        parts = [part for part in view.parts if part.link in indexes]
        if not parts:
            continue

        def numbers() -> dict[str, int | None]:
            return {home: netlink.namespace_number(home) for home in homes}

        if file in others:
            found = namespaces.look_into([file], lambda root: numbers())[file]
        else:
            found = numbers()
        if isinstance(found, OSError):
            continue
        for part in parts:
            for home in homes:
                for interface in views[home].interfaces:
                    if (interface.number, found[home]) == (part.link, part.link_namespace):
                        yield home, interface.name, f"is part of {part.name}{_where(file, others)}"


def _sessions() -> set[str]:
    """The interfaces over which PPPoE runs; they need no address (drivers/net/ppp/pppoe.c)."""
    try:
        lines = sysfs.read(paths.PROC / "thread-self/net/pppoe").splitlines()[1:]
    except errors.KernelError:
        return set()
    return {words[2] for words in map(str.split, lines) if len(words) == 3}


def _where(file: str, others: Mapping[str, str]) -> str:
    """Which other network namespace a file stands for, in words; "" for this one."""
    return f" in the {_namespace(file)}" if file in others else ""


def _namespace(file: str) -> str:
    """A network namespace in words."""
    process, *rest = Path(file).relative_to(paths.PROC).parts
    return (
        f"network namespace {rest[-1]}"
        if rest[0] == "root"
        else f"network namespace of {describe(process)}"
    )


def kept_namespaces(tables: Mapping[str, str]) -> dict[str, str]:
    """The network namespaces that are kept by a mount (``ip netns``): a file for each, by name.

    Args:
        tables: what is mounted where, by :func:`processes.mount_tables`.
    """
    found = {}
    for process, text in tables.items():
        for line in text.split("\n") if " - nsfs " in text else ():
            fields = line.partition(" - ")[0].split(" ")
            if len(fields) >= 5 and fields[3].startswith("net:["):
                found[fields[3]] = f"{paths.PROC}/{process}/root{fields[4]}"
    return found


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
