"""A freeze on purpose, and the way back, in the process that holds the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from pyvfio import errors
from pyvfio.eeh.error import InjectedError
from pyvfio.eeh.host import HostPe
from pyvfio.eeh.injectors import Injector
from pyvfio.eeh.pe import Pe
from pyvfio.eeh.recovery import Recovery
from pyvfio.eeh.state import PeState
from pyvfio.eeh.steps import Steps

_POLL = 0.1  # seconds
_FREEZE_TIMEOUT = 3.0


def wait_frozen(
    state: Callable[[], PeState],
    poke: Callable[[], object],
    *,
    timeout: float | None = None,
) -> PeState:
    """Wait until a PE is frozen: an injected error happens at an access, not by itself.

    Args:
        state: tells the PE's state.
        poke: makes an access; what it raises from the kernel is passed over.
        timeout: seconds to wait at most; None for 3.

    Raises:
        NoFreeze: it did not freeze.
    """
    timeout = _FREEZE_TIMEOUT if timeout is None else timeout
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(errors.KernelError):  # as a frozen device may raise
            poke()
        now = state()
        if now.frozen:
            return now
        if time.monotonic() >= deadline:
            raise errors.NoFreeze(
                f"the injection was accepted, but no freeze followed in {timeout:g} s: the PE is "
                f"{now}. The platform may not do what it was asked, or the error waits for an "
                "access of another kind"
            )
        time.sleep(_POLL)


def inject(
    pe: Pe, name: str, injector: Injector, error: InjectedError | None, steps: Steps
) -> None:
    """Inject an error and see that the PE froze, as its holder and as the host.

    Args:
        pe: the PE.
        name: the injector's.
        injector: makes the error happen.
        error: which; None for the injector's default.
        steps: is told.

    Raises:
        NoFreeze: no freeze followed.
        Error: the injector could not.
    """
    function = pe.devices[0].function
    steps.do("injected", lambda: f"{name}: {injector.inject(function, pe, error)}")

    def frozen() -> str:
        state = wait_frozen(lambda: pe.state, lambda: _touch(pe))
        return f"the holder sees: {state}; the host sees: {HostPe(function).state}"

    steps.do("frozen", frozen)


def drill(
    pe: Pe,
    name: str,
    injector: Injector,
    *,
    prove: Callable[[], str],
    steps: Steps,
    error: InjectedError | None = None,
    recovery: Recovery | None = None,
) -> None:
    """Freeze a PE and bring it back: in two steps, or by recovery; then prove that it works.

    Args:
        pe: the PE.
        name: the injector's.
        injector: makes the error happen.
        prove: uses the device: returns what works, or raises what does not.
        steps: does and times the steps; `recovery` has its own.
        error: which error; None for the injector's default.
        recovery: None thaws in two steps, without a reset.

    Raises:
        NoFreeze: no freeze followed the injection.
        PeFrozen: it did not thaw.
        PeDead, PeUnavailable: the recovery failed.
        Error: the device does not work, before or after.
    """
    steps.do("works before", prove)
    inject(pe, name, injector, error, steps)
    if recovery is not None:
        recovery.run()
    else:
        steps.do("I/O thawed", lambda: _thawed(pe, pe.unfreeze_io, PeState.DMA_STOPPED))
        steps.do("DMA thawed", lambda: _thawed(pe, pe.unfreeze_dma, PeState.NORMAL))
        # Else the host would take the next freeze for this one, and not recover it.
        host = HostPe(pe.devices[0].function)
        steps.do("note cleared", lambda: f"the host sees: {host.thaw()}")
    steps.do("works after", prove)


def _thawed(pe: Pe, unfreeze: Callable[[], None], expected: PeState) -> str:
    unfreeze()
    if (state := pe.state) is not expected:
        raise errors.PeFrozen(f"{pe} is {state}, and should be {expected}")
    return f"the PE is {state}"


def _touch(pe: Pe) -> None:
    for device in pe.devices:
        device.function.read_config()
        for bar in device.bars.values():
            if bar.areas:
                bar.read32(bar.areas[0].offset)
