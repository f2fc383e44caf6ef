"""The same promises on emulated POWER hosts.

Both hosts and both of Debian's page sizes are seen, each once: a second cross would take as long
again and show nothing that these two do not. For the same reason all tests run for one device of
each host: of the other devices what is their own, their PE, and their windows of addresses.
"""

from __future__ import annotations

import pytest

from tests.bench.conftest import Hosts
from tests.bench.outcomes import hwtest, module_of, unexpected
from tools._bench.profiles import POWER8, POWER9, PciDevice, Profile

pytestmark = pytest.mark.bench

# What skips there, with its reason: QEMU 7.2's POWER8 cannot import numpy, no PowerNV host has
# I/O ports.
MAY_SKIP = ("numpy is not usable here", "the host has no I/O ports")

# The device for which all tests run. NVMe's are run where its driver is seen as well.
WHOLE = {"power8": "nvme", "power9": "e1000e"}

# One of its tests is for hosts without EEH.
EEH_MAY_SKIP = ("the host has EEH",)
# No freeze can be made on POWER8's PHB, and a reset below its switch lasts too long.
EEH_MAY_SKIP_ON_POWER8 = (
    *EEH_MAY_SKIP,
    "QEMU's PHB3 keeps no state of its PEs",
    "below QEMU's switch the firmware waits for a link",
)


POWER8_64K = pytest.mark.xdist_group("power8 64k")
POWER9_4K = pytest.mark.xdist_group("power9")


@pytest.mark.parametrize(
    ("profile", "kernel", "page", "eeh_may_skip", "device"),
    [
        *(
            pytest.param(
                POWER8,
                "64k",
                65536,
                EEH_MAY_SKIP_ON_POWER8,
                device,
                marks=POWER8_64K,
                id=f"power8 64k {device.name}",
            )
            for device in POWER8.devices
        ),
        *(
            pytest.param(
                POWER9,
                None,
                4096,
                EEH_MAY_SKIP,
                device,
                marks=POWER9_4K,
                id=f"power9 4k {device.name}",
            )
            for device in POWER9.devices
        ),
    ],
)
def test_hardware_tests_pass_on_power(
    hosts: Hosts,
    profile: Profile,
    kernel: str | None,
    page: int,
    eeh_may_skip: tuple[str, ...],
    device: PciDevice,
) -> None:
    own, spapr, its_pe = module_of(device), "hwtests/test_spapr.py", "hwtests/test_eeh.py"
    only = () if device.name == WHOLE[profile.name] else (own, spapr, its_pe)
    report = hwtest(hosts, profile, device, *only, kernel=kernel)
    assert report["host"]["page_size"] == page
    assert unexpected(report["tests"], own, MAY_SKIP) == []
    assert unexpected(report["tests"], spapr, ()) == []
    assert unexpected(report["tests"], its_pe, eeh_may_skip) == []


@pytest.mark.parametrize(
    ("profile", "kernel"),
    [
        pytest.param("power8", "64k", marks=POWER8_64K),
        pytest.param("power9", None, marks=POWER9_4K),
    ],
)
def test_fence_of_this_processor_is_executed(
    hosts: Hosts, profile: str, kernel: str | None
) -> None:
    hosts.run(profile, "python3 -m pytest -q tests/iommu/test_barrier.py", kernel=kernel)
