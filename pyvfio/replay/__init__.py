"""The life of a device's MSI-X vectors under each of QEMU's policies, on the real kernel.

How it is laid out:

    devices.py       the device's part: one of this host's, or a modelled one
    machines.py      the VM's part: how messages look, and how it is seen what arrives
    life.py          the steps of a life, and what is fired and seen after each
    verdict.py       what it shows, in one sentence
    picture.py       the same as one SVG
"""

from __future__ import annotations

from pyvfio.replay.devices import DevicePart, HostDevice, ModelledDevice
from pyvfio.replay.life import ORDERS, VARIANTS, Control, Life, Probe, Step, Variant, live
from pyvfio.replay.machines import ApicMachine, MachinePart, ModelledDirectMachine, XicsMachine
from pyvfio.replay.picture import svg
from pyvfio.replay.verdict import Verdict, judge

__all__ = [
    "ORDERS",
    "VARIANTS",
    "ApicMachine",
    "Control",
    "DevicePart",
    "HostDevice",
    "Life",
    "MachinePart",
    "ModelledDevice",
    "ModelledDirectMachine",
    "Probe",
    "Step",
    "Variant",
    "Verdict",
    "XicsMachine",
    "judge",
    "live",
    "svg",
]
