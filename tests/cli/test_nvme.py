"""`pyvfio nvme` without a disk: its arguments, files and streams, what it says of a transfer."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.cli import main
from pyvfio.cli.nvme import bench, contents, holding, pipe, show, sizes
from pyvfio.cli.nvme.copy import Place
from pyvfio.cli.nvme.ends import FileEnd, HexEnd, Started
from pyvfio.cli.nvme.meter import Meter
from pyvfio.drivers.nvme import SmartLog
from pyvfio.pci import Address

PIECE = pipe.PIECE
BDF = "0000:01:00.0"


class Blocks(FileEnd):
    """A file that takes whole blocks alone, and so many bytes, as a disk does."""

    def __init__(self, path: Path, size: int, *, grain: int = 512) -> None:
        super().__init__(str(path), writing=True)
        self.size = size
        self.grain = grain

    def write(self, offset: int, memory: memoryview) -> Started:
        assert not offset % self.grain
        assert not len(memory) % self.grain
        return super().write(offset, memory)


def copied(
    data: bytes, tmp_path: Path, *, size: int | None = None, pad: bool = False, room: int = 1 << 30
) -> bytes:
    """What stands on a disk of 512-byte blocks after a file was copied to it."""
    (tmp_path / "source").write_bytes(data)
    target = tmp_path / "target"
    with (
        closing(FileEnd(str(tmp_path / "source"), writing=False)) as source,
        closing(Blocks(target, room)) as end,
    ):
        meter = Meter("copy", size)
        try:
            pipe.copy(source, end, size, pipe.Pieces(size), meter, pad=pad)
        finally:
            assert meter.done <= len(data)
    return target.read_bytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("0x1000", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("64MiB", 64 << 20),
        ("2 G", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K",
        "-1",
        "1.5M",
        "4KB",
        "1P",
        "0xg",
        "4 K 1",
        "010",
        "9" * 5000,
        "\u0664K",
        "0x" + "f" * 17,
    ],
    ids=lambda text: text[:9],
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="64MiB"):
        sizes.parse(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "8388608T", "0xffffffffffffffffT"])
def test_sizes_beyond_63_bits_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="more than any disk"):
        sizes.parse(text)


def test_a_bad_size_says_why_at_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nvme", "read", BDF, "--size", "4KB"])
    assert ended.value.code == 2
    assert "'4KB' is not a size: write bytes, or 4K" in capsys.readouterr().err


@given(st.integers(0, 1 << 60))
def test_sizes_in_words_are_right_to_a_twentieth(size: int) -> None:
    number, unit = sizes.words(size).split()
    scale = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert abs(float(number) * scale - size) <= size / 20


def test_times_in_words() -> None:
    assert [sizes.duration(seconds) for seconds in (0.4, 7, 125, 3723)] == [
        *("0 s", "7 s", "2:05 min", "1:02:03 h")
    ]


def test_an_address_is_a_disk_and_anything_else_a_file() -> None:
    here = Address(0, 1, 0, 0)
    assert Place.parse(BDF) == Place(BDF, here)
    assert Place.parse("01:00.0:2") == Place("01:00.0:2", here, 2)
    assert Place.parse("10000:01:00.0").address == Address(0x10000, 1, 0, 0)
    for text in ("backup.img", "-", "/dev/sda", f"./{BDF}", "01:00.0.img", "01:00"):
        assert Place.parse(text) == Place(text)
    with pytest.raises(errors.ArgumentError, match="functions are 0 to 7"):
        Place.parse("01:00.9")
    with pytest.raises(errors.ArgumentError, match="10 digits at most"):
        Place.parse("01:00.0:" + "9" * 5000)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["write", BDF, "--lba", "0", "/dev/zero"], "add --yes"),
        (["copy", "/dev/zero", BDF], "add --yes"),
        (["bench", BDF, "--pattern", "random-write"], "add --yes"),
        (["copy", "a", "b"], "neither a nor b is a PCI address"),
        (["copy", BDF, "01:00.0:1", "--yes"], "source and destination are both"),
        (["copy", f"{BDF}:2", "01:00.0:2", "--yes"], "source and destination are both"),
        (["read", BDF, "--hex", "-o", "x"], "--hex goes to standard output"),
        (["bench", BDF, "--depth", "0"], "--depth is at least 1"),
        (["bench", BDF, "--seconds", "0"], "--seconds is more than 0"),
        (["bench", BDF, "--size", "1T"], "must be 1 GiB at most"),
        (["bench", BDF, "--depth", "1000000000"], "must be 1 GiB at most"),
        (["bench", BDF, "--queues", "9" * 100], "must be 1 GiB at most"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_device_is_looked_at(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nvme", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("pyvfio: ")


def test_a_file_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nvme", "copy", str(tmp_path / "none"), BDF, "--yes"]) == 1
    assert "ENOENT" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 512, PIECE, PIECE + 512, 3 * PIECE, 40 * PIECE + 1024])
def test_a_file_is_copied_whole(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    assert copied(data, tmp_path) == data
    assert copied(data, tmp_path, size=size) == data


def test_part_of_a_file_is_copied(tmp_path: Path) -> None:
    data = os.urandom(5 * PIECE)
    assert copied(data, tmp_path, size=PIECE + 512) == data[: PIECE + 512]


@pytest.mark.parametrize("size", [1, 511, 513, PIECE + 1, 20 * PIECE + 7])
def test_a_tail_is_refused_or_padded(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    with pytest.raises(errors.ArgumentError, match=rf"end {size % 512} bytes into a block.*--pad"):
        copied(data, tmp_path)
    assert copied(data, tmp_path, pad=True) == data + bytes(-size % 512)


def test_what_does_not_fit_fills_the_disk_and_is_told(tmp_path: Path) -> None:
    data = os.urandom(3 * PIECE)
    with pytest.raises(errors.RangeError, match=r"is full after 1\.5 MiB"):
        copied(data, tmp_path, room=PIECE + PIECE // 2)
    assert (tmp_path / "target").read_bytes() == data[: PIECE + PIECE // 2]


def test_a_source_that_ends_early_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.RangeError, match="ended after 1024 of 2048 bytes"):
        copied(bytes(1024), tmp_path, size=2048)


def test_a_pipe_is_read_to_its_end_whatever_its_pieces(tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE + 512)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def feed() -> None:
        with fifo.open("wb") as end:
            for at in range(0, len(data), 100_000):
                end.write(data[at : at + 100_000])
                end.flush()

    feeder = threading.Thread(target=feed)
    feeder.start()
    with (
        closing(FileEnd(str(fifo), writing=False)) as source,
        closing(FileEnd(str(tmp_path / "target"), writing=True)) as target,
    ):
        assert source.size is None
        assert not source.again
        assert pipe.copy(source, target, None, pipe.Pieces(), Meter("copy", None)) == len(data)
    feeder.join()
    assert (tmp_path / "target").read_bytes() == data


def test_a_file_that_is_overwritten_loses_nothing_before_and_has_no_old_tail_after(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old" * 1000)
    with closing(FileEnd(str(path), writing=True)) as target:
        assert path.read_bytes() == b"old" * 1000
        target.write(0, memoryview(b"new"))
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("at", [0, 5, PIECE - 1, PIECE, 40 * PIECE - 1])
def test_comparing_finds_the_first_difference(at: int, tmp_path: Path) -> None:
    data = bytearray(os.urandom(40 * PIECE))
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "other").write_bytes(data)
    with (
        closing(FileEnd(str(tmp_path / "one"), writing=False)) as one,
        closing(FileEnd(str(tmp_path / "other"), writing=False)) as other,
    ):
        meter = Meter("verify", len(data))
        pipe.compare(one, other, len(data), pipe.Pieces(), meter)
        assert meter.done == len(data)
        data[at] ^= 1
        data[-1] ^= 2
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(pipe.Different, match=rf"at byte {at} \("):
            pipe.compare(one, other, len(data), pipe.Pieces(), Meter("verify", None))


def test_padding_is_not_compared(tmp_path: Path) -> None:
    data = os.urandom(PIECE + 7)
    copied(data, tmp_path, pad=True)
    with (
        closing(FileEnd(str(tmp_path / "source"), writing=False)) as one,
        closing(FileEnd(str(tmp_path / "target"), writing=False)) as other,
    ):
        other.grain = 512
        pipe.compare(one, other, len(data), pipe.Pieces(len(data)), Meter("verify", None))


def test_a_hex_dump_shows_repeated_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    dump = HexEnd(0x200)
    dump.write(0, memoryview(b"Hello, disk!" + bytes(52)))
    dump.write(64, memoryview(bytes(32) + bytes(range(0x78, 0x80))))
    dump.flush()
    assert capsys.readouterr().out.splitlines() == [
        "00000200  48 65 6c 6c 6f 2c 20 64  69 73 6b 21 00 00 00 00  |Hello, disk!....|",
        "00000210  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "00000260  78 79 7a 7b 7c 7d 7e 7f                           |xyz{|}~.|",
        "00000268",
    ]


def test_what_a_disk_holds() -> None:
    disk = bytearray(128 << 10)
    assert contents.recognised(bytes(disk)) == "zeros, at its beginning"
    disk[70_000] = 1
    assert contents.recognised(bytes(disk)) == "data of no kind known here"
    disk[0x438:0x43A] = b"\x53\xef"
    assert "ext4" in contents.recognised(bytes(disk))
    disk[0x1FE:0x200] = b"\x55\xaa"
    disk[0x200:0x208] = b"EFI PART"
    assert "GPT" in contents.recognised(bytes(disk))


def test_a_meter_says_how_far_it_is() -> None:
    meter = Meter("copy", 4 << 20, shown=False)
    meter.advance(1 << 20)
    assert re.fullmatch(r"25 %, 1 MiB of 4 MiB, .*/s, .* left", meter.said())
    meter.advance(3 << 20)
    assert re.fullmatch(r"100 %, 4 MiB of 4 MiB, .*/s", meter.said())


def test_what_takes_long_shows_a_line_for_each_tenth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter("copy", 1000)
    meter.advance(100)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("pyvfio.cli.nvme.meter._PATIENCE", 0.0)
    for _ in range(180):
        meter.advance(5)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r" %.*", "", line) for line in lines] == [
        f"copy: {percent}" for percent in range(10, 101, 10)
    ]


def test_percentiles_of_latencies() -> None:
    taken = [number * 1e-6 for number in range(1, 1001)]
    assert {name: round(value) for name, value in bench.latency(taken).items()} == {
        "commands": 1000,
        "min": 1,
        "p50": 501,
        "p90": 901,
        "p99": 991,
        "p99.9": 1000,
        "max": 1000,
    }
    assert bench.latency([2e-6])["p50"] == pytest.approx(2.0)


def test_a_disk_whose_name_is_misspelt_does_not_become_a_file() -> None:
    with pytest.raises(errors.KernelError, match="ENOENT"):
        FileEnd("/dev/no-such-disk", writing=True)
    assert not Path("/dev/no-such-disk").exists()


def test_wrong_completions_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    controller: Any = SimpleNamespace(device=SimpleNamespace(address=BDF), wrong_completions=0)
    holding._say_if_wrong(controller)
    assert not capsys.readouterr().err
    controller.wrong_completions = 3
    holding._say_if_wrong(controller)
    assert f"{BDF} posted 3 completions that name no command" in capsys.readouterr().err


def health(**changes: Any) -> SmartLog:
    return dataclasses.replace(SmartLog.parse(bytes(512)), **changes)


def test_health_in_words() -> None:
    good = health(
        temperature=311,
        available_spare=100,
        spare_threshold=10,
        percentage_used=3,
        data_read=12_345_678_000_000,
        power_on_hours=2400,
        sensors={1: 300},
    )
    said = {name: value for name, value, _ in show.rows(good)}
    assert said["temperature"] == "38 °C"
    assert said["sensor 1"] == "27 °C"
    assert said["read"] == "12.35 TB in 0 commands"
    assert said["powered on"] == "2,400 h (100 days)"
    assert not any(worrying for _, _, worrying in show.rows(good))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"critical_warning": 4}, "health"),
        ({"available_spare": 5, "spare_threshold": 10}, "spare"),
        ({"percentage_used": 100}, "endurance used"),
        ({"media_errors": 1}, "media errors"),
        ({"critical_minutes": 1}, "critically warm"),
    ],
)
def test_what_is_worrying_is_marked(changes: dict[str, int], name: str) -> None:
    marked = {row for row, _, worrying in show.rows(health(**changes)) if worrying}
    assert marked == {name}
