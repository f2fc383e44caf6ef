"""Network interfaces in use: up, with an address or as part of another one."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from pyvfio._sys import sysfs
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below

_IFF_UP = 1  # linux/if.h

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_IFA_ADDRESS = 1
_IFA_LOCAL = 2

_ADDRESS_SIZES = {socket.AF_INET: 4, socket.AF_INET6: 16}

_nlmsghdr = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ifaddrmsg = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_rtattr = struct.Struct("=HH")  # length, type


def users(function: Function) -> Iterator[str]:
    """What uses the network interfaces of a function, one phrase each."""
    addresses = None
    for interface in below.devices("net", function.sysfs.resolve()):
        if not int(sysfs.read(interface / "flags"), 16) & _IFF_UP:
            continue
        if addresses is None:
            addresses = _addresses()
        if held := addresses.get(int(sysfs.read(interface / "ifindex"))):
            yield f"network interface {interface.name} is up with {', '.join(held)}"
        # Bridges, bonds, VLANs and the like.
        for name in sysfs.entries(interface):
            if name.startswith("upper_"):
                yield f"network interface {interface.name} is up as part of {name[6:]}"


def _addresses() -> dict[int, list[str]]:
    """The host's addresses, as "10.0.2.15/24", by index of interface; see rtnetlink(7)."""
    request = _ifaddrmsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    header = _nlmsghdr.pack(
        _nlmsghdr.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
    )
    found: dict[int, list[str]] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.sendto(header + request, (0, 0))
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= _nlmsghdr.size:
                length, kind, *_ = _nlmsghdr.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                if kind == _RTM_NEWADDR:
                    index, address = _parse(data[_nlmsghdr.size : length])
                    found.setdefault(index, []).append(address)
                data = data[_aligned(length) :]


def _parse(message: bytes) -> tuple[int, str]:
    """The interface's index and the address of one RTM_NEWADDR."""
    family, prefix, _flags, _scope, index = _ifaddrmsg.unpack_from(message)
    attributes: dict[int, bytes] = {}
    rest = message[_ifaddrmsg.size :]
    while len(rest) >= _rtattr.size:
        length, kind = _rtattr.unpack_from(rest)
        attributes[kind] = rest[_rtattr.size : length]
        rest = rest[max(_aligned(length), _rtattr.size) :]
    if family not in _ADDRESS_SIZES:
        return index, f"an address of family {family}"
    # On a point-to-point link IFA_ADDRESS is the other end.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if len(raw) != _ADDRESS_SIZES[family]:
        return index, "an address"
    return index, f"{socket.inet_ntop(family, raw)}/{prefix}"


def _aligned(length: int) -> int:
    return length + 3 & ~3
