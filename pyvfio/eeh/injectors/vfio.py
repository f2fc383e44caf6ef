"""Through VFIO: the holder's own request."""

from __future__ import annotations

from pyvfio import errors
from pyvfio.eeh.error import InjectedError
from pyvfio.eeh.injectors.base import Injector
from pyvfio.eeh.pe import Pe
from pyvfio.pci import Function


class VfioInjector(Injector):
    """``VFIO_EEH_PE_INJECT_ERR``."""

    by_holder = True

    def refusal(self, function: Function) -> str | None:
        return None

    def inject(self, function: Function, pe: Pe | None, error: InjectedError | None) -> str:
        if pe is None:
            raise errors.StateError(
                f"VFIO lets the holder of {function.address} alone inject errors, and closing the "
                "device would thaw it: use `pyvfio eeh inject` or `pyvfio eeh drill`"
            )
        error = self.default if error is None else error
        pe.inject(error)
        return f"asked the firmware for {error} (VFIO_EEH_PE_INJECT_ERR)"
