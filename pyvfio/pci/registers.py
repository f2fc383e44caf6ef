"""Registers declared as tables: one line a field, and the listing of all fields comes for free.

    class AfCapability(StandardCapability, id=PCI_CAP_ID_AF, length=PCI_CAP_AF_SIZEOF):
        flr = u8(PCI_AF_CAP, PCI_AF_CAP_FLR, bool)

Reading ``af.flr`` reads that register, once and in its own width; nothing is kept.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    Protocol,
    TypeAlias,
    TypeVar,
    overload,
)

from pyvfio import errors

if TYPE_CHECKING:
    from typing_extensions import Self

#: What ``fields()`` is made of: JSON's own types.
Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

T = TypeVar("T")


class Space(Protocol):
    """Something with registers: config space, a capability in it."""

    def read(self, offset: int, width: int) -> int:
        """The `width` bytes (1, 2 or 4, naturally aligned) at `offset`, in one access."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write `width` bytes (1, 2 or 4, naturally aligned) at `offset`, in one access."""
        ...


class Registers:
    """Registers at a place in a space; subclasses declare their fields.

    Attributes:
        offset: where they begin, in bytes from the start of the space.
    """

    def __init__(self, space: Space, offset: int = 0) -> None:
        self._space = space
        self.offset = offset

    def read(self, offset: int, width: int) -> int:
        """Read one register.

        Args:
            offset: bytes from the first of these registers.
            width: bytes: 1, 2 or 4.
        """
        return self._space.read(self.offset + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write one register; arguments as for :meth:`read`."""
        self._space.write(self.offset + offset, width, value)

    def fields(self, faults: list[str] | None = None) -> dict[str, Plain]:
        """Every declared field and its value now, as JSON's types, in the order declared.

        Args:
            faults: takes what is wrong with a field that cannot be read, which is then left out;
                None raises it.
        """
        found: dict[str, Plain] = {}
        for declaring in reversed(type(self).__mro__):
            for name, attribute in vars(declaring).items():
                if not isinstance(attribute, Listed):
                    continue
                try:
                    found[name] = plain(getattr(self, name), faults)
                except errors.Error as error:
                    if faults is None:
                        raise
                    faults.append(f"{name}: {error}")
        return found


class Listed(Generic[T]):
    """An attribute that :meth:`Registers.fields` lists."""

    def __init__(self, get: Callable[[Any], T]) -> None:
        self._get = get
        self.__doc__ = get.__doc__

    @overload
    def __get__(self, registers: None, owner: type) -> Self: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> T: ...
    def __get__(self, registers: Registers | None, owner: type) -> Self | T:
        return self if registers is None else self._get(registers)

    def __set__(self, registers: Registers, value: NoReturn) -> None:
        raise AttributeError("a field of a register cannot be assigned: write() the register")


class derived(Listed[T]):
    """Decorates a method: a property that is listed among the fields."""


class Field(Listed[T]):
    """A register, or the part of one under a mask; made by :data:`u8`, :data:`u16`, :data:`u32`."""

    def __init__(self, offset: int, width: int, mask: int, decode: Callable[[int], T]) -> None:
        shift = (mask & -mask).bit_length() - 1
        super().__init__(lambda registers: decode((registers.read(offset, width) & mask) >> shift))
        self.offset = offset
        self.width = width


class AssignableField(Field[T]):
    """A whole register that can be assigned, in one write."""

    def __set__(self, registers: Registers, value: int) -> None:
        registers.write(self.offset, self.width, int(value))


class _Declare:
    """Declares fields of registers of one width."""

    def __init__(self, width: int) -> None:
        self._width = width

    @overload
    def __call__(self, offset: int, mask: int = ...) -> Field[int]: ...
    @overload
    def __call__(self, offset: int, mask: int = ..., *, decode: Callable[[int], T]) -> Field[T]: ...
    @overload
    def __call__(self, offset: int, mask: int, decode: Callable[[int], T]) -> Field[T]: ...
    def __call__(
        self, offset: int, mask: int = -1, decode: Callable[[int], Any] = int
    ) -> Field[Any]:
        """A field.

        Args:
            offset: of its register, from the start of the :class:`Registers`.
            mask: its bits, as in linux/pci_regs.h; the value is shifted down to bit 0.
            decode: makes the value from the number; ``bool`` for a single bit.
        """
        return Field(offset, self._width, mask, decode)


u8 = _Declare(1)
u16 = _Declare(2)
u32 = _Declare(4)


class Choice(enum.IntEnum):
    """A field whose values have names; those that the specification reserves are RESERVED_n."""

    @classmethod
    def _missing_(cls, value: object) -> Choice | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"RESERVED_{value}"
        member._value_ = value
        return member

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def plain(value: object, faults: list[str] | None = None) -> Plain:
    """A field's value in JSON's types: flags as a list of names, choices as text.

    Args:
        value: the value.
        faults: as for :meth:`Registers.fields`.
    """
    if isinstance(value, enum.Flag):
        named = [flag for flag in type(value) if flag in value]
        rest = int(value.value) & ~sum(flag.value for flag in named)
        return [*(str(flag.name).lower() for flag in named), *([f"{rest:#x}"] if rest else [])]
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, Registers):
        return value.fields(faults)
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name), faults)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [plain(item, faults) for item in value]
    if isinstance(value, bytes):
        return value.hex(" ")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} has no plain form")
