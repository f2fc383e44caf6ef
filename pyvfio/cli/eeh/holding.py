"""`pyvfio eeh drill`, `reset`, `recover` and `inject`: each holds the device while it lasts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyvfio._sys.text import printable
from pyvfio.cli import common
from pyvfio.cli.eeh import errorargs

if TYPE_CHECKING:
    from pyvfio.device import Device
    from pyvfio.eeh import Pe, Step, Steps
    from pyvfio.pci import Function


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    drill = _parser(
        commands,
        "drill",
        run_drill,
        "freeze a device's PE, bring it back, and prove that it works",
        "Hold a device, freeze its PE, see the state, thaw it in two steps (or recover it), and "
        "prove that DMA and interrupts work, before and after. Each step is shown with its time.",
    )
    drill.add_argument("--recover", action="store_true", help="recover by reset instead of thawing")
    errorargs.add(drill)
    reset = _parser(
        commands,
        "reset",
        run_reset,
        "reset a device's PE",
        "Hold a device, switch its interrupts off and reset its PE.",
    )
    reset.add_argument(
        "--fundamental", action="store_true", help="by the slot's reset signal, instead of hot"
    )
    _parser(
        commands,
        "recover",
        run_recover,
        "recover a device's PE",
        "Hold a device and go through the whole recovery of its PE, whether it is frozen or not "
        "(opening the device thaws it); prove that DMA and interrupts work.",
    )
    inject = _parser(
        commands,
        "inject",
        run_inject,
        "inject an error as a device's holder, and see what follows",
        "Hold a device, inject an error and see that its PE is frozen; where no freeze follows, "
        "the exit code is 1. Closing the device at the end thaws the PE.",
    )
    errorargs.add(inject)
    errorargs.add_force(inject)


def run_drill(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    error = errorargs.parse(options)
    with _held(options) as (device, pe, steps):
        name, injector = eeh.choose(device.function, options.injector, holding=True)
        recovery = eeh.Recovery(pe, report=steps.add) if options.recover else None
        eeh.drill(
            pe,
            name,
            injector,
            error=error,
            recovery=recovery,
            prove=_proof(device),
            steps=steps,
        )


def run_reset(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    kind = eeh.Reset.FUNDAMENTAL if options.fundamental else eeh.Reset.HOT
    with _held(options) as (device, pe, steps):
        saved = eeh.SavedConfig(device)

        def work() -> str:
            pe.reset(kind)
            return f"{kind}, interrupts off before; the PE is {pe.state}"

        steps.do("reset", work)
        steps.do("config restored", saved.restore)


def run_recover(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    with _held(options) as (device, pe, steps):
        eeh.Recovery(pe, report=steps.add).run()
        steps.do("works after", _proof(device))


def run_inject(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    error = errorargs.parse(options)
    with _held(options) as (device, pe, steps):
        if not options.force:
            eeh.HostPe(device.function).check_unused()
        name, injector = eeh.choose(device.function, options.injector, holding=True)
        eeh.inject(pe, name, injector, error, steps)


def _parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  sudo pyvfio eeh {name} 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)
    return parser


@contextmanager
def _held(options: argparse.Namespace) -> Iterator[tuple[Device, Pe, Steps]]:
    """The device held for the command, and its steps shown."""
    import pyvfio
    from pyvfio import eeh
    from pyvfio.pci.group import is_vfio

    eeh.check_enabled()
    function = common.function(options.address)
    common.refuse_bridge(function)
    host = eeh.HostPe(function)
    steps = eeh.Steps(None if options.json else _show)
    common.say_if_frozen(function)
    try:
        with common.ended_as_by_ctrl_c():
            # A device of the host's cannot be opened, and looking would take its freeze from it.
            if is_vfio(function.driver) and host.state.reset_left:
                steps.do("leftover", lambda: _end_leftover(function))
            with pyvfio.open(function) as device:
                yield device, eeh.Pe(device), steps
    finally:
        if options.json:
            common.print_json([step._asdict() for step in steps.done])


def _end_leftover(function: Function) -> str:
    from pyvfio import eeh

    eeh.end_leftover_reset(function)
    return "ended the reset of a process that was killed"


def _proof(device: Device) -> Callable[[], str]:
    def work() -> str:
        from pyvfio.drivers.proof import prove

        return prove(device)

    return work


def _show(step: Step) -> None:
    failed = "FAILED: " if step.failed else ""
    said = printable(step.said)
    print(f"{step.seconds:7.2f} s  {step.name:<20} {failed}{said}", flush=True)
