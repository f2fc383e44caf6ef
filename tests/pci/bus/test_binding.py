"""Binding and giving back, broken at every step: nothing stays bound, nothing is forgotten."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.pci import Function, bind, bound, modules, paths, unbind

from .driver_core import DriverCore
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

ADDRESS = "0000:01:00.0"
RECORD = f"{ADDRESS}.json"


@pytest.fixture
def core(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> DriverCore:
    for name in ("vfio-pci", "e1000e", "pci-stub"):
        tree.driver(name)
    return DriverCore(tree, monkeypatch)


def state(function: Function) -> tuple[str | None, str | None]:
    return function.driver, function.driver_override


def records() -> list[str]:
    return [name for name in os.listdir(paths.RECORDS) if not name.endswith(".lock")]


BEFORE = list(itertools.product(["e1000e", None], [None, "e1000e", "vfio-pci", "none"]))
before = pytest.mark.parametrize(("driver", "override"), BEFORE)


@before
def test_bound_and_given_back(
    tree: Tree, core: DriverCore, driver: str | None, override: str | None
) -> None:
    function = tree.function(driver=driver, override=override, group=3)
    assert bind(ADDRESS) is True
    assert state(function) == ("vfio-pci", override)
    assert bind(ADDRESS) is False
    assert unbind(ADDRESS) is True
    assert state(function) == (driver, override)
    assert records() == []
    assert unbind(ADDRESS) is False


def test_no_other_driver_may_take_it_meanwhile(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    assert core.writes == [
        ("driver_override", "vfio-pci\n"),
        ("unbind", ADDRESS),
        ("bind", ADDRESS),
        ("driver_override", "\n"),
    ]


def killed(core: DriverCore, action: Callable[[str], object], step: int, moment: str) -> bool:
    """Do something in a process that is gone, as by kill -9, before or after a write.

    Returns:
        False when the process finished before it came to that write.
    """
    child = os.fork()
    if child == 0:
        status = 2
        first = len(core.writes)

        def interfere(number: int, now: str) -> None:
            if number == first + step and now == moment:
                os._exit(9)

        core.interfere = interfere
        try:
            action(ADDRESS)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@before
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step(
    tree: Tree, core: DriverCore, driver: str | None, override: str | None, moment: str
) -> None:
    function = tree.function(driver=driver, override=override, group=3)

    def give_back() -> None:
        assert unbind(ADDRESS) is True
        assert state(function) == (driver, override)
        assert records() == []

    steps = 0
    while killed(core, bind, steps, moment):
        give_back()
        assert killed(core, bind, steps, moment)
        bind(ADDRESS)
        assert state(function) == ("vfio-pci", override)
        give_back()
        steps += 1
    assert steps >= 1
    assert state(function) == ("vfio-pci", override)

    steps = 0
    while killed(core, unbind, steps, moment):
        give_back()
        bind(ADDRESS)
        assert killed(core, unbind, steps, moment)
        bind(ADDRESS)
        assert state(function) == ("vfio-pci", override)
        steps += 1
    assert steps >= 1
    assert state(function) == (driver, override)
    assert records() == []


@before
@pytest.mark.parametrize("moment", ["before", "after"])
def test_interrupted_at_any_step(
    tree: Tree, core: DriverCore, driver: str | None, override: str | None, moment: str
) -> None:
    function = tree.function(driver=driver, override=override, group=3)
    for step in itertools.count():
        first = len(core.writes)

        def interfere(number: int, now: str, at: int = first + step) -> None:
            if number == at and now == moment:
                raise KeyboardInterrupt

        core.interfere = interfere
        try:
            bind(ADDRESS)
        except KeyboardInterrupt:
            assert state(function) == (driver, override)
            assert records() == []
        else:
            break
    assert step > 0


def test_the_context_gives_back_whatever_happens(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)

    def work() -> None:
        with bound(ADDRESS) as inside:
            assert inside == function
            assert function.driver == "vfio-pci"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert state(function) == ("e1000e", None)


def test_what_somebody_else_bound_stays(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="vfio-pci", override="vfio-pci", group=3)
    with bound(ADDRESS):
        assert records() == []
    assert unbind(ADDRESS) is False
    assert state(function) == ("vfio-pci", "vfio-pci")
    assert core.writes == []


def test_what_was_bound_before_the_context_stays(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    with bound(ADDRESS):
        pass
    assert function.driver == "vfio-pci"
    assert unbind(ADDRESS) is True
    assert function.driver == "e1000e"


def test_what_somebody_else_bound_meanwhile_stays(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    (function.sysfs / "driver").unlink()
    (function.sysfs / "driver").symlink_to(tree.driver("pci-stub"))
    assert unbind(ADDRESS) is True
    assert function.driver == "pci-stub"
    assert records() == []


def test_the_kernel_refuses(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    core.refuse["vfio-pci"] = errno.EBUSY
    with pytest.raises(errors.BindFailed, match=rf"{ADDRESS} to vfio-pci.*EBUSY.*dmesg") as caught:
        bind(ADDRESS)
    assert isinstance(caught.value.__cause__, errors.KernelError)
    assert caught.value.__cause__.errno == errno.EBUSY
    assert state(function) == ("e1000e", None)
    assert records() == []


def test_the_old_driver_refuses(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    core.refuse["e1000e"] = errno.EIO
    with pytest.raises(errors.BindFailed, match=r"to e1000e.*EIO"):
        unbind(ADDRESS)
    assert state(function) == (None, None)
    assert records() == [RECORD]
    core.refuse.clear()
    assert unbind(ADDRESS) is True
    assert state(function) == ("e1000e", None)


def test_a_second_driver_of_ours(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    with pytest.raises(errors.BindFailed, match=r"first run `pyvfio unbind 0000:01:00\.0`"):
        bind(ADDRESS, driver="pci-stub")
    assert function.driver == "vfio-pci"


def test_in_use(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3, boot_vga="1")
    tree.virtual_functions(function, 1)
    with pytest.raises(
        errors.DeviceInUse, match=r"driver e1000e.*boot display; 1 SR-IOV.*--force"
    ) as caught:
        bind(ADDRESS)
    assert len(caught.value.users) == 2
    assert core.writes == []
    assert bind(ADDRESS, force=True) is True
    assert function.driver == "vfio-pci"


def test_a_bridge_is_refused(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="pcieport", group=3, header_type=1)
    with pytest.raises(errors.BindFailed, match="is a bridge"):
        bind(ADDRESS)
    assert core.writes == []


def test_no_iommu(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e")
    tree.write(tree.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    with pytest.raises(errors.NoIommu):
        bind(ADDRESS)
    assert core.writes == []
    assert bind(ADDRESS, driver="pci-stub") is True


def test_group_comes_with_first_probe(tree: Tree, core: DriverCore) -> None:
    tree.device("iommu", tree.sys / "devices/smmu3")
    function = tree.function()
    core.probed = lambda function: tree.put_into_group(function, 3)
    assert bind(ADDRESS) is True
    assert state(function) == ("vfio-pci", None)


def test_probe_that_brings_no_group_is_undone(tree: Tree, core: DriverCore) -> None:
    tree.device("iommu", tree.sys / "devices/smmu3")
    function = tree.function(override="e1000e")
    core.refuse["vfio-pci"] = errno.EINVAL
    with pytest.raises(errors.NoIommu):
        bind(ADDRESS)
    assert state(function) == (None, "e1000e")
    assert records() == []


def test_group_without_iommu_is_undone(tree: Tree, core: DriverCore) -> None:
    tree.device("iommu", tree.sys / "devices/smmu3")
    tree.write(tree.sys / "kernel/iommu_groups/3/name", "vfio-noiommu\n")
    function = tree.function()
    core.probed = lambda function: tree.put_into_group(function, 3)
    with pytest.raises(errors.NoIommu):
        bind(ADDRESS)
    assert state(function) == (None, None)
    assert records() == []


def test_function_never_probed_is_refused_without_iommu(tree: Tree, core: DriverCore) -> None:
    tree.function()
    with pytest.raises(errors.NoIommu):
        bind(ADDRESS)
    assert core.writes == []


def test_absent_modules(tree: Tree, core: DriverCore, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tree.sys / "bus/pci/drivers/vfio-pci")
    tree.function(driver="e1000e", group=3)
    # A module of this name is on no machine; modprobe itself is the real one, or absent.
    with pytest.raises(errors.NoVfio, match=r"no driver no-vfio-here.*modprobe.*CONFIG_VFIO_PCI"):
        bind(ADDRESS, driver="no-vfio-here")
    with pytest.raises(errors.BindFailed, match="no PCI driver no-such-driver"):
        bind(ADDRESS, driver="no-such-driver")
    assert core.writes == []
    monkeypatch.setattr(modules, "_PATH", "")
    with pytest.raises(errors.NoVfio, match="kmod"):
        bind(ADDRESS, driver="no-vfio-here")


def test_the_node_does_not_appear(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    (tree.dev / "vfio/3").unlink()
    with pytest.raises(errors.BindFailed, match=r"vfio/3 did not appear within 0\.2 s"):
        bind(ADDRESS, timeout=0.2)
    assert state(function) == ("e1000e", None)
    assert records() == []


def test_the_node_appears_late(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e", group=3)
    node = tree.dev / "vfio/3"
    node.unlink()
    maker = threading.Timer(0.1, node.touch)
    maker.start()
    assert bind(ADDRESS) is True
    assert node.exists()
    maker.join()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has group 3 open, as the kernel says, until called."""
    real = calls.open

    def busy(path: str, flags: int) -> int:
        if path.endswith("vfio/3"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return real(path, flags)

    monkeypatch.setattr(calls, "open", busy)
    return lambda: monkeypatch.setattr(calls, "open", real)


def test_open_through_vfio(tree: Tree, core: DriverCore, held: Callable[[], None]) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    with pytest.raises(errors.Busy, match=rf"vfio/3 open: close it, then `pyvfio unbind {ADDRESS}"):
        unbind(ADDRESS, timeout=0.2)
    assert state(function) == ("vfio-pci", None)
    held()
    assert unbind(ADDRESS) is True
    assert state(function) == ("e1000e", None)


MAPS = "7f4652bfa000-7f4652cfa000 rw-s 00000000 00:10 47        anon_inode:[vfio-device]\n"
VIEW = (
    r"this process still holds a view of a BAR: let it go \(del it\), "
    f"then `pyvfio unbind {ADDRESS}`"
)


def no_wait(*arguments: object) -> None:
    raise AssertionError("waits, although only this process could end it")


def test_a_view_kept_by_this_process(
    tree: Tree, core: DriverCore, held: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = tree.function(driver="e1000e", group=3)
    tree.write(tree.proc / str(os.getpid()) / "maps", MAPS)
    monkeypatch.setattr(time, "sleep", no_wait)
    with pytest.raises(errors.Busy, match=VIEW), bound(ADDRESS):
        pass
    assert state(function) == ("vfio-pci", None)
    assert records() == [RECORD]
    held()
    assert unbind(ADDRESS) is True
    assert state(function) == ("e1000e", None)


def test_what_failed_in_the_block_is_told_with_the_view_it_kept(
    tree: Tree, core: DriverCore, held: Callable[[], None]
) -> None:
    tree.function(driver="e1000e", group=3)
    tree.write(tree.proc / str(os.getpid()) / "maps", MAPS)
    with pytest.raises(errors.Busy, match=VIEW) as caught, bound(ADDRESS):
        raise KeyError("in the block")
    told = "".join(traceback.format_exception(caught.value))
    assert told.index("KeyError: 'in the block'") < told.index("this process still holds")


def test_a_view_kept_by_another_process_is_waited_for(
    tree: Tree, core: DriverCore, held: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    maps = tree.write(tree.proc / "4711/maps", MAPS)
    tree.write(tree.proc / "4711/comm", "python3\n")
    with pytest.raises(errors.Busy, match=r"process 4711 \(python3\) still holds.*perhaps of this"):
        unbind(ADDRESS, timeout=0)

    def let_go(seconds: float) -> None:
        maps.unlink()
        held()

    monkeypatch.setattr(time, "sleep", let_go)
    assert unbind(ADDRESS) is True


def test_views_of_other_devices_are_in_nobodys_way(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e", group=3)
    tree.write(tree.proc / str(os.getpid()) / "maps", MAPS)
    bind(ADDRESS)
    assert unbind(ADDRESS) is True


def test_another_process_is_binding(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e", group=3)
    tree.function("0000:02:00.0", driver="e1000e", group=4)
    bind(ADDRESS)
    with open(paths.RECORDS / f"{ADDRESS}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(errors.Busy, match=f"another process has been binding {ADDRESS}"):
            unbind(ADDRESS, timeout=0.2)
        assert bind("0000:02:00.0", timeout=0.2) is True
    assert unbind(ADDRESS, timeout=0.2) is True


def test_two_processes_bind_at_once(tree: Tree, core: DriverCore) -> None:
    function = tree.function(driver="e1000e", group=3)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            status = 2
            try:
                status = int(bind(ADDRESS))
            finally:
                os._exit(status)
        children.append(child)
    results = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(results) == [0, 0, 0, 1]
    assert unbind(ADDRESS) is True
    assert state(function) == ("e1000e", None)


@pytest.mark.parametrize("change", ["boot", "device"])
def test_a_record_of_another_device_or_boot_is_void(
    tree: Tree, core: DriverCore, change: str
) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    if change == "boot":
        (tree.proc / "sys/kernel/random/boot_id").write_text("0b00-8\n")
    else:
        (function.sysfs / "device").write_text("0x1533\n")
    assert unbind(ADDRESS) is False
    assert state(function) == ("vfio-pci", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "\xff",
        '{"identity": "x", "driver": null, "override": null, "target": "vfio-pci", "new": 1}',
        '{"identity": "x"}',
        '{"identity": "x", "driver": 7, "override": null, "target": "vfio-pci"}',
    ],
)
def test_a_broken_record_is_named_and_touches_nothing(
    tree: Tree, core: DriverCore, text: str
) -> None:
    function = tree.function(driver="e1000e", group=3)
    bind(ADDRESS)
    path = paths.RECORDS / RECORD
    path.write_text(text, encoding="latin-1")
    for action in (unbind, bind):
        with pytest.raises(errors.BindFailed, match=rf"{path} .*rm {path}"):
            action(ADDRESS)
    assert state(function) == ("vfio-pci", None)
    path.unlink()
    assert unbind(ADDRESS) is False


def test_the_record_is_written_first_and_is_for_root_alone(tree: Tree, core: DriverCore) -> None:
    tree.function(driver="e1000e", override="e1000e", group=3)
    seen = {}

    def interfere(number: int, now: str) -> None:
        if number == 0:
            seen.update(json.loads((paths.RECORDS / RECORD).read_text()))

    core.interfere = interfere
    bind(ADDRESS)
    assert (seen["driver"], seen["override"], seen["target"]) == ("e1000e", "e1000e", "vfio-pci")
    assert paths.RECORDS.stat().st_mode & 0o777 == 0o700


def test_nothing_there(tree: Tree, core: DriverCore) -> None:
    for action in (bind, unbind):
        with pytest.raises(errors.DeviceNotFound):
            action("0000:05:00.0")
        with pytest.raises(errors.ArgumentError):
            action("eth0")


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a directory that anybody may enter, unlike pytest's own.
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        tree = Tree(Path(root), monkeypatch)
        tree.function(driver="e1000e", group=3)
        os.chmod(root, 0o555)
        child = os.fork()
        if child == 0:
            status = 2
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                bind(ADDRESS)
            except errors.AccessDenied as error:
                status = 0 if "needs root" in str(error) else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
