"""Config space of an opened device, as VFIO shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pyvfio._sys import File
from pyvfio.device.region import Area, Region

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ConfigRegion(Region):
    """The config-space region; a write may change what the device decodes."""

    __slots__ = ("_writing",)

    def __init__(
        self,
        file: File,
        index: int,
        name: str,
        *,
        flags: int,
        size: int,
        offset: int,
        areas: tuple[Area, ...],
        refuse: Callable[[], None],
        writing: Callable[[int, int], AbstractContextManager[None]],
    ) -> None:
        """As :class:`Region`; each write happens inside ``writing(offset, size)``."""
        super().__init__(
            file,
            index,
            name,
            flags=flags,
            size=size,
            offset=offset,
            areas=areas,
            refuse=refuse,
        )
        self._writing = writing

    def write(self, offset: int, data: Buffer) -> None:
        content = bytes(data)
        with self._writing(offset, len(content)):
            super().write(offset, content)

    def _write(self, offset: int, width: int, value: int) -> None:
        with self._writing(offset, width):
            super()._write(offset, width, value)


class LiveConfig:
    """Config space as :class:`pyvfio.pci.config.ConfigSpace` reads it.

    Attributes:
        size: bytes, 256 or 4096.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self.size = region.size
        self._reads = {1: region.read8, 2: region.read16, 4: region.read32}
        self._writes = {1: region.write8, 2: region.write16, 4: region.write32}

    def read(self, offset: int, width: int) -> int:
        """The `width` bytes (1, 2 or 4) at `offset`, in one access."""
        return self._reads[width](offset)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write `width` bytes (1, 2 or 4) at `offset`, in one access."""
        self._writes[width](offset, value)
