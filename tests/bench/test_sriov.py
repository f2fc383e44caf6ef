"""The hardware tests on the functions of an SR-IOV device."""

from __future__ import annotations

import dataclasses

import pytest

from tests.bench.conftest import Hosts
from tests.bench.outcomes import hwtest, unexpected
from tools._bench.profiles import X86, PciDevice

pytestmark = [pytest.mark.bench, pytest.mark.xdist_group("x86")]

PHYSICAL = X86.device("nvme-sriov")
VIRTUAL = dataclasses.replace(PHYSICAL, address=PHYSICAL.address.replace(".0", ".1"))
# The NVMe driver's tests are for others: a virtual function has no queues until it is given some,
# and the physical one has no disk.
NONE_MAY_SKIP = [f"hwtests/test_{name}.py" for name in ("config", "dma", "open", "forwarding")]
MODULES = [
    *NONE_MAY_SKIP,
    *(f"hwtests/test_{name}.py" for name in ("interrupts", "regions", "reset")),
]


@pytest.mark.parametrize("device", [PHYSICAL, VIRTUAL], ids=["physical", "virtual"])
def test_hardware_tests_pass_on_sriov_functions(hosts: Hosts, device: PciDevice) -> None:
    functions = f"/sys/bus/pci/devices/{PHYSICAL.address}/sriov_numvfs"
    hosts.run("x86", f"echo {int(device is VIRTUAL)} >{functions}")
    try:
        report = hwtest(hosts, X86, device, *MODULES)
    finally:
        hosts.run("x86", f"echo 0 >{functions}")
    for module in NONE_MAY_SKIP:
        assert unexpected(report["tests"], module, ()) == []
