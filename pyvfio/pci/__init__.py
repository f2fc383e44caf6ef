"""The bus as the host sees it: addresses, functions, IOMMU groups, config space, driver binding.

    for function in functions():
        print(function.address, function.class_name, function.driver)

    with bound("0000:01:00.0"):
        ...  # it is vfio-pci's here

Looking reads sysfs and never opens a VFIO device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvfio.pci.address import Address
from pyvfio.pci.function import Function, Resource, functions
from pyvfio.pci.group import IommuGroup

if TYPE_CHECKING:
    from pyvfio.pci.binding import bind, bound, check_bindable, unbind
    from pyvfio.pci.config import ConfigSpace
    from pyvfio.pci.openable import check_openable
    from pyvfio.pci.usage import users

__all__ = [
    "Address",
    "ConfigSpace",
    "Function",
    "IommuGroup",
    "Resource",
    "bind",
    "bound",
    "check_bindable",
    "check_openable",
    "functions",
    "unbind",
    "users",
]

# Imported when first asked for, so that `import pyvfio` stays quick.
_LATER = {
    "ConfigSpace": "config",
    "bind": "binding",
    "bound": "binding",
    "check_bindable": "binding",
    "check_openable": "openable",
    "unbind": "binding",
    "users": "usage",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value
