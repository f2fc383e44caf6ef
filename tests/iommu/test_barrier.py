from __future__ import annotations

import errno
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.iommu import barrier, fence
from pyvfio.iommu.barrier import _CODE


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no fence had been used yet."""
    monkeypatch.setattr(barrier, "_barrier", None)


@pytest.mark.usefixtures("fresh")
def test_it_runs_on_this_processor_and_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert fence() is None  # type: ignore[func-returns-value]
    assert os.listdir("/proc/self/fd") == before


def test_nothing_is_writable_and_executable_at_once() -> None:
    fence()
    lines = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = {line.split()[1] for line in lines if "pyvfio-fence" in line}
    assert mapped == "r-xp"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("ppc64le", (0x7C0004AC, 0x4E800020)),  # sync; blr
        ("aarch64", (0xD5033FBF, 0xD65F03C0)),  # dmb sy; ret
        ("riscv64", (0x0FF0000F, 0x00008067)),  # fence iorw, iorw; ret
    ],
)
def test_instructions_are_those_of_the_manuals(machine: str, words: tuple[int, int]) -> None:
    assert _CODE[machine] == struct.pack("<II", *words)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="needs x86 objdump"
)
def test_a_disassembler_reads_them_so(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.write_bytes(_CODE["x86_64"])
    text = subprocess.run(
        ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", code],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [line.split("\t")[2].strip() for line in text.splitlines() if "\t" in line] == [
        "mfence",
        "ret",
    ]


@pytest.mark.usefixtures("fresh")
def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    host = (*os.uname()[:4], "pdp11")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(host))
    with pytest.raises(errors.Unsupported, match="pdp11"):
        fence()


@pytest.mark.usefixtures("fresh")
def test_where_executable_memory_is_refused_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: int) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(calls, "mmap", refuse)
    with pytest.raises(errors.Unsupported, match="executable memory"):
        fence()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.usefixtures("fresh")
def test_without_a_descriptor_left_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(calls, "memfd_create", refuse)
    with pytest.raises(errors.OpenFilesLimit, match="ulimit -n"):
        fence()
