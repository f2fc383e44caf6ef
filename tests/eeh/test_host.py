"""The host's side, over a tree with the kernel's rules for eeh_pe_state."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio.eeh import DeviceMode, HostPe, InjectedError, PeState, debugfs, frozen_before_open
from pyvfio.pci import Function
from tests.pci.bus.tree import Tree

from .standin import SysfsPe

MakePe = Callable[..., SysfsPe]


def host_pe() -> HostPe:
    return HostPe(Function("0000:01:00.0"))


def test_what_sysfs_shows(sysfs_pe: MakePe) -> None:
    sysfs_pe()
    pe = host_pe()
    assert pe.number == 0x1FD
    assert pe.mode == DeviceMode.SYSFS
    assert pe.state.state is PeState.NORMAL


def test_thawing_reads_before_it_writes(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.freeze()
    assert not kernel.software & 1, "nobody has looked, so the kernel has noted nothing"
    assert host_pe().thaw().state is PeState.NORMAL
    assert kernel.writes == 1


def test_a_note_of_a_freeze_that_is_over_is_cleared(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.software |= 1
    assert not host_pe().thaw().isolated


def test_what_is_not_frozen_is_not_written(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    host_pe().thaw()
    assert kernel.writes == 0


def test_a_write_that_thaws_nothing_is_noticed(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.freeze()
    kernel.thaws = False
    with pytest.raises(errors.PeFrozen, match=r"still stopped.*eeh recover 0000:01:00.0"):
        host_pe().thaw()


def test_what_the_host_is_recovering_is_left_to_it(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.freeze()
    kernel.software |= 2
    with pytest.raises(errors.StateError, match="the host is recovering PE 0x1fd"):
        host_pe().thaw()
    assert kernel.writes == 0


def test_a_reset_that_was_never_ended_is_told(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.software |= 4
    with pytest.raises(errors.StateError, match=r"eeh reset 0000:01:00\.0"):
        host_pe().thaw()


def test_a_frozen_bcm5719_is_frozen_and_not_in_reset(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe()
    kernel.software |= 0x205
    kernel.freeze()
    kernel.thaws = False
    with pytest.raises(errors.PeFrozen, match="still stopped"):
        host_pe().thaw()
    assert not host_pe().state.reset_left


@pytest.mark.parametrize(
    ("hardware", "kind", "says"),
    [
        (0x1, errors.PeFrozen, "eeh recover"),
        (0x2, errors.PeFrozen, "gave it up"),
        (0x50, errors.PeUnavailable, "registers are stopped"),
    ],
)
def test_a_state_that_a_write_does_not_change(
    sysfs_pe: MakePe, hardware: int, kind: type[errors.Error], says: str
) -> None:
    kernel = sysfs_pe()
    kernel.hardware = hardware
    with pytest.raises(kind, match=says):
        host_pe().thaw()


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EIO, errors.KernelError, "firmware did not thaw"),
        (errno.EACCES, errors.KernelError, "Permission denied"),
    ],
)
def test_a_refused_write(
    sysfs_pe: MakePe, number: int, kind: type[errors.Error], says: str
) -> None:
    kernel = sysfs_pe()
    kernel.freeze()
    kernel.refuse = number
    with pytest.raises(kind, match=says):
        host_pe().thaw()


def test_a_function_without_a_pe(tree: Tree, sysfs_pe: MakePe) -> None:
    bare = tree.function("0000:02:00.0")
    with pytest.raises(errors.Unsupported, match="has no PE"):
        HostPe(bare)
    kernel = sysfs_pe()
    pe = host_pe()
    kernel.gone = True
    with pytest.raises(errors.Unsupported, match="has no PE"):
        _ = pe.state
    (pe.function.sysfs / "eeh_pe_config_addr").write_text("")
    with pytest.raises(errors.Unsupported, match="has no PE"):
        _ = pe.number


def test_a_host_without_eeh(tree: Tree) -> None:
    function = tree.function()
    (tree.proc / "powerpc/eeh").unlink()
    with pytest.raises(errors.NoEeh):
        HostPe(function)
    assert frozen_before_open(function) is None


def test_a_freeze_is_noticed_before_the_open_that_undoes_it(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe(driver="vfio-pci")
    function = Function("0000:01:00.0")
    assert frozen_before_open(function) is None
    kernel.freeze()
    told = str(frozen_before_open(function))
    assert "is frozen: stopped (isolated). Opening the device thaws it" in told
    assert "BCM5719 and two Emulex cards are reset" in told
    kernel.hardware = 0x1  # for now unavailable: the kernel thaws it as well
    assert "Opening the device thaws it" in str(frozen_before_open(function))
    kernel.hardware = 0x2  # eeh_pe_change_owner() leaves that one alone
    assert "leaves it so" in str(frozen_before_open(function))


@pytest.mark.parametrize("text", ["", "many", "0x" + "1" * 5000, "9" * 5000, "1_0"])
def test_settings_must_be_numbers(tree: Tree, sysfs_pe: MakePe, text: str) -> None:
    sysfs_pe()
    folder = tree.sys / "kernel/debug/powerpc"
    for name, other, right in (
        ("eeh_enable", "eeh_max_freezes", "5"),
        ("eeh_max_freezes", "eeh_enable", "0x1"),
    ):
        tree.write(folder / name, f"{text}\n")
        tree.write(folder / other, f"{right}\n")
        tree.write(folder / "eeh_disable_recovery", "N\n")
        with pytest.raises(errors.KernelError, match="must hold a number") as caught:
            debugfs.settings()
        assert name in str(caught.value)
        assert len(str(caught.value)) < 400


def test_debugfs_not_mounted_too_old_or_there(tree: Tree, sysfs_pe: MakePe) -> None:
    sysfs_pe()
    function = Function("0000:01:00.0")
    with pytest.raises(errors.HostError, match="mount -t debugfs"):
        debugfs.settings()
    folder = tree.sys / "kernel/debug/powerpc"
    tree.write(folder / "eeh_enable", "0x1\n")
    with pytest.raises(errors.HostError, match=r"no .*eeh_max_freezes: it is too old"):
        debugfs.settings()
    tree.write(folder / "eeh_max_freezes", "5\n")
    tree.write(folder / "eeh_disable_recovery", "Y\n")
    assert debugfs.settings() == (True, 5, False)
    for name, work, written in (
        ("eeh_dev_check", debugfs.check, "0000:01:00.0"),
        ("eeh_dev_break", debugfs.dev_break, "0000:01:00.0"),
        ("eeh_force_recover", debugfs.force_recover, "0:1fd\n"),
    ):
        with pytest.raises(errors.HostError, match=name):
            work(function)
        file = tree.write(folder / name, "")
        work(function)
        assert file.read_text() == written


def test_what_einval_means_depends_on_the_file(
    tree: Tree, sysfs_pe: MakePe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs_pe()
    folder = tree.sys / "kernel/debug/powerpc"
    tree.write(folder / "eeh_dev_check", "")
    tree.write(folder / "PCI0000/err_injct", "")

    def refuse(path: object, text: str) -> None:
        raise errors.KernelError(errno.EINVAL, "write", str(path))

    monkeypatch.setattr(sysfs, "write", refuse)
    function = Function("0000:01:00.0")
    with pytest.raises(errors.KernelError, match="firmware knows no such error"):
        debugfs.inject(function, InjectedError())
    with pytest.raises(errors.KernelError) as caught:
        debugfs.check(function)
    assert "firmware" not in str(caught.value)
