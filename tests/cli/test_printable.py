"""What a device says of itself reaches no terminal as it is."""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwtests.report import Report
from pyvfio import errors
from pyvfio.cli import binding, buslist, common, main, shell, show
from pyvfio.cli.eeh import status
from pyvfio.cli.nvme import bench, copy, holding
from pyvfio.cli.nvme import show as nvme_show
from pyvfio.drivers.nvme import LbaFormat, NamespaceIdentity
from pyvfio.drivers.nvme.identify import SIZE, ControllerIdentity
from pyvfio.pci import names
from tests.pci.bus.tree import Tree

ADDRESS = "0000:01:00.0"
# Clears the screen, rewrites a line, sets the title, rings, turns the reading direction, and is
# markup for rich; the C1 control beginning a sequence is in texts that are not ASCII.
EVIL = "\x1b[2J\x1b]0;x\x07\r\nGo on? [y/N] \u202e\u2066\x9b1A[bold]\udcff"
FORBIDDEN = "\x1b\x07\r\u202e\u2066\x9b\udcff"


def harmless(text: str) -> None:
    assert not set(FORBIDDEN) & set(text)
    assert "\nGo on? [y/N] \\u202e" not in text
    assert "\\x1b[2J" in text
    assert "[bold]" in text


class Printed:
    """All that is printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def getvalue(self) -> str:
        return "".join(self._capsys.readouterr())


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    monkeypatch.setenv("COLUMNS", "400")
    return Printed(capsys)


def identity() -> ControllerIdentity:
    return dataclasses.replace(
        ControllerIdentity.parse(bytes(SIZE)), model=EVIL, serial=EVIL, firmware=EVIL
    )


def controller() -> Any:
    disk = SimpleNamespace(
        id=1,
        size=512,
        blocks=1,
        block_size=512,
        identity=NamespaceIdentity(
            blocks=1,
            capacity=1,
            used=1,
            formats={0: LbaFormat(512, 0, 0)},
            format=0,
            inline_metadata=False,
            protected=False,
            nguid=bytes(16),
            eui64=bytes(8),
        ),
        read=lambda lba, blocks: bytes(512),
    )
    return SimpleNamespace(
        identity=identity(),
        device=SimpleNamespace(address=ADDRESS),
        max_transfer=4096,
        namespaces={1: disk},
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_identify_shows_them_escaped(
    monkeypatch: pytest.MonkeyPatch, printed: Printed, as_json: bool
) -> None:
    @contextmanager
    def opened(address: str) -> Iterator[Any]:
        yield controller()

    monkeypatch.setattr(holding, "opened", opened)
    nvme_show.run_identify(argparse.Namespace(address=ADDRESS, json=as_json))
    harmless(printed.getvalue().replace("\\u001b", "\\x1b"))


def test_question_before_overwriting_cannot_be_rewritten(
    monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    one = controller()
    with pytest.raises(errors.StateError, match="not confirmed"):
        holding.ask("all of", one, one.namespaces[1])
    said = printed.getvalue()
    harmless(said)
    assert said.count("\n") == 1


def test_bench_shows_the_model_escaped(printed: Printed) -> None:
    result = {
        "address": ADDRESS,
        "model": EVIL,
        "pattern": "random-read",
        **dict.fromkeys(("size", "depth", "queues"), 1),
        **dict.fromkeys(("iops", "mib_per_second", "processor"), 1.0),
        **dict.fromkeys(("polled", "batch"), True),
        "latency": {"commands": 1, "p50": 1.0},
    }
    common.console(width=400).print(bench._table(result))
    harmless(printed.getvalue())


def test_copy_shows_names_escaped(printed: Printed) -> None:
    end: Any = SimpleNamespace(name=EVIL)
    with pytest.raises(errors.StateError), copy._progress_told(end, end, None):
        raise errors.StateError("ended")
    harmless(printed.getvalue())


def test_errors_are_escaped(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise errors.StateError(f"the device says {EVIL}")

    monkeypatch.setattr(buslist, "run", fail)
    assert main(["list"]) == 1
    said = printed.getvalue()
    harmless(said)
    assert said.count("\n") == 1


@pytest.fixture
def evil_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A machine whose pci.ids, and whose sysfs, hold such texts."""
    tree = Tree(tmp_path, monkeypatch)
    line = EVIL.replace("\n", "").encode(errors="surrogateescape")
    ids = names.PciIds(b"1234  " + line + b"\n\t5678  " + line + b"\nC 01  " + line + b"\n")
    monkeypatch.setattr(names, "_system_ids", lambda: ids)
    function = tree.function(
        ADDRESS,
        group=3,
        vendor="0x1234",
        device="0x5678",
        subsystem_vendor="0x0",
        subsystem_device="0x0",
        revision="0x01",
        resource="\n".join(["0x0 0x0 0x0"] * 7),
        reset_method=EVIL.replace("\n", "").replace("\udcff", ""),
    )
    (function.sysfs / "class").write_text("0x010802\n")
    (function.sysfs / "config").write_bytes(bytes(256))
    return tree


def test_show_and_list_show_names_escaped(
    evil_names: Tree, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    function = common.function(ADDRESS)
    monkeypatch.setattr("pyvfio.pci.functions", lambda: (function,))
    buslist.run(argparse.Namespace(json=False))
    show.run(argparse.Namespace(address=ADDRESS, json=False))
    said = printed.getvalue()
    assert said.count("\\x1b[2J") >= 4
    assert not set(FORBIDDEN) & set(said)


def test_shell_shows_the_name_escaped(
    evil_names: Tree, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    @contextmanager
    def opened(function: Any) -> Iterator[Any]:
        yield SimpleNamespace(address=ADDRESS)

    said: list[str] = []
    monkeypatch.setattr("pyvfio.open", opened)
    monkeypatch.setattr("code.interact", lambda banner, **_: said.append(banner))
    shell.run(argparse.Namespace(address=ADDRESS))
    assert "\\x1b[2J" in said[0]
    assert not set(FORBIDDEN) & set(said[0])


def test_driver_of_any_name_is_shown_escaped(printed: Printed) -> None:
    entry = {"address": ADDRESS, "pe": 1, "state": "active", "noted": [], "driver": EVIL}
    print(status._line(entry))
    binding._say(f"{ADDRESS}: {EVIL} -> vfio-pci")
    said = printed.getvalue()
    harmless(said)
    assert said.count("\n") == 2


def test_reason_without_settings_is_shown_escaped(printed: Printed) -> None:
    status._print({"counters": {}, "settings": None, "no_settings": EVIL, "functions": []})
    harmless(printed.getvalue())


def test_notices_are_escaped(printed: Printed) -> None:
    common.notice(EVIL)
    said = printed.getvalue()
    harmless(said)
    assert said.count("\n") == 1


@pytest.mark.parametrize("plain", [False, True])
def test_report_of_hardware_tests_shows_the_device_escaped(
    monkeypatch: pytest.MonkeyPatch, printed: Printed, plain: bool
) -> None:
    config: Any = SimpleNamespace(getoption=lambda name: None)
    report = Report(config)
    report.device = {
        "address": ADDRESS,
        "vendor": (0x1234, EVIL),
        "device": (0x5678, EVIL),
        "driver": EVIL,
    }
    if plain:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    out: Any = SimpleNamespace(write_line=print)
    report.pytest_terminal_summary(out)
    harmless(printed.getvalue())
