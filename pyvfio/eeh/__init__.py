"""Extended Error Handling of POWER: PEs that freeze at an error, and how they come back.

A PE (partitionable endpoint) is what the PCI host bridge isolates: at an error it freezes, so that
nothing wrong gets into memory or out. Two sides can act, and are kept apart:

- the process that holds the device, through its VFIO container: :class:`Pe`,
  :class:`Recovery`, :func:`drill`;
- the host's root, through sysfs and debugfs, who never opens the device: :class:`HostPe`,
  :func:`counters`, :mod:`pyvfio.eeh.debugfs`.

::

    with pyvfio.open("0000:01:00.0") as device:
        pe = eeh.Pe(device)
        recovery = eeh.Recovery(pe, report=print)      # saves config space while all is well
        ...
        if pe.state.frozen:
            recovery.run()
"""

from __future__ import annotations

from pyvfio.eeh.drilling import drill, inject, wait_frozen
from pyvfio.eeh.error import ErrorFunction, InjectedError
from pyvfio.eeh.host import HostPe, frozen_before_open
from pyvfio.eeh.injectors import Injector, choose, injectors
from pyvfio.eeh.leftover import end_leftover_reset
from pyvfio.eeh.looking import host_pes, is_of_host, look
from pyvfio.eeh.pe import Pe, Reset
from pyvfio.eeh.procfs import Counters, check_enabled, counters
from pyvfio.eeh.recovery import Handlers, Recovery
from pyvfio.eeh.saved import SavedConfig
from pyvfio.eeh.state import DeviceMode, Hardware, HostState, PeState, Software
from pyvfio.eeh.steps import Step, Steps

__all__ = [
    "Counters",
    "DeviceMode",
    "ErrorFunction",
    "Handlers",
    "Hardware",
    "HostPe",
    "HostState",
    "InjectedError",
    "Injector",
    "Pe",
    "PeState",
    "Recovery",
    "Reset",
    "SavedConfig",
    "Software",
    "Step",
    "Steps",
    "check_enabled",
    "choose",
    "counters",
    "drill",
    "end_leftover_reset",
    "frozen_before_open",
    "host_pes",
    "inject",
    "injectors",
    "is_of_host",
    "look",
    "wait_frozen",
]
