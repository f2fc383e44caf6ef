"""What tools/hwtest runs: pytest on this folder, with the options spelled out.

pytest runs in a process of its own. This one binds the device and gives it back, and never opens
it: whatever a test or its traceback still holds of the device ends with that process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyvfio._sys.text import printable
from pyvfio.cli import process

if TYPE_CHECKING:
    import subprocess

_EPILOG = """\
examples:
  tools/hwtest --device 0000:01:00.0
  tools/hwtest --device 0000:01:00.0 --report report.json    to send to the project
  tools/hwtest --device 0000:01:00.0 --field                 count the field's own tests of VFIO
  tools/hwtest --device 0000:01:00.0 -k interrupts -v        anything else goes to pytest
  tools/bench run x86 -- tools/hwtest --device 0000:00:04.0  on an emulated host

The device is bound to vfio-pci for the run and then given back to the driver it had, also after
Ctrl-C. One that the host is using (a mounted disk, a network interface with an address) is refused
unless --force is given. The tests reset the device, map memory for it and trigger its interrupts;
they write to no medium. A report holds the device's config space (with its serial number, if it has
one there), what lspci says, its IOMMU group, the host's board, processor and kernel command line,
and the kernel's messages during the tests.

exit status: 0 all tests passed or were skipped, 1 a test failed, 2 wrong arguments, 4 the device
cannot be had: absent, in use, not bound, no permission; 130 interrupted.
"""


def main(arguments: list[str]) -> int:
    """Run the suite; returns the exit status."""
    # Here, so that Ctrl-C meanwhile ends with one line: see pyvfio.cli.process.
    import argparse
    import signal
    from contextlib import ExitStack

    from pyvfio import errors
    from pyvfio.cli import common
    from pyvfio.pci import Function, bound

    parser = argparse.ArgumentParser(
        prog="tools/hwtest",
        description="Test VFIO and pyvfio with a PCI device of this host, as root.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device", metavar="BDF", required=True, help="the device to test, e.g. 0000:01:00.0"
    )
    parser.add_argument(
        "--no-bind", action="store_true", help="leave binding alone: vfio-pci must have it already"
    )
    parser.add_argument(
        "--force", action="store_true", help="take the device even from a host that is using it"
    )
    parser.add_argument(
        "--field",
        action="store_true",
        help="run only what stands for the tests of VFIO's maintainer and Linux's own selftests of "
        "VFIO, and tell how many of them this device shows, and why not the others",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write kernel, host, device and results to one JSON file"
    )
    parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML")
    options, rest = parser.parse_known_args(arguments)
    ours = [f"--rootdir={_HERE.parent}", "--tb=short", f"--device={options.device}"]
    ours += ["--field"] if options.field else []
    ours += [f"--report={options.report}"] if options.report else []
    ours += [f"--junit-xml={options.junit}"] if options.junit else []
    if not any(_is_test(argument) for argument in rest):
        rest = [str(_HERE), *rest]
    # To end as Ctrl-C does, with the device given back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            function = Function(options.device)
            ours += ["--no-bind", f"--host-driver={function.driver or ''}"]
            if not options.no_bind:
                stack.enter_context(
                    bound(function.address, force=options.force, notice=common.notice)
                )
            # First the path: pytest looks there for what knows the other options.
            return _run_session([*rest, *ours])
    except errors.Error as error:
        print(f"hwtest: {printable(str(error))}", file=sys.stderr)
        return 4


def _run_session(arguments: list[str]) -> int:
    """Run pytest in a process of its own.

    Returns:
        Its exit status; 1 where it died of a signal.
    """
    import signal
    import subprocess

    from pyvfio._sys.signals import deferred_signals

    session = None
    try:
        # A process that nobody knows of would keep the device open.
        with deferred_signals():
            session = subprocess.Popen([sys.executable, "-m", "hwtests.session", *arguments])
        status = session.wait()
    except BaseException:
        if session is not None:
            with deferred_signals():
                _end(session)
        raise
    if status < 0:
        print(f"hwtest: the tests died of {signal.Signals(-status).name}", file=sys.stderr)
        return 1
    return status


def _end(session: subprocess.Popen[bytes]) -> None:
    """Have the tests end as by Ctrl-C, which a terminal sends to both processes."""
    import signal
    import subprocess

    for number, seconds in ((0, _ENDS), (signal.SIGINT, _CLEANS_UP), (signal.SIGKILL, None)):
        if number:
            session.send_signal(number)
        try:
            session.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


# Seconds: until the tests have taken notice of Ctrl-C; until they have closed the device.
_ENDS = 2.0
_CLEANS_UP = 60.0

_HERE = Path(__file__).parent


def _is_test(argument: str) -> bool:
    """Whether it names a file or folder of this suite, and no option's value."""
    path = Path(argument.partition("::")[0])
    return path.exists() and path.resolve().is_relative_to(_HERE)


if __name__ == "__main__":
    sys.exit(process.run("hwtest", lambda: main(sys.argv[1:])))
