"""Any one system call may be refused: then all is as before, and trying again works.

The stand-ins here refuse the k-th call, for every k that an operation makes. What is "as before" is
observed: where VFIO and KVM send each vector, what arrives when the device fires, what is pending.
A refused SET_IRQS is as nasty as the kernel's: all that it named is parted.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import EventFd, calls
from pyvfio.abi import kvm, vfio
from pyvfio.device import Claim
from pyvfio.device.msix import MsixEntry
from pyvfio.irqroute import BEFORE, D1F6AF6, PATCHED, MsiForwarder, Policy, VirtualMsix
from pyvfio.irqroute.model import _ModelDeviceFile, _ModelFile, _ModelVmFile
from pyvfio.kvm import Irqfd

from .rig import ENABLE, FIRST_SOURCE, MASKALL, Guest, Rig, open_files

ERRORS = (errno.ENODEV, errno.ENOSPC, errno.EMFILE, errno.EINVAL)
WATCHED = (vfio.VFIO_DEVICE_SET_IRQS, kvm.KVM_IRQFD, kvm.KVM_SET_GSI_ROUTING)


class Faults:
    """Refuses one call, or all from one on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._at: int | None = None
        self._ever = False
        self._errno = 0
        self._seen = 0
        self.struck = 0
        real_ioctl, real_eventfd = calls.ioctl, calls.eventfd

        def ioctl(fd: int, request: int, argument: Any) -> int:
            if request in WATCHED and self._strike():
                raise OSError(self._errno, os.strerror(self._errno))
            return real_ioctl(fd, request, argument)

        def eventfd(*arguments: int) -> int:
            if self._strike():
                raise OSError(self._errno, os.strerror(self._errno))
            return real_eventfd(*arguments)

        patch.setattr(calls, "ioctl", ioctl)
        patch.setattr(calls, "eventfd", eventfd)
        for kind in (_ModelDeviceFile, _ModelVmFile):
            patch.setattr(kind, "_answer", self._refusing(kind._answer))

    def _refusing(self, answer: Callable[..., int]) -> Callable[..., int]:
        def refusing(file: _ModelFile, request: int, argument: Any) -> int:
            if not self._strike():
                return answer(file, request, argument)
            if isinstance(file, _ModelDeviceFile) and file._eventfds is not None:
                _, flags, _, start, count = struct.unpack_from("<5I", argument)
                if flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
                    for vector in range(start, start + count):
                        file._eventfds.pop(vector, None)
            return self._errno

        return refusing

    def _strike(self) -> bool:
        if self._at is None:
            return False
        self._seen += 1
        strikes = self._seen >= self._at if self._ever else self._seen == self._at
        self.struck += strikes
        return strikes

    def try_at(
        self, call: int, number: int, operate: Callable[[], object], *, ever: bool = False
    ) -> bool:
        """Whether the operation came so far as to be refused; that it tells so is checked."""
        with self.at(call, number, ever=ever):
            try:
                operate()
            except errors.KernelError as error:
                told = error.errno
            else:
                told = None
        assert told == (number if self.struck else None), f"{os.strerror(number)} at call {call}"
        assert told or call > 1, "some call is made"
        return told is not None

    @contextmanager
    def at(self, call: int, number: int, *, ever: bool = False) -> Iterator[None]:
        """Refuse the block's `call`-th call, or all from that one on."""
        self._at, self._errno, self._ever, self._seen, self.struck = call, number, ever, 0, 0
        try:
            yield
        finally:
            self._at = None


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def nothing(rig: Rig) -> None:
    rig.fill(0, 2)
    rig.fill(1, masked=True)


def enabled(rig: Rig) -> None:
    nothing(rig)
    rig.msix.enabled = True


def masked(rig: Rig) -> None:
    enabled(rig)
    rig.msix.write_table(12, 1)


def all_masked(rig: Rig) -> None:
    """And to be unmasked: one as it is, one with another message, one new."""
    enabled(rig)
    rig.msix.function_masked = True
    rig.msix[2] = rig.entry(2, moved=True)
    rig.fill(3)


def empty(rig: Rig) -> None:
    rig.msix.control = ENABLE | MASKALL
    nothing(rig)


def change(name: str, value: object) -> Callable[[Rig], None]:
    return lambda rig: setattr(rig.msix, name, value)


OPERATIONS: dict[str, tuple[Callable[[Rig], None], Callable[[Rig], None]]] = {
    "enable": (nothing, change("enabled", True)),
    "enable without vectors": (nothing, change("control", ENABLE | MASKALL)),
    "unmask the function, vectors new": (empty, change("function_masked", False)),
    "unmask the function": (all_masked, change("function_masked", False)),
    "unmask a new vector": (enabled, lambda rig: rig.fill(3)),
    "unmask a vector": (masked, lambda rig: rig.msix.write_table(12, 0)),
    "retarget, masked": (masked, lambda rig: write(rig, 0)),
    "retarget": (enabled, lambda rig: write(rig, 0)),
    "mask a vector": (enabled, lambda rig: rig.msix.write_table(12, 1)),
    "mask the function": (enabled, change("function_masked", True)),
}


def write(rig: Rig, vector: int) -> None:
    rig.msix[vector] = rig.entry(vector, moved=True)


def entries(msix: VirtualMsix) -> tuple[int, list[MsixEntry]]:
    return msix.control, list(msix)


def observe(rig: Rig) -> dict[str, object]:
    """Where everything leads, and what becomes of an interrupt of each vector."""
    sending = {vector for vector in range(4) if rig.msix.sends(vector)}
    signalled = rig.signalled()
    arrived = rig.fire(*(vector for vector in signalled if rig.irq._signalled.get(vector)))
    pending = {vector for vector in range(4) if rig.msix.is_pending(vector)}
    return {
        "sending": sending,
        "signalled": signalled,
        "gsis": {vector: rig.forwarder.paths.gsi(vector) for vector in range(4)},
        "arrived": arrived,
        "pending": pending,
        "irqfds": rig.guest.bound(),
        "routes": dict(rig.guest.vm.routes),
    }


def settle(rig: Rig) -> None:
    """Forget what the observing made pending."""
    rig.forwarder.paths.arrived(range(4))
    rig.msix._pending = 0
    rig.guest.take()


@pytest.mark.parametrize("noresize", [False, True], ids=["resizable", "noresize"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_whichever_call_is_refused_all_is_as_before_and_the_next_try_works(
    guest: Guest, faults: Faults, name: str, noresize: bool
) -> None:
    prepare, operate = OPERATIONS[name]
    files, routes = open_files(), dict(guest.vm.routes)
    # What it should come to.
    with Rig(guest, noresize=noresize).watching() as rig:
        prepare(rig)
        settle(rig)
        before, table = observe(rig), entries(rig.msix)
        settle(rig)
        operate(rig)
        after = observe(rig)
    for number in ERRORS:
        for call in count(1):
            where = f"{os.strerror(number)} at call {call}"
            with Rig(guest, noresize=noresize).watching() as rig:
                prepare(rig)
                settle(rig)
                if not faults.try_at(call, number, partial(operate, rig)):
                    break
                assert entries(rig.msix) == table, where
                assert observe(rig) == before, where
                settle(rig)
                operate(rig)
                assert observe(rig) == after, where
            assert dict(guest.vm.routes) == routes, where
            assert guest.bound() == 0, where
            assert open_files() == files, where


@pytest.mark.parametrize("noresize", [False, True], ids=["resizable", "noresize"])
@pytest.mark.parametrize("way", ["disable", "reset", "close"])
def test_whichever_call_is_refused_disabling_leaves_nothing(
    guest: Guest, faults: Faults, way: str, noresize: bool
) -> None:
    routes = dict(guest.vm.routes)
    for number in ERRORS:
        for call in count(1):
            with Rig(guest, noresize=noresize).watching() as rig:
                files = open_files()
                enabled(rig)
                ways: dict[str, Callable[[], None]] = {
                    "disable": partial(change("enabled", False), rig),
                    "reset": rig.forwarder.reset,
                    "close": rig.forwarder.close,
                }
                if not faults.try_at(call, number, ways[way]):
                    break
                assert not rig.msix.enabled
                assert open_files() == files
                assert guest.bound() == 0
                assert dict(guest.vm.routes) == routes
                rig.fill(0, 1, 2, 3)
                rig.msix.enabled = True
                assert rig.fire(0, 1, 2, 3) == {guest.message(vector) for vector in range(4)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_when_nothing_works_any_more_the_first_refusal_is_told_and_nothing_is_left(
    guest: Guest, faults: Faults, name: str
) -> None:
    prepare, operate = OPERATIONS[name]
    files, routes = open_files(), dict(guest.vm.routes)
    for call in count(1):
        with Rig(guest).watching() as rig:
            own = open_files()
            prepare(rig)
            table = entries(rig.msix)
            if not faults.try_at(call, errno.ENODEV, partial(operate, rig), ever=True):
                break
            with faults.at(1, errno.ENODEV, ever=True):
                control, rows = entries(rig.msix)
                assert control == table[0]
                for row, was in zip(rows, table[1], strict=True):
                    assert row in (was, was._replace(masked=True))
                if rig.msix.enabled:
                    with pytest.raises(errors.KernelError):
                        rig.forwarder.close()
                assert open_files() == own
                assert guest.bound() == 0
                assert dict(guest.vm.routes) == routes
            # And should it work again, so does all the rest.
            rig.fill(0, 1, 2, 3)
            rig.msix.control = ENABLE
            assert rig.fire(0, 1, 2, 3) == {guest.message(vector) for vector in range(4)}
        assert open_files() == files


def test_an_interrupt_during_a_refused_masking_is_the_guests(
    guest: Guest, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls, the second refused: what came to us in between is handed on."""
    with Rig(guest).watching() as rig:
        rig.fill(0, 1, 2)
        rig.msix.enabled = True
        rig.msix.write_table(16 + 12, 1)
        path = rig.forwarder.paths.path(0)
        assert path is not None
        real = Claim.signal

        def signal(claim: Claim, start: int, fds: Any) -> None:
            real(claim, start, fds)
            if fds == [path.to_us.fileno()]:
                rig.irq.trigger(0)

        monkeypatch.setattr(Claim, "signal", signal)
        # Both eventfds, the first call, the interrupt, the second call.
        with faults.at(5, errno.EINVAL), pytest.raises(errors.KernelError):
            rig.msix.function_masked = True
        assert rig.arrivals() == {guest.message(0)}
        assert not rig.msix.is_pending(0)


def test_a_refused_retarget_of_msi_leaves_it_where_it_was(guest: Guest, faults: Faults) -> None:
    for number in ERRORS:
        for call in count(1):
            rig = Rig(guest, noresize=True)
            forwarder = MsiForwarder(rig.irq, guest.vm)
            with rig.watching(), forwarder:
                forwarder.enable(guest.message(0), 2)
                moved = guest.message(0, moved=True)
                if not faults.try_at(call, number, partial(forwarder.retarget, moved)):
                    break
                assert rig.fire(0, 1) == {guest.message(0), guest.message(1)}
                forwarder.retarget(guest.message(0, moved=True))
                assert rig.fire(0, 1) == {guest.message(n, moved=True) for n in (0, 1)}
            assert guest.bound() == 0


def test_a_refused_enabling_of_msi_leaves_nothing(guest: Guest, faults: Faults) -> None:
    files, routes = open_files(), dict(guest.vm.routes)
    for call in count(1):
        rig = Rig(guest, noresize=True)
        forwarder = MsiForwarder(rig.irq, guest.vm)
        with rig.watching(), forwarder:
            own = open_files()
            enable = partial(forwarder.enable, guest.message(0), 2)
            if not faults.try_at(call, errno.ENOSPC, enable):
                break
            assert forwarder.count == 0
            assert (open_files(), guest.bound(), dict(guest.vm.routes)) == (own, 0, routes)
            forwarder.enable(guest.message(0), 2)
            assert rig.fire(0, 1) == {guest.message(0), guest.message(1)}
    assert open_files() == files


def test_a_route_that_could_not_be_restored_is_restored_by_the_next_unmasking(
    routed: Guest, faults: Faults
) -> None:
    with Rig(routed).watching() as rig:
        masked(rig)
        # The commit is made; VFIO refuses, and the kernel all that would undo it.
        with faults.at(2, errno.ENOMEM, ever=True), pytest.raises(errors.KernelError):
            write(rig, 0)
        assert rig.msix[0] == rig.entry(0, masked=True)
        rig.msix.write_table(12, 0)
        assert rig.fire(0) == {routed.message(0)}


def test_an_interrupt_during_a_refused_move_arrives_where_the_vector_stays(
    direct: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(direct, noresize=True)
    forwarder = MsiForwarder(rig.irq, direct.vm)
    with rig.watching(), forwarder:
        forwarder.enable(direct.message(0))
        real = direct.vm.irqfds.assign

        def assign(eventfd: EventFd, gsi: int) -> Irqfd:
            if gsi != FIRST_SOURCE:
                rig.irq.trigger(0)  # between the old GSI and the new one
                raise errors.KernelError(errno.ENOMEM, "KVM_IRQFD", "a VM")
            return real(eventfd, gsi)

        monkeypatch.setattr(direct.vm.irqfds, "assign", assign)
        with pytest.raises(errors.KernelError):
            forwarder.retarget(direct.message(0, moved=True))
        assert rig.arrivals() == {direct.message(0)}
        assert rig.fire(0) == {direct.message(0)}


@pytest.mark.parametrize("policy", [BEFORE, D1F6AF6, PATCHED], ids=lambda policy: policy.name)
def test_the_orders_of_2016_leave_nothing_once_closed_either(
    guest: Guest, faults: Faults, policy: Policy
) -> None:
    """They are replicas, and undo no more than QEMU's do; but they are ended as a whole."""
    files, routes = open_files(), dict(guest.vm.routes)

    def live(rig: Rig) -> None:
        rig.fill(0, 2)
        rig.msix.enabled = True
        rig.msix.write_table(12, 1)
        write(rig, 0)
        rig.msix.function_masked = True
        rig.msix.function_masked = False
        rig.msix.enabled = False

    for call in count(1):
        with Rig(guest, policy=policy).watching() as rig:
            own = open_files()
            with faults.at(call, errno.EINVAL), suppress(errors.KernelError):
                live(rig)
            struck = faults.struck
            rig.forwarder.close()
            assert open_files() == own
            assert guest.bound() == 0
            assert dict(guest.vm.routes) == routes
        if not struck:
            break
    assert call > 10
    assert open_files() == files
