"""What tools/hwtest runs: pytest on this folder, with the options spelled out."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import pytest

_EPILOG = """\
examples:
  tools/hwtest --device 0000:01:00.0
  tools/hwtest --device 0000:01:00.0 --report report.json    to send to the project
  tools/hwtest --device 0000:01:00.0 -k interrupts -v        anything else goes to pytest
  tools/bench run x86 -- tools/hwtest --device 0000:00:04.0  on an emulated host

The device is bound to vfio-pci for the run and then given back to the driver it had, also after
Ctrl-C. One that the host is using (a mounted disk, a network interface with an address) is refused
unless --force is given. The tests reset the device, map memory for it and trigger its interrupts;
they write to no medium. A report holds the device's config space (with its serial number, if it has
one there), what lspci says, its IOMMU group, the host's board, processor and kernel command line,
and the kernel's messages during the tests.

exit status: 0 all tests passed or were skipped, 1 a test failed, 2 interrupted or wrong arguments,
4 the device cannot be had: absent, in use, not bound, no permission.
"""


def main(arguments: list[str]) -> int:
    """Run the suite; returns the exit status."""
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
        "--report", metavar="FILE", help="write kernel, host, device and results to one JSON file"
    )
    parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML")
    options, rest = parser.parse_known_args(arguments)
    ours = [f"--rootdir={_HERE.parent}", "--tb=short", f"--device={options.device}"]
    ours += ["--no-bind"] * options.no_bind + ["--force"] * options.force
    ours += [f"--report={options.report}"] if options.report else []
    ours += [f"--junit-xml={options.junit}"] if options.junit else []
    # To end as Ctrl-C does, with the device given back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if not any(_is_test(argument) for argument in rest):
        rest = [str(_HERE), *rest]
    # First the path: pytest looks there for what knows the other options.
    return int(pytest.main([*rest, *ours]))


_HERE = Path(__file__).parent


def _is_test(argument: str) -> bool:
    """Whether it names a file or folder of this suite, and no option's value."""
    path = Path(argument.partition("::")[0])
    return path.exists() and path.resolve().is_relative_to(_HERE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
