"""tools/perf nvme: how a peer is run that may not answer. Reads themselves need the bench."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tools._perf.rows import nvme


class NoDisk(nvme.Disk):
    """One that is no device's: who asks for it gets its address."""

    def vfio(self) -> str:
        return self.address


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NoDisk:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(nvme, "_PATIENCE", 5.0)  # a start may take long on a busy machine
    return NoDisk("0000:01:00.0")


def program(tmp_path: Path, script: str) -> None:
    path = tmp_path / "qemu-img"
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    path.chmod(0o755)


def test_who_hangs_is_started_again(tmp_path: Path, disk: NoDisk) -> None:
    program(
        tmp_path,
        "echo $$ >>started; [ -e before ] || { touch before; exec sleep 100; }\n"
        'echo "$@" >arguments; echo Sending 1000 read requests; echo Run completed in 0.5 seconds.',
    )
    restarts: Counter[str] = Counter()
    assert nvme._qemu_img(disk, 1, restarts) == 0.5e9 / nvme.READS[1]
    assert restarts == {nvme.of(nvme.QEMU, 1): 1}
    hung, ran = (tmp_path / "started").read_text().split()
    assert hung != ran
    assert not Path("/proc", hung).exists()
    said = (tmp_path / "arguments").read_text()
    assert f"-d 1 -s 4096 -S {4096 * nvme.STRIDE} -c {nvme.READS[1]} nvme://0000:01:00.0/1" in said


def test_who_reads_may_be_silent_for_longer(
    tmp_path: Path, disk: NoDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvme, "_READING_PATIENCE", 60.0)
    program(
        tmp_path,
        "echo Sending 1000 read requests; sleep 6; echo Run completed in 0.5 seconds.",
    )
    restarts: Counter[str] = Counter()
    assert nvme._qemu_img(disk, 1, restarts) == 0.5e9 / nvme.READS[1]
    assert not restarts


def test_who_refuses_is_not(tmp_path: Path, disk: NoDisk) -> None:
    program(tmp_path, "echo $$ >>started; echo no such device >&2; exit 1")
    with pytest.raises(OSError, match="qemu-img: no such device"):
        nvme._qemu_img(disk, 1, Counter())
    assert len((tmp_path / "started").read_text().split()) == 1


def test_who_always_hangs_is_given_up(
    tmp_path: Path, disk: NoDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvme, "_PATIENCE", 0.1)
    monkeypatch.setattr(nvme, "_ATTEMPTS", 2)
    program(tmp_path, "exec sleep 100")
    with pytest.raises(OSError, match="2 attempts"):
        nvme._qemu_img(disk, 1, Counter())
