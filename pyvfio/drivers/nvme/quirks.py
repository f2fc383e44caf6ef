"""Controllers that need something else than the specification says.

From Linux's drivers/nvme/host/pci.c (nvme_id_table, nvme_pci_enable()). Most of its quirks are of
what this driver does not do, or does in the way that all controllers accept: docs/nvme.md has them
all, and why.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvfio.pci.config import ConfigSpace

_APPLE = 0x106B
_SAMSUNG = 0x144D


@dataclass(frozen=True)
class Quirk:
    """What is different.

    Attributes:
        most_entries: of a queue, whatever CAP.MQES says.
        entries_for_mqes_0: of a queue where CAP.MQES is 0; 0 where that is what it is.
        single_vector: all queues have one vector.
        refused: why it cannot be driven; "" if it can.
    """

    most_entries: int = 1 << 16
    entries_for_mqes_0: int = 0
    single_vector: bool = False
    refused: str = ""


_NONE = Quirk()
_QUIRKS = {
    # MacBook8,1 and some MacBook7,1: more than one command under way resets it, and loses data.
    (_APPLE, 0x2001): Quirk(most_entries=2, single_vector=True),
    (_APPLE, 0x2005): Quirk(
        refused="the controller of Apple's T2 has submission entries of 128 bytes, and no two of "
        "its queues may use the same identifiers"
    ),
    (_SAMSUNG, 0xA821): Quirk(entries_for_mqes_0=64),  # PM1725
    (_SAMSUNG, 0xA822): Quirk(entries_for_mqes_0=64),  # PM1725a
}


def find(config: ConfigSpace) -> Quirk:
    """What is different of a controller, by its config space."""
    return _QUIRKS.get((config.vendor_id, config.device_id), _NONE)
