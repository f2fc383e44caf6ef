"""What error to inject into a PE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pyvfio import errors
from pyvfio.abi import vfio

_LAST = (1 << 64) - 1


class ErrorFunction(IntEnum):
    """On which access the error happens (``EEH_ERR_FUNC_*`` in the kernel's uapi asm/eeh.h).

    A load is read by the CPU, a store written by it; a DMA read is one that the device does. Each
    is told by its address or by its data; DMA also by who does it (master) or what it hits
    (target).
    """

    LOAD_MEMORY_ADDRESS = 0
    LOAD_MEMORY_DATA = 1
    LOAD_IO_ADDRESS = 2
    LOAD_IO_DATA = 3
    LOAD_CONFIG_ADDRESS = 4
    LOAD_CONFIG_DATA = 5
    STORE_MEMORY_ADDRESS = 6
    STORE_MEMORY_DATA = 7
    STORE_IO_ADDRESS = 8
    STORE_IO_DATA = 9
    STORE_CONFIG_ADDRESS = 10
    STORE_CONFIG_DATA = 11
    DMA_READ_ADDRESS = 12
    DMA_READ_DATA = 13
    DMA_READ_MASTER = 14
    DMA_READ_TARGET = 15
    DMA_WRITE_ADDRESS = 16
    DMA_WRITE_DATA = 17
    DMA_WRITE_MASTER = 18
    DMA_WRITE_TARGET = 19

    @property
    def word(self) -> str:
        """Its name on the command line, "load-memory-address"."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def parse(cls, text: str) -> ErrorFunction:
        """The function with that name; case does not count.

        Raises:
            ArgumentError: there is none; names those there are.
        """
        for function in cls:
            if function.word == text.strip().lower():
                return function
        raise errors.ArgumentError(
            f"{text!r} is no error function; there are: {', '.join(one.word for one in cls)}"
        )


@dataclass(frozen=True)
class InjectedError:
    """An error to inject.

    Attributes:
        function: on which access it happens.
        bits: 32 or 64, the width of the bus error.
        address: where: a bus address, or a bus/device/function for config space. 0 with a mask of 0
            lets the firmware take any of the PE's.
        mask: which bits of the address must match.

    Raises:
        ArgumentError: a width that there is not.
        RangeError: address or mask are no 64-bit number.
    """

    function: ErrorFunction = ErrorFunction.LOAD_MEMORY_ADDRESS
    bits: int = 32
    address: int = 0
    mask: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise errors.ArgumentError(f"bus errors are of 32 or 64 bits, not {self.bits}")
        for name in ("address", "mask"):
            if not 0 <= getattr(self, name) <= _LAST:
                raise errors.RangeError(f"the {name} {getattr(self, name):#x} is no 64-bit number")

    @property
    def type(self) -> int:
        """``EEH_ERR_TYPE_32`` or ``EEH_ERR_TYPE_64``."""
        return 0 if self.bits == 32 else 1

    @property
    def argument(self) -> vfio.vfio_eeh_pe_err:
        """For ``VFIO_EEH_PE_INJECT_ERR``."""
        return vfio.vfio_eeh_pe_err(
            type=self.type, func=int(self.function), addr=self.address, mask=self.mask
        )

    def debugfs(self, pe: int) -> str:
        """For the PHB's debugfs file err_injct, in hexadecimal.

        Args:
            pe: the PE's number.

        Raises:
            RangeError: no PE has that number.
        """
        if not 0 <= pe <= 0xFFFF:
            raise errors.RangeError(f"a PE's number has 16 bits, and {pe:#x} has more")
        return f"{pe:x}:{self.type:x}:{self.function:x}:{self.address:x}:{self.mask:x}"

    def __str__(self) -> str:
        where = "anywhere in the PE"
        if self.address or self.mask:
            where = f"at {self.address:#x}, mask {self.mask:#x}"
        return f"a {self.bits}-bit error at a {self.function.word.replace('-', ' ')}, {where}"
