"""What the project promises, on an emulated x86 host with a real kernel: each test is one boot."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tools._bench.profiles import X86

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]
ADDRESSES = {device.name: device.address for device in X86.devices}


def run(*command: str, status: int = 0) -> str:
    """Run a command of the checkout; what it printed."""
    result = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800, check=False
    )
    said = result.stdout + result.stderr
    print(said)  # shown when the test fails
    assert result.returncode == status
    return said


def on_bench(script: str, *options: str, status: int = 0) -> str:
    return run(
        "tools/bench", "run", "x86", "--timeout", "1700", *options, "--", script, status=status
    )


def test_the_hardware_tests_pass_on_every_device_of_the_bench(tmp_path: Path) -> None:
    reports = CHECKOUT / "build/hwtest"
    reports.mkdir(parents=True, exist_ok=True)
    commands = [
        f"tools/hwtest --device {address} --report {shlex.quote(str(reports / name))}.json"
        for name, address in ADDRESSES.items()
    ]
    on_bench("sh -c " + shlex.quote(" && ".join(commands)))
    for name, address in ADDRESSES.items():
        report = json.loads((reports / f"{name}.json").read_text())
        assert report["device"]["address"] == address


def test_the_hardware_tests_pass_on_a_device_that_they_know_nothing_of() -> None:
    said = on_bench(
        "tools/hwtest --device 0000:03:00.0",
        "--qemu-args",
        f"-device virtio-rng-pci,bus={X86.spare_port}",
    )
    assert " passed" in said


def test_binding_and_the_command_line_on_a_host_with_something_to_lose() -> None:
    port = X86.spare_port
    said = on_bench(
        "python3 -m pytest hwtests/host",
        # Two functions in one group: it is viable only when both are VFIO's.
        "--qemu-args",
        f"-device virtio-rng-pci,bus={port},addr=0.0,multifunction=on "
        f"-device virtio-rng-pci,bus={port},addr=0.1",
    )
    assert "skipped" not in said.splitlines()[-1]


def test_the_demo_shows_registers_dma_interrupts_and_isolation() -> None:
    said = run("tools/demo")
    for shown in ("479,001,600", "identical", "stopped by the IOMMU", "MSI-X has 65"):
        assert shown in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("intel_iommu=off", "is in no IOMMU group"),
        ("intremap=off", "allow_unsafe_interrupts"),
    ],
    ids=["no IOMMU", "no interrupt remapping"],
)
def test_a_host_that_cannot_isolate_a_device_says_what_to_do(words: str, says: str) -> None:
    edu = ADDRESSES["edu"]
    said = on_bench(
        f"sh -c 'pyvfio bind {edu}; pyvfio read {edu} bar0+0'", "--append", words, status=4
    )
    assert says in said
