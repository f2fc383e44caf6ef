"""The ioctls that a forwarder makes, decoded from what the kernel was given.

A trace watches the files on which they are made, so it shows what was asked and what the kernel
answered, whoever asked.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pyvfio._sys import File
from pyvfio.abi import kvm, vfio
from pyvfio.abi.ioctl import Request
from pyvfio.kvm import MsiMessage

_ROUTES = 4096  # KVM_MAX_IRQ_ROUTES: every GSI of a table is below
_IRQ_SET = struct.Struct("<5I")  # argsz, flags, index, start, count
_IRQFD = struct.Struct("<4I")  # fd, gsi, flags, resamplefd
_ROUTING = struct.Struct("<II")  # nr, flags
_ROUTE = struct.Struct("<8I16x")  # gsi, type, flags, pad; address, data, devid


_Watcher = Callable[[Request, Any, "int | OSError"], None]


@dataclass(frozen=True)
class Event:
    """One ioctl.

    Attributes:
        ioctl: the kernel's name for it.
        arguments: what it was given, in readable form.
        text: both in one word: ``S(0,[kvm0])`` points VFIO's vectors from 0 on at eventfds, ``D``
            disables the index, ``T(0)`` fires vectors, ``G{24:m}`` commits the table of routes,
            ``I+(kvm0,24)`` and ``I-(kvm0,24)`` bind an eventfd to a GSI and unbind it.
        error: the kernel's refusal ("EINVAL", or "only 3" where VFIO has fewer vectors), or None.
        modelled: no kernel was asked.
    """

    ioctl: str
    arguments: Mapping[str, Any]
    text: str
    error: str | None = None
    modelled: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.error}" if self.error else self.text


@dataclass
class Trace:
    """What was done on some files, in order.

    Attributes:
        events: so far.
    """

    events: list[Event] = field(default_factory=list)

    @contextmanager
    def watching(
        self, *files: File, names: Callable[[], Mapping[int, str]] = dict, modelled: bool = False
    ) -> Iterator[Trace]:
        """Take down what is done on these files while the block lasts.

        Args:
            files: a VM's, a device's (:attr:`pyvfio.device.Irq.file`).
            names: what descriptors are called, asked at each event.
            modelled: no kernel is behind them.
        """

        def watch(
            also: _Watcher | None, request: Request, argument: Any, outcome: int | OSError
        ) -> None:
            event = decode(request, argument, outcome, names(), modelled)
            if event is not None:
                self.events.append(event)
            if also is not None:
                also(request, argument, outcome)

        with ExitStack() as undo:
            for file in files:
                undo.callback(setattr, file, "watcher", file.watcher)
                file.watcher = partial(watch, file.watcher)
            yield self

    def take(self) -> list[Event]:
        """The events so far; they are not kept."""
        taken, self.events = self.events, []
        return taken


def decode(
    request: Request,
    argument: Any,
    outcome: int | OSError,
    names: Mapping[int, str],
    modelled: bool = False,
) -> Event | None:
    """An event for an ioctl that concerns the ways of interrupts; None for others.

    Args:
        request: the ioctl.
        argument: its bytes.
        outcome: its result, or the refusal.
        names: what descriptors are called.
        modelled: no kernel was asked.
    """
    decoder = _DECODERS.get(request)
    if decoder is None:
        return None
    given = b"" if isinstance(argument, int) else bytes(argument)
    try:
        text, arguments = decoder(given, names)
    except struct.error:
        # The call was made, and its result is the caller's: what it was given is shown as it is.
        text, arguments = f"{request.name}(cut off)", {"bytes": given.hex()}
    error = None
    if isinstance(outcome, int) and outcome > 0 and request == vfio.VFIO_DEVICE_SET_IRQS:
        error = f"only {outcome}"  # the vectors that could be had; none was taken
    if isinstance(outcome, OSError):
        error = errno.errorcode.get(outcome.errno or 0, str(outcome.errno))
    return Event(request.name, arguments, text, error, modelled)


def _set_irqs(argument: bytes, names: Mapping[int, str]) -> tuple[str, dict[str, Any]]:
    _, flags, index, start, count = _IRQ_SET.unpack_from(argument)
    data, action = (
        [name for name, value in group.items() if flags & value] for group in (_DATA, _ACTION)
    )
    arguments: dict[str, Any] = {
        "index": _INDEXES.get(index, index),
        "flags": "|".join(data + action),
        "start": start,
        "count": count,
    }
    if flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
        fds = struct.unpack_from(f"<{count}i", argument, _IRQ_SET.size)
        arguments["eventfds"] = [None if fd < 0 else names.get(fd, f"fd{fd}") for fd in fds]
        shown = ",".join(name or "-" for name in arguments["eventfds"])
        text = f"S({start},[{shown}])"
    elif not flags & vfio.VFIO_IRQ_SET_ACTION_TRIGGER:
        text = f"{'M' if flags & vfio.VFIO_IRQ_SET_ACTION_MASK else 'U'}({start})"
    elif not count:
        text = "D"
    else:
        text = f"T({start})" if count == 1 else f"T({start}..{start + count - 1})"
    return text, arguments


def _irqfd(argument: bytes, names: Mapping[int, str]) -> tuple[str, dict[str, Any]]:
    fd, gsi, flags, resample = _IRQFD.unpack_from(argument)
    name = names.get(fd, f"fd{fd}")
    away = bool(flags & kvm.KVM_IRQFD_FLAG_DEASSIGN)
    arguments = {"eventfd": name, "gsi": gsi, "deassign": away}
    if flags & kvm.KVM_IRQFD_FLAG_RESAMPLE:
        arguments["resample"] = names.get(resample, f"fd{resample}")
    return f"I{'-' if away else '+'}({name},{gsi_text(gsi)})", arguments


def _set_gsi_routing(argument: bytes, names: Mapping[int, str]) -> tuple[str, dict[str, Any]]:
    count, _ = _ROUTING.unpack_from(argument)
    messages = {}
    for number in range(count):
        gsi, kind, _, _, low, high, data, _ = _ROUTE.unpack_from(argument, 8 + number * _ROUTE.size)
        if kind == kvm.KVM_IRQ_ROUTING_MSI:
            messages[gsi] = MsiMessage(high << 32 | low, data)
    arguments = {
        "entries": count,
        "messages": {gsi: [message.address, message.data] for gsi, message in messages.items()},
    }
    shown = ",".join(f"{gsi}:{message}" for gsi, message in messages.items())
    return f"G{{{shown}}}", arguments


def gsi_text(gsi: int) -> str:
    """A GSI as people read it: of a table by its number, of a message as it is written there."""
    return str(gsi) if gsi < _ROUTES else f"{gsi:#x}"


_DECODERS: dict[int, Callable[[bytes, Mapping[int, str]], tuple[str, dict[str, Any]]]] = {
    vfio.VFIO_DEVICE_SET_IRQS: _set_irqs,
    kvm.KVM_IRQFD: _irqfd,
    kvm.KVM_SET_GSI_ROUTING: _set_gsi_routing,
}
_INDEXES = {
    vfio.VFIO_PCI_INTX_IRQ_INDEX: "INTx",
    vfio.VFIO_PCI_MSI_IRQ_INDEX: "MSI",
    vfio.VFIO_PCI_MSIX_IRQ_INDEX: "MSI-X",
    vfio.VFIO_PCI_ERR_IRQ_INDEX: "ERR",
    vfio.VFIO_PCI_REQ_IRQ_INDEX: "REQ",
}
_DATA = {name: getattr(vfio, f"VFIO_IRQ_SET_DATA_{name}") for name in ("NONE", "BOOL", "EVENTFD")}
_ACTION = {
    name: getattr(vfio, f"VFIO_IRQ_SET_ACTION_{name}") for name in ("MASK", "UNMASK", "TRIGGER")
}
