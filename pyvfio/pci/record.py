"""What a function was bound to before pyvfio bound it, kept so that it outlives the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.pci import paths
from pyvfio.pci.address import Address
from pyvfio.pci.events import wait_until
from pyvfio.pci.function import Function

_MOST_CHARACTERS = 4096
"""Of a record; one of ours has a few hundred."""


class State(NamedTuple):
    """What a function is bound to.

    Attributes:
        driver: its driver, None for none.
        override: its driver_override.
    """

    driver: str | None
    override: str | None


class Record(NamedTuple):
    """What is remembered of one function.

    Attributes:
        identity: the device and the boot it was written for; for another it is void.
        driver: the driver it had; None for none.
        override: the driver_override it had.
        target: the driver that pyvfio binds instead.
    """

    identity: str
    driver: str | None
    override: str | None
    target: str


def identity(function: Function) -> str:
    """Which device this is, in this boot of the host: another may come to the same address."""
    boot = sysfs.read(paths.PROC / "sys/kernel/random/boot_id")
    return f"{function.vendor_id:04x}:{function.device_id:04x} in boot {boot}"


def load(function: Function) -> Record | None:
    """What is remembered of a function; None when nothing is.

    Raises:
        BindFailed: the file is none of pyvfio's.
    """
    path = _path(function.address)
    try:
        with open(path, encoding="utf-8") as file:
            record = Record(**json.loads(file.read(_MOST_CHARACTERS)))
        if not all(value is None or isinstance(value, str) for value in record):
            raise ValueError("values are texts or null")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.BindFailed(
            f"{path} should tell which driver {function.address} had before, but is broken or from "
            f"another version of pyvfio ({error}). Give the device back by hand, or leave it as it "
            f"is, then remove the file: rm {path}"
        ) from None
    return record if record.identity == identity(function) else None


def save(function: Function, record: Record) -> None:
    """Remember, atomically: a reader sees the whole record or none."""
    path = _path(function.address)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(record._asdict(), file)
    os.replace(f"{path}.new", path)


def forget(function: Function) -> None:
    """Remember nothing of a function."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(function.address))


@contextlib.contextmanager
def locked(address: Address, timeout: float) -> Iterator[None]:
    """Keep other processes from binding the same function.

    Args:
        timeout: seconds to wait for whoever does just now.

    Raises:
        AccessDenied: only root may bind.
        Busy: the time ran out.
    """
    path = f"{paths.RECORDS}/{address}.lock"
    try:
        paths.RECORDS.mkdir(mode=0o700, exist_ok=True)
        # The file stays: were it removed, two could hold locks of different files of that name.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        kind = errors.AccessDenied if isinstance(error, PermissionError) else errors.KernelError
        raise kind(
            error.errno or 0, "open", path, "binding a device to another driver needs root (sudo)"
        ) from None

    def lock() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not wait_until(lock, timeout):
            raise errors.Busy(
                errno.EAGAIN,
                "flock",
                path,
                f"another process has been binding {address} for {timeout:g} s",
            )
        yield
    finally:
        os.close(fd)


def _path(address: Address) -> str:
    return f"{paths.RECORDS}/{address}.json"
