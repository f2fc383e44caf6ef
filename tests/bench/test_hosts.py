"""The same promises under other IOMMUs than VT-d and POWER's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.conftest import Hosts
from tests.bench.outcomes import hwtest, unexpected
from tools._bench.profiles import ARM64, X86_AMD

pytestmark = pytest.mark.bench

ONE_MSI_VECTOR = (
    "its one MSI vector cannot become more",
    "it has no three MSI vectors",
    "its 0 MSI-X vectors fit",
)
NO_GUEST_ON_ARM64 = ("the guest that counts, and the local APIC, are x86's: this is aarch64",)


@pytest.mark.xdist_group("x86-amd")
def test_hardware_tests_pass_with_amd_vi(hosts: Hosts) -> None:
    # The NVMe driver is tested on other hosts, and takes as long as all else.
    driver = "hwtests/devices/test_nvme_driver.py"
    report = hwtest(hosts, X86_AMD, X86_AMD.device("nvme"), f"--ignore={driver}")
    assert report["iommu"] == ["ivhd0"]
    own = ("devices/test_nvme", "devices/test_nvme_forwarding")
    for module in ("test_dma", "test_forwarding", *own):
        assert unexpected(report["tests"], f"hwtests/{module}.py", ()) == []


def check_arm64(report: dict[str, Any]) -> None:
    assert report["host"]["machine"] == "aarch64"
    (iommu,) = report["iommu"]
    assert iommu.startswith("smmu3.")


@pytest.mark.xdist_group("arm64")
def test_hardware_tests_of_edu_pass_on_arm64(hosts: Hosts) -> None:
    report = hwtest(hosts, ARM64, ARM64.device("edu"))
    check_arm64(report)
    for module, may_skip in (
        ("devices/test_edu", ()),
        ("test_dma", ()),
        ("test_interrupts", ONE_MSI_VECTOR),
    ):
        assert unexpected(report["tests"], f"hwtests/{module}.py", may_skip) == []
    skipped = [test for test in report["tests"] if "_forwarding" in test["test"]]
    assert skipped
    for test in skipped:
        assert test["outcome"] == "skipped"
        assert any(reason in test["reason"] for reason in NO_GUEST_ON_ARM64)


@pytest.mark.xdist_group("arm64")
def test_nvme_driver_passes_on_arm64(hosts: Hosts) -> None:
    report = hwtest(hosts, ARM64, ARM64.device("nvme"), "hwtests/devices")
    check_arm64(report)
    for name in ("nvme", "nvme_driver"):
        assert unexpected(report["tests"], f"hwtests/devices/test_{name}.py", ()) == []


@pytest.mark.xdist_group("arm64")
def test_fence_of_arm64_is_executed(hosts: Hosts) -> None:
    hosts.run("arm64", "python3 -m pytest -q tests/iommu/test_barrier.py")
