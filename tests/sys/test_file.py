"""File: one owner for a descriptor, errors that say what was called on what."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from pyvfio import errors
from pyvfio._sys import DeviceFile, EventFd, File, calls, sysfs
from pyvfio.abi import vfio


def test_errors_name_call_file_and_errno(tmp_path: Path) -> None:
    with pytest.raises(errors.KernelError) as caught:
        File.open(str(tmp_path / "absent"))
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, OSError)
    assert "open on" in str(caught.value)
    assert "ENOENT" in str(caught.value)
    with File(os.memfd_create("a"), "a") as file, pytest.raises(errors.KernelError) as caught:
        file.ioctl(vfio.VFIO_GET_API_VERSION)
    assert "VFIO_GET_API_VERSION on a" in str(caught.value)


def test_a_permission_error_is_also_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EACCES, "")

    monkeypatch.setattr(calls, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        File.open("/dev/vfio/0")
    assert isinstance(caught.value, errors.AccessDenied)


def test_hot_reset_without_a_slot_is_no_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENODEV, "")

    monkeypatch.setattr(calls, "ioctl", refuse)
    with DeviceFile(os.memfd_create("a"), "0000:00:04.0") as file:
        for request in (
            vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            vfio.VFIO_DEVICE_PCI_HOT_RESET,
        ):
            with pytest.raises(errors.KernelError, match="no reset of a slot or bus") as caught:
                file.ioctl(request, bytearray(12))
            assert not isinstance(caught.value, errors.DeviceGone)
        with pytest.raises(errors.DeviceGone):
            file.ioctl(vfio.VFIO_DEVICE_RESET)


def test_enodev_of_config_space_names_both_causes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENODEV, "")

    monkeypatch.setattr(calls, "pread", refuse)
    with (
        DeviceFile(os.memfd_create("a"), "0000:00:04.0") as file,
        pytest.raises(errors.DeviceGone, match=r"removed, or .* its PE is being reset"),
    ):
        file.pread(2, 4)


def test_errors_survive_pickling_with_all_they_say() -> None:
    error = errors.KernelError(errno.EBUSY, "open", "/dev/vfio/1", "somebody has it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (errors.KernelError, str(error))


def test_what_is_closed_says_so() -> None:
    file = File(os.memfd_create("a"), "a")
    file.close()
    file.close()
    assert file.closed
    for use in (
        file.fileno,
        lambda: file.ioctl(vfio.VFIO_GET_API_VERSION),
        lambda: file.pread(1, 0),
        lambda: file.pwrite(b"a", 0),
    ):
        with pytest.raises(errors.Closed, match="a is closed"):
            use()


def test_short_reads_and_writes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with File(os.memfd_create("a"), "a") as file:
        file.pwrite(b"1234", 0)
        assert file.pread(4, 0) == b"1234"
        with pytest.raises(errors.KernelError, match="2 of 4 bytes"):
            file.pread(4, 2)
        monkeypatch.setattr(calls, "pwrite", lambda *_: 1)
        with pytest.raises(errors.KernelError, match="1 of 4 bytes"):
            file.pwrite(b"1234", 0)


def test_a_child_loses_the_descriptor_and_the_parent_keeps_it() -> None:
    file = File(os.memfd_create("a"), "a")
    fd = file.fileno()
    child = os.fork()
    if child == 0:
        try:
            os.fstat(fd)
            gone = False
        except OSError:
            gone = True
        os._exit(0 if gone and file.closed else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.fstat(file.fileno())
    file.close()


def test_a_forgotten_file_is_closed_with_a_warning() -> None:
    file = File(os.memfd_create("a"), "a")
    fd = file.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_forgotten_file_is_closed_where_warnings_are_errors() -> None:
    file = File(os.memfd_create("a"), "a")
    fd = file.fileno()
    unraisable: list[object] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(sys, "unraisablehook", unraisable.append)
        del file
    assert len(unraisable) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def interrupted(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the next ioctls end with EINTR; what was called is in the list."""
    made: list[int] = []

    def ioctl(fd: int, request: int, argument: object) -> int:
        made.append(fd)
        if len(made) <= times:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        return 7

    monkeypatch.setattr(calls, "ioctl", ioctl)
    return made


def test_interrupted_ioctl_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interrupted(3, monkeypatch)
    told: list[object] = []
    with File(os.memfd_create("a"), "a") as file:
        file.watcher = lambda request, argument, outcome: told.append(outcome)
        assert file.ioctl(vfio.VFIO_GET_API_VERSION) == 7
    assert len(made) == 4
    assert told == [7]


def test_ioctl_that_never_gets_through_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interrupted(1 << 30, monkeypatch)
    with File(os.memfd_create("a"), "a") as file:
        with pytest.raises(errors.KernelError) as caught:
            file.ioctl(vfio.VFIO_GET_API_VERSION)
        assert caught.value.errno == errno.EINTR
        assert len(made) == 1000
        with pytest.raises(errors.KernelError):
            file.ioctl(vfio.VFIO_GET_API_VERSION, retry=False)
        assert len(made) == 1001


def test_file_that_the_signals_handler_closes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(os.memfd_create("a"), "a")

    def ioctl(fd: int, request: int, argument: object) -> int:
        file.close()  # as the handler of the signal does
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    monkeypatch.setattr(calls, "ioctl", ioctl)
    with pytest.raises(errors.Closed):
        file.ioctl(vfio.VFIO_GET_API_VERSION)


@pytest.mark.parametrize("call", ["ioctl", "pread", "pwrite"])
def test_descriptor_in_use_outlives_close(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the call could reach whatever file gets the same number."""
    file = File(os.memfd_create("mine"), "mine")
    fd = file.fileno()
    seen: list[str] = []

    def work(*arguments: object) -> object:
        closer = threading.Thread(target=file.close)
        closer.start()
        closer.join()
        assert file.closed
        other = os.memfd_create("other")
        seen.append(os.readlink(f"/proc/self/fd/{fd}"))
        os.close(other)
        return {"ioctl": 0, "pread": b"1", "pwrite": 1}[call]

    uses: dict[str, Callable[[], object]] = {
        "ioctl": lambda: file.ioctl(vfio.VFIO_GET_API_VERSION),
        "pread": lambda: file.pread(1, 0),
        "pwrite": lambda: file.pwrite(b"1", 0),
    }
    monkeypatch.setattr(calls, call, work)
    uses[call]()
    assert seen == ["/memfd:mine (deleted)"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_close_that_reports_an_error_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(fd: int) -> None:
        os.close(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(calls, "close", close)
    before = os.listdir("/proc/self/fd")
    file = File(os.memfd_create("a"), "a")
    number = errno.EIO
    with pytest.raises(errors.KernelError, match=r"close on a: .*EIO"):
        file.close()
    assert file.closed
    file = File(os.memfd_create("a"), "a")
    number = errno.EINTR  # which Linux means for a file that is closed
    file.close()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("make", "call"), [(lambda: File.open("/dev/null"), "open"), (EventFd, "eventfd")]
)
def test_signal_during_the_call_loses_no_descriptor(
    make: Callable[[], File], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(calls, call)

    def interrupted(*arguments: object) -> int:
        fd: int = real(*arguments)
        signal.raise_signal(signal.SIGINT)
        return fd

    monkeypatch.setattr(calls, call, interrupted)
    before = os.listdir("/proc/self/fd")
    with suppress(KeyboardInterrupt):
        make().close()
    assert os.listdir("/proc/self/fd") == before


def test_event_that_does_not_fit_the_counter_is_refused() -> None:
    most = (1 << 64) - 2
    with EventFd("counter") as event:
        event.signal(most)
        with pytest.raises(errors.KernelError, match=r"counter.*take\(\) some first") as caught:
            event.signal()
        assert caught.value.errno == errno.EAGAIN
        assert event.take() == most
        for count in (-1, most + 1, most + 2):
            with pytest.raises(errors.RangeError, match=str(count)):
                event.signal(count)
        assert event.take() == 0


def test_an_eventfd_counts_until_somebody_looks() -> None:
    with EventFd() as event:
        assert event.take() == 0
        assert event.wait(0.001) == 0
        event.signal()
        event.signal(4)
        assert event.wait() == 5
        assert event.take() == 0


def test_an_eventfd_that_is_closed_at_this_very_moment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eventfd = EventFd()

    def read(fd: int) -> int:
        eventfd.close()  # as another thread may
        return os.eventfd_read(fd)

    monkeypatch.setattr(calls, "eventfd_read", read)
    with pytest.raises(errors.Closed):
        eventfd.take()


def test_sysfs_reads_links_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "vendor").write_text("0x1af4\n")
    (tmp_path / "drivers").mkdir()
    (tmp_path / "driver").symlink_to("drivers")
    assert sysfs.read(tmp_path / "vendor") == "0x1af4"
    assert sysfs.link_name(tmp_path / "driver") == "drivers"
    assert sysfs.link_name(tmp_path / "absent") is None
    with pytest.raises(errors.KernelError, match="ENOENT"):
        sysfs.read(tmp_path / "absent")


@pytest.mark.parametrize("kind", [lambda: File(os.memfd_create("a"), "a"), EventFd])
def test_closed_file_ends_without_python_code(kind: Callable[[], File]) -> None:
    """What the handler of a signal raises in a finalizer is dropped."""
    files = [kind() for _ in range(3)]
    for file in files:
        file.close()
    del file
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    files.clear()
    sys.setprofile(None)
    assert called == []


def test_descriptor_of_an_interrupted_close_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last call on it was kept from closing it."""
    event = EventFd()
    fd = event.fileno()

    def interrupted(event: EventFd) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EventFd, "_leave", interrupted)
        with pytest.raises(KeyboardInterrupt):
            event.close()
    assert event.closed
    os.fstat(fd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was not forgotten
        del event
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
