"""What the hardware tests' report has to show, so that a module that only skips is noticed."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.conftest import Hosts
from tools._bench.profiles import PciDevice, Profile

CHECKOUT = Path(__file__).resolve().parents[2]


def module_of(device: PciDevice) -> str:
    """Name the module with a device's own hardware tests."""
    return f"hwtests/devices/test_{device.name.replace('-', '_')}.py"


def hwtest(
    hosts: Hosts, profile: Profile, device: PciDevice, *options: str, **host: Any
) -> dict[str, Any]:
    """Run the hardware tests of a device on an emulated host, which must pass.

    Args:
        hosts: The fixture.
        profile: The host.
        device: One of its devices.
        options: More of the command's.
        host: Further attributes of tools._bench.hosts.Wanted.

    Returns:
        The report.
    """
    # The guest sees nothing of this machine but the checkout.
    with tempfile.TemporaryDirectory(dir=CHECKOUT, prefix=".reports-") as directory:
        path = Path(directory, device.name)
        command = ["tools/hwtest", "--device", device.address, "--report", str(path), *options]
        hosts.run(profile.name, shlex.join(command), **host)
        report: dict[str, Any] = json.loads(path.read_text())
    assert report["device"]["address"] == device.address
    return report


def unexpected(
    tests: Sequence[Mapping[str, Any]], module: str, may_skip: Sequence[str]
) -> list[str]:
    """What is wrong with a module's outcomes; nothing, where it is as it should be.

    Args:
        tests: a report's.
        module: its path in the checkout.
        may_skip: parts of the reasons for which its tests may skip.
    """
    its = [test for test in tests if test["test"].startswith(f"{module}::")]
    wrong = [
        f"{test['test']} {test['outcome']}: {test['reason']}"
        for test in its
        if test["outcome"] != "passed"
        if test["outcome"] != "skipped" or not any(why in test["reason"] for why in may_skip)
    ]
    if not any(test["outcome"] == "passed" for test in its):
        wrong.append(f"nothing of {module} passed")
    return wrong
