"""Ways to make an error happen in a PE, behind one interface.

pyvfio's own are ``vfio``, ``err_injct`` and ``eeh_dev_break``; others come by entry points of the
group ``pyvfio.eeh.injectors``.
"""

from __future__ import annotations

from pyvfio import errors
from pyvfio.eeh.injectors.base import Injector
from pyvfio.eeh.injectors.kernel import DevBreakInjector, ErrInjctInjector
from pyvfio.eeh.injectors.vfio import VfioInjector
from pyvfio.pci import Function

GROUP = "pyvfio.eeh.injectors"

_OWN: dict[str, type[Injector]] = {
    "err_injct": ErrInjctInjector,
    "eeh_dev_break": DevBreakInjector,
    "vfio": VfioInjector,
}


def injectors() -> dict[str, Injector]:
    """All of them by name; those that others offer come first.

    Raises:
        HostError: what an entry point names cannot be loaded.
    """
    # Here, since finding them reads every installed package's metadata.
    from importlib.metadata import entry_points

    found: dict[str, Injector] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()()
        except Exception as error:
            raise errors.HostError(
                f"the injector {entry.name} ({entry.value}) cannot be loaded: {error!r}"
            ) from error
    return {**found, **{name: kind() for name, kind in _OWN.items() if name not in found}}


def choose(
    function: Function, name: str | None = None, *, holding: bool = False
) -> tuple[str, Injector]:
    """The injector for a function.

    Args:
        function: a function of the PE.
        name: which; None for the first that works there.
        holding: whether the caller holds the device.

    Raises:
        ArgumentError: there is none of that name.
        HostError: it does not work there, or none does; says why.
    """
    known = injectors()
    if name is not None:
        if name not in known:
            raise errors.ArgumentError(
                f"there is no injector {name!r}; there are: {', '.join(known)}"
            )
        known = {name: known[name]}
    reasons = []
    for its_name, injector in known.items():
        reason = injector.refusal(function)
        if reason is None and injector.by_holder and not holding:
            reason = (
                "closing the device would thaw it: use `pyvfio eeh inject` or `pyvfio eeh drill`"
            )
        if reason is None:
            return its_name, injector
        reasons.append(f"{its_name}: {reason}")
    raise errors.HostError(f"no injector works for {function.address}; " + "; ".join(reasons))


__all__ = ["GROUP", "Injector", "choose", "injectors"]
