"""What a controller writes is read as it was meant, and nonsense is refused, not believed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.drivers.nvme import identify, logs

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
U128 = st.integers(0, (1 << 128) - 1)
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(
    vendor=U16, serial=TEXT, model=TEXT, pages=U8, number=U16, version=U32, admin=U16, commands=U16,
    aborts=U8, entries=U8, namespaces=U32, warning=U16, critical=U16, capacity=U128, cache=U8,
    shutdown=U32,
)  # fmt: skip
def test_a_controller(
    vendor: int, serial: str, model: str, pages: int, number: int, version: int, admin: int,
    commands: int, aborts: int, entries: int, namespaces: int, warning: int, critical: int,
    capacity: int, cache: int, shutdown: int,
) -> None:  # fmt: skip
    data = bytearray(4096)
    struct.pack_into("<H", data, 0, vendor)
    data[4:24] = serial.ljust(20).encode()
    data[24:64] = model.ljust(40).encode()
    data[64:72] = b"1.0\0\0\0\0\0"
    data[77] = pages
    struct.pack_into("<H", data, 78, number)
    struct.pack_into("<I", data, 80, version)
    struct.pack_into("<I", data, 88, shutdown)
    struct.pack_into("<H", data, 256, admin)
    data[258], data[262], data[525] = aborts, entries, cache
    struct.pack_into("<HH", data, 266, warning, critical)
    data[280:296] = capacity.to_bytes(16, "little")
    struct.pack_into("<I", data, 516, namespaces)
    struct.pack_into("<H", data, 520, commands)
    assert identify.ControllerIdentity.parse(bytes(data)) == identify.ControllerIdentity(
        vendor_id=vendor,
        serial=serial,
        model=model,
        firmware="1.0",
        transfer_pages=pages,
        controller_id=number,
        version=(version >> 16, version >> 8 & 255, version & 255),
        shutdown_seconds=shutdown / 1e6,
        namespaces=namespaces,
        aborts=aborts + 1,
        error_entries=entries + 1,
        can_format=admin & 2 != 0,
        can_deallocate=commands & 4 != 0,
        volatile_cache=cache & 1 != 0,
        warning_temperature=warning,
        critical_temperature=critical,
        capacity=capacity,
    )


@given(
    blocks=U64,
    capacity=U64,
    used=U64,
    formats=st.lists(st.tuples(U16, st.integers(9, 31), U8), min_size=1, max_size=64),
    chosen=U8,
    inline=st.booleans(),
    protection=U8,
    ids=st.binary(min_size=24, max_size=24),
)
def test_a_namespace(
    blocks: int,
    capacity: int,
    used: int,
    formats: list[tuple[int, int, int]],
    chosen: int,
    inline: bool,
    protection: int,
    ids: bytes,
) -> None:
    index = chosen % len(formats)
    data = bytearray(4096)
    struct.pack_into("<QQQ", data, 0, blocks, capacity, used)
    data[25] = len(formats) - 1
    data[26] = index & 0xF | inline << 4 | index >> 4 << 5
    data[29] = protection
    data[104:128] = ids
    for number, (metadata, shift, performance) in enumerate(formats):
        struct.pack_into("<HBB", data, 128 + 4 * number, metadata, shift, performance)
    found = identify.NamespaceIdentity.parse(bytes(data))
    assert (found.blocks, found.capacity, found.used) == (blocks, capacity, used)
    assert found.formats == {
        number: identify.LbaFormat(1 << shift, metadata, performance & 3)
        for number, (metadata, shift, performance) in enumerate(formats)
    }
    assert found.format == index
    assert found.current.block_size == 1 << formats[index][1]
    assert found.inline_metadata == inline
    assert found.protected == (protection & 7 != 0)
    assert found.nguid + found.eui64 == ids


def test_a_format_that_is_not_there_is_refused() -> None:
    data = bytearray(4096)
    with pytest.raises(errors.MalformedConfig, match="has format 0, and offers none"):
        identify.NamespaceIdentity.parse(bytes(data))
    data[26], data[128 + 4 + 2] = 2, 9
    data[25] = 1
    with pytest.raises(errors.MalformedConfig, match="has format 2, and offers 1"):
        identify.NamespaceIdentity.parse(bytes(data))


@given(st.lists(st.integers(1, (1 << 32) - 1), max_size=1024))
def test_active_namespaces(numbers: list[int]) -> None:
    data = struct.pack(f"<{len(numbers)}I", *numbers).ljust(4096, b"\0")
    assert identify.active_namespaces(data) == tuple(numbers)


@given(
    warning=U8,
    fixed=st.tuples(U16, U8, U8, U8),
    counters=st.lists(U128, min_size=10, max_size=10),
    minutes=st.tuples(U32, U32),
    sensors=st.lists(U16, min_size=8, max_size=8),
)
def test_health(
    warning: int,
    fixed: tuple[int, int, int, int],
    counters: list[int],
    minutes: tuple[int, int],
    sensors: list[int],
) -> None:
    data = bytearray(512)
    struct.pack_into("<BHBBB", data, 0, warning, *fixed)
    for number, counter in enumerate(counters):
        data[32 + 16 * number : 48 + 16 * number] = counter.to_bytes(16, "little")
    struct.pack_into("<II8H", data, 192, *minutes, *sensors)
    found = logs.SmartLog.parse(bytes(data))
    assert (
        found.critical_warning,
        found.temperature,
        found.available_spare,
        found.spare_threshold,
        found.percentage_used,
    ) == (warning, *fixed)
    assert [found.data_read, found.data_written] == [512_000 * n for n in counters[:2]]
    assert [
        found.read_commands,
        found.write_commands,
        found.busy_minutes,
        found.power_cycles,
        found.power_on_hours,
        found.unsafe_shutdowns,
        found.media_errors,
        found.error_entries,
    ] == counters[2:]
    assert (found.warning_minutes, found.critical_minutes) == minutes
    assert found.sensors == {n: kelvins for n, kelvins in enumerate(sensors, 1) if kelvins}
    assert len(found.warnings) == bin(warning & 0x3F).count("1")


@given(st.lists(st.tuples(U64, U16, U16, st.integers(0, 0x7FF), U64, U32), max_size=8), U16)
def test_errors(entries: list[tuple[int, int, int, int, int, int]], noise: int) -> None:
    data = b"".join(
        struct.pack(
            "<QHHHHQI", number, queue, command, status << 1 | noise & 0xF001, 9, lba, space
        ).ljust(64, b"\xff")
        for number, queue, command, status, lba, space in entries
    )
    expected = tuple(logs.ErrorEntry(*entry) for entry in entries if entry[0])
    assert logs.ErrorEntry.parse(bytes(data)) == expected
    assert logs.ErrorEntry.parse(data + b"\x01" * 63) == expected


@given(st.binary(max_size=200), st.integers(0, 4200))
def test_anything_is_parsed_or_refused(noise: bytes, size: int) -> None:
    """Noise all over the structure, of any length."""
    data = (noise * (size // max(len(noise), 1) + 1))[:size] if noise else bytes(size)
    logs.ErrorEntry.parse(data)
    for parse, least in (
        (identify.ControllerIdentity.parse, identify.SIZE),
        (identify.active_namespaces, identify.SIZE),
        (logs.SmartLog.parse, logs.SMART_SIZE),
    ):
        if size >= least:
            assert repr(parse(data))
        else:
            with pytest.raises(errors.ArgumentError, match=f"not {size}"):
                parse(data)
    try:
        found = identify.NamespaceIdentity.parse(bytes(data))
    except errors.MalformedConfig:
        assert size >= identify.SIZE
    except errors.ArgumentError:
        assert size < identify.SIZE
    else:
        assert found.current.block_size >= 512
