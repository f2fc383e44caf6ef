"""Every number and layout of pyvfio.abi, against the kernel's own headers."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType

import pytest

from pyvfio.abi import ioctl, kvm, kvm_powerpc, kvm_x86, pci_regs, vfio

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

KVM = Subject(
    kvm,
    "linux/kvm.h",
    also=["asm/kvm.h"],
    newer={
        (6, 12): [
            "KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE",
            r"KVM_CAP_ARM_SUPPORTED_\w+",
            "KVM_CAP_COUNTER_OFFSET",
            "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP",
            "KVM_CAP_GUEST_MEMFD",
            "KVM_CAP_MEMORY_ATTRIBUTES",
            "KVM_CAP_MEMORY_FAULT_INFO",
            "KVM_CAP_PMU_EVENT_MASKED_EVENTS",
            "KVM_CAP_PRE_FAULT_MEMORY",
            "KVM_CAP_S390_PROTECTED_ASYNC_DISABLE",
            "KVM_CAP_USER_MEMORY2",
            "KVM_CAP_VM_TYPES",
            "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
            "KVM_CAP_X86_GUEST_MODE",
            "KVM_CREATE_GUEST_MEMFD",
            "KVM_DEV_TYPE_RISCV_AIA",
            r"KVM_DEV_VFIO_FILE\w*",
            "KVM_EXIT_LOONGARCH_IOCSR",
            "KVM_EXIT_MEMORY_FAULT",
            "KVM_MEMORY_ATTRIBUTE_PRIVATE",
            "KVM_MEMORY_EXIT_FLAG_PRIVATE",
            "KVM_MEM_GUEST_MEMFD",
            "KVM_MSR_EXIT_REASON_VALID_MASK",
            "KVM_PRE_FAULT_MEMORY",
            "KVM_REG_LOONGARCH",
            "KVM_SET_MEMORY_ATTRIBUTES",
            "KVM_SET_USER_MEMORY_REGION2",
            "kvm_create_guest_memfd",
            "kvm_memory_attributes",
            "kvm_pre_fault_memory",
            "kvm_run.hypercall.flags",
            "kvm_run.iocsr_io",
            "kvm_run.memory_fault",
            "kvm_userspace_memory_region2",
        ],
        (7, 2): [
            "GUEST_MEMFD_FLAG_INIT_SHARED",
            "GUEST_MEMFD_FLAG_MMAP",
            "KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED",
            "KVM_CAP_ARM_EL2",
            "KVM_CAP_ARM_EL2_E2H0",
            "KVM_CAP_ARM_SEA_TO_USER",
            "KVM_CAP_ARM_WRITABLE_IMP_ID_REGS",
            "KVM_CAP_GUEST_MEMFD_FLAGS",
            "KVM_CAP_RISCV_MP_STATE_RESET",
            "KVM_CAP_S390_HPAGE_2G",
            "KVM_CAP_S390_KEYOP",
            "KVM_CAP_S390_USER_OPEREXEC",
            "KVM_CAP_S390_VSIE_ESAMODE",
            "KVM_DEV_TYPE_ARM_VGIC_V5",
            r"KVM_DEV_TYPE_LOONGARCH_\w+",
            "KVM_EXIT_ARM_LDST64B",
            r"KVM_EXIT_ARM_SEA\w*",
            "KVM_EXIT_SNP_REQ_CERTS",
            "KVM_EXIT_TDX",
            "KVM_SYSTEM_EVENT_TDX_FATAL",
            "KVM_X86_DISABLE_EXITS_APERFMPERF",
            "kvm_exit_snp_req_certs",
            "kvm_run.arm_sea",
            "kvm_run.snp_req_certs",
            "kvm_run.tdx",
        ],
        (7, 3): [
            "KVM_CAP_ARM_PMU_V3_STRICT",
            "KVM_CAP_PPC_COMPAT_CAPS",
        ],
    },
    conditional=[
        "KVM_CAP_(DEBUGREGS|MCE|PIT2|PIT_STATE2|REINJECT_CONTROL)",
        "KVM_CAP_(VCPU_EVENTS|XCRS|XEN_HVM|XSAVE)",
        r"KVM_X2APIC_\w+",
    ],
    excluded={
        # Declared here, defined by the architecture.
        "KVM_[GS]ET_(CPUID|IRQCHIP|LAPIC|MSRS|PIT|VCPU_EVENTS)": "sized by the architecture",
        "KVM_[GS]ET_(DEBUGREGS|FPU|REGS|SREGS|XCRS|XSAVE)": "sized by the architecture",
        "KVM_GET_(EMULATED|SUPPORTED)_CPUID": "sized by the architecture",
        "KVM_GET_MSR_": "sized by the architecture",
        "KVM_X86_SET_MSR_FILTER": "sized by the architecture",
        "kvm_irqchip": "has the architecture's structures in it",
        r"kvm_run\.s\.regs": "the architecture's",
        # Other architectures, and POWER's own: its structures have moved to its asm/kvm.h.
        "KVM_(VM_)?S390_": "s390",
        "kvm_s390_": "s390",
        "KVM_(ARM|VM_TYPE_ARM)_": "arm64",
        "kvm_arm_": "arm64",
        "KVM_VM_MIPS_": "MIPS",
        "KVM_(PPC|CREATE_SPAPR)_": "POWER's own",
        "kvm_ppc_": "POWER's own",
        "KVM_ALLOCATE_RMA": "POWER's own",
        "KVM_(DIRTY_TLB|MMU_FSL_)": "embedded POWER's TLBs",
        "kvm_(config|dirty)_tlb": "embedded POWER's TLBs",
        # Other uses.
        "KVM_XEN_": "Xen's interface",
        "kvm_xen_(hvm|vcpu)_": "Xen's interface",
        "KVM_(HYPERV_|GET_SUPPORTED_HV_CPUID)": "Hyper-V's interface",
        "kvm_hyperv_eventfd": "Hyper-V's interface",
        "KVM_(MEMORY_ENCRYPT|PV|SEV)_": "confidential guests",
        "kvm_(enc_region|pv_|sev_)": "confidential guests",
        "KVM_[GS]ET_NESTED_STATE": "nested guests",
        "KVM_(DIRTY_GFN_|DIRTY_LOG_PAGE_OFFSET|RESET_DIRTY_RINGS)": "dirty rings",
        "kvm_dirty_gfn": "dirty rings",
        "KVM_(SET_)?PMU_": "performance counters",
        "KVM_X86_((SETUP|SET)_MCE|GET_MCE_CAP_SUPPORTED)": "machine checks",
        "kvm_x86_mce": "machine checks",
        "KVM_(SET_GUEST_DEBUG|GUESTDBG_)": "guest debugging",
        r"kvm_(guest_debug|run\.debug)": "guest debugging",
        # No facts.
        r"KVM_(DEV_TYPE|STATS_\w+)_MAX": "grows with the kernel",
        "KVM_(IOEVENTFD_VALID_FLAG_MASK|X86_DISABLE_VALID_EXITS)": "grows with the kernel",
        "KVM_COALESCED_MMIO_MAX": "depends on the page size",
        "kvm_ioeventfd_flag_nr_": "the numbers of KVM_IOEVENTFD_FLAG_...'s bits",
        # Gone from the kernel.
        "(__KVM_DEPRECATED|KVM_TRACE|KVM_TRC|kvm_user_trace)_": "KVM's own tracing, removed",
        "KVM_((DE)?ASSIGN|DEV_ASSIGN|DEV_IRQ)_": "KVM's own device assignment, removed",
        "(KVM_MAX_MSIX_PER_DEV|kvm_assigned_)": "KVM's own device assignment, removed",
        "KVM_SET_MEMORY_(ALIAS|REGION)": "old memory slots, removed",
        "kvm_memory_region": "old memory slots, removed",
        "(KVM_DEBUG_GUEST|kvm_breakpoint|kvm_debug_guest)": "old guest debugging, removed",
        r"kvm_run\.hypercall\.pad": "now in kvm_run.hypercall.flags",
    },
)

KVM_X86 = Subject(
    kvm_x86,
    "asm/kvm.h",
    also=["linux/kvm.h"],
    newer={
        (6, 12): [
            "KVM_EXIT_HYPERCALL_LONG_MODE",
            "KVM_RUN_X86_GUEST_MODE",
            "KVM_X86_(DEFAULT|SEV|SEV_ES|SNP|SW_PROTECTED)_VM",
            "KVM_X86_QUIRK_SLOT_ZAP_ALL",
        ],
        (7, 2): [
            "KVM_REG_GUEST_SSP",
            "KVM_X86_QUIRK_IGNORE_GUEST_PAT",
            "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT",
            "KVM_X86_QUIRK_STUFF_FEATURE_MSRS",
            "KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM",
            "KVM_X86_REG_TYPE_(KVM|MSR)",
            "KVM_X86_TDX_VM",
        ],
    },
    excluded={
        "KVM_X2APIC_": "kvm has them: they were in linux/kvm.h",
        "[A-Z]{2}_VECTOR": "the processor's exceptions, not KVM's",
        "KVM_XEN_": "Xen's interface",
        "kvm_xen_": "Xen's interface",
        "KVM_HYPERV_": "Hyper-V's interface",
        "kvm_hyperv_": "Hyper-V's interface",
        "KVM_(SEV|TDX)_": "confidential guests",
        "kvm_(sev|tdx)_": "confidential guests",
        "KVM_X86_(GRP_SEV|SEV_SNP_|SEV_VMSA_|SNP_POLICY_)": "confidential guests",
        "KVM_STATE_": "nested guests",
        "kvm_(nested|svm_nested|vmx_nested)_state": "nested guests",
        "KVM_DIRTY_LOG_PAGE_OFFSET": "dirty rings",
        "KVM_PMU_": "performance counters",
        "kvm_pmu_": "performance counters",
        "KVM_MSR_FILTER_": "MSR filters",
        "kvm_msr_filter": "MSR filters",
        "kvm_x86_mce": "machine checks",
        "KVM_GUESTDBG_": "guest debugging",
        "kvm_(debug_exit|guest_debug)_arch": "guest debugging",
        "KVM_PIT_": "the PIT's state",
        "kvm_(pit|reinject)_": "the PIT's state",
        "(KVM_MAX_XCRS|kvm_debugregs|kvm_xcr|kvm_xsave)": "XSAVE, XCRs, debug registers",
        "KVM_X86_(GRP_SYSTEM|XCOMP_)": "XSAVE, XCRs, debug registers",
        "(KVM_SREGS2_|kvm_sregs2)": "kvm_sregs does",
        r"kvm_cpuid(_entry)?(\.|$)": "kvm_cpuid2 replaces it",
        "kvm_memory_alias": "old memory slots, removed",
    },
)

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


KVM_POWERPC = Subject(
    kvm_powerpc,
    "asm/kvm.h",
    also=["linux/kvm.h"],
    # Constants alone, so the types of another machine do no harm.
    flags=() if POWERPC_HEADER is None else ("-isystem", str(POWERPC_HEADER.parent.parent)),
    excluded={
        "KVM_REG_PPC_(?!ICP_)": "registers",
        "KVM_SREGS_": "registers",
        r"kvm_(regs|sregs|fpu)(\.|$)": "registers",
        "KVM(PPC)?_(GUEST)?_?DEBUG": "debugging",
        "(KVM_GUESTDBG_|KVMPPC_DEBUG_)": "debugging",
        "kvm_(debug_exit|guest_debug)_arch": "debugging",
        "KVM_RUN_PPC_NMI_": "machine checks",
        "KVM_(PPC|CREATE_SPAPR)_": "MMU information and TCE tables",
        "kvm_(ppc|create_spapr)": "MMU information and TCE tables",
        "kvm_(book3e|get_htab)_": "MMU information and TCE tables",
        "kvm_(allocate|vcpu)_": "MMU information and TCE tables",
        "KVM_(DEV_)?(XIVE|MPIC)_": "XIVE in its native mode, MPIC",
        "KVM_(GET_HTAB|INTERRUPT|ARCH|COALESCED|INST)_": "none of XICS",
        "(KVM_SYNC|kvm_sync|KVM_CPU|kvm_rtas)_": "none of XICS",
    },
)
needs_x86 = pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "i686"),
    reason="asm/kvm.h is that of another architecture",
)
needs_powerpc_headers = pytest.mark.skipif(
    POWERPC_HEADER is None,
    reason="no POWER headers to compare with: apt install linux-libc-dev-ppc64el-cross",
)
SUBJECTS = [
    VFIO,
    PCI_REGS,
    KVM,
    pytest.param(KVM_X86, marks=needs_x86),
    pytest.param(KVM_POWERPC, marks=needs_powerpc_headers),
]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.header)
SUBJECTS_WITH_IOCTLS = [VFIO, KVM, pytest.param(KVM_X86, marks=needs_x86)]
each_subject_with_ioctls = pytest.mark.parametrize(
    "subject", SUBJECTS_WITH_IOCTLS, ids=lambda s: s.header
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


@each_subject_with_ioctls
def test_ioctl_numbers_in_the_generic_encoding(subject: Subject) -> None:
    # Keeps a POWER host's own asm/ioctl.h out; on others it changes nothing.
    flags = ["-D_ASM_POWERPC_IOCTL_H", "-include", "asm-generic/ioctl.h"]
    assert wrong_values(subject, ioctl.GENERIC, flags) == []


@each_subject_with_ioctls
@needs_powerpc_headers
def test_ioctl_numbers_in_the_powerpc_encoding(subject: Subject) -> None:
    # Included first, it settles the encoding; types and sizes stay this machine's.
    flags = ["-include", str(POWERPC_HEADER)]
    assert wrong_values(subject, ioctl.POWERPC, flags) == []


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


def test_a_wrong_field_of_what_is_declared_in_place_is_found() -> None:
    class _io(ctypes.Structure):
        _fields_ = [("direction", ctypes.c_uint16), ("count", ctypes.c_uint32)]

    class _exit(ctypes.Union):
        _fields_ = [("io", _io)]

    class kvm_run(ctypes.Structure):
        __module__ = "wrong"
        _anonymous_ = ["exit"]
        _fields_ = [("all_before", ctypes.c_uint8 * 32), ("exit", _exit)]

    subject = Subject(_module(kvm_run=kvm_run), "linux/kvm.h")
    wrong = [line.partition(" is ")[0] for line in wrong_values(subject)]
    assert wrong == [
        "sizeof(struct kvm_run)",
        "sizeof(((struct kvm_run *)0)->io)",
        "sizeof(((struct kvm_run *)0)->io.direction)",
    ]
    missing = set(missing_names(subject))
    assert {"kvm_run.io.size", "kvm_run.mmio.phys_addr", "kvm_run.flags"} <= missing
    assert "kvm_run.io.count" not in missing


@needs_x86
def test_a_wrong_bit_field_is_found() -> None:
    class _fields(ctypes.Structure):
        _fields_ = [
            ("vector", ctypes.c_uint8),
            ("delivery_mode", ctypes.c_uint8, 4),
            ("polarity", ctypes.c_uint8, 1),
        ]

    class _entry(ctypes.Union):
        _fields_ = [("bits", ctypes.c_uint64), ("fields", _fields)]

    class kvm_ioapic_state(ctypes.Structure):
        __module__ = "wrong"
        _fields_ = [("all_before", ctypes.c_uint64 * 3), ("redirtbl", _entry * 24)]

    subject = Subject(_module(kvm_ioapic_state=kvm_ioapic_state), "asm/kvm.h")
    wrong = [line.partition(" is ")[0] for line in wrong_values(subject)]
    assert wrong == [
        "sizeof(((struct kvm_ioapic_state *)0)->redirtbl[0].fields)",
        "BITS(struct kvm_ioapic_state, redirtbl[0].fields.delivery_mode)",
        "BITS(struct kvm_ioapic_state, redirtbl[0].fields.polarity)",
    ]


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


def test_names_of_a_further_header_may_be_here_and_need_not() -> None:
    module = _module(VFIO_TYPE1_IOMMU=2)
    alone = Subject(module, "linux/kvm.h")
    both = Subject(module, "linux/kvm.h", also=["linux/vfio.h"])
    assert unknown_names(alone) == ["VFIO_TYPE1_IOMMU"]
    assert unknown_names(both) == []
    assert wrong_values(both) == ["VFIO_TYPE1_IOMMU is 0x1 in the header, 0x2 here"]
    assert missing_names(both) == missing_names(alone)


def test_what_only_some_architectures_define_may_be_absent() -> None:
    module = _module(VFIO_NONSENSE=0, VFIO_TYPE1_IOMMU=2)
    subject = Subject(module, "linux/vfio.h", conditional=["VFIO_NON.*", "VFIO_TYPE1_IOMMU"])
    assert unknown_names(subject) == []
    assert len(wrong_values(subject)) == 1  # compared where it is there


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
    names = header("linux/kvm.h").names
    assert {
        "kvm_coalesced_mmio_ring.first",  # two in one declaration
        "kvm_coalesced_mmio_ring.coalesced_mmio",  # flexible array by the kernel's macro
        "kvm_irq_routing_entry.u",  # member declared in place
        "kvm_irq_routing_entry.u.msi",
        "kvm_hyperv_exit.u.hcall.params",  # two deep
        "kvm_run.io.size",  # in an anonymous union
        "kvm_run.emulation_failure.insn_size",  # in an anonymous structure in one in a member
    } <= names
    assert not {"kvm_run.size", "kvm_coalesced_mmio_ring.__empty_coalesced_mmio"} & names
