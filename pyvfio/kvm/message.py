"""MSI messages: the write that is an interrupt."""

from __future__ import annotations

from typing import NamedTuple

from pyvfio import errors

_APIC_BASE = 0xFEE00000
_FIRST_VECTOR = 0x10  # those below are reserved (Intel SDM volume 3, "Valid Interrupt Vectors")


class MsiMessage(NamedTuple):
    """What a device writes, and where.

    Attributes:
        address: 64 bits; 0 is a legal address.
        data: 32 bits; 0 is legal data.
    """

    address: int
    data: int

    def __str__(self) -> str:
        return f"{self.address:#x}={self.data:#x}"


def apic_message(vector: int, apic_id: int = 0) -> MsiMessage:
    """The message of an edge-triggered interrupt to one local APIC of x86 (fixed delivery).

    Intel SDM volume 3, "Message Signalled Interrupts". IDs above 255 take the upper address bits,
    in the format of ``KVM_CAP_X2APIC_API`` (:meth:`pyvfio.kvm.VM.use_x2apic_format`); a VM without
    it does not look there, and takes the lowest 8 bits for the ID.

    Args:
        vector: interrupt vector, 0x10 to 0xff.
        apic_id: of the vCPU that gets it; a vCPU's APIC ID is its number.

    Raises:
        RangeError: there is no such vector or ID.
    """
    if not _FIRST_VECTOR <= vector <= 0xFF:
        raise errors.RangeError(f"interrupt vectors are 0x10 to 0xff, not {vector:#x}")
    if not 0 <= apic_id < 1 << 32:
        raise errors.RangeError(f"an APIC ID has 32 bits, {apic_id:#x} does not fit")
    return MsiMessage((apic_id >> 8) << 40 | _APIC_BASE | (apic_id & 0xFF) << 12, vector)


def check_message(message: MsiMessage, *, x2apic_format: bool) -> None:
    """Raises ArgumentError where it is no message, or none in the VM's format."""
    address, data = message
    if not (0 <= address < 1 << 64 and 0 <= data < 1 << 32):
        raise errors.ArgumentError(
            f"an MSI message has an address of 64 bits and data of 32, not {message}"
        )
    if x2apic_format and address >> 32 & 0xFF:
        raise errors.ArgumentError(
            f"in the x2APIC format bits 39 to 32 of a message's address are 0, not in {message}: "
            "an APIC ID's bits from 8 on belong at bit 40 and above"
        )
