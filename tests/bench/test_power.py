"""The same promises on emulated POWER hosts: each test is one boot.

Both hosts and both of Debian's page sizes are seen, each once: a second cross would take as long
again and show nothing that these two do not.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from tools._bench.profiles import POWER8, POWER9, Profile

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]

# What skips there, with its reason: QEMU 7.2's POWER8 cannot import numpy, no PowerNV host has
# I/O ports.
MAY_SKIP = ("numpy is not usable here", "the host has no I/O ports")


@pytest.mark.parametrize(
    ("profile", "kernel", "page"),
    [(POWER8, ("--kernel", "64k"), 65536), (POWER9, (), 4096)],
    ids=["power8 64k", "power9 4k"],
)
def test_the_hardware_tests_pass_on_every_device_of_the_bench(
    profile: Profile, kernel: tuple[str, ...], page: int
) -> None:
    # The guest sees nothing of this machine but the checkout.
    with tempfile.TemporaryDirectory(dir=CHECKOUT, prefix=".reports-") as directory:
        reports = Path(directory)
        commands = [
            f"tools/hwtest --device {device.address} "
            f"--report {shlex.quote(str(reports / device.name))}"
            for device in profile.devices
        ]
        # The fence of this processor, and that it is executed.
        commands.append("python3 -m pytest -q tests/iommu/test_barrier.py")
        command = ("tools/bench", "run", profile.name, *kernel, "--timeout", "1200", "--")
        result = subprocess.run(
            (*command, "sh", "-c", " && ".join(commands)),
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        print(result.stdout, result.stderr)  # shown when the test fails
        assert result.returncode == 0
        for device in profile.devices:
            report = json.loads((reports / device.name).read_text())
            assert report["device"]["address"] == device.address
            assert report["host"]["page_size"] == page
            module = f"hwtests/devices/test_{device.name.replace('-', '_')}.py"
            known = [test for test in report["tests"] if test["test"].startswith(module)]
            assert [test for test in known if test["outcome"] == "passed"]
            left_out = [test for test in known if test["outcome"] != "passed"]
            assert [
                test for test in left_out if not any(why in str(test) for why in MAY_SKIP)
            ] == []
