"""Kernel drivers for PCI, loaded when they are missing."""

from __future__ import annotations

import os

from pyvfio import errors
from pyvfio.pci import paths
from pyvfio.pci.group import is_vfio

# An ordinary user's PATH lacks where modprobe is.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def is_registered(driver: str) -> bool:
    """Whether the kernel has a PCI driver of that name now."""
    return (paths.SYSFS / "bus/pci/drivers" / driver).exists()


def require(driver: str) -> None:
    """Have a driver registered, loading its module if need be.

    Raises:
        NoVfio: a VFIO driver cannot be loaded.
        BindFailed: another driver cannot be.
    """
    if is_registered(driver):
        return
    said = _modprobe(driver)
    if is_registered(driver):
        return
    if is_vfio(driver):
        raise errors.NoVfio(
            f"the kernel has no driver {driver}, and modprobe cannot load it: {said}. Install the "
            "modules of the running kernel, or boot one built with CONFIG_VFIO_PCI"
        )
    raise errors.BindFailed(f"the kernel has no PCI driver {driver}: {said}")


def _modprobe(module: str) -> str:
    """Try to load a module.

    Returns:
        What modprobe says.
    """
    # Here, since most devices are opened with the modules loaded.
    import subprocess

    try:
        done = subprocess.run(
            ["modprobe", "--", module],
            env={**os.environ, "PATH": _PATH, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            # Ctrl-C is for this process: a device that is given back needs its driver.
            start_new_session=True,
        )
    except FileNotFoundError:
        return "there is no modprobe on this host (package kmod)"
    return done.stderr.strip() or "modprobe found its module, but it registers no such driver"
