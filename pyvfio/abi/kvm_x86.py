"""KVM's interface on x86: ``asm/kvm.h``, and the requests of ``linux/kvm.h`` sized by it.

Names, layouts and values are the kernel's (Linux 7.3); kvm has what is the same everywhere.

Left out: Xen's and Hyper-V's interfaces, confidential guests (SEV, TDX), nested guests' state,
guest debugging, machine checks, PMU filters, MSR filters, the PIT's state, and of a vCPU's state
XSAVE, XCRs, debug registers and what a newer request replaces.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_uint8, c_uint16, c_uint32, c_uint64

from pyvfio.abi.ioctl import IOR, IOW, IOWR
from pyvfio.abi.kvm import KVMIO

# Types of VM: the argument of KVM_CREATE_VM.

KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1
KVM_X86_SEV_VM = 2
KVM_X86_SEV_ES_VM = 3
KVM_X86_SNP_VM = 4
KVM_X86_TDX_VM = 5

# Pages of what a vCPU's descriptor maps, after the kvm_run.

KVM_PIO_PAGE_OFFSET = 1
KVM_COALESCED_MMIO_PAGE_OFFSET = 2

# kvm_run.flags and, for KVM_EXIT_HYPERCALL, kvm_run.hypercall.flags

KVM_RUN_X86_SMM = 1 << 0
KVM_RUN_X86_BUS_LOCK = 1 << 1
KVM_RUN_X86_GUEST_MODE = 1 << 2
KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0

# KVM_CAP_DISABLE_QUIRKS2

KVM_X86_QUIRK_LINT0_REENABLED = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS = 1 << 6
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7
KVM_X86_QUIRK_STUFF_FEATURE_MSRS = 1 << 8
KVM_X86_QUIRK_IGNORE_GUEST_PAT = 1 << 9
KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM = 1 << 10
KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT = 1 << 11

# VM: in-kernel irqchips, as numbered in kvm_irqchip.chip_id and in GSI routes.

KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
KVM_NR_IRQCHIPS = 3

KVM_NR_INTERRUPTS = 256


class kvm_pic_state(Structure):
    _fields_ = [
        ("last_irr", c_uint8),
        ("irr", c_uint8),
        ("imr", c_uint8),
        ("isr", c_uint8),
        ("priority_add", c_uint8),
        ("irq_base", c_uint8),
        ("read_reg_select", c_uint8),
        ("poll", c_uint8),
        ("special_mask", c_uint8),
        ("init_state", c_uint8),
        ("auto_eoi", c_uint8),
        ("rotate_on_auto_eoi", c_uint8),
        ("special_fully_nested_mode", c_uint8),
        ("init4", c_uint8),
        ("elcr", c_uint8),
        ("elcr_mask", c_uint8),
    ]


KVM_IOAPIC_NUM_PINS = 24


class _redirection_fields(Structure):
    _fields_ = [
        ("vector", c_uint8),
        ("delivery_mode", c_uint8, 3),
        ("dest_mode", c_uint8, 1),
        ("delivery_status", c_uint8, 1),
        ("polarity", c_uint8, 1),
        ("remote_irr", c_uint8, 1),
        ("trig_mode", c_uint8, 1),
        ("mask", c_uint8, 1),
        ("reserve", c_uint8, 7),
        ("reserved", c_uint8 * 4),
        ("dest_id", c_uint8),
    ]


class _redirection(Union):
    _fields_ = [
        ("bits", c_uint64),
        ("fields", _redirection_fields),
    ]


class kvm_ioapic_state(Structure):
    _fields_ = [
        ("base_address", c_uint64),
        ("ioregsel", c_uint32),
        ("id", c_uint32),
        ("irr", c_uint32),
        ("pad", c_uint32),
        ("redirtbl", _redirection * KVM_IOAPIC_NUM_PINS),
    ]


class _irqchip_state(Union):
    _fields_ = [
        ("dummy", c_uint8 * 512),
        ("pic", kvm_pic_state),
        ("ioapic", kvm_ioapic_state),
    ]


class kvm_irqchip(Structure):
    """`chip_id` says which member of `chip` counts, to the kernel and in its answer."""

    _fields_ = [
        ("chip_id", c_uint32),
        ("pad", c_uint32),
        ("chip", _irqchip_state),
    ]


KVM_GET_IRQCHIP = IOWR("KVM_GET_IRQCHIP", KVMIO, 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = IOR("KVM_SET_IRQCHIP", KVMIO, 0x63, kvm_irqchip)

# vCPU: the local APIC.

KVM_APIC_REG_SIZE = 0x400


class kvm_lapic_state(Structure):
    """The registers' page as the guest sees it at the APIC's base."""

    _fields_ = [
        ("regs", c_uint8 * KVM_APIC_REG_SIZE),
    ]


KVM_GET_LAPIC = IOR("KVM_GET_LAPIC", KVMIO, 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = IOW("KVM_SET_LAPIC", KVMIO, 0x8F, kvm_lapic_state)

# vCPU: registers.


class kvm_regs(Structure):
    _fields_ = [
        ("rax", c_uint64),
        ("rbx", c_uint64),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rsi", c_uint64),
        ("rdi", c_uint64),
        ("rsp", c_uint64),
        ("rbp", c_uint64),
        ("r8", c_uint64),
        ("r9", c_uint64),
        ("r10", c_uint64),
        ("r11", c_uint64),
        ("r12", c_uint64),
        ("r13", c_uint64),
        ("r14", c_uint64),
        ("r15", c_uint64),
        ("rip", c_uint64),
        ("rflags", c_uint64),
    ]


KVM_GET_REGS = IOR("KVM_GET_REGS", KVMIO, 0x81, kvm_regs)
KVM_SET_REGS = IOW("KVM_SET_REGS", KVMIO, 0x82, kvm_regs)


class kvm_segment(Structure):
    """`limit` is in bytes, whatever `g` says."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class kvm_dtable(Structure):
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint16),
        ("padding", c_uint16 * 3),
    ]


class kvm_sregs(Structure):
    """A bit set in `interrupt_bitmap` is the external interrupt being delivered."""

    _fields_ = [
        ("cs", kvm_segment),
        ("ds", kvm_segment),
        ("es", kvm_segment),
        ("fs", kvm_segment),
        ("gs", kvm_segment),
        ("ss", kvm_segment),
        ("tr", kvm_segment),
        ("ldt", kvm_segment),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * ((KVM_NR_INTERRUPTS + 63) // 64)),
    ]


KVM_GET_SREGS = IOR("KVM_GET_SREGS", KVMIO, 0x83, kvm_sregs)
KVM_SET_SREGS = IOW("KVM_SET_SREGS", KVMIO, 0x84, kvm_sregs)


class kvm_fpu(Structure):
    _fields_ = [
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    ]


KVM_GET_FPU = IOR("KVM_GET_FPU", KVMIO, 0x8C, kvm_fpu)
KVM_SET_FPU = IOW("KVM_SET_FPU", KVMIO, 0x8D, kvm_fpu)

# Numbers of registers for KVM_GET_ONE_REG: KVM_REG_X86 | size | type << 32 | index.

KVM_X86_REG_TYPE_MSR = 2
KVM_X86_REG_TYPE_KVM = 3
KVM_REG_GUEST_SSP = 0

# vCPU: model-specific registers. The result of KVM_GET_MSRS and KVM_SET_MSRS is how many were done.


class kvm_msr_entry(Structure):
    _fields_ = [
        ("index", c_uint32),
        ("reserved", c_uint32),
        ("data", c_uint64),
    ]


class kvm_msrs(Structure):
    _fields_ = [
        ("nmsrs", c_uint32),
        ("pad", c_uint32),
        ("entries", kvm_msr_entry * 0),
    ]


KVM_GET_MSRS = IOWR("KVM_GET_MSRS", KVMIO, 0x88, kvm_msrs)
KVM_SET_MSRS = IOW("KVM_SET_MSRS", KVMIO, 0x89, kvm_msrs)


class kvm_msr_list(Structure):
    """E2BIG: `nmsrs` was too small, and now says how many there are."""

    _fields_ = [
        ("nmsrs", c_uint32),
        ("indices", c_uint32 * 0),
    ]


# On /dev/kvm, as is KVM_GET_MSRS with what the second lists.
KVM_GET_MSR_INDEX_LIST = IOWR("KVM_GET_MSR_INDEX_LIST", KVMIO, 0x02, kvm_msr_list)
KVM_GET_MSR_FEATURE_INDEX_LIST = IOWR("KVM_GET_MSR_FEATURE_INDEX_LIST", KVMIO, 0x0A, kvm_msr_list)

# vCPU: what CPUID answers.


class kvm_cpuid_entry2(Structure):
    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0
KVM_CPUID_FLAG_STATEFUL_FUNC = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT = 1 << 2


class kvm_cpuid2(Structure):
    """E2BIG: `nent` was too small."""

    _fields_ = [
        ("nent", c_uint32),
        ("padding", c_uint32),
        ("entries", kvm_cpuid_entry2 * 0),
    ]


KVM_SET_CPUID2 = IOW("KVM_SET_CPUID2", KVMIO, 0x90, kvm_cpuid2)
KVM_GET_CPUID2 = IOWR("KVM_GET_CPUID2", KVMIO, 0x91, kvm_cpuid2)

# On /dev/kvm.
KVM_GET_SUPPORTED_CPUID = IOWR("KVM_GET_SUPPORTED_CPUID", KVMIO, 0x05, kvm_cpuid2)
KVM_GET_EMULATED_CPUID = IOWR("KVM_GET_EMULATED_CPUID", KVMIO, 0x09, kvm_cpuid2)

# vCPU: exceptions and interrupts on their way.


class _events_exception(Structure):
    _fields_ = [
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    ]


class _events_interrupt(Structure):
    _fields_ = [
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("soft", c_uint8),
        ("shadow", c_uint8),
    ]


class _events_nmi(Structure):
    _fields_ = [
        ("injected", c_uint8),
        ("pending", c_uint8),
        ("masked", c_uint8),
        ("pad", c_uint8),
    ]


class _events_smi(Structure):
    _fields_ = [
        ("smm", c_uint8),
        ("pending", c_uint8),
        ("smm_inside_nmi", c_uint8),
        ("latched_init", c_uint8),
    ]


class _events_triple_fault(Structure):
    _fields_ = [
        ("pending", c_uint8),
    ]


class kvm_vcpu_events(Structure):
    """`flags` tells the kernel which of the rest to take."""

    _fields_ = [
        ("exception", _events_exception),
        ("interrupt", _events_interrupt),
        ("nmi", _events_nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", _events_smi),
        ("triple_fault", _events_triple_fault),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


KVM_VCPUEVENT_VALID_NMI_PENDING = 0x00000001
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x00000002
KVM_VCPUEVENT_VALID_SHADOW = 0x00000004
KVM_VCPUEVENT_VALID_SMM = 0x00000008
KVM_VCPUEVENT_VALID_PAYLOAD = 0x00000010
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x00000020

# kvm_vcpu_events.interrupt.shadow
KVM_X86_SHADOW_INT_MOV_SS = 0x01
KVM_X86_SHADOW_INT_STI = 0x02

KVM_GET_VCPU_EVENTS = IOR("KVM_GET_VCPU_EVENTS", KVMIO, 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = IOW("KVM_SET_VCPU_EVENTS", KVMIO, 0xA0, kvm_vcpu_events)

# vCPU: its attributes, for KVM_SET_DEVICE_ATTR.

KVM_VCPU_TSC_CTRL = 0  # group
KVM_VCPU_TSC_OFFSET = 0

# vCPU: registers without requests, in kvm_run.s. Bits of kvm_run.kvm_valid_regs, kvm_dirty_regs.

KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
KVM_SYNC_X86_EVENTS = 1 << 2
KVM_SYNC_X86_VALID_FIELDS = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


class kvm_sync_regs(Structure):
    _fields_ = [
        ("regs", kvm_regs),
        ("sregs", kvm_sregs),
        ("events", kvm_vcpu_events),
    ]
