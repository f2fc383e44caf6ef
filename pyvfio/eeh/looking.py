"""Looking at a PE from the host's side, without taking its freeze from the host's recovery.

Where a driver of the host reads all ones the kernel looks at the PE's state, and if it is frozen
notes that (EEH_PE_ISOLATED) and recovers the PE (eeh_dev_check_failure() in its
arch/powerpc/kernel/eeh.c). On PowerNV anybody who looks makes the note (pnv_eeh_get_pe_state()),
reading ``eeh_pe_state`` included, and a PE with a note counts as one that is being recovered
already. So whoever looks first, other than the kernel itself, keeps the kernel from ever recovering
that freeze.
"""

from __future__ import annotations

from contextlib import suppress

from pyvfio import errors
from pyvfio.eeh import debugfs
from pyvfio.eeh.host import HostPe
from pyvfio.eeh.state import HostState
from pyvfio.pci import Function, functions, paths
from pyvfio.pci.group import is_vfio


def host_pes() -> frozenset[tuple[int, int]]:
    """The PEs whose freezes are the host's to recover, where a look would take them from it.

    Returns:
        Domain and number of each PE with a function that a driver of the host has; of none where
        looking changes nothing (not on PowerNV).
    """
    if not (paths.SYSFS / "firmware/opal").exists():
        return frozenset()
    found = set()
    for function in functions():
        with suppress(errors.Error):
            if _host_drives(function):
                found.add((function.address.domain, HostPe(function).number))
    return frozenset(found)


def look(pe: HostPe, of_host: frozenset[tuple[int, int]] | None = None) -> HostState:
    """A PE's state, for a look at any time and by anybody.

    Where the freeze would be the host's to recover, the kernel looks first
    (:func:`pyvfio.eeh.debugfs.check`), and recovers what it finds frozen as if a driver had found
    it: what is seen then is the recovery's beginning. Between its look and this one some
    microseconds are left in which a freeze is still taken from it. The kernel logs each such look.

    Args:
        pe: the PE.
        of_host: :func:`host_pes`, if it was asked for a moment ago.

    Raises:
        HostError, AccessDenied: the kernel cannot be made to look first, so nothing was looked at.
        Unsupported: the function has no PE any more.
        KernelError: the kernel refused.
    """
    if is_of_host(pe, host_pes() if of_host is None else of_host):
        debugfs.check(pe.function)
    return pe.state


def is_of_host(pe: HostPe, of_host: frozenset[tuple[int, int]]) -> bool:
    """Whether a PE is among :func:`host_pes`."""
    return bool(of_host) and (pe.function.address.domain, pe.number) in of_host


def _host_drives(function: Function) -> bool:
    driver = function.driver
    return driver is not None and not is_vfio(driver)
