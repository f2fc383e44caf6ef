"""Every number and layout of pyvfio.abi, against the kernel's own headers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType

import pytest

from pyvfio.abi import ioctl, pci_regs, vfio

from .kernel_header import (
    Subject,
    exclusions,
    facts,
    header,
    missing_names,
    needs_compiler,
    unknown_names,
    wrong_values,
)

pytestmark = needs_compiler

VFIO = Subject(
    vfio,
    "linux/vfio.h",
    newer={
        (6, 12): [
            "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            "VFIO_DEVICE_BIND_IOMMUFD",
            "VFIO_DEVICE_DETACH_IOMMUFD_PT",
            "VFIO_DEVICE_FLAGS_CDX",
            "VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP",
            "VFIO_PCI_ATOMIC_COMP128",
            "VFIO_PCI_ATOMIC_COMP32",
            "VFIO_PCI_ATOMIC_COMP64",
            "VFIO_PCI_DEVID_NOT_OWNED",
            "VFIO_PCI_DEVID_OWNED",
            "VFIO_PCI_HOT_RESET_FLAG_DEV_ID",
            "VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED",
            "vfio_device_attach_iommufd_pt",
            "vfio_device_bind_iommufd",
            "vfio_device_detach_iommufd_pt",
            "vfio_device_info.pad",
            "vfio_device_info_cap_pci_atomic_comp",
            "vfio_device_ioeventfd.reserved",
            "vfio_iommu_type1_info.pad",
            "vfio_pci_dependent_device.devid",
        ],
        (7, 3): [
            "VFIO_DEVICE_ATTACH_PASID",
            "VFIO_DEVICE_BIND_FLAG_TOKEN",
            "VFIO_DEVICE_DETACH_PASID",
            "VFIO_DEVICE_FEATURE_DMA_BUF",
            "vfio_device_attach_iommufd_pt.pasid",
            "vfio_device_bind_iommufd.token_uuid_ptr",
            "vfio_device_detach_iommufd_pt.pasid",
            "vfio_device_feature_dma_buf",
            "vfio_region_dma_range",
        ],
    },
    changed={
        "sizeof(struct vfio_device_info)": ((6, 12), 20),
        "sizeof(struct vfio_device_bind_iommufd)": ((7, 3), 16),
        "sizeof(struct vfio_device_attach_iommufd_pt)": ((7, 3), 12),
        "sizeof(struct vfio_device_detach_iommufd_pt)": ((7, 3), 8),
    },
    excluded={
        # Saving a device's state and restoring it on another host.
        "VFIO_DEVICE_FEATURE_(MIG|DMA_LOGGING)": "migration",
        "VFIO_DEVICE_STATE_": "migration",
        "VFIO_MIG": "migration",
        "VFIO_PRECOPY_": "migration",
        "vfio_device_feature_(mig|dma_logging)": "migration",
        "vfio_device_migration_info": "migration",
        "vfio_precopy_info": "migration",
        # Displays of mediated devices, and what mediated devices say in sysfs.
        "VFIO_DEVICE_API_": "mediated devices",
        "VFIO_DEVICE_(GET_|QUERY_)?GFX_": "mediated displays",
        "VFIO_GFX_": "mediated displays",
        "vfio_device_gfx_plane_info": "mediated displays",
        "vfio_region_gfx_edid": "mediated displays",
        # Other buses.
        "VFIO_(AP|CCW)_": "s390 channel devices and crypto adapters",
        "VFIO_DEVICE_FEATURE_ZPCI_ERROR": "s390 firmware",
        "vfio_device_feature_zpci_err": "s390 firmware",
        "VFIO_DEVICE_FEATURE_(BUS|CLEAR|SET)_MASTER": "CDX; a PCI device has its command register",
        "vfio_device_feature_bus_master": "CDX; a PCI device has its command register",
        # Gone from the kernel.
        "(__VFIO_RESERVED|VFIO)_TYPE1_NESTING_IOMMU": "never did anything, removed",
    },
)

PCI_REGS = Subject(
    pci_regs,
    "linux/pci_regs.h",
    newer={
        (6, 12): [
            "PCI_DOE_CAP_SIZEOF",
            "PCI_DOE_DATA_OBJECT_DISC_REQ_3_VER",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_FE",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_IN_EXT",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_NFE",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_RP_PIO",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_SW_TRIGGER",
            "PCI_EXP_DPC_STATUS_TRIGGER_RSN_UNCOR",
            "PCI_EXP_LNKCAP2_SLS",
            "PCI_EXP_LNKSTA2_FLIT",
            "PCI_EXP_RTCAP_RRS_SV",
            "PCI_EXP_RTCTL_RRS_SVE",
            "PCI_EXP_RTSTA_PME_RQ_ID",
            "PCI_EXT_CAP_ID_NPEM",
            "PCI_EXT_CAP_ID_PL_32GT",
            "PCI_HEADER_TYPE_MFD",
            "PCI_L1SS_CTL2_T_PWR_ON_SCALE",
            "PCI_L1SS_CTL2_T_PWR_ON_VALUE",
            "PCI_LTR_NOSNOOP_SCALE",
            "PCI_LTR_NOSNOOP_VALUE",
            r"PCI_NPEM_\w+",
            "PCI_PASID_CAP_WIDTH",
            "PCI_PTM_CAP_RES",
        ],
        (7, 3): [
            "PCI_CAP_ID_MASK",
            "PCI_CAP_LIST_NEXT_MASK",
            r"PCI_DEV3_\w+",
            "PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE",
            "PCI_ERR_CAP_COMP_TIME_LOG",
            "PCI_ERR_CAP_PREFIX_LOG_PRESENT",
            "PCI_ERR_CAP_TLP_LOG_FLIT",
            "PCI_ERR_CAP_TLP_LOG_SIZE",
            "PCI_ERR_PREFIX_LOG",
            "PCI_ERR_UNC_DMWR_BLK",
            "PCI_ERR_UNC_IDE_CHECK",
            "PCI_ERR_UNC_MISR_IDE",
            "PCI_ERR_UNC_PCRC_CHECK",
            "PCI_ERR_UNC_POISON_BLK",
            "PCI_ERR_UNC_XLAT_BLK",
            "PCI_EXP_DEVCAP2_EE_PREFIX_MAX",
            "PCI_EXP_DEVCAP2_TPH_COMP_EXT_TPH",
            "PCI_EXP_DEVCAP2_TPH_COMP_MASK",
            "PCI_EXP_DEVCAP2_TPH_COMP_NONE",
            "PCI_EXP_DEVCAP2_TPH_COMP_TPH_ONLY",
            "PCI_EXP_DEVCAP_TEE",
            "PCI_EXP_DPC_RP_PIO_LOG_SIZE4",
            "PCI_EXP_FLAGS_FLIT",
            "PCI_EXT_CAP_ID_DEV3",
            "PCI_EXT_CAP_ID_IDE",
            "PCI_EXT_CAP_ID_PL_64GT",
            "PCI_EXT_CAP_ID_VF_REBAR",
            "PCI_MSIX_ENTRY_CTRL_ST",
            "PCI_PL_32GT_LE_CTRL",
            "PCI_PL_64GT_LE_CTRL",
            "PCI_PRIMARY_BUS_MASK",
            "PCI_SECONDARY_BUS_MASK",
            "PCI_SECPCI_LE_CTRL",
            "PCI_SEC_LATENCY_TIMER_MASK",
            "PCI_SUBORDINATE_BUS_MASK",
            "PCI_TPH_CAP_EXT_TPH",
            "PCI_TPH_CAP_ST_DS",
            "PCI_TPH_CAP_ST_IV",
            "PCI_TPH_CAP_ST_NS",
            r"PCI_TPH_CTRL\w*",
            "PCI_TPH_REQ_DISABLE",
            "PCI_TPH_REQ_EXT_TPH",
            "PCI_TPH_REQ_TPH_ONLY",
            "PCI_TPH_ST_DS_MODE",
            "PCI_TPH_ST_IV_MODE",
            "PCI_TPH_ST_NS_MODE",
            r"PCI_VF_REBAR_\w+",
        ],
    },
    changed={
        "PCI_CAP_EXP_ENDPOINT_SIZEOF_V2": ((6, 12), 0x32),
        "PCI_REBAR_CAP_SIZES": ((7, 3), 0x00FFFFF0),
    },
    excluded={
        "PCI_AGP_": "AGP",
        "PCI_(X_|CAP_PCIX_)": "PCI-X",
        "PCI_CHSWP_": "CompactPCI hot swap",
        "HT_": "HyperTransport",
        "(PCI_DVSEC_)?CXL_": "CXL",
        "PCI_IDE_": "link encryption",
        "PCI_(EXT_)?CAP_ID_MAX": "grows with the kernel, not a fact of hardware",
        "PCI_EXP_RTCTL_CRSSVE": "old name of PCI_EXP_RTCTL_RRS_SVE",
        "PCI_EXP_RTCAP_CRSVIS": "old name of PCI_EXP_RTCAP_RRS_SV",
        "PCI_MSIX_FLAGS_BIRMASK": "old name of PCI_MSIX_PBA_BIR",
        "PCI_DOE_DATA_OBJECT_DISC_RSP_3_PROTOCOL": "old name of ..._RSP_3_TYPE",
        "PCI_VSEC_HDR": "old name of PCI_VNDR_HEADER, removed",
    },
)

SUBJECTS = [VFIO, PCI_REGS]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.header)

# The packages' places for POWER's asm/ioctl.h: the cross package, and from Debian 13 on the native
# one, which has every architecture's.
POWERPC_HEADER = next(
    filter(
        Path.is_file,
        map(
            Path,
            [
                "/usr/powerpc64le-linux-gnu/include/asm/ioctl.h",
                "/usr/include/powerpc64le-linux-gnu/asm/ioctl.h",
                "/usr/lib/linux/uapi/powerpc/asm/ioctl.h",
            ],
        ),
    ),
    None,
)


@each_subject
def test_every_value_size_and_offset_is_the_kernels(subject: Subject) -> None:
    assert wrong_values(subject) == []


@each_subject
def test_every_name_is_the_kernels(subject: Subject) -> None:
    assert unknown_names(subject) == []


@each_subject
def test_every_name_of_the_header_is_here_or_excluded_for_a_reason(subject: Subject) -> None:
    assert missing_names(subject) == []


@each_subject
def test_nothing_that_is_here_is_excluded(subject: Subject) -> None:
    assert [fact.name for fact in facts(subject.module) if exclusions(subject, fact.name)] == []


def test_ioctl_numbers_in_the_generic_encoding() -> None:
    # Keeps a POWER host's own asm/ioctl.h out; on others it changes nothing.
    flags = ["-D_ASM_POWERPC_IOCTL_H", "-include", "asm-generic/ioctl.h"]
    assert wrong_values(VFIO, ioctl.GENERIC, flags) == []


@pytest.mark.skipif(
    POWERPC_HEADER is None,
    reason="no POWER asm/ioctl.h to compare with: apt install linux-libc-dev-ppc64el-cross",
)
def test_ioctl_numbers_in_the_powerpc_encoding() -> None:
    # Included first, it settles the encoding; types and sizes stay this machine's.
    assert wrong_values(VFIO, ioctl.POWERPC, ["-include", str(POWERPC_HEADER)]) == []


# What follows shows that the comparison finds what is wrong.


def _module(**names: object) -> ModuleType:
    module = ModuleType("wrong")
    vars(module).update(names)
    return module


def _structure(name: str, *fields: tuple[str, type]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"__module__": "wrong", "_fields_": list(fields)})


def test_a_wrong_constant_is_found() -> None:
    module = _module(VFIO_TYPE1_IOMMU=2, VFIO_EEH=5)
    assert wrong_values(Subject(module, "linux/vfio.h")) == [
        "VFIO_TYPE1_IOMMU is 0x1 in the header, 0x2 here"
    ]


def test_a_wrong_request_is_found() -> None:
    module = _module(VFIO_DEVICE_RESET=ioctl.IO("VFIO_DEVICE_RESET", ord(";"), 112))
    (line,) = wrong_values(Subject(module, "linux/vfio.h"))
    assert line.startswith("VFIO_DEVICE_RESET is ")


def test_a_wrong_structure_is_found() -> None:
    structure = _structure(
        "vfio_irq_set",
        ("argsz", ctypes.c_uint32),
        ("index", ctypes.c_uint64),
        ("flags", ctypes.c_int32),
        ("data", ctypes.c_uint16 * 0),  # where it should be, by accident
    )
    subject = Subject(_module(vfio_irq_set=structure), "linux/vfio.h")
    wrong = [line.partition(" is ")[0] for line in wrong_values(subject)]
    assert wrong == [
        "sizeof(struct vfio_irq_set)",
        "sizeof(((struct vfio_irq_set *)0)->index)",
        "offsetof(struct vfio_irq_set, flags)",
        "(__typeof__(((struct vfio_irq_set *)0)->flags))-1 < 1",
        "sizeof(((struct vfio_irq_set *)0)->data[0])",
    ]
    missing = set(missing_names(subject))
    assert {"vfio_irq_set.start", "vfio_irq_set.count", "vfio_irq_info"} <= missing
    assert "vfio_irq_set.flags" not in missing


def test_what_cannot_be_compared_is_refused() -> None:
    union = type("vfio_union", (ctypes.Union,), {"__module__": "wrong"})
    for value in (union, "text", 1.0):
        with pytest.raises(TypeError, match="not compared yet"):
            list(facts(_module(vfio_union=value)))


def test_a_name_that_the_header_has_not_is_found() -> None:
    structure = _structure("vfio_irq_set", ("nonsense", ctypes.c_uint32))
    module = _module(VFIO_NONSENSE=0, vfio_irq_set=structure, vfio_nonsense=_structure("n"))
    subject = Subject(module, "linux/vfio.h", newer={(6, 12): ["vfio_nonsense"]})
    expected = ["VFIO_NONSENSE", "vfio_irq_set.nonsense"]
    if header("linux/vfio.h").release >= (6, 12):
        expected.append("vfio_nonsense")
    assert unknown_names(subject) == expected


def test_a_changed_value_is_accepted_from_older_headers_only() -> None:
    release = header("linux/vfio.h").release
    later = (release[0] + 1, 0)
    module = _module(VFIO_TYPE1_IOMMU=2)
    changed_later = Subject(module, "linux/vfio.h", changed={"VFIO_TYPE1_IOMMU": (later, 1)})
    changed_by_now = Subject(module, "linux/vfio.h", changed={"VFIO_TYPE1_IOMMU": (release, 1)})
    assert wrong_values(changed_later) == []
    assert len(wrong_values(changed_by_now)) == 1


def test_every_kind_of_name_is_read_from_the_header() -> None:
    names = header("linux/vfio.h").names
    assert {
        "VFIO_TYPE",  # macro
        "VFIO_IRQ_SET_ACTION_TYPE_MASK",  # macro of several lines
        "VFIO_PCI_BAR0_REGION_INDEX",  # first enumerator
        "VFIO_PCI_NUM_IRQS",  # last enumerator
        "VFIO_DEVICE_STATE_STOP",  # of a named enumeration
        "vfio_bitmap.data",  # pointer
        "vfio_irq_set.data",  # flexible array
        "vfio_device_low_power_entry_with_wakeup.wakeup_eventfd",
        "vfio_eeh_pe_op.err",  # in an anonymous union
    } <= names
    assert not {"VFIO_H", "VFIO_DEVICE_STATE_VALID", "_IO", "__u32"} & names
