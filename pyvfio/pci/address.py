"""The address of a PCI function: domain, bus, device, function."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyvfio import errors

_ADDRESS = re.compile(
    r"(?:(?P<domain>[0-9a-f]{1,8}):)?(?P<bus>[0-9a-f]{1,2}):"
    r"(?P<device>[0-9a-f]{1,2})\.(?P<function>[0-9a-f])",
    re.ASCII | re.IGNORECASE,
)
_WITHOUT_FUNCTION = re.compile(
    r"(?:[0-9a-f]{1,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}", re.ASCII | re.IGNORECASE
)
_EXPECTED = (
    "expected domain:bus:device.function in hexadecimal, e.g. 0000:01:00.0 (or 01:00.0 in domain 0)"
)


@dataclass(frozen=True, order=True, slots=True)
class Address:
    """Where a PCI function is.

    Args:
        domain: the PCI segment, up to 32 bits (VMD and Hyper-V use more than 16).
        bus: 0 to 0xff.
        device: 0 to 0x1f.
        function: 0 to 7.

    Raises:
        ArgumentError: a number is out of its range.
    """

    domain: int
    bus: int
    device: int
    function: int

    def __post_init__(self) -> None:
        for name, value, highest in (
            ("domain", self.domain, 0xFFFF_FFFF),
            ("bus", self.bus, 0xFF),
            ("device", self.device, 0x1F),
            ("function", self.function, 7),
        ):
            if not 0 <= value <= highest:
                raise errors.ArgumentError(
                    f"PCI {name} {value:#x} is out of range: 0 to {highest:#x}"
                )

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """The address that `text` spells; an Address is returned as it is.

        Args:
            text: hexadecimal, e.g. ``"0000:01:00.0"``, or ``"01:00.0"`` for domain 0.

        Raises:
            ArgumentError: it is not an address; says what is wrong with it.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise errors.ArgumentError(f"{text!r} is no PCI address: {_EXPECTED}")
        match = _ADDRESS.fullmatch(text)
        if match is None:
            if _WITHOUT_FUNCTION.fullmatch(text):
                raise errors.ArgumentError(
                    f"{text!r} lacks the function: add it after a dot, e.g. {text}.0"
                )
            raise errors.ArgumentError(f"{text!r} is no PCI address: {_EXPECTED}")
        device, function = int(match["device"], 16), int(match["function"], 16)
        if device > 0x1F:
            hint = ""
            if match["device"].isdecimal() and int(match["device"]) <= 0x1F:
                hint = f" (decimal {match['device']} is written {int(match['device']):02x})"
            raise errors.ArgumentError(
                f"{text!r} is no PCI address: devices are hexadecimal, 00 to 1f{hint}"
            )
        if function > 7:
            raise errors.ArgumentError(f"{text!r} is no PCI address: functions are 0 to 7")
        return cls(int(match["domain"] or "0", 16), int(match["bus"], 16), device, function)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"
