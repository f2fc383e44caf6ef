"""Binding a function to vfio-pci, and giving it back.

A driver is bound by driver_override: no other driver may take the function meanwhile, and the
kernel tells why a driver refuses. The override is put back as soon as the driver is bound. What
the function was bound to is recorded under /run/pyvfio before anything is changed, so that it can
be given back even after kill -9.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio._sys.signals import deferred_signals
from pyvfio.pci import modules, paths, record
from pyvfio.pci.address import Address
from pyvfio.pci.events import wait_until
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio
from pyvfio.pci.openable import lacks_iommu, no_iommu
from pyvfio.pci.usage import Claims, Usage, holders_of, look, removal
from pyvfio.pci.usage.holders import Holder

T = TypeVar("T")

_TIMEOUT = 10.0

# Seconds that a program may have a node open before it counts: udev and others look into each disk
# that appears, and close it at once.
_GLANCE = 1.0

# The phrases that a message has room for.
_SHOWN = 8

Notice = Callable[[str], object]


def bind(
    address: Address | str,
    *,
    driver: str = "vfio-pci",
    force: bool = False,
    timeout: float = _TIMEOUT,
    notice: Notice | None = None,
) -> bool:
    """Bind a function to a driver, by default to vfio-pci; its module is loaded if need be.

    Whatever goes wrong, Ctrl-C included, the function is given back to the driver it had. The
    function's disks are claimed while it is taken, so that nobody mounts one meanwhile.

    Args:
        driver: the kernel driver's name.
        force: take the device even from a host that is using it. A device whose driver would wait,
            in the kernel and without end, for a program to close it is refused all the same.
        timeout: seconds to wait for another process that binds it, and for its group's node.
        notice: called with each use of the device that `force` overrides, and with what could not
            be looked at, one phrase each.

    Returns:
        True when it was bound now and can be given back; False when it was bound to this driver
        before, by whomever, and so stays as it is.

    Raises:
        DeviceNotFound: nothing is at that address.
        DeviceInUse: the host uses it.
        NoIommu: it is in no IOMMU group.
        NoVfio: the VFIO driver cannot be loaded.
        BindFailed: the kernel refused; says why.
        Busy: a process holds it open through VFIO, or is binding it; or it is being removed.
        AccessDenied: only root may bind.
        KernelError: what it was bound to cannot be written down.
    """
    return _bind(Function(address), driver, force, timeout, notice, [])


def check_bindable(
    address: Address | str, *, driver: str = "vfio-pci", force: bool = False
) -> None:
    """Check all that stands before binding a function; takes nothing from the host.

    Raises:
        As :func:`bind`.
    """
    function = Function(address)

    def check() -> None:
        removal.refuse(function)
        if function.driver != driver:
            with Claims(function) as claims:
                _check(function, driver, force, claims, None)

    _exclusively(function, _TIMEOUT, check)


def unbind(address: Address | str, *, timeout: float = _TIMEOUT) -> bool:
    """Give a function back to the driver that it had before :func:`bind`, or to none.

    Ctrl-C ends the wait for other processes. Once the function leaves its driver, Ctrl-C waits
    until it has been given back.

    Args:
        timeout: seconds to wait for another process that binds it or holds it open through VFIO;
            for this process there is no wait.

    Returns:
        True when it was given back; False when pyvfio did not bind it, and so leaves it alone.

    Raises:
        DeviceNotFound: nothing is at that address.
        BindFailed: its driver refuses it; it can be tried again.
        Busy: a process holds it open, or is binding it; this process may still hold a view of a
            BAR. It stays bound and can be given back later. Or it is being removed.
        AccessDenied: only root may.
    """
    function = Function(address)

    def give_back() -> bool:
        removal.refuse(function)
        was = record.load(function)
        if was is None:
            return False
        if function.driver == was.target:
            _await_release(function, timeout, _unbind_command(function))
        _give_back(function, was)
        return True

    return _exclusively(function, timeout, give_back)


@contextlib.contextmanager
def bound(
    address: Address | str,
    *,
    driver: str = "vfio-pci",
    force: bool = False,
    timeout: float = _TIMEOUT,
    notice: Notice | None = None,
) -> Iterator[Function]:
    """A function bound to a driver within the context, and given back at its end.

    One that was bound to this driver before stays so. Arguments and errors are those of
    :func:`bind`; at its end those of :func:`unbind`, chained to what failed in the block. Ctrl-C
    waits until the function is given back.
    """
    function = Function(address)
    taken: list[record.Record] = []

    def give_back() -> None:
        with deferred_signals():
            if taken:
                _once(taken, lambda: unbind(address, timeout=timeout))

    try:
        try:
            _bind(function, driver, force, timeout, notice, taken)
            yield function
        finally:
            give_back()
    finally:
        # Where Ctrl-C came just before the line above.
        give_back()


def _bind(
    function: Function,
    driver: str,
    force: bool,
    timeout: float,
    notice: Notice | None,
    taken: list[record.Record],
) -> bool:
    """Bind a function; `taken` gets its record before anything is changed, while it is bound."""

    def take() -> bool:
        removal.refuse(function)
        found = _before(function)
        if function.driver == driver:
            # bind() may have been killed just before it did this.
            _set_override(function, found.override)
            return False
        with Claims(function) as claims:
            _check(function, driver, force, claims, notice)
            if is_vfio(function.driver):
                _await_release(function, timeout, f"pyvfio bind {function.address}")
            taken.append(
                record.Record(record.identity(function), found.driver, found.override, driver)
            )
            # The kernel is not told half of it.
            with deferred_signals():
                record.save(function, taken[0])
                _switch(function, driver, claims)
                _set_override(function, found.override)
        if is_vfio(driver):
            if lacks_iommu(function):
                raise no_iommu(function)
            _await_node(function, timeout)
        return True

    def take_or_give_back() -> bool:
        try:
            return take()
        except BaseException as error:
            if taken:
                _once(taken, lambda: _give_back(function, taken[0]))
            # vfio-pci's probe fails with EINVAL for a function that it brought into no group.
            refused = isinstance(error, errors.BindFailed) and is_vfio(driver)
            if refused and function.iommu_group is None:
                raise no_iommu(function) from error
            raise

    try:
        return _exclusively(function, timeout, take_or_give_back)
    except BaseException:
        # Ctrl-C came after all was done.
        if taken:
            with deferred_signals():
                _exclusively(
                    function, timeout, lambda: _once(taken, lambda: _give_back(function, taken[0]))
                )
        raise


def _once(taken: list[record.Record], give_back: Callable[[], object]) -> None:
    """Give a function back and take note of it: what was refused would be refused again."""
    try:
        give_back()
    except errors.Error:
        taken.clear()
        raise
    taken.clear()


def _exclusively(function: Function, timeout: float, action: Callable[[], T]) -> T:
    """Do something while no other process binds the function.

    Args:
        function: the function.
        timeout: seconds to wait for another process.
        action: what is done.
    """
    lock = record.Lock(function.address)
    try:
        try:
            lock.acquire(timeout)
            return action()
        finally:
            lock.close()
    finally:
        # Where Ctrl-C came just before the line above: a traceback may keep the lock's file open,
        # and this process could not bind the function again.
        lock.close()


def _before(function: Function) -> record.State:
    """What a function had before pyvfio came; where that is half-way, its record tells."""
    now = record.State(function.driver, function.driver_override)
    was = record.load(function)
    if was is None:
        return now
    half_way = now.override is not None and now.override in (was.target, was.driver)
    return record.State(
        was.driver if now.driver is None and half_way else now.driver,
        was.override if half_way else now.override,
    )


def _check(
    function: Function, driver: str, force: bool, claims: Claims, notice: Notice | None
) -> None:
    address = function.address
    was = record.load(function)
    if was is not None and function.driver == was.target:
        raise errors.BindFailed(
            f"pyvfio has bound {address} to {was.target}: first run `pyvfio unbind {address}`"
        )
    if is_vfio(driver):
        if function.is_bridge:
            raise errors.BindFailed(
                f"{address} is a bridge; VFIO drives only endpoints, and a bridge that stays with "
                "pcieport does not keep its group from them"
            )
        if lacks_iommu(function):
            raise no_iommu(function)
    modules.require(driver)
    usage = _usage(function, claims)
    if usage.waited_for and not is_vfio(function.driver):
        raise errors.DeviceInUse(
            f"{address} cannot be taken from its driver {function.driver}, not even with --force: "
            f"the driver would wait in the kernel, without end, until it is closed: "
            f"{_joined(usage.waited_for)}. End that first, then `pyvfio bind {address}`",
            usage.waited_for,
        )
    found = usage.uses + usage.openers
    if found and not force:
        raise errors.DeviceInUse(
            f"{address} (driver {function.driver}) is in use: {_joined(found)}. Release it, or "
            f"take it regardless: `pyvfio bind --force {address}`, force=True",
            found,
        )
    if notice is not None:
        for use in found:
            notice(f"taking {address} although {use}")
        for unknown in usage.unknown:
            notice(f"{address} may be in use all the same: {unknown}")


def _usage(function: Function, claims: Claims) -> Usage:
    """What the host uses a function for, once programs that only glance at it have closed it."""
    usage = look(function, claims)

    def settled() -> bool:
        nonlocal usage
        if usage.uses or not usage.openers:
            return True
        usage = look(function, claims)
        return not usage.openers

    wait_until(settled, _GLANCE)
    return usage


def _joined(phrases: tuple[str, ...]) -> str:
    more = len(phrases) - _SHOWN
    return "; ".join(phrases[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _give_back(function: Function, was: record.Record) -> None:
    """Bring a function back to what it was; done to its end, whatever comes between."""
    with deferred_signals():
        try:
            _restore(function, was)
        except errors.Error:
            raise
        except BaseException:
            # Not by a signal: an exception that a debugger or another thread has raised here.
            _restore(function, was)
            raise


def _restore(function: Function, was: record.Record) -> None:
    override = _before(function).override
    try:
        # Any other driver is one that somebody else has bound meanwhile.
        if function.driver in (None, was.target):
            _await_release(function, 0, _unbind_command(function))
            _switch(function, was.driver)
    finally:
        _set_override(function, override)
    record.forget(function)


def _switch(function: Function, driver: str | None, claims: Claims | None = None) -> None:
    """Take a function from its driver, and bind it to another one.

    Args:
        function: the function.
        driver: the other one; None for none.
        claims: its disks, let go as soon as it has left its driver: one that is still open would
            keep its name from the disk that comes after it.
    """
    if driver is not None:
        modules.require(driver)
        _set_override(function, driver)
    if function.driver is not None:
        sysfs.write(function.sysfs / "driver/unbind", str(function.address))
    if claims is not None:
        claims.close()
    if driver is not None:
        _attach(function, driver)


def _set_override(function: Function, driver: str | None) -> None:
    if function.driver_override != driver:
        # An empty line clears it; an empty write would not reach the kernel.
        sysfs.write(function.sysfs / "driver_override", f"{driver or ''}\n")


def _await_release(function: Function, timeout: float, again: str) -> None:
    """Wait until other processes let the function go; this one has nobody to wait for.

    The kernel would wait for them without end and could not be interrupted.

    Raises:
        Busy: somebody still holds it.
    """
    holders: tuple[Holder, ...] = ()

    def decided() -> bool:
        nonlocal holders
        holders = holders_of(function)
        return not holders or any(holder.mine for holder in holders)

    wait_until(decided, timeout)
    if holders:
        texts = "; ".join(holder.text for holder in holders)
        raise errors.Busy(errno.EBUSY, "unbind", str(function.sysfs), f"{texts}, then `{again}`")


def _unbind_command(function: Function) -> str:
    return f"pyvfio unbind {function.address}"


def _attach(function: Function, driver: str) -> None:
    refusal = None
    try:
        # Unlike drivers_probe, this returns the error of the driver's probe.
        sysfs.write(paths.SYSFS / "bus/pci/drivers" / driver / "bind", str(function.address))
    except errors.KernelError as error:
        refusal = error
    if function.driver != driver:
        reason = "it did, but the function is not bound" if refusal is None else str(refusal)
        raise errors.BindFailed(
            f"the kernel did not bind {function.address} to {driver}: {reason}; "
            "the end of `dmesg` may say more"
        ) from refusal


def _await_node(function: Function, timeout: float) -> None:
    group = function.iommu_group
    if group is not None and not wait_until(
        lambda: os.path.exists(group.path), timeout, subsystem="vfio"
    ):
        raise errors.BindFailed(
            f"{function.address} was bound, but {group.path} did not appear within {timeout:g} s: "
            "devtmpfs or udevd should make it in /dev"
        )
