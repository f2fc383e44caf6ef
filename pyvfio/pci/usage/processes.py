"""What the processes of this host hold: one pass over /proc for all that is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys.nodes import Node, new_buffer, node_at
from pyvfio._sys.text import printable
from pyvfio.pci import paths

# Files that nearly every process has open, and that are no device's.
_EVERYWHERE = frozenset({"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"})

# A line of /proc/PID/maps whose file may be a device: address, rights, offset, device, inode, path.
# Other files of /dev are shared memory.
_MAPPED = re.compile(r"^\S+ \S+ \S+ \S+ \d+ +(/(?:.*/)?dev/(?!shm/|zero\b).*|/sys/.*)$", re.M)

# include/linux/proc_ns.h, PROC_PID_INIT_INO
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


class Opener(NamedTuple):
    """A process that has a file open or in its memory.

    Attributes:
        process: its number.
        node: the device node; None for a file of sysfs.
        file: the file's name, as the process sees it.
    """

    process: str
    node: Node | None
    file: str


class Snapshot(NamedTuple):
    """What one pass over /proc found.

    Attributes:
        openers: who has one of the wanted files open, each file of a process once.
        networks: the network namespaces: a file that stands for each, by the kernel's name for it.
        mounts: the mount namespaces: a process in each, by the kernel's name for it.
        hidden: the processes that do not show what they have open.
    """

    openers: tuple[Opener, ...]
    networks: dict[str, str]
    mounts: dict[str, str]
    hidden: tuple[str, ...]


def snapshot(
    nodes: Mapping[Node, object],
    directory: str | None = None,
    files: Container[str] = (),
    *,
    own: Container[int] = (),
) -> Snapshot:
    """Look at all processes, once.

    Args:
        nodes: the device nodes that are wanted, wherever a process has them in its tree.
        directory: of a function in sysfs: its ``resourceN``, which are BARs, are wanted.
        files: further files that are wanted, by name.
        own: descriptors of this process that do not count.
    """
    openers: dict[Opener, None] = {}
    networks: dict[str, str] = {}
    mounts: dict[str, str] = {}
    hidden = []
    buffer = new_buffer()
    resources = "\0" if directory is None else f"{directory}/resource"

    def look_at(process: str, path: str, name: str) -> None:
        if name.startswith("net:["):
            networks.setdefault(name, path)
        elif name[:1] != "/" or name in _EVERYWHERE:
            return
        elif name in files or name.startswith(resources):
            openers[Opener(process, None, name)] = None
        elif nodes and (node := node_at(path, buffer)) in nodes:
            openers[Opener(process, node, name)] = None

    for process in _numbers(paths.PROC):
        home = f"{paths.PROC}/{process}"
        try:
            descriptors = _descriptors(home)
        except errors.KernelError:
            hidden.append(process)
            continue
        mine = int(process) == os.getpid()
        for path, name in descriptors:
            if not (mine and int(path.rpartition("/")[2]) in own):
                look_at(process, path, name)
        # Mapped memory needs no descriptor; the path is the one in the process's own tree.
        for name in _mapped(_text(f"{home}/maps")):
            look_at(process, f"{home}/root{name}", name)
        if (namespace := _link(f"{home}/ns/mnt")) is not None:
            mounts.setdefault(namespace, process)
        # Each thread may be in a network namespace of its own.
        for thread in _numbers(f"{home}/task"):
            path = f"{home}/task/{thread}/ns/net"
            if (namespace := _link(path)) is not None:
                networks.setdefault(namespace, path)
    return Snapshot(tuple(openers), networks, mounts, tuple(hidden))


def mount_tables(snapshot: Snapshot) -> dict[str, str]:
    """What is mounted in each mount namespace, as a process in it sees it: proc_pid_mountinfo(5).

    The first is this process's own, by the name ``"self"``.
    """
    own = _link(f"{paths.PROC}/self/ns/mnt")
    others = [process for name, process in snapshot.mounts.items() if name != own]
    return {process: _text(f"{paths.PROC}/{process}/mountinfo") for process in ("self", *others)}


def describe(process: str) -> str:
    """A process in words: its number and its name."""
    if int(process) == os.getpid():
        return "this process"
    # It may end just now.
    name = _text(f"{paths.PROC}/{process}/comm")
    return f"process {process} ({printable(name)})" if name else f"process {process}"


def unseen(snapshot: Snapshot) -> list[str]:
    """Why processes may hold the device without being seen, one phrase each."""
    said = []
    if snapshot.hidden:
        shown = ", ".join(snapshot.hidden[:5]) + (", ..." if len(snapshot.hidden) > 5 else "")
        said.append(
            f"the files of {len(snapshot.hidden)} of the processes cannot be seen ({shown}): that "
            "takes root with CAP_SYS_PTRACE"
        )
    if _link(f"{paths.PROC}/self/ns/pid") not in (None, _FIRST_PID_NAMESPACE):
        said.append("the processes outside of this container are not seen")
    return said


def _descriptors(home: str) -> list[tuple[str, str]]:
    """The open files of a process: where each is, and its name.

    Raises:
        KernelError: the process does not show them.
    """
    found = _open_files(f"{home}/fd")
    if not found:
        # One whose first thread has ended has its files in those that go on.
        for thread in _numbers(f"{home}/task")[1:]:
            found += _open_files(f"{home}/task/{thread}/fd")
    return found


def _open_files(directory: str) -> list[tuple[str, str]]:
    found = []
    try:
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            try:
                found.append((path, os.readlink(path)))
            except FileNotFoundError:  # closed just now
                continue
    except PermissionError as error:
        raise errors.KernelError(error.errno or 0, "readlink", directory) from None
    except OSError:  # it ends just now
        pass
    return found


def _mapped(maps: str) -> Iterable[str]:
    """The files that a process has in its memory and that may be devices."""
    # Few processes have any, and looking for the words is quicker than matching lines.
    return _MAPPED.findall(maps) if "dev/" in maps or "/sys/" in maps else ()


def _numbers(directory: object) -> list[str]:
    try:
        return sorted((name for name in os.listdir(str(directory)) if name.isdecimal()), key=int)
    except OSError:
        return []


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _text(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
