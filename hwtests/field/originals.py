"""The field's own tests of VFIO, and the test that asserts the same here.

They are the programs of VFIO's maintainer and the kernel's own selftests, as of the versions that
their sources name. Those of iommufd's mock IOMMU need no device, and are not meant.

An original is shown on a device where each of its tests passed, in one variant at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_HERE = Path(__file__).parent
_SKIPPED = "field/test_later.py::test_later"


class Original(NamedTuple):
    """A test of the field.

    Attributes:
        file: its repository and file.
        name: what it is called there.
        tests: those that assert the same, as paths from hwtests/ on.
        later: why there is none yet.
    """

    file: str
    name: str
    tests: tuple[str, ...] = ()
    later: str = ""

    @property
    def shown_by(self) -> tuple[str, ...]:
        """The tests that must pass; one that is skipped, where there is none yet."""
        tests = self.tests or (f"{_SKIPPED}[{self.name}]",)
        return tuple(f"hwtests/{test}" for test in tests)


_PROGRAMS = "awilliam/tests (89361c9), {}.c"
_SELFTESTS = "Linux 7.3, tools/testing/selftests/vfio/{}.c"

_HOT_RESET = "pyvfio has no hot reset of a bus yet (VFIO_DEVICE_PCI_HOT_RESET)"
_TOKEN = "pyvfio has no tokens for virtual functions yet (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN)"
_IOMMUFD = "pyvfio has no iommufd backend yet"
_REMOVED = "tests KVM's own device assignment, which Linux 4.12 removed"


def _program(name: str, *tests: str, later: str = "", file: str = "") -> Original:
    return Original(_PROGRAMS.format(file or name), name, _in("programs", tests), later)


def _selftest(file: str, name: str, *tests: str, later: str = "") -> Original:
    return Original(_SELFTESTS.format(file), name, _in("selftests", tests), later)


def _later(file: str, later: str, *names: str) -> Iterator[Original]:
    """Several of a file's tests that there are not yet, for one reason."""
    return (_selftest(file, name, later=later) for name in names)


def _in(module: str, tests: Iterable[str]) -> tuple[str, ...]:
    """Tests by their paths; a name alone is one of a module in this folder."""
    return tuple(test if "::" in test else f"field/test_{module}.py::{test}" for test in tests)


ORIGINALS = (
    _program(
        "vfio-pci-device-open",
        "test_regions.py::test_sizes_agree_with_sysfs",
        "test_regions.py::test_each_area_can_be_mapped",
    ),
    _program("vfio-pci-device-open-sparse-mmap", "test_vfio_pci_device_open_sparse_mmap"),
    _program("vfio-pci-device-open-igd", later="needs graphics of an Intel processor"),
    _program(
        "vfio-pci-device-migration",
        later="pyvfio has no device features yet (VFIO_DEVICE_FEATURE)",
    ),
    _program("vfio-pci-device-dma-map", "test_vfio_pci_device_dma_map"),
    _program("vfio-correctness-tests", "test_vfio_correctness_tests"),
    _program("vfio-huge-guest-test", "test_vfio_huge_guest_test"),
    _program("vfio-iommu-map-unmap", "test_vfio_iommu_map_unmap"),
    _program("vfio-iommu-stress-test", "test_vfio_iommu_stress_test"),
    _program(
        "vfio-noiommu-pci-device-open",
        later="pyvfio refuses on purpose to drive a device without an IOMMU",
    ),
    _program("vfio-pci-hot-reset", later=_HOT_RESET),
    _program("vfio-pci-huge-fault-race", "test_vfio_pci_huge_fault_race"),
    _program("iommufd-pci-device-open", later=_IOMMUFD),
    _program("kvm-huge-guest-test", later=_REMOVED),
    _program("leaktest-legacy-kvm", later=_REMOVED),
    _program(
        "accounting-stress", "test_accounting_stress", file="accounting-stress/accounting-stress"
    ),
    _program("e324fc82ea45", "test_e324fc82ea45", file="e324fc82ea45/reproducer"),
    _program("intx-race", "test_intx_race", file="intx-race/vfio-pci-intx-race"),
    _selftest("vfio_dma_mapping_test", "dma_map_unmap", "test_dma_map_unmap"),
    _selftest(
        "vfio_dma_mapping_test", "unmap_range", "test_dma.py::test_fixed_addresses_from_end_to_end"
    ),
    _selftest("vfio_dma_mapping_test", "unmap_all", "test_unmap_all"),
    _selftest("vfio_dma_mapping_test", "overflow", "test_overflow"),
    _selftest("vfio_dma_mapping_mmio_test", "map_full_bar", "test_map_full_bar"),
    _selftest("vfio_dma_mapping_mmio_test", "map_partial_bar", "test_map_partial_bar"),
    _selftest("vfio_dma_mapping_mmio_test", "map_bar_misaligned", "test_map_bar_misaligned"),
    *_later(
        "vfio_iommufd_setup_test",
        _IOMMUFD,
        "bind",
        "get_info_without_bind_fails",
        "bind_bad_iommufd_fails",
        "repeated_bind_fails",
        "attach_detatch_pt",
        "attach_invalid_pt_fails",
    ),
    _selftest(
        "vfio_pci_device_test",
        "config_space_read_write",
        "test_config.py::test_the_header_is_the_devices",
        "test_config.py::test_bus_mastering_and_decoding_reach_the_device",
    ),
    _selftest(
        "vfio_pci_device_test", "validate_bars", "test_regions.py::test_each_area_can_be_mapped"
    ),
    _selftest(
        "vfio_pci_device_test",
        "enable_trigger_disable",
        "test_interrupts.py::test_every_vector_arrives_where_it_should",
    ),
    _selftest("vfio_pci_device_test", "reset", "test_reset.py::test_reset_keeps_the_device_usable"),
    _selftest("vfio_pci_device_init_perf_test", "init", "test_init"),
    _selftest("vfio_pci_driver_test", "init_remove", "test_init_remove"),
    _selftest("vfio_pci_driver_test", "memcpy_success", "devices/test_edu.py::test_dma_both_ways"),
    _selftest(
        "vfio_pci_driver_test", "memcpy_from_unmapped_iova", "test_memcpy_from_unmapped_iova"
    ),
    _selftest(
        "vfio_pci_driver_test",
        "memcpy_to_unmapped_iova",
        "devices/test_edu.py::test_what_is_not_mapped_is_out_of_reach",
    ),
    _selftest(
        "vfio_pci_driver_test",
        "send_msi",
        "devices/test_edu.py::test_msi_tells_that_the_factorial_is_ready",
    ),
    _selftest("vfio_pci_driver_test", "mix_and_match", "test_mix_and_match"),
    _selftest("vfio_pci_driver_test", "memcpy_storm", "test_memcpy_storm"),
    *_later(
        "vfio_pci_sriov_uapi_test", _TOKEN, "init_token_match", "pf_early_close", "override_token"
    ),
)


def paths() -> list[str]:
    """Where pytest finds all the tests, each once."""
    root = _HERE.parent.parent
    return list(
        dict.fromkeys(
            str(root / test.partition("[")[0])
            for original in ORIGINALS
            for test in original.shown_by
        )
    )


def not_shown(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Why originals are not shown, by their names.

    Args:
        results: a report's, of a run of all the tests.
    """
    by_test: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        for test in {result["test"], result["test"].partition("[")[0]}:
            by_test.setdefault(test, []).append(result)
    reasons = {
        original.name: [_reason(test, by_test.get(test, [])) for test in original.shown_by]
        for original in ORIGINALS
    }
    return {name: "; ".join(filter(None, each)) for name, each in reasons.items() if any(each)}


def _reason(test: str, results: list[Mapping[str, Any]]) -> str:
    """Why a test does not count; nothing where it passed."""
    outcomes = {result["outcome"] for result in results}
    if "failed" in outcomes:
        return f"{test} failed"
    if "passed" in outcomes:
        return ""
    if not results:
        return f"not of this device: {test}"
    return ", ".join(dict.fromkeys(result["reason"] for result in results))
