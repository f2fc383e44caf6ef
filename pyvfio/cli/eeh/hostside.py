"""`pyvfio eeh freeze` and `thaw`: as the host's root, opening nothing."""

from __future__ import annotations

import argparse
import time

from pyvfio import errors
from pyvfio.cli import common
from pyvfio.cli.eeh import errorargs


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    freeze = commands.add_parser(
        "freeze",
        help="freeze a PE through an injector, and see that it is frozen",
        description="Inject an error into a function's PE from the host's side, and see that it is "
        "frozen; where no freeze follows, the exit code is 1. A frozen PE stays so until it is "
        "thawed or its device opened. One that a driver of the host uses is recovered by the host, "
        "which this command makes look first; where it cannot do that, it freezes nothing.",
        epilog="example:\n  sudo pyvfio eeh freeze 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(freeze)
    errorargs.add(freeze)
    errorargs.add_force(freeze)
    freeze.set_defaults(run=run_freeze)
    thaw = commands.add_parser(
        "thaw",
        help="thaw a PE from the host's side, and see that it is thawed",
        description="Thaw a function's PE through sysfs and clear the kernel's note of the freeze. "
        "The device is not reset, and may need it.",
        epilog="example:\n  sudo pyvfio eeh thaw 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(thaw)
    thaw.set_defaults(run=run_thaw)


def run_freeze(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    eeh.check_enabled()
    error = errorargs.parse(options)
    function = common.function(options.address)
    common.refuse_bridge(function)
    pe = eeh.HostPe(function)
    of_host = eeh.host_pes()
    before = eeh.look(pe, of_host)
    if before.state.frozen:
        raise errors.PeFrozen(f"{pe} is frozen already: {before}; `pyvfio eeh thaw` thaws it")
    if before.software & eeh.Software.RECOVERING:
        raise errors.StateError(f"the host is recovering {pe}: wait for its end")
    if not options.force:
        pe.check_unused()
    name, injector = eeh.choose(function, options.injector)
    began = time.monotonic()
    print(f"{name}: {injector.inject(function, None, error)}", flush=True)
    seen = before

    def state() -> eeh.PeState:
        nonlocal seen
        seen = eeh.look(pe, of_host)
        # The host's recovery may have begun before this look, and have thawed the PE for its reset.
        return eeh.PeState.STOPPED if seen.software & eeh.Software.RECOVERING else seen.state

    eeh.wait_frozen(state, function.read_config)
    print(f"{pe} is {seen}, {time.monotonic() - began:.2f} s after")
    if eeh.is_of_host(pe, of_host):
        print("the host recovers it now: `pyvfio eeh status --watch` shows how it goes")


def run_thaw(options: argparse.Namespace) -> None:
    from pyvfio import eeh

    eeh.check_enabled()
    pe = eeh.HostPe(common.function(options.address))
    before = pe.state
    after = pe.thaw()
    print(f"{pe}: {before} -> {after}" if after != before else f"{pe} is {after}, nothing to do")
