"""`pyvfio irqroute replay`, as people and programs see it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pyvfio import errors
from pyvfio.cli import main
from pyvfio.kvm import System
from pyvfio.replay import ApicMachine

REPLAY = ("irqroute", "replay")


def test_direct_alone_needs_no_kvm_and_says_that_it_is_modelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*REPLAY, "--mapping", "direct"]) == 0
    said = capsys.readouterr().out
    assert "KVM: modelled  VFIO: modelled" in said
    assert "LOST" in said
    assert said.count("all arrive") == 4
    assert "where nobody is, and are dropped without a word" in " ".join(said.split())


@pytest.mark.usefixtures("real_kvm")
def test_routed_shows_four_policies_that_deliver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REPLAY, "--mapping", "routed"]) == 0
    said = capsys.readouterr().out
    assert said.count("all arrive") == 4
    assert "LOST" not in said
    assert said.count("✓ control") == 2


@pytest.mark.usefixtures("real_kvm")
def test_json_holds_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REPLAY, "--json", "--vectors", "3"]) == 0
    lives = json.loads(capsys.readouterr().out)
    assert [(life["mapping"], life["policy"]) for life in lives] == [
        *(("routed", name) for name in ("before", "d1f6af6", "patched", "today")),
        *(("direct", n) for n in ("before", "d1f6af6", "d1f6af6-rebind", "patched", "today")),
    ]
    assert [life["verdict"]["healthy"] for life in lives].count(False) == 1
    for life in lives:
        assert all(control["passed"] for control in life["controls"])
        assert life["ioctls"] == sum(len(step["events"]) for step in life["steps"])
        assert life["steps"][-1]["probe"]["fired"] == [0, 1, 2]


def test_the_picture_shows_each_policy_and_what_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "replay.svg"
    assert main([*REPLAY, "--mapping", "direct", "--svg", str(file)]) == 0
    root = ElementTree.parse(file).getroot()
    words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("before", "d1f6af6", "d1f6af6-rebind", "patched", "today"):
        assert name in words
    assert "1 arrived, 0 LOST" in words
    assert any("MODELLED" in word for word in words)


def test_a_failed_control_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyvfio.replay import ModelledDirectMachine

    monkeypatch.setattr(ModelledDirectMachine, "dead_gsi", lambda self: 0x1300)
    assert main([*REPLAY, "--mapping", "direct", "--policy", "today"]) == 1
    assert "FAILED control" in capsys.readouterr().out


def test_without_kvm_the_routed_mapping_says_so_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(self: System) -> None:
        raise errors.NoKvm("there is no /dev/kvm")

    monkeypatch.setattr(System, "__init__", absent)
    assert main([*REPLAY]) == 0
    captured = capsys.readouterr()
    assert "the routed mapping is left out: there is no /dev/kvm" in captured.err
    assert "modelled" in captured.out
    assert main([*REPLAY, "--mapping", "routed"]) == 4


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--vectors", "0"], 2, "at least 1"),
        (["--vectors", "2049", "--mapping", "direct"], 2, "not 2049"),
        (["--svg", "/nowhere/at/all.svg"], 2, "no such folder"),
        (["--device", "nonsense"], 2, "nonsense"),
        (["--device", "ffff:ff:1f.7"], 3, "ffff:ff:1f.7"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*REPLAY, *arguments]) == status
    assert says in capsys.readouterr().err


def test_help_explains_policies_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*REPLAY, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("d1f6af6-rebind", "modelled", "pyvfio irqroute replay --json"):
        assert word in said


@pytest.mark.usefixtures("real_kvm")
def test_strace_saw_the_same_calls_in_the_same_order() -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace: apt install strace")
    code = "import sys; from pyvfio.cli import main; sys.exit(main())"
    options = ("--json", "--mapping", "routed", "--vectors", "3")
    command = (strace, "-e", "trace=ioctl", "-e", "signal=none", sys.executable, "-c", code)
    run = subprocess.run(
        [*command, *REPLAY, *options],
        capture_output=True,
        text=True,
    )
    if "ptrace" in run.stderr and "not permitted" in run.stderr:
        pytest.skip("strace may not trace here")
    assert run.returncode == 0, run.stderr[-2000:]
    seen = re.findall(r"ioctl\(\d+, (KVM_IRQFD|KVM_SET_GSI_ROUTING), .*\)\s+= (-?\d+)", run.stderr)
    calls: list[tuple[str, str]] = []
    for life in json.loads(run.stdout):
        parts = [*life["controls"], *life["steps"], {"events": life["closing"]}]
        calls += [
            (event["ioctl"], "-1" if event["error"] else "0")
            for part in parts
            for event in part["events"]
            if event["ioctl"].startswith("KVM")
        ]
    assert len(calls) > 50
    assert seen == calls


def test_the_machine_is_closed_when_a_vcpu_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, real_kvm: None
) -> None:
    from pyvfio import kvm

    made: list[kvm.VM] = []

    def refuse(self: kvm.VM) -> kvm.Vcpu:
        made.append(self)
        raise errors.KernelError(22, "KVM_CREATE_VCPU", "a VM")

    monkeypatch.setattr(kvm.VM, "create_vcpu", refuse)
    with pytest.raises(errors.KernelError):
        ApicMachine(2)
    assert made[0].closed
