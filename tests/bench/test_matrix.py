"""Hosts, kernels and QEMUs crossed: the hardware tests of edu in each cell.

The other devices are tested on each host with its default kernel and QEMU. A few cells are part of
every check, the others of `tools/check --all`, which prints a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("qemu.qmp")

from tests.bench.conftest import Hosts
from tests.bench.outcomes import hwtest
from tools._bench import emulator, kernel
from tools._bench.kernel import IOMMUFD, IOMMUFD_SERIES
from tools._bench.profiles import PROFILES
from tools._bench.suites import DEFAULT_QEMU

# What the other tests do not boot, and every check must show.
IN_EVERY_CHECK = [
    ("x86", "7", DEFAULT_QEMU),
    ("x86", "iommufd", DEFAULT_QEMU),
]


def cells() -> Iterator[object]:
    for cell in IN_EVERY_CHECK:
        yield _cell(*cell, pytest.mark.bench)
    for profile in PROFILES.values():
        for name in kernel.names(profile):
            if name in profile.flavours:
                continue  # short for one that has the series
            for qemu in emulator.NAMES:
                if (profile.name, name, qemu) not in IN_EVERY_CHECK:
                    yield _cell(profile.name, name, qemu, pytest.mark.matrix)


def _cell(name: str, linux: str, qemu: str, mark: pytest.MarkDecorator) -> object:
    words = f"{name} {linux} {qemu}"
    marks = (mark, pytest.mark.xdist_group(words))
    return pytest.param(name, linux, qemu, marks=marks, id=words)


@pytest.mark.parametrize(("name", "linux", "qemu"), list(cells()))
def test_hardware_tests_pass_in_each_cell(
    hosts: Hosts, name: str, linux: str, qemu: str, request: pytest.FixtureRequest
) -> None:
    profile = PROFILES[name]
    line = f"{name:8} Linux {linux:8} QEMU {qemu:7}"
    result = "failed"
    try:
        report = hwtest(hosts, profile, profile.device("edu"), kernel=linux, qemu=qemu)
        counts = Counter(test["outcome"] for test in report["tests"])
        result = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        result += f"  (Linux {report['kernel']['release']}, Python {report['python']})"
        assert counts["passed"] > 50
        release = report["kernel"]["release"]
        series = IOMMUFD_SERIES if linux == IOMMUFD else linux.partition("-")[0]
        assert release.startswith(f"{series}.")
        assert release.endswith("64k") == linux.endswith("64k")
        if linux == IOMMUFD:
            hosts.run(name, "ls /dev/iommu /dev/vfio/devices/vfio0", kernel=linux, qemu=qemu)
        if qemu != emulator.SYSTEM:
            got = emulator.get(qemu, profile.qemu_package, profile.qemu)
            assert got.major == int(qemu)
    finally:
        request.node.user_properties.append(("cell", f"{line} {result}"))
