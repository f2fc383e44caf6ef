"""Network interfaces, their addresses and namespaces, as the kernel tells them; see rtnetlink(7).

All of it is about the network namespace of the calling thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

# linux/netlink.h, linux/rtnetlink.h
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_RTM_NEWLINK = 16
_RTM_GETLINK = 18
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_RTM_NEWNSID = 88
_RTM_GETNSID = 90
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_NLA_TYPE_MASK = 0x3FFF

# linux/if_addr.h, linux/if_link.h, linux/net_namespace.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFLA_IFNAME = 3
_IFLA_LINK = 5
_IFLA_LINKINFO = 18
_IFLA_EXT_MASK = 29
_IFLA_LINK_NETNSID = 37
_IFLA_XDP = 43
_IFLA_INFO_KIND = 1
_IFLA_XDP_ATTACHED = 2
_NETNSA_NSID = 1
_NETNSA_FD = 3

_ANSWER_SECONDS = 5.0
_ADDRESS_SIZES = {socket.AF_INET: 4, socket.AF_INET6: 16}

_nlmsghdr = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ifaddrmsg = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ifinfomsg = struct.Struct("=BxHiII")  # family, type, index, flags, change
_rtgenmsg = struct.Struct("=B3x")  # family
_rtattr = struct.Struct("=HH")  # length, type


class Link(NamedTuple):
    """A network interface.

    Attributes:
        name: its name.
        number: its number in this namespace.
        kind: of a virtual one: ``"macvlan"``, ``"vlan"``, ``"veth"``...; "" for others.
        link: the number of the interface that it is made of; None for none.
        link_namespace: this namespace's number for that one's namespace, if it is another.
        has_program: whether an XDP program takes its packets.
    """

    name: str
    number: int
    kind: str
    link: int | None
    link_namespace: int | None
    has_program: bool


def links() -> list[Link]:
    """All network interfaces.

    Raises:
        OSError: the kernel refused.
    """
    mask = _rtattr.pack(_rtattr.size + 4, _IFLA_EXT_MASK) + struct.pack(
        "=I", _RTEXT_FILTER_SKIP_STATS
    )
    request = _ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + mask
    return [parse_link(message) for message in _dump(_RTM_GETLINK, _RTM_NEWLINK, request)]


def addresses() -> dict[int, list[str]]:
    """The addresses, as "10.0.2.15/24", by the number of the interface.

    Raises:
        OSError: the kernel refused.
    """
    request = _ifaddrmsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found: dict[int, list[str]] = {}
    for message in _dump(_RTM_GETADDR, _RTM_NEWADDR, request):
        index, address = parse_address(message)
        found.setdefault(index, []).append(address)
    return found


def namespace_number(namespace: str) -> int | None:
    """This namespace's number for another; None where it has none.

    Args:
        namespace: a file that stands for the other.
    """
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        request = _rtgenmsg.pack(socket.AF_UNSPEC) + _rtattr.pack(_rtattr.size + 4, _NETNSA_FD)
        for message in _ask(_RTM_GETNSID, _RTM_NEWNSID, request + struct.pack("=i", fd), flags=0):
            number = _attributes(message[_rtgenmsg.size :]).get(_NETNSA_NSID)
            if number is not None and len(number) == 4:
                found = int.from_bytes(number, "little", signed=True)
                return None if found < 0 else found
    except OSError:
        pass
    finally:
        os.close(fd)
    return None


def parse_link(message: bytes) -> Link:
    """One RTM_NEWLINK without its header."""
    _family, _type, index, _flags, _change = _ifinfomsg.unpack_from(message)
    attributes = _attributes(message[_ifinfomsg.size :])
    information = _attributes(attributes.get(_IFLA_LINKINFO, b""))
    program = _attributes(attributes.get(_IFLA_XDP, b""))
    return Link(
        _text(attributes.get(_IFLA_IFNAME, b"")),
        index,
        _text(information.get(_IFLA_INFO_KIND, b"")),
        _number(attributes.get(_IFLA_LINK)),
        _number(attributes.get(_IFLA_LINK_NETNSID)),
        program.get(_IFLA_XDP_ATTACHED, b"\0") != b"\0",
    )


def parse_address(message: bytes) -> tuple[int, str]:
    """The interface's number and the address of one RTM_NEWADDR without its header."""
    family, prefix, _flags, _scope, index = _ifaddrmsg.unpack_from(message)
    attributes = _attributes(message[_ifaddrmsg.size :])
    if family not in _ADDRESS_SIZES:
        return index, f"an address of family {family}"
    # On a point-to-point link IFA_ADDRESS is the other end.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if len(raw) != _ADDRESS_SIZES[family]:
        return index, "an address"
    return index, f"{socket.inet_ntop(family, raw)}/{prefix}"


def _dump(request: int, answer: int, body: bytes) -> Iterator[bytes]:
    return _ask(request, answer, body, flags=_NLM_F_DUMP)


def _ask(request: int, answer: int, body: bytes, *, flags: int) -> Iterator[bytes]:
    """Ask the kernel; gives the bodies of its answers."""
    header = _nlmsghdr.pack(_nlmsghdr.size + len(body), request, _NLM_F_REQUEST | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)  # a namespace may go while it is asked
        netlink.sendto(header + body, (0, 0))
        while True:
            data = netlink.recv(1 << 17)
            while len(data) >= _nlmsghdr.size:
                length, kind, *_ = _nlmsghdr.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                if kind == answer:
                    yield data[_nlmsghdr.size : length]
                data = data[max(_aligned(length), _nlmsghdr.size) :]
            if not flags:
                return


def _attributes(rest: bytes) -> dict[int, bytes]:
    attributes: dict[int, bytes] = {}
    while len(rest) >= _rtattr.size:
        length, kind = _rtattr.unpack_from(rest)
        attributes[kind & _NLA_TYPE_MASK] = rest[_rtattr.size : length]
        rest = rest[max(_aligned(length), _rtattr.size) :]
    return attributes


def _number(raw: bytes | None) -> int | None:
    return int.from_bytes(raw, "little") if raw is not None and len(raw) == 4 else None


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _aligned(length: int) -> int:
    return length + 3 & ~3
