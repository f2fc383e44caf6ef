"""Log pages: health, and errors (Base 2.0, 5.16.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyvfio import errors

SMART_SIZE = 512
ERROR_SIZE = 64

_DATA_UNIT = 512_000  # a thousand units of 512 bytes

_WARNINGS = (
    "the spare is below its threshold",
    "a temperature is beyond its threshold",
    "the reliability is degraded",
    "the media are read-only",
    "the volatile memory's backup failed",
    "the persistent memory region is unreliable",
)


@dataclass(frozen=True)
class SmartLog:
    """A controller's health (SMART / Health Information).

    Attributes:
        critical_warning: a bit for each of :attr:`warnings`.
        temperature: kelvins.
        available_spare: per cent.
        spare_threshold: per cent.
        percentage_used: of the endurance; may exceed 100.
        data_read: bytes, counted in units of 512,000.
        data_written: bytes, counted in units of 512,000.
        read_commands: how many.
        write_commands: how many.
        busy_minutes: with commands under way.
        power_cycles: how many.
        power_on_hours: how many.
        unsafe_shutdowns: how many.
        media_errors: how many.
        error_entries: how many errors were ever logged.
        warning_minutes: above the warning temperature.
        critical_minutes: above the critical temperature.
        sensors: kelvins of each temperature sensor that there is, by number from 1.
    """

    critical_warning: int
    temperature: int
    available_spare: int
    spare_threshold: int
    percentage_used: int
    data_read: int
    data_written: int
    read_commands: int
    write_commands: int
    busy_minutes: int
    power_cycles: int
    power_on_hours: int
    unsafe_shutdowns: int
    media_errors: int
    error_entries: int
    warning_minutes: int
    critical_minutes: int
    sensors: dict[int, int]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the controller warns of, a phrase each."""
        return tuple(text for bit, text in enumerate(_WARNINGS) if self.critical_warning >> bit & 1)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> SmartLog:
        """From the 512 bytes that the controller wrote.

        Raises:
            ArgumentError: there are fewer.
        """
        data = bytes(data)
        if len(data) < SMART_SIZE:
            raise errors.ArgumentError(f"a SMART log has {SMART_SIZE} bytes, not {len(data)}")
        warning, temperature, spare, threshold, used = struct.unpack_from("<BHBBB", data)
        # Ten counters of 128 bits.
        read, written, reads, writes, busy, cycles, hours, unsafe, media, entries = (
            int.from_bytes(data[at : at + 16], "little") for at in range(32, 192, 16)
        )
        above_warning, above_critical, *sensors = struct.unpack_from("<II8H", data, 192)
        return cls(
            critical_warning=warning,
            temperature=temperature,
            available_spare=spare,
            spare_threshold=threshold,
            percentage_used=used,
            data_read=read * _DATA_UNIT,
            data_written=written * _DATA_UNIT,
            read_commands=reads,
            write_commands=writes,
            busy_minutes=busy,
            power_cycles=cycles,
            power_on_hours=hours,
            unsafe_shutdowns=unsafe,
            media_errors=media,
            error_entries=entries,
            warning_minutes=above_warning,
            critical_minutes=above_critical,
            sensors={number: kelvins for number, kelvins in enumerate(sensors, 1) if kelvins},
        )


@dataclass(frozen=True)
class ErrorEntry:
    """One error that the controller logged.

    Attributes:
        number: counts all errors of the controller's life.
        queue: the submission queue's number.
        command: the command's identifier there.
        status: status code type << 8 | status code.
        lba: the first block concerned.
        namespace: its ID.
    """

    number: int
    queue: int
    command: int
    status: int
    lba: int
    namespace: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> tuple[ErrorEntry, ...]:
        """From an error log: the newest first; entries that are not used are left out."""
        entries = []
        for at in range(0, len(data) - ERROR_SIZE + 1, ERROR_SIZE):
            number, queue, command, status, lba, namespace = struct.unpack_from(
                "<QHHH2xQI", data, at
            )
            if number:
                entries.append(cls(number, queue, command, status >> 1 & 0x7FF, lba, namespace))
        return tuple(entries)
