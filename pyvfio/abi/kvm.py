"""KVM's interface: ``linux/kvm.h``, what is the same on every architecture.

Names, layouts and values are the kernel's (Linux 7.3). An older kernel refuses what it does not
know; KVM_CHECK_EXTENSION tells beforehand.

A flexible-array tail is a field of length 0: it takes no space, and its offset is where the entries
begin, in a buffer that the caller makes longer than the structure.

The argument's size is part of each number. Requests whose argument has another layout on each
architecture (registers, local APIC, irqchip state) are in the module of the architecture's
``asm/kvm.h``: kvm_x86.

Left out: what only s390, arm64, MIPS or POWER have besides their capability, exit and device
numbers; confidential guests (SEV, TDX, protected virtualization); Xen's and Hyper-V's interfaces;
nested guests' state, guest debugging, machine checks, PMU filters, dirty rings; device assignment
and tracing of KVM's own, gone from the kernel. s390's struct kvm_run differs and is not this one.
"""

from __future__ import annotations

from ctypes import (
    Structure,
    Union,
    c_char,
    c_int16,
    c_int32,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_ulong,
    c_void_p,
)

from pyvfio.abi.ioctl import IO, IOR, IOW, IOWR

KVM_API_VERSION = 12

KVMIO = 0xAE

# /dev/kvm.

KVM_GET_API_VERSION = IO("KVM_GET_API_VERSION", KVMIO, 0x00)
KVM_CREATE_VM = IO("KVM_CREATE_VM", KVMIO, 0x01)  # argument: the VM's type; result: its descriptor
KVM_CHECK_EXTENSION = IO("KVM_CHECK_EXTENSION", KVMIO, 0x03)  # on a VM too
KVM_GET_VCPU_MMAP_SIZE = IO("KVM_GET_VCPU_MMAP_SIZE", KVMIO, 0x04)  # bytes

# Types of VM, of POWER; 0 lets the kernel choose.

KVM_VM_PPC_HV = 1
KVM_VM_PPC_PR = 2

# Capabilities: arguments of KVM_CHECK_EXTENSION, some also of KVM_ENABLE_CAP.

KVM_CAP_IRQCHIP = 0
KVM_CAP_HLT = 1
KVM_CAP_MMU_SHADOW_CACHE_CONTROL = 2
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_VAPIC = 6
KVM_CAP_EXT_CPUID = 7
KVM_CAP_CLOCKSOURCE = 8
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_PIT = 11
KVM_CAP_NOP_IO_DELAY = 12
KVM_CAP_PV_MMU = 13
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_SYNC_MMU = 16
KVM_CAP_IOMMU = 18
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_USER_NMI = 22
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_REINJECT_CONTROL = 24
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQ_INJECT_STATUS = 26
KVM_CAP_ASSIGN_DEV_IRQ = 29
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30
KVM_CAP_MCE = 31
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_SET_BOOT_CPU_ID = 34
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_XEN_HVM = 38
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_S390_PSW = 42
KVM_CAP_PPC_SEGSTATE = 43
KVM_CAP_HYPERV = 44
KVM_CAP_HYPERV_VAPIC = 45
KVM_CAP_HYPERV_SPIN = 46
KVM_CAP_PCI_SEGMENT = 47
KVM_CAP_PPC_PAIRED_SINGLES = 48
KVM_CAP_INTR_SHADOW = 49
KVM_CAP_DEBUGREGS = 50
KVM_CAP_X86_ROBUST_SINGLESTEP = 51
KVM_CAP_PPC_OSI = 52
KVM_CAP_PPC_UNSET_IRQ = 53
KVM_CAP_ENABLE_CAP = 54
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_PPC_GET_PVINFO = 57
KVM_CAP_PPC_IRQ_LEVEL = 58
KVM_CAP_ASYNC_PF = 59
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_PPC_BOOKE_SREGS = 62
KVM_CAP_SPAPR_TCE = 63
KVM_CAP_PPC_SMT = 64
KVM_CAP_PPC_RMA = 65
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_PPC_HIOR = 67
KVM_CAP_PPC_PAPR = 68
KVM_CAP_SW_TLB = 69
KVM_CAP_ONE_REG = 70
KVM_CAP_S390_GMAP = 71
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_S390_UCONTROL = 73
KVM_CAP_SYNC_REGS = 74
KVM_CAP_PCI_2_3 = 75
KVM_CAP_KVMCLOCK_CTRL = 76
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_PPC_GET_SMMU_INFO = 78
KVM_CAP_S390_COW = 79
KVM_CAP_PPC_ALLOC_HTAB = 80
KVM_CAP_READONLY_MEM = 81
KVM_CAP_IRQFD_RESAMPLE = 82
KVM_CAP_PPC_BOOKE_WATCHDOG = 83
KVM_CAP_PPC_HTAB_FD = 84
KVM_CAP_S390_CSS_SUPPORT = 85
KVM_CAP_PPC_EPR = 86
KVM_CAP_ARM_PSCI = 87
KVM_CAP_ARM_SET_DEVICE_ADDR = 88
KVM_CAP_DEVICE_CTRL = 89
KVM_CAP_IRQ_MPIC = 90
KVM_CAP_PPC_RTAS = 91
KVM_CAP_IRQ_XICS = 92
KVM_CAP_ARM_EL1_32BIT = 93
KVM_CAP_SPAPR_MULTITCE = 94
KVM_CAP_EXT_EMUL_CPUID = 95
KVM_CAP_HYPERV_TIME = 96
KVM_CAP_IOAPIC_POLARITY_IGNORED = 97
KVM_CAP_ENABLE_CAP_VM = 98
KVM_CAP_S390_IRQCHIP = 99
KVM_CAP_IOEVENTFD_NO_LENGTH = 100
KVM_CAP_VM_ATTRIBUTES = 101
KVM_CAP_ARM_PSCI_0_2 = 102
KVM_CAP_PPC_FIXUP_HCALL = 103
KVM_CAP_PPC_ENABLE_HCALL = 104
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_S390_USER_SIGP = 106
KVM_CAP_S390_VECTOR_REGISTERS = 107
KVM_CAP_S390_MEM_OP = 108
KVM_CAP_S390_USER_STSI = 109
KVM_CAP_S390_SKEYS = 110
KVM_CAP_MIPS_FPU = 111
KVM_CAP_MIPS_MSA = 112
KVM_CAP_S390_INJECT_IRQ = 113
KVM_CAP_S390_IRQ_STATE = 114
KVM_CAP_PPC_HWRNG = 115
KVM_CAP_DISABLE_QUIRKS = 116
KVM_CAP_X86_SMM = 117
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_GUEST_DEBUG_HW_BPS = 119
KVM_CAP_GUEST_DEBUG_HW_WPS = 120
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_HYPERV_SYNIC = 123
KVM_CAP_S390_RI = 124
KVM_CAP_SPAPR_TCE_64 = 125
KVM_CAP_ARM_PMU_V3 = 126
KVM_CAP_VCPU_ATTRIBUTES = 127
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_X2APIC_API = 129
KVM_CAP_S390_USER_INSTR0 = 130
KVM_CAP_MSI_DEVID = 131
KVM_CAP_PPC_HTM = 132
KVM_CAP_SPAPR_RESIZE_HPT = 133
KVM_CAP_PPC_MMU_RADIX = 134
KVM_CAP_PPC_MMU_HASH_V3 = 135
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_MIPS_VZ = 137
KVM_CAP_MIPS_TE = 138
KVM_CAP_MIPS_64BIT = 139
KVM_CAP_S390_GS = 140
KVM_CAP_S390_AIS = 141
KVM_CAP_SPAPR_TCE_VFIO = 142
KVM_CAP_X86_DISABLE_EXITS = 143
KVM_CAP_ARM_USER_IRQ = 144
KVM_CAP_S390_CMMA_MIGRATION = 145
KVM_CAP_PPC_FWNMI = 146
KVM_CAP_PPC_SMT_POSSIBLE = 147
KVM_CAP_HYPERV_SYNIC2 = 148
KVM_CAP_HYPERV_VP_INDEX = 149
KVM_CAP_S390_AIS_MIGRATION = 150
KVM_CAP_PPC_GET_CPU_CHAR = 151
KVM_CAP_S390_BPB = 152
KVM_CAP_GET_MSR_FEATURES = 153
KVM_CAP_HYPERV_EVENTFD = 154
KVM_CAP_HYPERV_TLBFLUSH = 155
KVM_CAP_S390_HPAGE_1M = 156
KVM_CAP_NESTED_STATE = 157
KVM_CAP_ARM_INJECT_SERROR_ESR = 158
KVM_CAP_MSR_PLATFORM_INFO = 159
KVM_CAP_PPC_NESTED_HV = 160
KVM_CAP_HYPERV_SEND_IPI = 161
KVM_CAP_COALESCED_PIO = 162
KVM_CAP_HYPERV_ENLIGHTENED_VMCS = 163
KVM_CAP_EXCEPTION_PAYLOAD = 164
KVM_CAP_ARM_VM_IPA_SIZE = 165
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT = 166
KVM_CAP_HYPERV_CPUID = 167
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_PPC_IRQ_XIVE = 169
KVM_CAP_ARM_SVE = 170
KVM_CAP_ARM_PTRAUTH_ADDRESS = 171
KVM_CAP_ARM_PTRAUTH_GENERIC = 172
KVM_CAP_PMU_EVENT_FILTER = 173
KVM_CAP_ARM_IRQ_LINE_LAYOUT_2 = 174
KVM_CAP_HYPERV_DIRECT_TLBFLUSH = 175
KVM_CAP_PPC_GUEST_DEBUG_SSTEP = 176
KVM_CAP_ARM_NISV_TO_USER = 177
KVM_CAP_ARM_INJECT_EXT_DABT = 178
KVM_CAP_S390_VCPU_RESETS = 179
KVM_CAP_S390_PROTECTED = 180
KVM_CAP_PPC_SECURE_GUEST = 181
KVM_CAP_HALT_POLL = 182
KVM_CAP_ASYNC_PF_INT = 183
KVM_CAP_LAST_CPU = 184
KVM_CAP_SMALLER_MAXPHYADDR = 185
KVM_CAP_S390_DIAG318 = 186
KVM_CAP_STEAL_TIME = 187
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189
KVM_CAP_ENFORCE_PV_FEATURE_CPUID = 190
KVM_CAP_SYS_HYPERV_CPUID = 191
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_X86_BUS_LOCK_EXIT = 193
KVM_CAP_PPC_DAWR1 = 194
KVM_CAP_SET_GUEST_DEBUG2 = 195
KVM_CAP_SGX_ATTRIBUTE = 196
KVM_CAP_VM_COPY_ENC_CONTEXT_FROM = 197
KVM_CAP_PTP_KVM = 198
KVM_CAP_HYPERV_ENFORCE_CPUID = 199
KVM_CAP_SREGS2 = 200
KVM_CAP_EXIT_HYPERCALL = 201
KVM_CAP_PPC_RPT_INVALIDATE = 202
KVM_CAP_BINARY_STATS_FD = 203
KVM_CAP_EXIT_ON_EMULATION_FAILURE = 204
KVM_CAP_ARM_MTE = 205
KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM = 206
KVM_CAP_VM_GPA_BITS = 207
KVM_CAP_XSAVE2 = 208
KVM_CAP_SYS_ATTRIBUTES = 209
KVM_CAP_PPC_AIL_MODE_3 = 210
KVM_CAP_S390_MEM_OP_EXTENSION = 211
KVM_CAP_PMU_CAPABILITY = 212
KVM_CAP_DISABLE_QUIRKS2 = 213
KVM_CAP_VM_TSC_CONTROL = 214
KVM_CAP_SYSTEM_EVENT_DATA = 215
KVM_CAP_ARM_SYSTEM_SUSPEND = 216
KVM_CAP_S390_PROTECTED_DUMP = 217
KVM_CAP_X86_TRIPLE_FAULT_EVENT = 218
KVM_CAP_X86_NOTIFY_VMEXIT = 219
KVM_CAP_VM_DISABLE_NX_HUGE_PAGES = 220
KVM_CAP_S390_ZPCI_OP = 221
KVM_CAP_S390_CPU_TOPOLOGY = 222
KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223
KVM_CAP_S390_PROTECTED_ASYNC_DISABLE = 224
KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP = 225
KVM_CAP_PMU_EVENT_MASKED_EVENTS = 226
KVM_CAP_COUNTER_OFFSET = 227
KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE = 228
KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES = 229
KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES = 230
KVM_CAP_USER_MEMORY2 = 231
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_MEMORY_ATTRIBUTES = 233
KVM_CAP_GUEST_MEMFD = 234
KVM_CAP_VM_TYPES = 235
KVM_CAP_PRE_FAULT_MEMORY = 236
KVM_CAP_X86_APIC_BUS_CYCLES_NS = 237
KVM_CAP_X86_GUEST_MODE = 238
KVM_CAP_ARM_WRITABLE_IMP_ID_REGS = 239
KVM_CAP_ARM_EL2 = 240
KVM_CAP_ARM_EL2_E2H0 = 241
KVM_CAP_RISCV_MP_STATE_RESET = 242
KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED = 243
KVM_CAP_GUEST_MEMFD_FLAGS = 244
KVM_CAP_ARM_SEA_TO_USER = 245
KVM_CAP_S390_USER_OPEREXEC = 246
KVM_CAP_S390_KEYOP = 247
KVM_CAP_S390_VSIE_ESAMODE = 248
KVM_CAP_S390_HPAGE_2G = 249
KVM_CAP_PPC_COMPAT_CAPS = 250
KVM_CAP_ARM_PMU_V3_STRICT = 251


class kvm_enable_cap(Structure):
    _fields_ = [
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    ]


# On a VM with KVM_CAP_ENABLE_CAP_VM, on a vCPU with KVM_CAP_ENABLE_CAP.
KVM_ENABLE_CAP = IOW("KVM_ENABLE_CAP", KVMIO, 0xA3, kvm_enable_cap)

# What some of them take as an argument or return.

# KVM_CAP_X2APIC_API: x86's, in its asm/kvm.h by now; what an MSI's address means depends on it.
KVM_X2APIC_API_USE_32BIT_IDS = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST = 1 << 2
KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 3

KVM_X86_DISABLE_EXITS_MWAIT = 1 << 0
KVM_X86_DISABLE_EXITS_HLT = 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE = 1 << 2
KVM_X86_DISABLE_EXITS_CSTATE = 1 << 3
KVM_X86_DISABLE_EXITS_APERFMPERF = 1 << 4

KVM_X86_NOTIFY_VMEXIT_ENABLED = 1 << 0
KVM_X86_NOTIFY_VMEXIT_USER = 1 << 1

KVM_BUS_LOCK_DETECTION_OFF = 1 << 0
KVM_BUS_LOCK_DETECTION_EXIT = 1 << 1

KVM_MSR_EXIT_REASON_INVAL = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK = (
    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER
)

KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1

# VM: memory. Addresses and sizes are bytes, `memory_size` 0 takes a slot away.


class kvm_userspace_memory_region(Structure):
    """`slot`: the number in the low 16 bits, the address space above."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class kvm_userspace_memory_region2(Structure):
    """`guest_memfd` counts only with KVM_MEM_GUEST_MEMFD."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("guest_memfd_offset", c_uint64),
        ("guest_memfd", c_uint32),
        ("pad1", c_uint32),
        ("pad2", c_uint64 * 14),
    ]


KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2

KVM_SET_USER_MEMORY_REGION = IOW(
    "KVM_SET_USER_MEMORY_REGION", KVMIO, 0x46, kvm_userspace_memory_region
)
KVM_SET_USER_MEMORY_REGION2 = IOW(
    "KVM_SET_USER_MEMORY_REGION2", KVMIO, 0x49, kvm_userspace_memory_region2
)

KVM_SET_NR_MMU_PAGES = IO("KVM_SET_NR_MMU_PAGES", KVMIO, 0x44)
KVM_GET_NR_MMU_PAGES = IO("KVM_GET_NR_MMU_PAGES", KVMIO, 0x45)

# Intel's real mode needs two places in the guest's address space.
KVM_SET_TSS_ADDR = IO("KVM_SET_TSS_ADDR", KVMIO, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = IOW("KVM_SET_IDENTITY_MAP_ADDR", KVMIO, 0x48, c_uint64)


class _dirty_bitmap(Union):
    _fields_ = [
        ("dirty_bitmap", c_void_p),
        ("padding2", c_uint64),
    ]


class kvm_dirty_log(Structure):
    """`dirty_bitmap`: a bit per page of the slot."""

    _anonymous_ = ("_dirty_bitmap",)
    _fields_ = [
        ("slot", c_uint32),
        ("padding1", c_uint32),
        ("_dirty_bitmap", _dirty_bitmap),
    ]


class kvm_clear_dirty_log(Structure):
    _anonymous_ = ("_dirty_bitmap",)
    _fields_ = [
        ("slot", c_uint32),
        ("num_pages", c_uint32),
        ("first_page", c_uint64),
        ("_dirty_bitmap", _dirty_bitmap),
    ]


KVM_GET_DIRTY_LOG = IOW("KVM_GET_DIRTY_LOG", KVMIO, 0x42, kvm_dirty_log)
KVM_CLEAR_DIRTY_LOG = IOWR("KVM_CLEAR_DIRTY_LOG", KVMIO, 0xC0, kvm_clear_dirty_log)


class kvm_memory_attributes(Structure):
    _fields_ = [
        ("address", c_uint64),
        ("size", c_uint64),
        ("attributes", c_uint64),
        ("flags", c_uint64),
    ]


KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3

KVM_SET_MEMORY_ATTRIBUTES = IOW("KVM_SET_MEMORY_ATTRIBUTES", KVMIO, 0xD2, kvm_memory_attributes)


class kvm_create_guest_memfd(Structure):
    _fields_ = [
        ("size", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 6),
    ]


GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1

KVM_CREATE_GUEST_MEMFD = IOWR("KVM_CREATE_GUEST_MEMFD", KVMIO, 0xD4, kvm_create_guest_memfd)

# VM: vCPUs and their model. The argument of KVM_CREATE_VCPU is the vCPU's number, 0 is the first.

KVM_CREATE_VCPU = IO("KVM_CREATE_VCPU", KVMIO, 0x41)
KVM_SET_BOOT_CPU_ID = IO("KVM_SET_BOOT_CPU_ID", KVMIO, 0x78)

# VM: in-kernel irqchips and interrupt lines.

KVM_CREATE_IRQCHIP = IO("KVM_CREATE_IRQCHIP", KVMIO, 0x60)


class _irq_or_status(Union):
    _fields_ = [
        ("irq", c_uint32),
        ("status", c_int32),
    ]


class kvm_irq_level(Structure):
    """`irq` is a GSI, except on arm64; `status` is what KVM_IRQ_LINE_STATUS answers."""

    _anonymous_ = ("_irq_or_status",)
    _fields_ = [
        ("_irq_or_status", _irq_or_status),
        ("level", c_uint32),
    ]


KVM_IRQ_LINE = IOW("KVM_IRQ_LINE", KVMIO, 0x61, kvm_irq_level)
KVM_IRQ_LINE_STATUS = IOWR("KVM_IRQ_LINE_STATUS", KVMIO, 0x67, kvm_irq_level)


class kvm_pit_config(Structure):
    _fields_ = [
        ("flags", c_uint32),
        ("pad", c_uint32 * 15),
    ]


KVM_PIT_SPEAKER_DUMMY = 1

KVM_CREATE_PIT = IO("KVM_CREATE_PIT", KVMIO, 0x64)
KVM_CREATE_PIT2 = IOW("KVM_CREATE_PIT2", KVMIO, 0x77, kvm_pit_config)
KVM_REINJECT_CONTROL = IO("KVM_REINJECT_CONTROL", KVMIO, 0x71)

# VM: where each GSI goes. POWER's servers have no table: a GSI is the interrupt source's number.


class kvm_irq_routing_irqchip(Structure):
    _fields_ = [
        ("irqchip", c_uint32),
        ("pin", c_uint32),
    ]


class _pad_or_devid(Union):
    _fields_ = [
        ("pad", c_uint32),
        ("devid", c_uint32),
    ]


class kvm_irq_routing_msi(Structure):
    """`devid` counts only with KVM_MSI_VALID_DEVID in the entry's flags."""

    _anonymous_ = ("_pad_or_devid",)
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("_pad_or_devid", _pad_or_devid),
    ]


class kvm_irq_routing_s390_adapter(Structure):
    _fields_ = [
        ("ind_addr", c_uint64),
        ("summary_addr", c_uint64),
        ("ind_offset", c_uint64),
        ("summary_offset", c_uint32),
        ("adapter_id", c_uint32),
    ]


class kvm_irq_routing_hv_sint(Structure):
    _fields_ = [
        ("vcpu", c_uint32),
        ("sint", c_uint32),
    ]


class kvm_irq_routing_xen_evtchn(Structure):
    _fields_ = [
        ("port", c_uint32),
        ("vcpu", c_uint32),
        ("priority", c_uint32),
    ]


KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL = 0xFFFFFFFF


class _irq_routing_target(Union):
    _fields_ = [
        ("irqchip", kvm_irq_routing_irqchip),
        ("msi", kvm_irq_routing_msi),
        ("adapter", kvm_irq_routing_s390_adapter),
        ("hv_sint", kvm_irq_routing_hv_sint),
        ("xen_evtchn", kvm_irq_routing_xen_evtchn),
        ("pad", c_uint32 * 8),
    ]


class kvm_irq_routing_entry(Structure):
    _fields_ = [
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("u", _irq_routing_target),
    ]


# Types of entry.
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQ_ROUTING_S390_ADAPTER = 3
KVM_IRQ_ROUTING_HV_SINT = 4
KVM_IRQ_ROUTING_XEN_EVTCHN = 5


class kvm_irq_routing(Structure):
    """The whole table: it replaces what was there."""

    _fields_ = [
        ("nr", c_uint32),
        ("flags", c_uint32),
        ("entries", kvm_irq_routing_entry * 0),
    ]


KVM_SET_GSI_ROUTING = IOW("KVM_SET_GSI_ROUTING", KVMIO, 0x6A, kvm_irq_routing)

# VM: interrupts and doorbells by eventfd.


class kvm_irqfd(Structure):
    """`resamplefd` counts only with KVM_IRQFD_FLAG_RESAMPLE."""

    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1

KVM_IRQFD = IOW("KVM_IRQFD", KVMIO, 0x76, kvm_irqfd)


class kvm_ioeventfd(Structure):
    """`len`: bytes of the write, 1, 2, 4 or 8, or 0 for any."""

    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2
KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY = 1 << 3

KVM_IOEVENTFD = IOW("KVM_IOEVENTFD", KVMIO, 0x79, kvm_ioeventfd)

# VM: an MSI without a route.


class kvm_msi(Structure):
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    ]


KVM_MSI_VALID_DEVID = 1 << 0

# Result: above 0 delivered, 0 the guest did not take it.
KVM_SIGNAL_MSI = IOW("KVM_SIGNAL_MSI", KVMIO, 0xA5, kvm_msi)

# VM: writes that are collected instead of ending KVM_RUN. `pio`: the address is a port.


class _pad_or_pio(Union):
    _fields_ = [
        ("pad", c_uint32),
        ("pio", c_uint32),
    ]


class kvm_coalesced_mmio_zone(Structure):
    _anonymous_ = ("_pad_or_pio",)
    _fields_ = [
        ("addr", c_uint64),
        ("size", c_uint32),
        ("_pad_or_pio", _pad_or_pio),
    ]


class kvm_coalesced_mmio(Structure):
    _anonymous_ = ("_pad_or_pio",)
    _fields_ = [
        ("phys_addr", c_uint64),
        ("len", c_uint32),
        ("_pad_or_pio", _pad_or_pio),
        ("data", c_uint8 * 8),
    ]


class kvm_coalesced_mmio_ring(Structure):
    """A page of what a vCPU's descriptor maps; its number is KVM_CAP_COALESCED_MMIO's value."""

    _fields_ = [
        ("first", c_uint32),
        ("last", c_uint32),
        ("coalesced_mmio", kvm_coalesced_mmio * 0),
    ]


KVM_REGISTER_COALESCED_MMIO = IOW(
    "KVM_REGISTER_COALESCED_MMIO", KVMIO, 0x67, kvm_coalesced_mmio_zone
)
KVM_UNREGISTER_COALESCED_MMIO = IOW(
    "KVM_UNREGISTER_COALESCED_MMIO", KVMIO, 0x68, kvm_coalesced_mmio_zone
)

# VM: its clock, in nanoseconds.


class kvm_clock_data(Structure):
    _fields_ = [
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    ]


KVM_CLOCK_TSC_STABLE = 1 << 1
KVM_CLOCK_REALTIME = 1 << 2
KVM_CLOCK_HOST_TSC = 1 << 3

KVM_SET_CLOCK = IOW("KVM_SET_CLOCK", KVMIO, 0x7B, kvm_clock_data)
KVM_GET_CLOCK = IOR("KVM_GET_CLOCK", KVMIO, 0x7C, kvm_clock_data)

# VM: devices, and what their descriptors take. VMs and vCPUs have attributes too.


class kvm_create_device(Structure):
    """The kernel returns the device's descriptor in `fd`."""

    _fields_ = [
        ("type", c_uint32),
        ("fd", c_uint32),
        ("flags", c_uint32),
    ]


KVM_CREATE_DEVICE_TEST = 1

KVM_DEV_TYPE_FSL_MPIC_20 = 1
KVM_DEV_TYPE_FSL_MPIC_42 = 2
KVM_DEV_TYPE_XICS = 3
KVM_DEV_TYPE_VFIO = 4
KVM_DEV_TYPE_ARM_VGIC_V2 = 5
KVM_DEV_TYPE_FLIC = 6
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_TYPE_ARM_VGIC_ITS = 8
KVM_DEV_TYPE_XIVE = 9
KVM_DEV_TYPE_ARM_PV_TIME = 10
KVM_DEV_TYPE_RISCV_AIA = 11
KVM_DEV_TYPE_LOONGARCH_IPI = 12
KVM_DEV_TYPE_LOONGARCH_EIOINTC = 13
KVM_DEV_TYPE_LOONGARCH_PCHPIC = 14
KVM_DEV_TYPE_LOONGARCH_DMSINTC = 15
KVM_DEV_TYPE_ARM_VGIC_V5 = 16

KVM_CREATE_DEVICE = IOWR("KVM_CREATE_DEVICE", KVMIO, 0xE0, kvm_create_device)


class kvm_device_attr(Structure):
    """`addr` is where the caller has the attribute's value."""

    _fields_ = [
        ("flags", c_uint32),
        ("group", c_uint32),
        ("attr", c_uint64),
        ("addr", c_uint64),
    ]


KVM_SET_DEVICE_ATTR = IOW("KVM_SET_DEVICE_ATTR", KVMIO, 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = IOW("KVM_GET_DEVICE_ATTR", KVMIO, 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = IOW("KVM_HAS_DEVICE_ATTR", KVMIO, 0xE3, kvm_device_attr)

# The KVM-VFIO device: tells KVM of VFIO's groups and, from 6.6 on, of VFIO's devices.

KVM_DEV_VFIO_FILE = 1  # group; the value is a 32-bit descriptor
KVM_DEV_VFIO_FILE_ADD = 1
KVM_DEV_VFIO_FILE_DEL = 2
KVM_DEV_VFIO_GROUP = KVM_DEV_VFIO_FILE
KVM_DEV_VFIO_GROUP_ADD = KVM_DEV_VFIO_FILE_ADD
KVM_DEV_VFIO_GROUP_DEL = KVM_DEV_VFIO_FILE_DEL
KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE = 3


class kvm_vfio_spapr_tce(Structure):
    """`tablefd` is a TCE table's, from KVM_CREATE_SPAPR_TCE_64."""

    _fields_ = [
        ("groupfd", c_int32),
        ("tablefd", c_int32),
    ]


# VM and vCPU: statistics, read from a descriptor of their own.


class kvm_stats_header(Structure):
    _fields_ = [
        ("flags", c_uint32),
        ("name_size", c_uint32),
        ("num_desc", c_uint32),
        ("id_offset", c_uint32),
        ("desc_offset", c_uint32),
        ("data_offset", c_uint32),
    ]


class kvm_stats_desc(Structure):
    """`size` counts values of 64 bits; `name` takes the header's `name_size` bytes."""

    _fields_ = [
        ("flags", c_uint32),
        ("exponent", c_int16),
        ("size", c_uint16),
        ("offset", c_uint32),
        ("bucket_size", c_uint32),
        ("name", c_char * 0),
    ]


KVM_STATS_TYPE_SHIFT = 0
KVM_STATS_TYPE_MASK = 0xF << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_CUMULATIVE = 0 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_INSTANT = 1 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_PEAK = 2 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_LINEAR_HIST = 3 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_LOG_HIST = 4 << KVM_STATS_TYPE_SHIFT

KVM_STATS_UNIT_SHIFT = 4
KVM_STATS_UNIT_MASK = 0xF << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_NONE = 0 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_BYTES = 1 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_SECONDS = 2 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_CYCLES = 3 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_BOOLEAN = 4 << KVM_STATS_UNIT_SHIFT

KVM_STATS_BASE_SHIFT = 8
KVM_STATS_BASE_MASK = 0xF << KVM_STATS_BASE_SHIFT
KVM_STATS_BASE_POW10 = 0 << KVM_STATS_BASE_SHIFT
KVM_STATS_BASE_POW2 = 1 << KVM_STATS_BASE_SHIFT

KVM_GET_STATS_FD = IO("KVM_GET_STATS_FD", KVMIO, 0xCE)

# vCPU: running. The descriptor maps a kvm_run of KVM_GET_VCPU_MMAP_SIZE bytes.

KVM_RUN = IO("KVM_RUN", KVMIO, 0x80)

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_S390_SIEIC = 13
KVM_EXIT_S390_RESET = 14
KVM_EXIT_DCR = 15
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_OSI = 18
KVM_EXIT_PAPR_HCALL = 19
KVM_EXIT_S390_UCONTROL = 20
KVM_EXIT_WATCHDOG = 21
KVM_EXIT_S390_TSCH = 22
KVM_EXIT_EPR = 23
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_S390_STSI = 25
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_ARM_NISV = 28
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_RISCV_SBI = 35
KVM_EXIT_RISCV_CSR = 36
KVM_EXIT_NOTIFY = 37
KVM_EXIT_LOONGARCH_IOCSR = 38
KVM_EXIT_MEMORY_FAULT = 39
KVM_EXIT_TDX = 40
KVM_EXIT_ARM_SEA = 41
KVM_EXIT_ARM_LDST64B = 42
KVM_EXIT_SNP_REQ_CERTS = 43

# kvm_run.io.direction
KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

# kvm_run.internal.suberror, and kvm_run.emulation_failure.flags
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

# kvm_run.system_event.type
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5
KVM_SYSTEM_EVENT_SEV_TERM = 6
KVM_SYSTEM_EVENT_TDX_FATAL = 7

# kvm_run.hyperv.type and kvm_run.xen.type
KVM_EXIT_HYPERV_SYNIC = 1
KVM_EXIT_HYPERV_HCALL = 2
KVM_EXIT_HYPERV_SYNDBG = 3
KVM_EXIT_XEN_HCALL = 1

# kvm_run.notify.flags, kvm_run.memory_fault.flags and kvm_run.arm_sea.flags
KVM_NOTIFY_CONTEXT_INVALID = 1 << 0
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
KVM_EXIT_ARM_SEA_FLAG_GPA_VALID = 1 << 0


class _hyperv_synic(Structure):
    _fields_ = [
        ("msr", c_uint32),
        ("pad2", c_uint32),
        ("control", c_uint64),
        ("evt_page", c_uint64),
        ("msg_page", c_uint64),
    ]


class _hyperv_hcall(Structure):
    _fields_ = [
        ("input", c_uint64),
        ("result", c_uint64),
        ("params", c_uint64 * 2),
    ]


class _hyperv_syndbg(Structure):
    _fields_ = [
        ("msr", c_uint32),
        ("pad2", c_uint32),
        ("control", c_uint64),
        ("status", c_uint64),
        ("send_page", c_uint64),
        ("recv_page", c_uint64),
        ("pending_page", c_uint64),
    ]


class _hyperv_exit(Union):
    _fields_ = [
        ("synic", _hyperv_synic),
        ("hcall", _hyperv_hcall),
        ("syndbg", _hyperv_syndbg),
    ]


class kvm_hyperv_exit(Structure):
    _fields_ = [
        ("type", c_uint32),
        ("pad1", c_uint32),
        ("u", _hyperv_exit),
    ]


class _xen_hcall(Structure):
    _fields_ = [
        ("longmode", c_uint32),
        ("cpl", c_uint32),
        ("input", c_uint64),
        ("result", c_uint64),
        ("params", c_uint64 * 6),
    ]


class _xen_exit(Union):
    _fields_ = [
        ("hcall", _xen_hcall),
    ]


class kvm_xen_exit(Structure):
    _fields_ = [
        ("type", c_uint32),
        ("u", _xen_exit),
    ]


class kvm_exit_snp_req_certs(Structure):
    _fields_ = [
        ("gpa", c_uint64),
        ("npages", c_uint64),
        ("ret", c_uint64),
    ]


class _run_hw(Structure):
    _fields_ = [
        ("hardware_exit_reason", c_uint64),
    ]


class _run_fail_entry(Structure):
    _fields_ = [
        ("hardware_entry_failure_reason", c_uint64),
        ("cpu", c_uint32),
    ]


class _run_ex(Structure):
    _fields_ = [
        ("exception", c_uint32),
        ("error_code", c_uint32),
    ]


class _run_io(Structure):
    """`count` items of `size` bytes at `data_offset`, bytes from the kvm_run's start."""

    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class _run_mmio(Structure):
    _fields_ = [
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    ]


class _longmode_or_flags(Union):
    _fields_ = [
        ("longmode", c_uint32),
        ("flags", c_uint64),
    ]


class _run_hypercall(Structure):
    _anonymous_ = ("_longmode_or_flags",)
    _fields_ = [
        ("nr", c_uint64),
        ("args", c_uint64 * 6),
        ("ret", c_uint64),
        ("_longmode_or_flags", _longmode_or_flags),
    ]


class _run_tpr_access(Structure):
    _fields_ = [
        ("rip", c_uint64),
        ("is_write", c_uint32),
        ("pad", c_uint32),
    ]


class _run_s390_sieic(Structure):
    _fields_ = [
        ("icptcode", c_uint8),
        ("ipa", c_uint16),
        ("ipb", c_uint32),
    ]


class _run_s390_ucontrol(Structure):
    _fields_ = [
        ("trans_exc_code", c_uint64),
        ("pgm_code", c_uint32),
    ]


class _run_dcr(Structure):
    _fields_ = [
        ("dcrn", c_uint32),
        ("data", c_uint32),
        ("is_write", c_uint8),
    ]


class _run_internal(Structure):
    _fields_ = [
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("data", c_uint64 * 16),
    ]


class _instruction(Structure):
    _fields_ = [
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    ]


class _emulation_data(Union):
    _anonymous_ = ("_instruction",)
    _fields_ = [
        ("_instruction", _instruction),
    ]


class _run_emulation_failure(Structure):
    _anonymous_ = ("_emulation_data",)
    _fields_ = [
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("_emulation_data", _emulation_data),
    ]


class _run_osi(Structure):
    _fields_ = [
        ("gprs", c_uint64 * 32),
    ]


class _run_papr_hcall(Structure):
    _fields_ = [
        ("nr", c_uint64),
        ("ret", c_uint64),
        ("args", c_uint64 * 9),
    ]


class _run_s390_tsch(Structure):
    _fields_ = [
        ("subchannel_id", c_uint16),
        ("subchannel_nr", c_uint16),
        ("io_int_parm", c_uint32),
        ("io_int_word", c_uint32),
        ("ipb", c_uint32),
        ("dequeued", c_uint8),
    ]


class _run_epr(Structure):
    _fields_ = [
        ("epr", c_uint32),
    ]


class _flags_or_data(Union):
    _fields_ = [
        ("flags", c_uint64),
        ("data", c_uint64 * 16),
    ]


class _run_system_event(Structure):
    _anonymous_ = ("_flags_or_data",)
    _fields_ = [
        ("type", c_uint32),
        ("ndata", c_uint32),
        ("_flags_or_data", _flags_or_data),
    ]


class _run_s390_stsi(Structure):
    _fields_ = [
        ("addr", c_uint64),
        ("ar", c_uint8),
        ("reserved", c_uint8),
        ("fc", c_uint8),
        ("sel1", c_uint8),
        ("sel2", c_uint16),
    ]


class _run_eoi(Structure):
    _fields_ = [
        ("vector", c_uint8),
    ]


class _run_arm_nisv(Structure):
    _fields_ = [
        ("esr_iss", c_uint64),
        ("fault_ipa", c_uint64),
    ]


class _run_msr(Structure):
    """`error` and, for a read, `data` are the caller's to fill."""

    _fields_ = [
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    ]


class _run_riscv_sbi(Structure):
    _fields_ = [
        ("extension_id", c_ulong),
        ("function_id", c_ulong),
        ("args", c_ulong * 6),
        ("ret", c_ulong * 2),
    ]


class _run_riscv_csr(Structure):
    _fields_ = [
        ("csr_num", c_ulong),
        ("new_value", c_ulong),
        ("write_mask", c_ulong),
        ("ret_value", c_ulong),
    ]


class _run_notify(Structure):
    _fields_ = [
        ("flags", c_uint32),
    ]


class _run_memory_fault(Structure):
    _fields_ = [
        ("flags", c_uint64),
        ("gpa", c_uint64),
        ("size", c_uint64),
    ]


class _tdx_unknown(Structure):
    _fields_ = [
        ("ret", c_uint64),
        ("data", c_uint64 * 5),
    ]


class _tdx_get_quote(Structure):
    _fields_ = [
        ("ret", c_uint64),
        ("gpa", c_uint64),
        ("size", c_uint64),
    ]


class _tdx_get_tdvmcall_info(Structure):
    _fields_ = [
        ("ret", c_uint64),
        ("leaf", c_uint64),
        ("r11", c_uint64),
        ("r12", c_uint64),
        ("r13", c_uint64),
        ("r14", c_uint64),
    ]


class _tdx_setup_event_notify(Structure):
    _fields_ = [
        ("ret", c_uint64),
        ("vector", c_uint64),
    ]


class _tdx_call(Union):
    _fields_ = [
        ("unknown", _tdx_unknown),
        ("get_quote", _tdx_get_quote),
        ("get_tdvmcall_info", _tdx_get_tdvmcall_info),
        ("setup_event_notify", _tdx_setup_event_notify),
    ]


class _run_tdx(Structure):
    _anonymous_ = ("_call",)
    _fields_ = [
        ("flags", c_uint64),
        ("nr", c_uint64),
        ("_call", _tdx_call),
    ]


class _run_arm_sea(Structure):
    _fields_ = [
        ("flags", c_uint64),
        ("esr", c_uint64),
        ("gva", c_uint64),
        ("gpa", c_uint64),
    ]


class _run_exit(Union):
    _fields_ = [
        ("hw", _run_hw),
        ("fail_entry", _run_fail_entry),
        ("ex", _run_ex),
        ("io", _run_io),
        ("mmio", _run_mmio),
        ("iocsr_io", _run_mmio),
        ("hypercall", _run_hypercall),
        ("tpr_access", _run_tpr_access),
        ("s390_sieic", _run_s390_sieic),
        ("s390_reset_flags", c_uint64),
        ("s390_ucontrol", _run_s390_ucontrol),
        ("dcr", _run_dcr),
        ("internal", _run_internal),
        ("emulation_failure", _run_emulation_failure),
        ("osi", _run_osi),
        ("papr_hcall", _run_papr_hcall),
        ("s390_tsch", _run_s390_tsch),
        ("epr", _run_epr),
        ("system_event", _run_system_event),
        ("s390_stsi", _run_s390_stsi),
        ("eoi", _run_eoi),
        ("hyperv", kvm_hyperv_exit),
        ("arm_nisv", _run_arm_nisv),
        ("msr", _run_msr),
        ("xen", kvm_xen_exit),
        ("riscv_sbi", _run_riscv_sbi),
        ("riscv_csr", _run_riscv_csr),
        ("notify", _run_notify),
        ("memory_fault", _run_memory_fault),
        ("tdx", _run_tdx),
        ("arm_sea", _run_arm_sea),
        ("snp_req_certs", kvm_exit_snp_req_certs),
        ("padding", c_uint8 * 256),
    ]


SYNC_REGS_SIZE_BYTES = 2048


class _run_sync_regs(Union):
    _fields_ = [
        ("padding", c_uint8 * SYNC_REGS_SIZE_BYTES),
    ]


class kvm_run(Structure):
    """What a vCPU and its thread tell each other; `exit_reason` says which member holds the rest.

    `s` holds the architecture's kvm_sync_regs, as kvm_valid_regs and kvm_dirty_regs ask.
    """

    _anonymous_ = ("_exit",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("_exit", _run_exit),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _run_sync_regs),
    ]


class kvm_signal_mask(Structure):
    """`len` is in bytes; the kernel's sigset_t has 8 of them."""

    _fields_ = [
        ("len", c_uint32),
        ("sigset", c_uint8 * 0),
    ]


KVM_SET_SIGNAL_MASK = IOW("KVM_SET_SIGNAL_MASK", KVMIO, 0x8B, kvm_signal_mask)

# vCPU: whether it runs.


class kvm_mp_state(Structure):
    _fields_ = [
        ("mp_state", c_uint32),
    ]


KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
KVM_MP_STATE_STOPPED = 5
KVM_MP_STATE_CHECK_STOP = 6
KVM_MP_STATE_OPERATING = 7
KVM_MP_STATE_LOAD = 8
KVM_MP_STATE_AP_RESET_HOLD = 9
KVM_MP_STATE_SUSPENDED = 10

KVM_GET_MP_STATE = IOR("KVM_GET_MP_STATE", KVMIO, 0x98, kvm_mp_state)
KVM_SET_MP_STATE = IOW("KVM_SET_MP_STATE", KVMIO, 0x99, kvm_mp_state)

# vCPU: interrupts given to it directly.


class kvm_interrupt(Structure):
    _fields_ = [
        ("irq", c_uint32),
    ]


KVM_INTERRUPT = IOW("KVM_INTERRUPT", KVMIO, 0x86, kvm_interrupt)
KVM_NMI = IO("KVM_NMI", KVMIO, 0x9A)
KVM_SMI = IO("KVM_SMI", KVMIO, 0xB7)


class kvm_tpr_access_ctl(Structure):
    _fields_ = [
        ("enabled", c_uint32),
        ("flags", c_uint32),
        ("reserved", c_uint32 * 8),
    ]


class kvm_vapic_addr(Structure):
    _fields_ = [
        ("vapic_addr", c_uint64),
    ]


KVM_TPR_ACCESS_REPORTING = IOWR("KVM_TPR_ACCESS_REPORTING", KVMIO, 0x92, kvm_tpr_access_ctl)
KVM_SET_VAPIC_ADDR = IOW("KVM_SET_VAPIC_ADDR", KVMIO, 0x93, kvm_vapic_addr)

# vCPU: its memory and clock.


class kvm_translation(Structure):
    _fields_ = [
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    ]


KVM_TRANSLATE = IOWR("KVM_TRANSLATE", KVMIO, 0x85, kvm_translation)


class kvm_pre_fault_memory(Structure):
    """The kernel moves `gpa` and `size` on by what it has done."""

    _fields_ = [
        ("gpa", c_uint64),
        ("size", c_uint64),
        ("flags", c_uint64),
        ("padding", c_uint64 * 5),
    ]


KVM_PRE_FAULT_MEMORY = IOWR("KVM_PRE_FAULT_MEMORY", KVMIO, 0xD5, kvm_pre_fault_memory)

KVM_SET_TSC_KHZ = IO("KVM_SET_TSC_KHZ", KVMIO, 0xA2)  # on a VM too
KVM_GET_TSC_KHZ = IO("KVM_GET_TSC_KHZ", KVMIO, 0xA3)
KVM_KVMCLOCK_CTRL = IO("KVM_KVMCLOCK_CTRL", KVMIO, 0xAD)

# vCPU: registers one by one. An ID is architecture | size | the architecture's own number.


class kvm_one_reg(Structure):
    """`addr` is where the caller has the value."""

    _fields_ = [
        ("id", c_uint64),
        ("addr", c_uint64),
    ]


class kvm_reg_list(Structure):
    _fields_ = [
        ("n", c_uint64),
        ("reg", c_uint64 * 0),
    ]


KVM_REG_ARCH_MASK = 0xFF00000000000000
KVM_REG_GENERIC = 0x0000000000000000
KVM_REG_PPC = 0x1000000000000000
KVM_REG_X86 = 0x2000000000000000
KVM_REG_IA64 = 0x3000000000000000
KVM_REG_ARM = 0x4000000000000000
KVM_REG_S390 = 0x5000000000000000
KVM_REG_ARM64 = 0x6000000000000000
KVM_REG_MIPS = 0x7000000000000000
KVM_REG_RISCV = 0x8000000000000000
KVM_REG_LOONGARCH = 0x9000000000000000

KVM_REG_SIZE_SHIFT = 52
KVM_REG_SIZE_MASK = 0x00F0000000000000
KVM_REG_SIZE_U8 = 0x0000000000000000
KVM_REG_SIZE_U16 = 0x0010000000000000
KVM_REG_SIZE_U32 = 0x0020000000000000
KVM_REG_SIZE_U64 = 0x0030000000000000
KVM_REG_SIZE_U128 = 0x0040000000000000
KVM_REG_SIZE_U256 = 0x0050000000000000
KVM_REG_SIZE_U512 = 0x0060000000000000
KVM_REG_SIZE_U1024 = 0x0070000000000000
KVM_REG_SIZE_U2048 = 0x0080000000000000

KVM_GET_ONE_REG = IOW("KVM_GET_ONE_REG", KVMIO, 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = IOW("KVM_SET_ONE_REG", KVMIO, 0xAC, kvm_one_reg)
KVM_GET_REG_LIST = IOWR("KVM_GET_REG_LIST", KVMIO, 0xB0, kvm_reg_list)
