"""`pyvfio eeh` where there is no EEH, and over a tree with a PE in it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvfio import eeh, errors, pci
from pyvfio.cli import common, main
from pyvfio.cli.eeh import holding
from pyvfio.cli.eeh.status import Watch
from pyvfio.eeh import debugfs, drilling
from pyvfio.pci import Function
from tests.eeh.standin import SysfsPe
from tests.pci.bus.tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

BDF = "0000:01:00.0"
COMMANDS = ["status", "freeze", "thaw", "drill", "reset", "recover", "inject"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree(tmp_path, monkeypatch)
    tree.write(tree.proc / "powerpc/eeh", "EEH Subsystem is enabled\neeh_slot_resets=2\n")
    return tree


@pytest.fixture
def pe(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> SysfsPe:
    return SysfsPe(tree.function(BDF, driver="vfio-pci"), monkeypatch)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; what it said: stdout, or stderr where it refuses with `status`."""

    def run(*arguments: str, status: int = 0) -> str:
        code = main(["eeh", *arguments])
        output = capsys.readouterr()
        assert code == status, output
        return output.err if status else output.out

    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.skipif(Path("/proc/powerpc/eeh").exists(), reason="this host has EEH")
def test_a_host_without_eeh_declines_in_one_line(command: str, said: Callable[..., str]) -> None:
    line = said(command, "all" if command == "status" else BDF, status=6)
    assert line.startswith("pyvfio: this host has no EEH")
    assert line.count("\n") == 1


def test_the_exit_code_is_in_both_epilogs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["eeh", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        text = capsys.readouterr().out
        assert "no EEH" in text
        assert "6" in text


def test_a_host_where_it_is_off(tree: Tree, said: Callable[..., str]) -> None:
    tree.write(tree.proc / "powerpc/eeh", "EEH Subsystem is globally disabled\n")
    assert "EEH is off" in said("status", "all", status=6)


def test_status(pe: SysfsPe, said: Callable[..., str]) -> None:
    lines = said("status", BDF).splitlines()
    assert lines[0] == "EEH is on; counted since boot: eeh_slot_resets 2"
    assert "debugfs is not mounted" in lines[1]
    assert lines[2] == f"{BDF}  PE 0x1fd  normal  vfio-pci"
    pe.freeze()
    report = json.loads(said("status", BDF, "--json"))
    assert report["functions"] == [
        {
            "address": BDF,
            "driver": "vfio-pci",
            "pe": 0x1FD,
            "mode": 0x200,
            "state": "stopped",
            "noted": ["isolated"],
            "hardware": 0,
            "software": 0x801,
        }
    ]
    assert report["counters"] == {"eeh_slot_resets": 2}


def test_thaw(pe: SysfsPe, said: Callable[..., str]) -> None:
    assert "normal, nothing to do" in said("thaw", BDF)
    pe.freeze()
    assert said("thaw", BDF) == f"PE 0x1fd of {BDF}: stopped (isolated) -> normal\n"
    pe.freeze()
    pe.thaws = False
    assert "still stopped" in said("thaw", BDF, status=1)


def test_freeze(
    tree: Tree, pe: SysfsPe, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no injector works" in said("freeze", BDF, status=4)
    tree.write(tree.sys / "kernel/debug/powerpc/eeh_dev_break", "")
    monkeypatch.setattr(drilling, "_FREEZE_TIMEOUT", 0.1)
    assert "accepted, but no freeze followed" in said("freeze", BDF, status=1)
    monkeypatch.setattr(debugfs, "dev_break", lambda function: pe.freeze())
    assert "is stopped (isolated)" in said("freeze", BDF).splitlines()[1]
    assert "frozen already" in said("freeze", BDF, status=1)


@pytest.mark.usefixtures("pe")
def test_mistakes(tree: Tree, said: Callable[..., str]) -> None:
    bridge = str(tree.function("0000:00:00.0", header_type=1).address)
    tree.function("0000:02:00.0")
    for command in ("freeze", "drill", "reset", "recover", "inject"):
        assert "is a bridge" in said(command, bridge, status=4)
        assert "has no PE" in said(command, "0000:02:00.0", status=4)
    for command in ("status", "thaw"):
        assert "has no PE" in said(command, "0000:02:00.0", status=4)
    assert "pyvfio list" in said("status", "0000:03:00.0", status=3)
    assert "no PCI address" in said("thaw", "nonsense", status=2)
    assert "there is no injector" in said("freeze", BDF, "--injector", "x", status=2)
    assert "dma-read-data" in said("freeze", BDF, "--function", "x", status=2)
    assert "go with --function" in said("freeze", BDF, "--bits", "64", status=2)
    io = ("--function", "load-io-data")
    assert "32 or 64" in said("freeze", BDF, *io, "--bits", "8", status=2)
    assert "'x' is no number" in said("freeze", BDF, *io, "--error-mask", "x", status=2)


def test_a_frozen_pe_is_told_of_before_the_open_that_thaws_it(
    pe: SysfsPe, capsys: pytest.CaptureFixture[str]
) -> None:
    pe.freeze()
    for arguments in (["eeh", "recover", BDF], ["read", BDF, "config+0"], ["shell", BDF]):
        assert main(arguments) == 4, "nothing here can be opened"
        first, _ = capsys.readouterr().err.splitlines()
        assert "is frozen: stopped (isolated). Opening the device thaws it" in first


def test_a_leftover_reset_is_not_cut_in_two_by_sigterm(
    pe: SysfsPe, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pe.software |= 4
    handlers = []

    def end(function: Function) -> bool:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return True

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(eeh, "end_leftover_reset", end)
    assert "leftover" not in said("reset", BDF, status=4)  # nothing here can be opened
    assert handlers == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGTERM) is before
    pe.software |= 0x201  # a frozen BCM5719
    pe.freeze()
    said("reset", BDF, status=4)
    assert len(handlers) == 1


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with common.ended_as_by_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)
    real = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGHUP else real(number)
    )
    with common.ended_as_by_ctrl_c():
        assert real(signal.SIGHUP) == before


def test_what_the_host_uses_is_frozen_by_force_alone(
    tree: Tree, pe: SysfsPe, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write(tree.sys / "kernel/debug/powerpc/eeh_dev_break", "")
    monkeypatch.setattr(debugfs, "dev_break", lambda function: pe.freeze())
    other = "0000:01:00.1"
    directory = tree.function(other).sysfs
    tree.write(directory / "eeh_pe_state", "0x00000078 0x00000800\n")
    tree.write(directory / "eeh_pe_config_addr", "0x1fd\n")
    members = tuple(map(Function, (BDF, other)))
    monkeypatch.setattr("pyvfio.eeh.host.functions", lambda: members)
    monkeypatch.setattr(
        pci,
        "users",
        lambda member: ("nvme0n1 is mounted on /",) if str(member.address) == other else (),
    )
    assert "nvme0n1 is mounted on /" in said("freeze", BDF, status=5)
    assert pe.hardware
    assert "is stopped" in said("freeze", BDF, "--force")


@pytest.mark.usefixtures("pe")
def test_a_function_that_goes_between_listing_and_reading_is_passed_over(
    tree: Tree, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tree.function("0000:02:00.0")
    listed = (Function(BDF), gone)
    monkeypatch.setattr(pci, "functions", lambda: listed)
    gone.sysfs.unlink()
    functions = said("status", "all").splitlines()[2:]
    assert [line.split()[0] for line in functions] == [BDF]


@pytest.mark.parametrize("force", [False, True])
def test_an_error_is_injected_into_what_the_host_uses_by_force_alone(
    pe: SysfsPe, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    @contextmanager
    def held(options: object) -> Iterator[tuple[object, None, None]]:
        yield SimpleNamespace(function=Function(BDF)), None, None

    injected: list[object] = []
    monkeypatch.setattr(holding, "_held", held)
    monkeypatch.setattr(eeh, "inject", lambda *details: injected.append(details))
    monkeypatch.setattr("pyvfio.eeh.host.functions", lambda: (Function(BDF),))
    monkeypatch.setattr(pci, "users", lambda member: ("eth0 is up with 10.0.0.1/8",))
    said("inject", BDF, *(["--force"] if force else []), status=0 if force else 5)
    assert len(injected) == force


@pytest.fixture
def hosts_pe(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> SysfsPe:
    """A PE of the host's own driver, on PowerNV, whose kernel can be made to look."""
    (tree.sys / "firmware/opal").mkdir(parents=True)
    pe = SysfsPe(tree.function(BDF, driver="e1000e"), monkeypatch)
    monkeypatch.setattr(debugfs, "check", lambda function: pe.check())
    return pe


def test_status_leaves_the_host_the_recovery_of_its_devices(
    hosts_pe: SysfsPe, said: Callable[..., str]
) -> None:
    hosts_pe.freeze()
    assert "stopped (isolated, recovering)" in said("status", BDF)
    assert not hosts_pe.taken


@pytest.mark.usefixtures("hosts_pe")
def test_status_without_root_does_not_look_at_what_the_host_drives(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(function: Function) -> None:
        raise errors.HostError("debugfs is not mounted")

    monkeypatch.setattr(debugfs, "check", refuse)
    lines = said("status", BDF).splitlines()
    assert "is not looked at" in lines[2]
    assert "debugfs is not mounted" in lines[2]
    assert lines[3] == f"{BDF}  PE 0x1fd  not looked at  e1000e"
    (entry,) = json.loads(said("status", BDF, "--json"))["functions"]
    assert (entry["state"], entry["hardware"]) == ("not looked at", None)


def test_the_watch_looks_once_the_kernel_has_noticed_a_freeze(
    tree: Tree, hosts_pe: SysfsPe, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def check(function: Function) -> None:
        looks.append(str(function.address))
        hosts_pe.check()

    monkeypatch.setattr(debugfs, "check", check)
    watch, function = Watch(), Function(BDF)

    def round_() -> str:
        watch.again()
        entry = watch.look(function)
        return " ".join([entry["state"], *entry["noted"]])

    assert watch.look(function)["state"] == "normal"
    hosts_pe.freeze()
    assert [round_(), round_()] == ["normal", "normal"]
    assert len(looks) == 1, "the kernel logs each look"
    hosts_pe.check()  # as where its driver reads all ones
    tree.write(tree.proc / "powerpc/eeh", "EEH Subsystem is enabled\neeh_slot_resets=3\n")
    assert round_() == "stopped isolated recovering"
    hosts_pe.hardware, hosts_pe.software = 0x78, 0x802
    assert round_() == "normal recovering"
    hosts_pe.software = 0x800
    assert round_() == "normal"
    assert not hosts_pe.taken
    before = len(looks)
    hosts_pe.freeze()
    assert round_() == "normal"
    assert len(looks) == before
    # Somebody else has looked: nobody recovers it, and another look takes nothing.
    hosts_pe.software |= 1
    tree.write(tree.proc / "powerpc/eeh", "EEH Subsystem is enabled\neeh_slot_resets=4\n")
    assert [round_(), round_()] == ["stopped isolated"] * 2
    assert len(looks) == before + 1


def test_a_freeze_of_the_hosts_device_is_left_to_the_host(
    tree: Tree, hosts_pe: SysfsPe, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write(tree.sys / "kernel/debug/powerpc/eeh_dev_break", "")
    monkeypatch.setattr(debugfs, "dev_break", lambda function: hosts_pe.freeze())
    monkeypatch.setattr("pyvfio.eeh.host.functions", lambda: (Function(BDF),))
    monkeypatch.setattr(pci, "users", lambda member: ())
    lines = said("freeze", BDF).splitlines()
    assert "is stopped (isolated, recovering)" in lines[1]
    assert "the host recovers it now" in lines[2]
    assert not hosts_pe.taken
    hosts_pe.hardware = 0x78
    assert "the host is recovering" in said("freeze", BDF, status=1)
