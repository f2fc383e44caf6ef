"""What Identify tells of a controller and of a namespace (Base 2.0, 5.17.2; NVM 1.0, 4.1.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyvfio import errors

SIZE = 4096
"""Bytes of every Identify data structure."""
MOST_BYTES = 1 << 63
"""Of a namespace: an offset in a file has no more."""


def _text(data: bytes) -> str:
    # ASCII by the specification; a device under development may send anything.
    return data.decode("ascii", "replace").strip(" \0")


@dataclass(frozen=True)
class ControllerIdentity:
    """A controller.

    Texts are as it sent them: they may hold what a terminal obeys.

    Attributes:
        vendor_id: PCI vendor ID.
        serial: serial number.
        model: model number.
        firmware: firmware revision.
        transfer_pages: largest transfer of one command as a power of two, in units of the
            controller's smallest page; 0 if there is no limit (MDTS).
        controller_id: its number within the NVM subsystem.
        version: of the specification: major, minor, tertiary. (0, 0, 0) before 1.2.
        shutdown_seconds: how long an orderly shutdown may take; 0 if it does not tell (RTD3E).
        namespaces: the highest namespace ID there can be.
        aborts: how many Abort commands it takes at a time.
        error_entries: how many entries its error log has.
        can_format: it has the Format NVM command.
        can_deallocate: it has the Dataset Management command.
        volatile_cache: it has a volatile write cache: what is not flushed may be lost.
        warning_temperature: kelvins; 0 if it does not tell.
        critical_temperature: kelvins; 0 if it does not tell.
        capacity: bytes of the whole NVM; 0 if it does not tell.
    """

    vendor_id: int
    serial: str
    model: str
    firmware: str
    transfer_pages: int
    controller_id: int
    version: tuple[int, int, int]
    shutdown_seconds: float
    namespaces: int
    aborts: int
    error_entries: int
    can_format: bool
    can_deallocate: bool
    volatile_cache: bool
    warning_temperature: int
    critical_temperature: int
    capacity: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> ControllerIdentity:
        """From the 4,096 bytes that the controller wrote.

        Raises:
            ArgumentError: there are fewer.
        """
        data = _whole(data)
        vendor_id, serial, model, firmware = struct.unpack_from("<H2x20s40s8s", data)
        transfer_pages, controller_id, version = struct.unpack_from("<BHI", data, 77)
        shutdown_microseconds = int.from_bytes(data[88:92], "little")
        admin, aborts = struct.unpack_from("<HB", data, 256)
        warning, critical = struct.unpack_from("<HH", data, 266)
        namespaces, commands = struct.unpack_from("<IH", data, 516)
        return cls(
            vendor_id=vendor_id,
            serial=_text(serial),
            model=_text(model),
            firmware=_text(firmware),
            transfer_pages=transfer_pages,
            controller_id=controller_id,
            version=(version >> 16, version >> 8 & 0xFF, version & 0xFF),
            shutdown_seconds=shutdown_microseconds / 1e6,
            namespaces=namespaces,
            aborts=aborts + 1,
            error_entries=data[262] + 1,
            can_format=bool(admin >> 1 & 1),
            can_deallocate=bool(commands >> 2 & 1),
            volatile_cache=bool(data[525] & 1),
            warning_temperature=warning,
            critical_temperature=critical,
            capacity=int.from_bytes(data[280:296], "little"),
        )


@dataclass(frozen=True)
class LbaFormat:
    """A way in which a namespace can be formatted.

    Attributes:
        block_size: bytes of a block's data.
        metadata_size: bytes of metadata beside each block.
        performance: 0 is the best, 3 a degraded one.
    """

    block_size: int
    metadata_size: int
    performance: int


@dataclass(frozen=True)
class NamespaceIdentity:
    """A namespace.

    Attributes:
        blocks: its size, in blocks.
        capacity: how many may be allocated at a time.
        used: how many are allocated.
        formats: those it can have; only those that are one.
        format: the index of the one it has.
        inline_metadata: metadata lies behind each block's data, not apart.
        protected: end-to-end protection is on.
        nguid: globally unique identifier, 16 bytes; zeros if it has none.
        eui64: IEEE extended unique identifier, 8 bytes; zeros if it has none.
    """

    blocks: int
    capacity: int
    used: int
    formats: dict[int, LbaFormat]
    format: int
    inline_metadata: bool
    protected: bool
    nguid: bytes
    eui64: bytes

    @property
    def current(self) -> LbaFormat:
        """The format it has."""
        return self.formats[self.format]

    @classmethod
    def parse(cls, data: bytes | memoryview) -> NamespaceIdentity:
        """From the 4,096 bytes that the controller wrote.

        Raises:
            ArgumentError: there are fewer.
            MalformedConfig: its format is none of those it names.
        """
        data = _whole(data)
        blocks, capacity, used = struct.unpack_from("<QQQ", data)
        last, current = data[25], data[26]
        formats = {}
        for index in range(min(last + 1, 64)):
            metadata, shift, performance = struct.unpack_from("<HBB", data, 128 + 4 * index)
            if 9 <= shift < 32:  # 512 bytes at least; 0 stands for a format that is not there
                formats[index] = LbaFormat(1 << shift, metadata, performance & 3)
        # Beyond 16 formats two more bits of the index lie apart.
        index = current & 0xF | (current >> 5 & 3) << 4 if last >= 16 else current & 0xF
        if index not in formats:
            raise errors.MalformedConfig(
                f"the namespace says it has format {index}, and offers "
                + (", ".join(map(str, formats)) or "none")
                + f" (FLBAS {current:#04x}, NLBAF {last})"
            )
        return cls(
            blocks=blocks,
            capacity=capacity,
            used=used,
            formats=formats,
            format=index,
            inline_metadata=bool(current >> 4 & 1),
            protected=bool(data[29] & 7),
            nguid=data[104:120],
            eui64=data[120:128],
        )


def active_namespaces(data: bytes | memoryview) -> tuple[int, ...]:
    """The namespace IDs of an active namespace list, which a zero ends."""
    numbers = struct.unpack(f"<{SIZE // 4}I", _whole(data))
    return numbers[: numbers.index(0)] if 0 in numbers else numbers


def _whole(data: bytes | memoryview) -> bytes:
    if len(data) < SIZE:
        raise errors.ArgumentError(f"an Identify structure has {SIZE} bytes, not {len(data)}")
    return bytes(data[:SIZE])
