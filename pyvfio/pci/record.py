"""What a function was bound to before pyvfio bound it, kept so that it outlives the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from io import FileIO
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio._sys.file import refused
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
    """Remember, atomically: a reader sees the whole record or none.

    Raises:
        AccessDenied, KernelError: it cannot be written; nothing is left of it.
    """
    path = _path(function.address)
    try:
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump(record._asdict(), file)
            os.replace(f"{path}.new", path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(f"{path}.new")
            raise
    except OSError as error:
        raise _refused(error, "write", path) from None


def forget(function: Function) -> None:
    """Remember nothing of a function.

    Raises:
        AccessDenied, KernelError: the record cannot be removed.
    """
    path = _path(function.address)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _refused(error, "unlink", path) from None


class Lock:
    """Keeps other processes from binding the same function; :meth:`close` lets them.

    Args:
        address: the function's.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._path = f"{paths.RECORDS}/{address}.lock"
        self._file: FileIO | None = None

    def acquire(self, timeout: float) -> None:
        """Lock it.

        Args:
            timeout: seconds to wait for another process that does just now.

        Raises:
            AccessDenied: only root may bind.
            Busy: the time ran out.
            OpenFilesLimit, KernelError: the lock's file cannot be made.
        """
        try:
            paths.RECORDS.mkdir(mode=0o700, exist_ok=True)
            # The file stays: were it removed, two could hold locks of different files of that name.
            # Python's own file, since one that a signal's handler keeps from being assigned is
            # closed all the same.
            self._file = open(self._path, "ab", buffering=0, opener=_open_for_root)  # noqa: SIM115
        except OSError as error:
            raise _refused(error, "open", self._path) from None
        if not wait_until(self._try, timeout):
            raise errors.Busy(
                errno.EAGAIN,
                "flock",
                self._path,
                f"another process has been binding {self._address} for {timeout:g} s",
            )

    def close(self) -> None:
        """Unlock it, if it is locked."""
        if self._file is not None:
            self._file.close()

    def _try(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _open_for_root(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _refused(error: OSError, call: str, path: str) -> errors.KernelError:
    """The error for a file of the records that cannot be had, with what to do about it."""
    number = error.errno or 0
    if number in (errno.EACCES, errno.EPERM):
        if os.geteuid():
            meaning = "binding a device to another driver needs root (sudo)"
        else:
            meaning = (
                f"root may not write to {paths.RECORDS} here: a container or a security module "
                "(SELinux, AppArmor) forbids it"
            )
        return errors.AccessDenied(number, call, path, meaning)
    if number == errno.EMFILE:
        return refused(error, call, path)
    remembers = f"pyvfio keeps in {paths.RECORDS} which driver a device had"
    meaning = {
        errno.ENOSPC: f"{remembers}, and there is no space or no inode left: see `df` and `df -i`",
        errno.EDQUOT: f"{remembers}, and the quota there is used up",
        errno.EROFS: f"{remembers}, and that is mounted read-only: it must be writable",
        errno.ENOENT: f"{remembers}, and {paths.RECORDS.parent} does not exist",
        errno.EEXIST: f"{remembers}, and that is not a directory: move the file away",
        errno.ENOTDIR: f"{remembers}, and that is not a directory: move the file away",
    }.get(number, remembers)
    return errors.KernelError(number, call, path, meaning)


def _path(address: Address) -> str:
    return f"{paths.RECORDS}/{address}.json"
