"""The same promises under other IOMMUs than VT-d and POWER's: each test is one boot."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.bench.outcomes import unexpected
from tests.bench.running import run
from tools._bench.profiles import ARM64, X86_AMD, Profile

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]

ONE_MSI_VECTOR = (
    "its one MSI vector cannot become more",
    "it has no three MSI vectors",
    "its 0 MSI-X vectors fit",
)
NO_GUEST_ON_ARM64 = ("the guest that counts, and the local APIC, are x86's: this is aarch64",)


def reports(profile: Profile, tested: dict[str, str], *commands: str) -> dict[str, dict[str, Any]]:
    """Boot a host and run hardware tests there.

    Args:
        profile: the host.
        tested: the arguments for `tools/hwtest` by name of the device.
        commands: run there afterwards.

    Returns:
        The reports by name of the device.
    """
    addresses = {device.name: device.address for device in profile.devices}
    # The guest sees nothing of this machine but the checkout.
    with tempfile.TemporaryDirectory(dir=CHECKOUT, prefix=".reports-") as directory:
        files = {name: Path(directory, name) for name in tested}
        tests = [
            f"tools/hwtest --device {addresses[name]} {arguments} --report {shlex.quote(str(file))}"
            for (name, arguments), file in zip(tested.items(), files.values(), strict=True)
        ]
        script = " && ".join([*tests, *commands])
        command = ("tools/bench", "run", profile.name, "--timeout", "1200", "--")
        result = run((*command, "sh", "-c", script), cwd=CHECKOUT, timeout=1800)
        print(result.stdout, result.stderr)  # shown when the test fails
        assert result.returncode == 0
        return {name: json.loads(file.read_text()) for name, file in files.items()}


def test_hardware_tests_pass_with_amd_vi() -> None:
    report = reports(X86_AMD, {"nvme": ""})["nvme"]
    assert report["iommu"] == ["ivhd0"]
    for module in ("test_dma", "test_forwarding", "devices/test_nvme_driver"):
        assert unexpected(report["tests"], f"hwtests/{module}.py", ()) == []


def test_hardware_tests_pass_on_arm64() -> None:
    found = reports(
        ARM64,
        {"edu": "", "nvme": "hwtests/devices"},
        # The fence of this processor, and that it is executed.
        "python3 -m pytest -q tests/iommu/test_barrier.py",
    )
    edu, nvme = found["edu"], found["nvme"]
    for report in found.values():
        assert report["host"]["machine"] == "aarch64"
        (iommu,) = report["iommu"]
        assert iommu.startswith("smmu3.")
    for module, may_skip in (
        ("devices/test_edu", ()),
        ("test_dma", ()),
        ("test_interrupts", ONE_MSI_VECTOR),
    ):
        assert unexpected(edu["tests"], f"hwtests/{module}.py", may_skip) == []
    for name in ("nvme", "nvme_driver"):
        assert unexpected(nvme["tests"], f"hwtests/devices/test_{name}.py", ()) == []
    skipped = [test for test in edu["tests"] if "_forwarding" in test["test"]]
    assert skipped
    for test in skipped:
        assert test["outcome"] == "skipped"
        assert any(reason in test["reason"] for reason in NO_GUEST_ON_ARM64)
