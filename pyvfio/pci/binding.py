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
from collections.abc import Iterator

from pyvfio import errors
from pyvfio._sys import signals, sysfs
from pyvfio.pci import modules, paths, record
from pyvfio.pci.address import Address
from pyvfio.pci.events import wait_until
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio
from pyvfio.pci.openable import no_iommu
from pyvfio.pci.usage import users, vfio_holders
from pyvfio.pci.usage.holders import Holder

_TIMEOUT = 10.0


def bind(
    address: Address | str,
    *,
    driver: str = "vfio-pci",
    force: bool = False,
    timeout: float = _TIMEOUT,
) -> bool:
    """Bind a function to a driver, by default to vfio-pci; its module is loaded if need be.

    Whatever goes wrong, Ctrl-C included, the function is given back to the driver it had.

    Args:
        driver: the kernel driver's name.
        force: take the device even from a host that is using it.
        timeout: seconds to wait for another process that binds it, and for its group's node.

    Returns:
        True when it was bound now and can be given back; False when it was bound to this driver
        before, by whomever, and so stays as it is.

    Raises:
        DeviceNotFound: nothing is at that address.
        DeviceInUse: the host uses it.
        NoIommu: it is in no IOMMU group.
        NoVfio: the VFIO driver cannot be loaded.
        BindFailed: the kernel refused; says why.
        Busy: a process holds it open through VFIO, or is binding it.
        AccessDenied: only root may bind.
    """
    function = Function(address)
    with record.locked(function.address, timeout):
        found = _before(function)
        if function.driver == driver:
            # bind() may have been killed just before it did this.
            _set_override(function, found.override)
            return False
        _check(function, driver, force=force)
        was = record.Record(record.identity(function), found.driver, found.override, driver)
        try:
            record.save(function, was)
            _switch(function, driver, timeout, again=f"pyvfio bind {function.address}")
            _set_override(function, was.override)
            if is_vfio(driver):
                _await_node(function, timeout)
        except BaseException:
            _give_back(function, was, timeout)
            raise
    return True


def unbind(address: Address | str, *, timeout: float = _TIMEOUT) -> bool:
    """Give a function back to the driver that it had before :func:`bind`, or to none.

    Args:
        timeout: seconds to wait for another process that binds it or holds it open through VFIO;
            for this process there is no wait.

    Returns:
        True when it was given back; False when pyvfio did not bind it, and so leaves it alone.

    Raises:
        DeviceNotFound: nothing is at that address.
        BindFailed: its driver refuses it; it can be tried again.
        Busy: a process holds it open through VFIO, or is binding it; this process may still hold
            a view of a BAR. It stays bound and can be given back later.
        AccessDenied: only root may.
    """
    function = Function(address)
    with record.locked(function.address, timeout):
        was = record.load(function)
        if was is None:
            return False
        _give_back(function, was, timeout)
    return True


@contextlib.contextmanager
def bound(
    address: Address | str,
    *,
    driver: str = "vfio-pci",
    force: bool = False,
    timeout: float = _TIMEOUT,
) -> Iterator[Function]:
    """A function bound to a driver within the context, and given back at its end.

    One that was bound to this driver before stays so. Arguments and errors are those of
    :func:`bind`; at its end those of :func:`unbind`, chained to what failed in the block. Ctrl-C
    waits until the function is given back.
    """
    was_bound = not bind(address, driver=driver, force=force, timeout=timeout)
    try:
        yield Function(address)
    finally:
        if not was_bound:
            with signals.held_back():
                unbind(address, timeout=timeout)


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


def _check(function: Function, driver: str, *, force: bool) -> None:
    address = function.address
    was = record.load(function)
    if was is not None and function.driver == was.target:
        raise errors.BindFailed(
            f"pyvfio has bound {address} to {was.target}: first run `pyvfio unbind {address}`"
        )
    modules.require(driver)
    if is_vfio(driver):
        if function.is_bridge:
            raise errors.BindFailed(
                f"{address} is a bridge; VFIO drives only endpoints, and a bridge that stays with "
                "pcieport does not keep its group from them"
            )
        if function.iommu_group is None:
            raise no_iommu(function)
    if not force and (found := users(function)):
        raise errors.DeviceInUse(
            f"{address} (driver {function.driver}) is in use: {'; '.join(found)}. Release it, or "
            f"take it regardless: `pyvfio bind --force {address}`, force=True",
            found,
        )


def _give_back(function: Function, was: record.Record, timeout: float) -> None:
    override = _before(function).override
    try:
        # Any other driver is one that somebody else has bound meanwhile.
        if function.driver in (None, was.target):
            _switch(function, was.driver, timeout, again=f"pyvfio unbind {function.address}")
    finally:
        _set_override(function, override)
    record.forget(function)


def _switch(function: Function, driver: str | None, timeout: float, *, again: str) -> None:
    if driver is not None:
        modules.require(driver)
        _set_override(function, driver)
    _detach(function, timeout, again)
    if driver is not None:
        _attach(function, driver)


def _set_override(function: Function, driver: str | None) -> None:
    if function.driver_override != driver:
        # An empty line clears it; an empty write would not reach the kernel.
        sysfs.write(function.sysfs / "driver_override", f"{driver or ''}\n")


def _detach(function: Function, timeout: float, again: str) -> None:
    driver = function.driver
    if driver is None:
        return
    # The kernel would wait, uninterruptibly, for whoever holds it open.
    if is_vfio(driver) and (holders := _await_release(function, timeout)):
        texts = "; ".join(holder.text for holder in holders)
        raise errors.Busy(errno.EBUSY, "unbind", str(function.sysfs), f"{texts}, then `{again}`")
    sysfs.write(function.sysfs / "driver/unbind", str(function.address))


def _await_release(function: Function, timeout: float) -> tuple[Holder, ...]:
    """Wait until other processes let the function go; this one has nobody to wait for.

    Returns:
        Who holds it still.
    """
    holders: tuple[Holder, ...] = ()

    def decided() -> bool:
        nonlocal holders
        holders = vfio_holders(function)
        return not holders or any(holder.mine for holder in holders)

    wait_until(decided, timeout)
    return holders


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
