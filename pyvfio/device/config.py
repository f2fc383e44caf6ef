"""Config space of an opened device, as VFIO shows it."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio._sys import File
from pyvfio.device.region import Area, Region


class ConfigRegion(Region):
    """The config-space region; tells the device after each write, which may have changed what it
    decodes."""

    __slots__ = ("_written",)

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
        written: Callable[[int, int], None],
    ) -> None:
        """As :class:`Region`, with `written` to be called with (offset, size) after a write."""
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
        self._written = written

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        self._written(offset, len(data))

    def _write(self, offset: int, width: int, value: int) -> None:
        super()._write(offset, width, value)
        self._written(offset, width)


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
