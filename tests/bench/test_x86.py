"""What the project promises, on emulated x86 hosts with a real kernel."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.bench.conftest import Hosts
from tests.bench.outcomes import hwtest, module_of
from tools._bench.profiles import X86, PciDevice

pytestmark = pytest.mark.bench
PLAIN = pytest.mark.xdist_group("x86")

CHECKOUT = Path(__file__).resolve().parents[2]
# For the guest: how much more often the tests go on that repeat something at random.
REPEAT = f"PYVFIO_REPEAT={os.environ.get('PYVFIO_REPEAT', '1')}"
# The SR-IOV controller's functions are tested in test_sriov.py.
ADDRESSES = {device.name: device.address for device in X86.devices if device.name != "nvme-sriov"}
# All tests run for edu and nvme, for the others those that meet something else there: pci-testdev
# has I/O ports, e1000e five vectors and a reset of its own.
MODULES = {
    "pci-testdev": ("hwtests/devices", "hwtests/test_regions.py"),
    "e1000e": (
        "hwtests/devices",
        "hwtests/test_forwarding.py",
        "hwtests/test_interrupts.py",
        "hwtests/test_reset.py",
    ),
}


@PLAIN
@pytest.mark.parametrize(
    "device",
    [device for device in X86.devices if device.name in ADDRESSES],
    ids=lambda device: device.name,
)
def test_hardware_tests_pass_on_x86(hosts: Hosts, device: PciDevice) -> None:
    report = hwtest(hosts, X86, device, *MODULES.get(device.name, ()))
    # What the device really does was tested, and nothing of that left out.
    own = module_of(device).removesuffix(".py")
    known = [test for test in report["tests"] if test["test"].startswith(own)]
    assert known
    assert [test for test in known if test["outcome"] != "passed"] == []
    if device.name != "pci-testdev":
        check_forwarding(device.name, report["tests"])


# Why the field's own tests are not shown, and how many: on any device, and on this host alone.
NOT_YET = {
    "needs graphics of an Intel processor": 1,
    "on purpose": 1,
    "which Linux 4.12 removed": 2,
    "no device features yet": 1,
    "no hot reset of a bus yet": 1,
    "no tokens for virtual functions yet": 3,
    "no iommufd backend yet": 7,
}
OTHER_HOST = {"needs IOVAs up to": 2, "needs a BAR of 2 MiB": 1, "needs Linux 6.19": 1}


@PLAIN
@pytest.mark.parametrize(
    ("name", "shown", "lacks"),
    [("edu", 25, {"cannot be reset alone": 1}), ("nvme", 20, {"not of this device": 6})],
)
def test_fields_own_tests_are_shown(
    hosts: Hosts, name: str, shown: int, lacks: dict[str, int]
) -> None:
    field = hwtest(hosts, X86, X86.device(name), "--field")["field"]
    reasons = list(field["not_shown"].values())
    for part, count in (NOT_YET | OTHER_HOST | lacks).items():
        assert sum(part in reason for reason in reasons) == count, part
    assert field["originals"] == 46
    assert field["originals"] - len(reasons) == shown


def check_forwarding(name: str, tests: list[dict[str, str]]) -> None:
    """Its own interrupts, and those by loopback, went to a guest that counted them."""
    by_loopback = [test for test in tests if test["test"].startswith("hwtests/test_forwarding.py")]
    own = f"hwtests/devices/test_{name}_forwarding.py::"
    raised = [test for test in tests if test["test"].startswith(own)]
    assert {test["test"].removeprefix(own) for test in raised} == {
        "test_ten_thousand_interrupts_are_ten_thousand",
        "test_a_masked_interrupt_is_pending_and_comes_once",
    }
    assert [test for test in raised if test["outcome"] != "passed"] == []
    sort = "msi" if name == "edu" else "msix"
    assert any(test["test"].endswith(f"[{sort}]") for test in by_loopback)
    others = [test for test in by_loopback if test["outcome"] != "passed"]
    # edu has MSI alone.
    assert {test["reason"] for test in others} == (
        {"the device has no MSI-X"} if name == "edu" else set()
    )


def several_namespaces(directory: Path, options: str = "") -> str:
    """QEMU's arguments for an NVMe controller at 0000:04:00.0, with namespaces 1, 3 and 4.

    Args:
        directory: for what they hold.
        options: more of the controller's.
    """
    words = [
        "-device pcie-root-port,id=several,chassis=9,slot=9,addr=0x13",
        f"-device nvme,id=disks,serial=several,bus=several{options}",
    ]
    for number, megabytes, block in ((1, 8, 512), (3, 16, 4096), (4, 5, 512)):
        file = directory / f"namespace-{number}"
        with file.open("wb") as disk:
            disk.truncate(megabytes << 20)
        words += [
            f"-drive file={file},if=none,id=namespace-{number},format=raw,discard=unmap",
            f"-device nvme-ns,drive=namespace-{number},bus=disks,nsid={number},"
            f"logical_block_size={block},physical_block_size={block}",
        ]
    return " ".join(words)


@pytest.mark.xdist_group("x86 unknown devices")
def test_hardware_tests_pass_on_unknown_devices(hosts: Hosts, tmp_path: Path) -> None:
    said = hosts.run(
        "x86",
        "tools/hwtest --device 0000:03:00.0 && "
        "tools/hwtest --device 0000:04:00.0 -v hwtests/test_interrupts.py "
        "hwtests/devices/test_nvme_driver.py "
        "-k 'test_interrupts or vector or namespace or says_who or every_way_of_waiting'",
        qemu_args=f"-device virtio-rng-pci,bus={X86.spare_port} "
        # More vectors than an x86 host has for all its devices.
        + several_namespaces(tmp_path, ",msix_qsize=2048"),
    ).stdout
    for test in ("more_vectors_than_the_host", "each_queue_has_a_vector", "each_namespace_is_a"):
        (outcome,) = (line for line in said.splitlines() if test in line)
        assert "PASSED" in outcome


@pytest.mark.xdist_group("x86 binding")
def test_binding_and_commands_where_there_is_something_to_lose(
    hosts: Hosts, tmp_path: Path
) -> None:
    port = X86.spare_port
    said = hosts.run(
        "x86",
        f"{REPEAT} python3 -m pytest hwtests/host --ignore=hwtests/host/test_users.py",
        # Two functions in one group: it is viable only when both are VFIO's. The namespaces are for
        # hwtests/host/test_nvme_truth.py.
        qemu_args=f"-device virtio-rng-pci,bus={port},addr=0.0,multifunction=on "
        f"-device virtio-rng-pci,bus={port},addr=0.1 " + several_namespaces(tmp_path),
    ).stdout
    (totals,) = (line for line in said.splitlines() if re.search(r"\d+ passed", line))
    assert "skipped" not in totals


@pytest.mark.xdist_group("x86 users")
def test_users_of_a_device_are_found_and_removal_recognized(hosts: Hosts) -> None:
    said = hosts.run(
        "x86",
        f"{REPEAT} python3 -m pytest -rs hwtests/host/test_users.py",
        # A disk with SR-IOV.
        qemu_args="-device nvme-subsys,id=sriov -device nvme,serial=sriov,subsys=sriov,"
        f"bus={X86.spare_port},sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,"
        "max_ioqpairs=8,msix_qsize=8",
    ).stdout
    assert re.search(r"\d+ passed", said)
    assert "SKIPPED" not in said


@pytest.mark.xdist_group("x86 disks")
def test_disk_is_copied_to_namespaces_of_other_block_sizes(hosts: Hosts) -> None:
    with tempfile.TemporaryDirectory(prefix="pyvfio-disks-") as directory:
        first, second = Path(directory, "first"), Path(directory, "second")
        first.write_bytes(random.Random(1).randbytes(8 << 20))
        second.write_bytes(bytes(8 << 20))
        disk, other = ADDRESSES["nvme"], "0000:03:00.0"
        said = hosts.run(
            "x86",
            f"pyvfio nvme copy {other}:1 {disk} --yes --verify && "
            f"pyvfio nvme copy {disk} {other}:2 --size 8M --yes --verify && "
            f"pyvfio nvme read {other} --namespace 2 --offset 4K --size 8K | sha256sum",
            qemu_args=f"-drive file={first},format=raw,if=none,id=first "
            f"-drive file={second},format=raw,if=none,id=second "
            f"-device nvme,id=disks,serial=disks,bus={X86.spare_port} "
            "-device nvme-ns,drive=first,bus=disks,nsid=1 -device nvme-ns,drive=second,bus=disks,"
            "nsid=2,logical_block_size=4096,physical_block_size=4096",
        ).stdout
        data = first.read_bytes()
        assert second.read_bytes() == data
        assert hashlib.sha256(data[4096 : 3 * 4096]).hexdigest() in said


@pytest.mark.xdist_group("demo")
def test_demo_shows_a_device_at_work_and_the_lost_interrupt() -> None:
    result = subprocess.run(["tools/demo"], cwd=CHECKOUT, capture_output=True, text=True)
    print(result.stdout, result.stderr)  # shown when the test fails
    assert result.returncode == 0
    said = result.stdout
    for shown in ("479,001,600", "identical", "stopped by the IOMMU", "MSI-X has 65"):
        assert shown in said
    assert "How d1f6af6 loses vector 0" in said


@PLAIN
def test_replay_takes_a_device_and_gives_it_back(hosts: Hosts) -> None:
    card = ADDRESSES["e1000e"]
    driver = f"/sys/bus/pci/devices/{card}/driver"
    replay = f"pyvfio irqroute replay --device {card} --mapping routed"
    said = hosts.run("x86", f"{replay} && basename $(readlink {driver})").stdout
    assert said.count("all arrive") == 4
    assert "LOST" not in said
    assert "modelled" not in said
    assert "FAILED" not in said
    assert said.splitlines()[-1] == "e1000e"


@pytest.mark.xdist_group("x86 without isolation")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("intel_iommu=off", "is in no IOMMU group"),
        ("intremap=off", "allow_unsafe_interrupts"),
    ],
    ids=["no IOMMU", "no interrupt remapping"],
)
def test_host_that_cannot_isolate_says_what_to_do(hosts: Hosts, words: str, says: str) -> None:
    edu = ADDRESSES["edu"]
    command = f"pyvfio bind {edu}; pyvfio read {edu} bar0+0 2>&1"
    assert says in hosts.run("x86", command, append=words, status=4).stdout


@PLAIN
def test_nvme_reads_are_measured_and_disk_given_back(hosts: Hosts) -> None:
    """Few of them; qemu-img and fio are not in this image, and are named as absent."""
    script = f"""
from tools._perf import cli
from tools._perf.rows import nvme
nvme.READS = dict.fromkeys(nvme.DEPTHS, 100)
nvme.ROUNDS = 2
raise SystemExit(cli.main(["nvme", "--device", "{ADDRESSES["nvme"]}", "--json"]))
"""
    driver = f"/sys/bus/pci/devices/{ADDRESSES['nvme']}/driver"
    printed = hosts.run("x86", f"python3 -c {shlex.quote(script)} && readlink {driver}").stdout
    report, linux = json.JSONDecoder().raw_decode(printed)
    assert Path(printed[linux:].strip()).name == "nvme"
    [row] = report["results"]
    assert len(row["costs"]) == 18
    assert all(cost["min"] > 0 for cost in row["costs"].values())
    assert {name.partition(": ")[2].partition(",")[0] for name in row["absent"]} == {
        "qemu-img",
        "fio",
    }
