"""The two capability lists, and what every capability has.

A typed capability is a class with an identifier and a table of fields (see
:mod:`pyvfio.pci.registers`); defining the class is enough for both lists to use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from pyvfio.abi import pci_regs as pci
from pyvfio.errors import MalformedConfig
from pyvfio.pci.capabilities.names import EXTENDED_NAMES, STANDARD_NAMES
from pyvfio.pci.registers import Registers

if TYPE_CHECKING:
    from pyvfio.pci.config import ConfigSpace


class Place(NamedTuple):
    """Where a capability is.

    Attributes:
        offset: of its header, in bytes from the start of config space.
        id: its identifier.
        version: of an extended capability; 0 for the others.
        limit: where the next capability in memory, or the space of the list, begins.
        end: where the space of the list ends.
    """

    offset: int
    id: int
    version: int
    limit: int
    end: int


class Capability(Registers):
    """One capability; offsets of its registers count from its header.

    Attributes:
        offset: of its header, in bytes from the start of config space.
        id: what it is, one of ``PCI_CAP_ID_*`` or ``PCI_EXT_CAP_ID_*``.
        extended: whether it is of the list that begins at 0x100.
        version: of an extended capability; 0 for the others.
    """

    ID: ClassVar[int]
    LENGTH: ClassVar[int | None]
    extended: ClassVar[bool]

    def __init_subclass__(cls, id: int | None = None, length: int | None = None) -> None:
        if id is not None:
            cls.ID = id
            cls.LENGTH = length
            _TYPES[cls.extended, id] = cls

    def __init__(self, config: ConfigSpace, place: Place) -> None:
        super().__init__(config, place.offset)
        self._config = config
        self._place = place
        self.id = place.id
        self.version = place.version

    @property
    def name(self) -> str:
        """What the specification calls it, or ``"unknown"``."""
        return (EXTENDED_NAMES if self.extended else STANDARD_NAMES).get(self.id, "unknown")

    @property
    def length(self) -> int | None:
        """Bytes that it occupies with its header; None where they cannot be known."""
        return getattr(self, "LENGTH", None)

    @property
    def raw(self) -> bytes:
        """Its bytes now; of unknown length, those up to whatever comes next."""
        length = self.length or self._place.limit - self.offset
        stop = min(length, self._place.end - self.offset)
        dwords = (self.read(at, 4).to_bytes(4, "little") for at in range(0, stop, 4))
        return b"".join(dwords)[:stop]

    def read(self, offset: int, width: int) -> int:
        """Read one register, `offset` bytes from the header.

        Raises:
            MalformedConfig: it would lie beyond the end of config space.
        """
        if self.offset + offset + width > self._place.end:
            raise MalformedConfig(
                f"{self.name} at {self.offset:#x} runs beyond the end of its part of config "
                f"space at {self._place.end:#x}"
            )
        return super().read(offset, width)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id:#04x} {self.name!r} at {self.offset:#x}>"


_TYPES: dict[tuple[bool, int], type[Capability]] = {}


class StandardCapability(Capability):
    """A capability of the list in the first 256 bytes (PCIe 5.0, 7.5.1.1.11)."""

    extended = False


class ExtendedCapability(Capability):
    """A capability of the list that begins at 0x100 (PCIe 5.0, 7.6.3)."""

    extended = True


C = TypeVar("C", bound=Capability)
D = TypeVar("D", bound=Capability)


class CapabilityList(Generic[C]):
    """One of the two lists of capabilities, in the order of their chain.

    Iterating a malformed chain gives the capabilities before the fault, and raises there.
    """

    _kind: type[C]

    def __init__(self, config: ConfigSpace) -> None:
        self._config = config
        self._places: tuple[Place, ...] | None = None

    def __iter__(self) -> Iterator[C]:
        """The capabilities.

        Raises:
            MalformedConfig: the chain is broken, loops, or is in a part that was not saved.
        """
        fault = None
        places = self._places
        if places is None:
            places, fault = self._walk()
            if fault is None:
                self._places = places
        for place in places:
            kind = _TYPES.get((self._kind.extended, place.id), self._kind)
            yield kind(self._config, place)  # type: ignore[misc]
        if fault is not None:
            raise fault

    def get(self, kind: type[D]) -> D | None:
        """The first capability of that class, or None.

        Raises:
            MalformedConfig: the chain is broken before one was found.
        """
        return next((item for item in self if isinstance(item, kind)), None)

    def __getitem__(self, id: int) -> C:
        """The first capability with that identifier.

        Raises:
            KeyError: there is none.
            MalformedConfig: the chain is broken before one was found.
        """
        for item in self:
            if item.id == id:
                return item
        raise KeyError(id)

    def __contains__(self, id: object) -> bool:
        return any(item.id == id for item in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _walk(self) -> tuple[tuple[Place, ...], MalformedConfig | None]:
        found: dict[int, tuple[int, int]] = {}
        fault = None
        try:
            for offset, id, version in self._headers():
                if offset in found:
                    raise MalformedConfig(
                        f"the capability chain loops: it comes back to {offset:#x}"
                    )
                found[offset] = id, version
        except MalformedConfig as error:
            fault = error
        end = self._end()
        starts = sorted([*found, end])
        limits = dict(pairwise(starts))
        places = tuple(
            Place(offset, id, version, limits[offset], end)
            for offset, (id, version) in found.items()
        )
        return places, fault

    def _headers(self) -> Iterator[tuple[int, int, int]]:
        """(offset, identifier, version) along the chain; it may loop."""
        raise NotImplementedError

    def _end(self) -> int:
        """Where the list's part of config space ends."""
        raise NotImplementedError


class StandardCapabilities(CapabilityList[StandardCapability]):
    """The list in the first 256 bytes."""

    _kind = StandardCapability

    def _headers(self) -> Iterator[tuple[int, int, int]]:
        config = self._config
        config.check_alive()
        if not config.read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST:
            return
        pointer_at = config.capabilities_pointer_offset
        while True:
            # The two low bits are reserved.
            offset = config.read(pointer_at, 1) & ~3
            if offset == 0:
                return
            if offset < pci.PCI_STD_HEADER_SIZEOF:
                raise MalformedConfig(
                    f"the capability pointer at {pointer_at:#x} points into the header, at "
                    f"{offset:#x}"
                )
            if offset + pci.PCI_CAP_SIZEOF > config.size:
                raise MalformedConfig(
                    f"only {config.size} bytes of config space are here, and the capabilities are "
                    "not among them; the kernel gives them to root only"
                )
            id = config.read(offset, 1)
            if id == 0xFF:
                raise MalformedConfig(f"there is no capability at {offset:#x}: it reads 0xff")
            yield offset, id, 0
            pointer_at = offset + pci.PCI_CAP_LIST_NEXT

    def _end(self) -> int:
        return min(self._config.size, pci.PCI_CFG_SPACE_SIZE)


class ExtendedCapabilities(CapabilityList[ExtendedCapability]):
    """The list that begins at 0x100."""

    _kind = ExtendedCapability

    def _headers(self) -> Iterator[tuple[int, int, int]]:
        config = self._config
        config.check_alive()
        if config.size <= pci.PCI_CFG_SPACE_SIZE:
            if config.pcie is not None and not config.is_whole:
                raise MalformedConfig(
                    f"only {config.size} bytes of config space are here, and the extended "
                    "capabilities are not among them; save all 4096 as root (lspci -xxxx), on a "
                    "host that can reach them (MMCONFIG)"
                )
            return
        offset = pci.PCI_CFG_SPACE_SIZE
        while True:
            header = config.read(offset, 4)
            if header == 0:
                return
            if header == 0xFFFFFFFF:
                if offset == pci.PCI_CFG_SPACE_SIZE:
                    return  # a conventional device on a host that can ask for more
                raise MalformedConfig(
                    f"there is no extended capability at {offset:#x}: it reads 0xffffffff"
                )
            yield offset, header & 0xFFFF, header >> 16 & 0xF
            before, offset = offset, header >> 20 & 0xFFC
            if offset == 0:
                return
            if offset < pci.PCI_CFG_SPACE_SIZE:
                raise MalformedConfig(
                    f"the extended capability at {before:#x} points outside of extended config "
                    f"space, to {offset:#x}"
                )
            if offset + 4 > config.size:
                raise MalformedConfig(
                    f"the extended capability at {before:#x} points to {offset:#x}, and only "
                    f"{config.size} bytes of config space are here"
                )

    def _end(self) -> int:
        return self._config.size
