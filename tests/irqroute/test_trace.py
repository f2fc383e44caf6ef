"""What a trace says was asked is what was asked: the ioctls that the library makes, decoded."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import EventFd, File, calls
from pyvfio.abi import kvm as kvm_abi
from pyvfio.abi import vfio
from pyvfio.abi.ioctl import Request
from pyvfio.device import Irq
from pyvfio.irqroute import Event, Trace
from pyvfio.irqroute.model import ModelledVm, modelled_msix
from pyvfio.irqroute.trace import decode, gsi_text
from pyvfio.kvm import MsiMessage, Routes
from pyvfio.kvm.irqchip import FullIrqchip

from .rig import Guest, Rig

GSIS = st.integers(0, 0xFFFFFFFF)
MESSAGES = st.builds(MsiMessage, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))


@contextmanager
def device(count: int) -> Iterator[tuple[Irq, Trace]]:
    """A modelled device's MSI-X, and its trace."""
    irq, trace = modelled_msix(count), Trace()
    with irq.file, trace.watching(irq.file, modelled=True):
        yield irq, trace


@given(st.integers(0, 100), st.lists(st.none() | st.just(0), min_size=1, max_size=40))
def test_set_irqs_with_eventfds_comes_back(start: int, holes: list[int | None]) -> None:
    with device(200) as (irq, trace), EventFd() as eventfd:
        fds = [None if hole is None else eventfd.fileno() for hole in holes]
        irq.claim(list).signal(start, fds)
        (event,) = trace.take()
        names = [None if fd is None else f"fd{fd}" for fd in fds]
        assert event.arguments == {
            "index": "MSI-X",
            "flags": "EVENTFD|TRIGGER",
            "start": start,
            "count": len(fds),
            "eventfds": names,
        }
        assert event.text == f"S({start},[{','.join(name or '-' for name in names)}])"
        assert event.modelled
        assert event.error is None


def test_firing_and_disabling_have_texts_of_their_own() -> None:
    with device(8) as (irq, trace), irq.enable(3):
        trace.take()
        irq.trigger(1)
        irq.trigger(0, 3)
        irq.disable()
        assert list(map(str, trace.take())) == ["T(1)", "T(0..2)", "D"]


@given(GSIS, st.booleans())
def test_an_irqfd_comes_back(gsi: int, deassign: bool) -> None:
    vm, trace = ModelledVm(frozenset()), Trace()
    with vm.file, EventFd("kvm7") as eventfd:
        names = {eventfd.fileno(): eventfd.path}
        irqfd = vm.irqfds.assign(eventfd, gsi) if deassign else None
        with trace.watching(vm.file, names=lambda: names, modelled=True):
            if irqfd is None:
                vm.irqfds.assign(eventfd, gsi)
            else:
                irqfd.close()
        (event,) = trace.events
        assert event.arguments == {"eventfd": "kvm7", "gsi": gsi, "deassign": deassign}
        assert event.text == f"I{'-' if deassign else '+'}(kvm7,{gsi_text(gsi)})"
        assert int(gsi_text(gsi), 0) == gsi


@given(st.lists(MESSAGES, max_size=20))
def test_a_table_of_routes_comes_back(messages: list[MsiMessage]) -> None:
    """Its pins are counted, and not shown."""
    vm, trace = ModelledVm(frozenset()), Trace()
    routes = Routes(vm.file, 4096, 24, FullIrqchip().default_routes())
    with vm.file, trace.watching(vm.file):
        try:
            with routes.batch():
                gsis = routes.add_many(messages)
                routes._dirty = True
        except (errors.KernelError, errors.Unsupported):
            gsis = list(range(24, 24 + len(messages)))  # the model has no routes
        (event,) = trace.events
        assert event.arguments == {
            "entries": 40 + len(messages),
            "messages": {gsi: [*message] for gsi, message in zip(gsis, messages, strict=True)},
        }
        shown = ",".join(f"{gsi}:{message}" for gsi, message in zip(gsis, messages, strict=True))
        assert event.text == f"G{{{shown}}}"
        assert event.error == "ENOTTY"


def test_masking_intx_and_resampling_are_known() -> None:
    def bare(flags: int) -> bytes:
        return bytes(
            vfio.vfio_irq_set(argsz=20, flags=flags, index=vfio.VFIO_PCI_INTX_IRQ_INDEX, count=1)
        )[:20]

    texts = []
    for action in ("MASK", "UNMASK"):
        flags = vfio.VFIO_IRQ_SET_DATA_NONE | getattr(vfio, f"VFIO_IRQ_SET_ACTION_{action}")
        event = decode(vfio.VFIO_DEVICE_SET_IRQS, bare(flags), 0, {})
        assert event is not None
        assert event.arguments["index"] == "INTx"
        assert event.arguments["flags"] == f"NONE|{action}"
        texts.append(event.text)
    assert texts == ["M(0)", "U(0)"]
    flags = kvm_abi.KVM_IRQFD_FLAG_RESAMPLE
    irqfd = kvm_abi.kvm_irqfd(fd=5, gsi=4, flags=flags, resamplefd=6)
    event = decode(kvm_abi.KVM_IRQFD, bytes(irqfd), 0, {6: "unmask"})
    assert event is not None
    assert event.arguments == {"eventfd": "fd5", "gsi": 4, "deassign": False, "resample": "unmask"}


def test_other_ioctls_are_not_events() -> None:
    assert decode(kvm_abi.KVM_CREATE_VCPU, 0, 0, {}) is None


def test_an_event_in_a_word() -> None:
    assert str(Event("KVM_IRQFD", {}, "I+(kvm0,24)")) == "I+(kvm0,24)"
    assert str(Event("VFIO_DEVICE_SET_IRQS", {}, "D", "EINVAL")) == "D EINVAL"
    refused = OSError(4242, "never heard of")
    event = decode(kvm_abi.KVM_IRQFD, bytes(kvm_abi.kvm_irqfd(fd=1)), refused, {})
    assert str(event) == "I+(fd1,0) 4242"


def test_a_trace_ends_with_its_block_and_leaves_others_alone() -> None:
    irq, outer, inner = modelled_msix(2), Trace(), Trace()
    with irq.file:
        claim = irq.claim(list)
        with outer.watching(irq.file), inner.watching(irq.file):
            claim.signal(0, [None])
        claim.signal(1, [None])
        assert list(map(str, outer.events)) == list(map(str, inner.events)) == ["S(0,[-])"]
        assert irq.file.watcher is None


def test_a_real_kernels_answers_are_no_models(routed: Guest) -> None:
    with Rig(routed).watching() as rig:
        rig.fill(0)
        rig.msix.enabled = True
        by_ioctl = {event.ioctl: event.modelled for event in rig.trace.take()}
        assert by_ioctl == {
            "KVM_SET_GSI_ROUTING": False,
            "KVM_IRQFD": False,
            "VFIO_DEVICE_SET_IRQS": True,
        }


def test_the_trace_is_what_the_system_calls_were(
    routed: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from below, where ioctl(2) itself is made."""
    seen: list[bytes] = []
    real = calls.ioctl

    def ioctl(fd: int, request: int, argument: object) -> int:
        if request in (kvm_abi.KVM_IRQFD, kvm_abi.KVM_SET_GSI_ROUTING):
            seen.append(bytes(argument))  # type: ignore[call-overload]
        return real(fd, request, argument)

    with Rig(routed).watching() as rig:
        rig.fill(0, 1)
        monkeypatch.setattr(calls, "ioctl", ioctl)
        rig.msix.enabled = True
        names = {fd: name for fd, name in rig.forwarder.paths.names().items() if os.fstat(fd)}
        commit, *irqfds = seen
        table = kvm_abi.kvm_irq_routing.from_buffer_copy(commit)
        assert table.nr == 40 + 2
        words = [kvm_abi.kvm_irqfd.from_buffer_copy(irqfd) for irqfd in irqfds]
        below = [f"I+({names[word.fd]},{word.gsi})" for word in words]
        assert [text for text in map(str, rig.trace.events) if text[0] == "I"] == below


def test_errno_names_are_the_kernels() -> None:
    event = decode(kvm_abi.KVM_IRQFD, bytes(kvm_abi.kvm_irqfd()), OSError(errno.EBUSY, ""), {})
    assert event is not None
    assert event.error == "EBUSY"


@pytest.mark.parametrize(
    "request_", [vfio.VFIO_DEVICE_SET_IRQS, kvm_abi.KVM_IRQFD, kvm_abi.KVM_SET_GSI_ROUTING]
)
@given(
    argument=st.binary(max_size=200) | st.integers(0, 2**64 - 1),
    outcome=st.integers(0, 200) | st.integers(1, 200).map(lambda number: OSError(number, "")),
)
def test_argument_of_any_length_is_taken_down(
    request_: Request, argument: bytes | int, outcome: int | OSError
) -> None:
    event = decode(request_, argument, outcome, {3: "kvm0"})
    assert event is not None
    assert event.ioctl == request_.name
    assert len(str(event)) < 10_000


def test_caller_has_the_result_whatever_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ioctl", lambda *_: 7)
    with File(os.memfd_create("a"), "a") as file, Trace().watching(file) as trace:
        assert file.ioctl(kvm_abi.KVM_IRQFD, bytearray(b"short")) == 7
        (event,) = trace.take()
    assert event.text == "KVM_IRQFD(cut off)"
    assert event.arguments == {"bytes": b"short".hex()}
