"""A look from the host's side leaves the host its recovery, where a look's note prevents it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvfio import errors
from pyvfio.eeh import HostPe, Software, debugfs, frozen_before_open, host_pes, look
from pyvfio.pci import Function
from tests.pci.bus.tree import Tree

from .standin import SysfsPe

MakePe = Callable[..., SysfsPe]
BDF = "0000:01:00.0"


@pytest.fixture
def powernv(tree: Tree) -> None:
    (tree.sys / "firmware/opal").mkdir(parents=True)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, tree: Tree) -> Callable[[SysfsPe], list[str]]:
    """Makes eeh_dev_check work; what it was asked for."""

    def make(kernel: SysfsPe) -> list[str]:
        asked: list[str] = []

        def check(function: Function) -> None:
            asked.append(str(function.address))
            kernel.check()

        monkeypatch.setattr(debugfs, "check", check)
        return asked

    return make


@pytest.mark.usefixtures("powernv")
def test_a_freeze_of_the_hosts_device_is_noticed_by_the_kernel_first(
    sysfs_pe: MakePe, checks: Callable[[SysfsPe], list[str]]
) -> None:
    kernel = sysfs_pe(driver="e1000e")
    asked = checks(kernel)
    pe = HostPe(Function(BDF))
    assert not look(pe).isolated
    kernel.freeze()
    seen = look(pe)
    assert seen.state.frozen
    assert seen.software & Software.RECOVERING
    assert asked == [BDF, BDF]
    assert not kernel.taken


@pytest.mark.usefixtures("powernv")
def test_without_debugfs_it_is_not_looked_at(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe(driver="e1000e")
    kernel.freeze()
    with pytest.raises(errors.HostError, match="debugfs is not mounted"):
        look(HostPe(Function(BDF)))
    assert not kernel.software & Software.ISOLATED


@pytest.mark.usefixtures("powernv")
@pytest.mark.parametrize("driver", ["vfio-pci", None])
def test_what_no_driver_of_the_hosts_has_is_looked_at_at_once(
    sysfs_pe: MakePe, driver: str | None
) -> None:
    kernel = sysfs_pe(driver=driver)
    kernel.freeze()
    assert look(HostPe(Function(BDF))).isolated


@pytest.mark.usefixtures("powernv")
def test_one_driver_of_the_hosts_makes_the_whole_pe_the_hosts(tree: Tree, sysfs_pe: MakePe) -> None:
    sysfs_pe(driver="vfio-pci")
    assert host_pes() == frozenset()
    other = tree.function("0000:01:00.1", driver="e1000e").sysfs
    tree.write(other / "eeh_pe_state", "0x00000078 0x00000800\n")
    tree.write(other / "eeh_pe_config_addr", "0x1fd\n")
    tree.function("0000:02:00.0", driver="nvme")  # has no PE
    assert host_pes() == {(0, 0x1FD)}


def test_where_looking_changes_nothing_everybody_may_look(sysfs_pe: MakePe) -> None:
    sysfs_pe(driver="e1000e")
    assert host_pes() == frozenset()
    assert not look(HostPe(Function(BDF))).isolated


@pytest.mark.usefixtures("powernv")
def test_what_cannot_be_opened_is_not_looked_at_before_the_open(sysfs_pe: MakePe) -> None:
    kernel = sysfs_pe(driver="e1000e")
    kernel.freeze()
    assert frozen_before_open(Function(BDF)) is None
    assert not kernel.software & Software.ISOLATED
