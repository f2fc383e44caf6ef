"""Config space: header, BARs, sources, and the walk along the two lists of capabilities."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.pci.capabilities import MsixCapability
from pyvfio.pci.config import Bar, BarKind, Command, ConfigSpace, HeaderType, Rom, Status, Window

from .configs import DUMPS, build, dump, lspci_text

SYSFS = Path("/sys/bus/pci/devices")


class Recorder:
    """A live source that keeps a log of its accesses."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        self.log.append(("read", offset, width))
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        self.log.append(("write", offset, width))
        self.data[offset : offset + width] = value.to_bytes(width, "little")


def test_header_of_an_endpoint() -> None:
    config = dump("nvme")
    assert (config.vendor_id, config.device_id) == (0x1B36, 0x0010)
    assert (config.subsystem_vendor_id, config.subsystem_id) == (0x1AF4, 0x1100)
    assert (config.class_code, config.revision) == (0x010802, 2)
    assert config.header_type == HeaderType.ENDPOINT
    assert not config.multifunction
    assert config.interrupt_pin == 1
    assert config.command == 0
    assert config.status == Status.CAPABILITY_LIST
    assert config.bars == (Bar(0, BarKind.MEMORY64, False, 0),)
    assert config.rom is None
    assert config.bridge is None


def test_header_of_a_bridge() -> None:
    config = dump("root-port")
    assert config.header_type == HeaderType.BRIDGE
    assert (config.subsystem_vendor_id, config.subsystem_id) == (None, None)
    bridge = config.bridge
    assert bridge is not None
    assert (bridge.primary_bus, bridge.secondary_bus, bridge.subordinate_bus) == (0, 1, 0x20)


@pytest.mark.parametrize(
    ("registers", "io", "memory", "prefetchable"),
    [
        # All closed: each base above its limit.
        ("f0 00 0000 f0ff 0000 f1ff 0100 00000000 00000000 0000 0000", None, None, None),
        # All of the smallest size, from 0.
        (
            "00 00 0000 0000 0000 0000 0000 00000000 00000000 0000 0000",
            Window(0, 0xFFF),
            Window(0, 0xFFFFF),
            Window(0, 0xFFFFF),
        ),
        # 32-bit I/O, 64-bit prefetchable memory: the upper halves count.
        (
            "21 31 0000 00e0 f0e1 0100 f1ff 40000000 41000000 0100 0200",
            Window(0x12000, 0x23FFF),
            Window(0xE0000000, 0xE1FFFFFF),
            Window(0x4000000000, 0x41FFFFFFFF),
        ),
        # 16-bit I/O, 32-bit prefetchable memory: they do not.
        (
            "20 30 0000 00e0 f0e1 0010 f01f 40000000 41000000 0100 0200",
            Window(0x2000, 0x3FFF),
            Window(0xE0000000, 0xE1FFFFFF),
            Window(0x10000000, 0x1FFFFFFF),
        ),
    ],
)
def test_bridge_windows(
    registers: str, io: Window | None, memory: Window | None, prefetchable: Window | None
) -> None:
    header = {0x0E: b"\1", 0x1C: bytes.fromhex(registers)}
    bridge = ConfigSpace.from_bytes(build(header=header)).bridge
    assert bridge is not None
    assert bridge.io_window == io
    assert bridge.memory_window == memory
    assert bridge.prefetchable_window == prefetchable


def test_bars_of_every_kind() -> None:
    bars = struct.pack("<6I", 0xFEBC0008, 0x0000C001, 0, 0xF000000C, 0x40, 0xFEA00000)
    config = ConfigSpace.from_bytes(build(header={0x10: bars, 0x30: b"\1\0\xb0\xfe"}))
    assert config.bars == (
        Bar(0, BarKind.MEMORY32, True, 0xFEBC0000),
        Bar(1, BarKind.IO, False, 0xC000),
        Bar(3, BarKind.MEMORY64, True, 0x40F0000000),
        Bar(5, BarKind.MEMORY32, False, 0xFEA00000),
    )
    assert config.rom == Rom(0xFEB00000, enabled=True)


@pytest.mark.parametrize(
    ("header_type", "offset", "value"), [(0, 0x24, 0x4), (1, 0x14, 0x4), (0, 0x10, 0x6)]
)
def test_malformed_bar(header_type: int, offset: int, value: int) -> None:
    header = {0x0E: bytes([header_type]), offset: bytes([value])}
    with pytest.raises(errors.MalformedConfig, match="BAR"):
        _ = ConfigSpace.from_bytes(build(header=header)).bars


def test_each_access_has_the_registers_own_width_and_nothing_is_kept() -> None:
    source = Recorder(build([(0x11, bytes.fromhex("0480 00200000 00300000"))]))
    config = ConfigSpace(source)
    msix = config.msix
    assert msix is not None
    source.log.clear()
    assert config.vendor_id == 0
    assert config.class_code == 0
    assert config.revision == 0
    assert msix.vectors == 5
    assert msix.table_offset == 0x2000
    assert source.log == [
        ("read", 0x00, 2),
        ("read", 0x08, 4),
        ("read", 0x08, 1),
        ("read", 0x42, 2),
        ("read", 0x44, 4),
    ]
    source.data[0x42] = 9
    assert msix.vectors == 10


def test_command_is_assigned_in_one_write() -> None:
    source = Recorder(build())
    config = ConfigSpace(source)
    config.command |= Command.MEMORY | Command.MASTER
    assert source.log == [("read", 4, 2), ("write", 4, 2)]
    assert source.data[4:6] == b"\6\0"


def test_other_fields_refuse_assignment() -> None:
    config = ConfigSpace(Recorder(build()))
    with pytest.raises(AttributeError):
        config.vendor_id = 1  # type: ignore[assignment]


@pytest.mark.parametrize(("offset", "width"), [(0, 3), (0, 8), (1, 2), (2, 4), (0x41, 4)])
def test_misaligned_access(offset: int, width: int) -> None:
    config = dump("nvme")
    with pytest.raises(errors.ArgumentError, match="aligned"):
        config.read(offset, width)


@pytest.mark.parametrize(("offset", "width"), [(-4, 4), (0x1000, 1), (0x1000, 4)])
def test_access_out_of_range(offset: int, width: int) -> None:
    config = dump("nvme")
    with pytest.raises(errors.RangeError, match="outside"):
        config.read(offset, width)


@pytest.mark.parametrize("value", [-1, 0x100])
def test_value_too_large(value: int) -> None:
    with pytest.raises(errors.ArgumentError, match="fit"):
        ConfigSpace(Recorder(build())).write(0x3C, 1, value)


def test_a_dump_cannot_be_written() -> None:
    with pytest.raises(errors.Unsupported, match="open the device"):
        dump("nvme").write(4, 2, 0)


@pytest.mark.parametrize("size", [0, 1, 63, 4097])
def test_a_dump_of_an_impossible_length(size: int) -> None:
    with pytest.raises(errors.MalformedConfig, match=f"^{size} bytes"):
        ConfigSpace.from_bytes(bytes(size))


@pytest.mark.parametrize("size", [64, 256, 4096])
def test_lspci_text(size: int) -> None:
    lines = lspci_text("nvme").splitlines()
    verbose = [lines[0], "\tCapabilities: [40] MSI-X", *lines[1 : 1 + size // 16], ""]
    config = ConfigSpace.from_lspci("\n".join(verbose))
    assert config.size == size
    assert config.device_id == 0x0010


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00:00.0 Host bridge\n",
        lspci_text("nvme") * 2,
        lspci_text("nvme").replace("\n20:", "\n2:"),
    ],
    ids=["empty", "no dump", "two devices", "gap"],
)
def test_lspci_text_without_exactly_one_dump(text: str) -> None:
    with pytest.raises(errors.MalformedConfig):
        ConfigSpace.from_lspci(text)


def test_a_dump_of_the_header_alone_does_not_pretend_that_there_are_no_capabilities() -> None:
    config = ConfigSpace.from_bytes(build([(0x10, bytes(0x3A))], [(1, bytes(40))], size=64))
    for missing in (config.capabilities, config.extended_capabilities):
        with pytest.raises(errors.MalformedConfig, match="only 64 bytes"):
            list(missing)
    with pytest.raises(errors.MalformedConfig, match="root"):
        _ = config.msix


@pytest.mark.parametrize("header_type", [0, 1, 2])
def test_the_header_is_all_there_in_64_bytes(header_type: int) -> None:
    data = build([(0x0D, bytes(6))], header={0x0E: bytes([header_type])}, size=64)
    assert ConfigSpace.from_bytes(data).fields()["header_type"] == str(HeaderType(header_type))


def test_a_header_without_capabilities_has_none() -> None:
    config = ConfigSpace.from_bytes(build(size=64))
    assert list(config.capabilities) == []
    assert list(config.extended_capabilities) == []


def test_a_short_dump_of_a_pcie_device_lacks_the_extended_capabilities() -> None:
    config = ConfigSpace.from_bytes(build([(0x10, bytes(0x3A))], [(1, bytes(40))], size=256))
    assert [item.id for item in config.capabilities] == [0x10]
    with pytest.raises(errors.MalformedConfig, match="only 256 bytes"):
        list(config.extended_capabilities)


def test_a_conventional_device_has_no_extended_capabilities() -> None:
    config = ConfigSpace.from_bytes(build([(0x11, bytes(10))], size=256))
    assert list(config.extended_capabilities) == []


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_an_empty_extended_list(header: bytes) -> None:
    data = build([(0x10, bytes(0x3A))], header={0x100: header})
    assert list(ConfigSpace.from_bytes(data).extended_capabilities) == []


def test_a_device_that_is_gone() -> None:
    config = ConfigSpace.from_bytes(b"\xff" * 4096)
    for capabilities in (config.capabilities, config.extended_capabilities):
        with pytest.raises(errors.MalformedConfig, match="all ones"):
            list(capabilities)


@pytest.mark.parametrize(
    ("name", "standard", "extended"),
    [
        (
            "e1000e",
            [(0xC8, 0x01), (0xD0, 0x05), (0xE0, 0x10), (0xA0, 0x11)],
            [(0x100, 0x01, 2), (0x140, 0x03, 1)],
        ),
        (
            "nvme",
            [(0x40, 0x11), (0x80, 0x10), (0x60, 0x01)],
            [(0x100, 0x0E, 1), (0x120, 0x10, 1)],
        ),
        (
            "root-port",
            [(0x54, 0x10), (0x48, 0x11), (0x40, 0x0D)],
            [(0x100, 0x01, 2), (0x148, 0x0D, 1)],
        ),
        (
            "virtio-net",
            [
                (0xDC, 0x11),
                *((at, 0x09) for at in (0xC8, 0xB4, 0xA4, 0x94, 0x84)),
                (0x7C, 0x01),
                (0x40, 0x10),
            ],
            [(0x100, 0x01, 2), (0x148, 0x0F, 1)],
        ),
    ],
)
def test_capabilities_come_in_the_order_of_the_chain(
    name: str, standard: list[tuple[int, int]], extended: list[tuple[int, int, int]]
) -> None:
    config = dump(name)
    assert [(item.offset, item.id) for item in config.capabilities] == standard
    assert [(i.offset, i.id, i.version) for i in config.extended_capabilities] == extended
    assert len(config.capabilities) == len(standard)


def test_capabilities_by_identifier_and_by_class() -> None:
    capabilities = dump("nvme").capabilities
    assert capabilities[0x11].offset == 0x40
    assert 0x11 in capabilities
    assert 0x05 not in capabilities
    with pytest.raises(KeyError):
        capabilities[0x05]
    msix = capabilities.get(MsixCapability)
    assert msix is not None
    assert msix.offset == 0x40


def test_a_chain_that_loops_gives_what_comes_before_and_raises() -> None:
    data = bytearray(build([(0x01, bytes(6)), (0x11, bytes(10)), (0x05, bytes(10))]))
    data[0x55] = 0x48
    config = ConfigSpace.from_bytes(bytes(data))
    items = iter(config.capabilities)
    assert [next(items).id for _ in range(3)] == [0x01, 0x11, 0x05]
    with pytest.raises(errors.MalformedConfig, match=r"loops.*0x48"):
        next(items)
    assert config.msix is not None
    with pytest.raises(errors.MalformedConfig):
        _ = config.vpd


def test_reserved_bits_of_a_pointer_are_ignored() -> None:
    data = bytearray(build([(0x01, bytes(6)), (0x11, bytes(10))]))
    data[0x34] |= 1
    data[0x41] |= 2
    assert [c.offset for c in ConfigSpace.from_bytes(bytes(data)).capabilities] == [0x40, 0x48]


@pytest.mark.parametrize("pointer", [0x04, 0x3C])
def test_a_pointer_into_the_header(pointer: int) -> None:
    config = ConfigSpace.from_bytes(build([(0x01, bytes(6))], header={0x41: bytes([pointer])}))
    with pytest.raises(errors.MalformedConfig, match=f"0x41 points into the header.*{pointer:#x}"):
        list(config.capabilities)


def test_a_pointer_to_nothing() -> None:
    config = ConfigSpace.from_bytes(build([(1, bytes(6))], header={0x41: b"\x80", 0x80: b"\xff"}))
    with pytest.raises(errors.MalformedConfig, match="0x80"):
        list(config.capabilities)


@pytest.mark.parametrize(
    ("header", "message"),
    [(0x100 << 20, "loops.*0x100"), (0x0FC << 20, "0x100 points.*0xfc"), (0x200 << 20, "0xffff")],
)
def test_a_broken_extended_chain(header: int, message: str) -> None:
    data = build(header={0x100: struct.pack("<I", header | 0x10003), 0x200: b"\xff" * 4})
    with pytest.raises(errors.MalformedConfig, match=message):
        list(ConfigSpace.from_bytes(data).extended_capabilities)


def test_cardbus_keeps_its_pointer_elsewhere() -> None:
    header = {0x06: b"\x10", 0x0E: b"\2", 0x14: b"\x80", 0x34: b"\x40", 0x80: b"\1"}
    config = ConfigSpace.from_bytes(build(header=header))
    assert [item.offset for item in config.capabilities] == [0x80]


def test_a_capability_that_runs_beyond_its_space() -> None:
    config = ConfigSpace.from_bytes(build(header={0x06: b"\x10", 0x34: b"\xfc", 0xFC: b"\x11"}))
    msix = config.msix
    assert msix is not None
    assert msix.vectors == 1
    with pytest.raises(errors.MalformedConfig, match=r"MSI-X at 0xfc runs beyond .* 0x100"):
        _ = msix.table_bar


def everything(config: ConfigSpace) -> None:
    """Touch all that there is; whatever is malformed must say so, and nothing else may happen."""
    touch: list[Callable[[], object]] = [config.fields]
    for capabilities in (config.capabilities, config.extended_capabilities):
        with contextlib.suppress(errors.MalformedConfig):
            for item in capabilities:
                touch += [
                    item.fields,
                    partial(getattr, item, "raw"),
                    partial(getattr, item, "length"),
                ]
    for action in touch:
        with contextlib.suppress(errors.MalformedConfig):
            action()


# Places where random bytes make chains: a device that answers, pointers, known identifiers.
POINTERS = st.lists(
    st.tuples(
        st.integers(0x34, 0xFC),
        st.integers(0, 0x15),
        st.sampled_from([0, 0x34, *range(0x40, 0x100, 12)]),
    ),
    max_size=24,
)
HEADERS = st.lists(
    st.tuples(
        st.integers(0x40, 0x3FF), st.integers(0, 0x31), st.integers(0, 0xFFF) | st.just(0x100)
    ),
    max_size=24,
)


@settings(deadline=None)
@given(
    st.sampled_from([64, 128, 256, 4096]),
    st.integers(0),
    POINTERS,
    HEADERS,
    st.integers(0, 3),
)
def test_any_bytes_parse_or_are_malformed(
    size: int,
    seed: int,
    pointers: list[tuple[int, int, int]],
    headers: list[tuple[int, int, int]],
    header_type: int,
) -> None:
    data = bytearray(random.Random(seed).randbytes(4096))
    data[0x04:0x08] = b"\0\0\x10\0"
    data[0x0E] = header_type
    data[0x34] = 0x40
    for at, id, following in [(0x40, 1, 0x4C), *pointers]:
        data[at : at + 2] = bytes([id, following])
    for dword, id, following in headers:
        struct.pack_into("<I", data, dword * 4, id | 1 << 16 | following << 20)
    everything(ConfigSpace.from_bytes(bytes(data[:size])))


@settings(deadline=None)
@given(st.sampled_from([64, 128, 256, 4096]).flatmap(lambda n: st.binary(min_size=n, max_size=n)))
def test_arbitrary_bytes_parse_or_are_malformed(data: bytes) -> None:
    everything(ConfigSpace.from_bytes(data))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFE), st.binary(max_size=12)), max_size=12),
    st.lists(st.tuples(st.integers(1, 0xFFFF), st.binary(max_size=40)), max_size=60),
)
@example([(0, b"")], [(0xFFFF, b"")])
def test_a_built_chain_comes_back(
    standard: list[tuple[int, bytes]], extended: list[tuple[int, bytes]]
) -> None:
    config = ConfigSpace.from_bytes(build(standard, extended))
    assert [item.id for item in config.capabilities] == [id for id, _ in standard]
    assert [item.id for item in config.extended_capabilities] == [id for id, _ in extended]
    for item, (_, body) in zip(config.capabilities, standard, strict=True):
        if item.length is None:
            assert item.raw[2 : 2 + len(body)] == body


@pytest.mark.parametrize("name", DUMPS)
def test_every_field_of_a_dump_is_plain(name: str) -> None:
    config = dump(name)
    for registers in (config, *config.capabilities, *config.extended_capabilities):
        fields = registers.fields()
        assert json.loads(json.dumps(fields)) == fields


def test_an_absent_device() -> None:
    with pytest.raises(errors.KernelError) as caught:
        ConfigSpace.from_sysfs("/sys/bus/pci/devices/ffff:ff:1f.7")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("path", sorted(SYSFS.glob("*")), ids=lambda path: path.name)
def test_this_machines_devices_agree_with_lspci(path: Path) -> None:
    if shutil.which("lspci") is None:
        pytest.skip("lspci is not installed")
    config = ConfigSpace.from_sysfs(path)
    if config.size < 256:
        pytest.skip("the kernel shows capabilities to root only")
    command = ["lspci", "-D", "-n", "-vv", "-s", path.name]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{config.vendor_id:04x}:{config.device_id:04x}" in text
    listed = re.findall(r"Capabilities: \[([0-9a-f]+)(?: v(\d+))?\]", text)
    assert [(int(at, 16), int(version or 0)) for at, version in listed] == [
        (item.offset, item.version)
        for item in (*config.capabilities, *config.extended_capabilities)
    ]
