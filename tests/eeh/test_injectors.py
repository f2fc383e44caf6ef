from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.eeh import (
    ErrorFunction,
    InjectedError,
    Pe,
    Steps,
    choose,
    drill,
    drilling,
    inject,
    injectors,
)
from pyvfio.pci import Function
from tests.pci.bus.tree import Tree

from .standin import EehKernel, FakeDevice, SysfsPe
from .test_host import MakePe

OWN = ["err_injct", "eeh_dev_break", "vfio"]


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """An installed package that offers an injector."""
    info = folder / "offered-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[pyvfio.eeh.injectors]\nmine = {what}\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_pyvfios_own(tree: Tree) -> None:
    assert list(injectors()) == OWN


def test_others_come_by_entry_point_and_first(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, "pyvfio.eeh.injectors.kernel:DevBreakInjector")
    assert list(injectors()) == ["mine", *OWN]


@pytest.mark.parametrize("what", ["no.such.module:Injector", "pyvfio.eeh:Nothing"])
def test_an_entry_point_that_leads_nowhere(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    offer(tmp_path, monkeypatch, what)
    with pytest.raises(errors.HostError, match=r"mine \(.*cannot be loaded"):
        injectors()


def test_the_first_that_works_is_chosen(tree: Tree, sysfs_pe: MakePe) -> None:
    sysfs_pe()
    function = Function("0000:01:00.0")
    with pytest.raises(errors.HostError, match=r"err_injct: debugfs is not mounted.*vfio: closing"):
        choose(function)
    assert choose(function, holding=True)[0] == "vfio"
    debug = tree.sys / "kernel/debug/powerpc"
    tree.write(debug / "eeh_dev_break", "")
    assert choose(function)[0] == "eeh_dev_break"
    tree.write(debug / "PCI0000/err_injct", "")
    assert choose(function)[0] == "err_injct"
    assert choose(function, "eeh_dev_break")[0] == "eeh_dev_break"
    with pytest.raises(errors.ArgumentError, match="there are: err_injct, eeh_dev_break, vfio"):
        choose(function, "nonsense")


def test_what_each_writes(tree: Tree, sysfs_pe: MakePe) -> None:
    sysfs_pe()
    function = Function("0000:01:00.0")
    debug = tree.sys / "kernel/debug/powerpc"
    broken = tree.write(debug / "eeh_dev_break", "")
    injected = tree.write(debug / "PCI0000/err_injct", "")
    known = injectors()
    assert "1fd:0:4:0:0 to PCI0000" in known["err_injct"].inject(function, None, None)
    assert injected.read_text() == "1fd:0:4:0:0\n"
    known["err_injct"].inject(
        function, None, InjectedError(ErrorFunction.STORE_MEMORY_DATA, 64, 0x10, 0xFF)
    )
    assert injected.read_text() == "1fd:1:7:10:ff\n"
    known["eeh_dev_break"].inject(function, None, None)
    assert broken.read_text() == "0000:01:00.0"
    with pytest.raises(errors.ArgumentError, match="one error"):
        known["eeh_dev_break"].inject(function, None, InjectedError())
    with pytest.raises(errors.StateError, match="the holder"):
        known["vfio"].inject(function, None, None)


@pytest.fixture
def host(sysfs_pe: MakePe, device: FakeDevice) -> SysfsPe:
    """The host's view of the device's PE."""
    host = sysfs_pe()
    device.function = Function("0000:01:00.0")  # type: ignore[assignment]
    return host


@pytest.mark.usefixtures("host")
def test_an_injection_that_freezes(kernel: EehKernel, pe: Pe) -> None:
    steps = Steps()
    inject(pe, "vfio", injectors()["vfio"], None, steps)
    assert [step.name for step in steps.done] == ["injected", "frozen"]
    assert kernel.injected == (0, 0, 0, 0)
    assert steps.done[1].said.startswith("the holder sees: stopped")


@pytest.mark.usefixtures("host")
def test_an_injection_that_is_accepted_and_freezes_nothing(
    kernel: EehKernel, pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drilling, "_FREEZE_TIMEOUT", 0.1)
    kernel.freezes = False
    steps = Steps()
    with pytest.raises(errors.NoFreeze, match=r"no freeze followed in 0\.1 s: the PE is normal"):
        inject(pe, "vfio", injectors()["vfio"], None, steps)
    assert steps.done[-1].failed


def test_a_drill_thaws_in_two_steps_and_clears_the_note(
    kernel: EehKernel, pe: Pe, host: SysfsPe
) -> None:
    host.software |= 1
    steps = Steps()
    drill(pe, "vfio", injectors()["vfio"], prove=lambda: "it works", steps=steps)
    assert [(step.name, step.said) for step in steps.done if "thaw" in step.name] == [
        ("I/O thawed", "the PE is DMA stopped"),
        ("DMA thawed", "the PE is normal"),
    ]
    assert steps.done[-2:][0].said == "the host sees: normal"
    assert [steps.done[0].name, steps.done[-1].name] == ["works before", "works after"]
    assert host.software == 0x800


@pytest.mark.usefixtures("host")
def test_a_drill_whose_device_does_not_work_freezes_nothing(kernel: EehKernel, pe: Any) -> None:
    def prove() -> str:
        raise errors.StateError("no DMA")

    with pytest.raises(errors.StateError, match="no DMA"):
        drill(pe, "vfio", injectors()["vfio"], prove=prove, steps=Steps())
    assert kernel.injected is None
