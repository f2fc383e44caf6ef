"""The hardware tests on the functions of an SR-IOV device: one boot."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path

import pytest

from tests.bench.outcomes import unexpected
from tests.bench.running import run
from tools._bench.profiles import X86

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]


def test_hardware_tests_pass_on_sriov_functions() -> None:
    (physical,) = (device.address for device in X86.devices if device.name == "nvme-sriov")
    virtual = physical.replace(".0", ".1")
    # The guest sees nothing of this machine but the checkout.
    with tempfile.TemporaryDirectory(dir=CHECKOUT, prefix=".reports-") as directory:
        files = [Path(directory, name) for name in ("physical", "virtual")]
        reports = [shlex.quote(str(file)) for file in files]
        script = (
            f"tools/hwtest --device {physical} --report {reports[0]} && "
            f"echo 1 >/sys/bus/pci/devices/{physical}/sriov_numvfs && "
            # Not the NVMe driver's tests: the function has no queues until it is given some.
            f"tools/hwtest --device {virtual} --report {reports[1]} hwtests/test_*.py"
        )
        command = ("tools/bench", "run", X86.name, "--timeout", "1200", "--", "sh", "-c", script)
        result = run(command, cwd=CHECKOUT, timeout=1800)
        print(result.stdout, result.stderr)  # shown when the test fails
        assert result.returncode == 0
        for file in files:
            tests = json.loads(file.read_text())["tests"]
            for module in ("test_config", "test_dma", "test_open", "test_forwarding"):
                assert unexpected(tests, f"hwtests/{module}.py", ()) == []
