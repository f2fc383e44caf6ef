"""Through the kernel's debug files, as the host's root."""

from __future__ import annotations

from pyvfio import errors
from pyvfio.eeh import debugfs
from pyvfio.eeh.error import ErrorFunction, InjectedError
from pyvfio.eeh.injectors.base import Injector
from pyvfio.eeh.pe import Pe
from pyvfio.pci import Function


class ErrInjctInjector(Injector):
    """The PHB's err_injct (PowerNV). By default at a load from config space, for which nobody must
    hold the device: looking whether it worked is what sets it off.
    """

    default = InjectedError(ErrorFunction.LOAD_CONFIG_ADDRESS)

    def refusal(self, function: Function) -> str | None:
        return _absence(debugfs.phb_file(function))

    def inject(self, function: Function, pe: Pe | None, error: InjectedError | None) -> str:
        error = self.default if error is None else error
        written = debugfs.inject(function, error)
        return f"asked the firmware for {error} ({written} to {debugfs.phb_file(function)})"


class DevBreakInjector(Injector):
    """eeh_dev_break: a read of memory that is switched off."""

    def refusal(self, function: Function) -> str | None:
        return _absence("eeh_dev_break")

    def inject(self, function: Function, pe: Pe | None, error: InjectedError | None) -> str:
        if error is not None:
            raise errors.ArgumentError(
                "eeh_dev_break makes one error, a read of memory that is switched off: leave the "
                "error out, or take another injector"
            )
        debugfs.dev_break(function)
        return f"let the kernel read memory of {function.address} while that was switched off"


def _absence(name: str) -> str | None:
    try:
        debugfs.find(name)
    except errors.Error as error:
        return str(error)
    return None
