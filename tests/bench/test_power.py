"""The same promises on emulated POWER hosts: each test is one boot.

Both hosts and both of Debian's page sizes are seen, each once: a second cross would take as long
again and show nothing that these two do not.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path

import pytest

from tests.bench.outcomes import unexpected
from tests.bench.running import run
from tools._bench.profiles import POWER8, POWER9, Profile

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]

# What skips there, with its reason: QEMU 7.2's POWER8 cannot import numpy, no PowerNV host has
# I/O ports.
MAY_SKIP = ("numpy is not usable here", "the host has no I/O ports")

# One of its tests is for hosts without EEH.
EEH_MAY_SKIP = ("the host has EEH",)
# No freeze can be made on POWER8's PHB, and a reset below its switch lasts too long.
EEH_MAY_SKIP_ON_POWER8 = (
    *EEH_MAY_SKIP,
    "QEMU's PHB3 keeps no state of its PEs",
    "below QEMU's switch the firmware waits for a link",
)


@pytest.mark.parametrize(
    ("profile", "kernel", "page", "eeh_may_skip"),
    [
        (POWER8, ("--kernel", "64k"), 65536, EEH_MAY_SKIP_ON_POWER8),
        (POWER9, (), 4096, EEH_MAY_SKIP),
    ],
    ids=["power8 64k", "power9 4k"],
)
def test_the_hardware_tests_pass_on_every_device_of_the_bench(
    profile: Profile, kernel: tuple[str, ...], page: int, eeh_may_skip: tuple[str, ...]
) -> None:
    # The guest sees nothing of this machine but the checkout.
    with tempfile.TemporaryDirectory(dir=CHECKOUT, prefix=".reports-") as directory:
        reports = Path(directory)
        # What is the NVMe driver's own, and takes a minute, is seen on one of the two.
        left_out = "" if page == 65536 else "--ignore=hwtests/devices/test_nvme_driver.py "
        commands = [
            f"tools/hwtest --device {device.address} {left_out}"
            f"--report {shlex.quote(str(reports / device.name))}"
            for device in profile.devices
        ]
        # The fence of this processor, and that it is executed.
        commands.append("python3 -m pytest -q tests/iommu/test_barrier.py")
        command = ("tools/bench", "run", profile.name, *kernel, "--timeout", "1200", "--")
        result = run(
            (*command, "sh", "-c", " && ".join(commands)),
            cwd=CHECKOUT,
            timeout=1800,
        )
        print(result.stdout, result.stderr)  # shown when the test fails
        assert result.returncode == 0
        for device in profile.devices:
            report = json.loads((reports / device.name).read_text())
            assert report["device"]["address"] == device.address
            assert report["host"]["page_size"] == page
            module = f"hwtests/devices/test_{device.name.replace('-', '_')}.py"
            assert unexpected(report["tests"], module, MAY_SKIP) == []
            assert unexpected(report["tests"], "hwtests/test_spapr.py", ()) == []
            assert unexpected(report["tests"], "hwtests/test_eeh.py", eeh_may_skip) == []
