"""VFIO's interface: ``linux/vfio.h``, what concerns containers, groups, devices and IOMMUs.

Names, layouts and values are the kernel's (Linux 7.3). An older kernel may know a shorter
structure: it fills what it knows, and `argsz` tells it how much the caller has.

A flexible-array tail is a field of length 0: it takes no space, and its offset is where the entries
begin, in a buffer that the caller makes longer than the structure.

All requests are ``_IO``: their numbers do not hold the size, so several share a number and the file
that they are made on (container, group, device) tells them apart.

Left out: migration of a device's state, mediated displays, and what belongs to other buses only
(s390 CCW and AP, CDX).
"""

from __future__ import annotations

from ctypes import (
    Structure,
    Union,
    c_int32,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)

from pyvfio.abi.ioctl import IO

VFIO_API_VERSION = 0

VFIO_TYPE = 0x3B  # ';'
VFIO_BASE = 100

# Extensions: arguments of VFIO_CHECK_EXTENSION; those named IOMMU are also those of VFIO_SET_IOMMU.

VFIO_TYPE1_IOMMU = 1
VFIO_SPAPR_TCE_IOMMU = 2
VFIO_TYPE1v2_IOMMU = 3
VFIO_DMA_CC_IOMMU = 4
VFIO_EEH = 5
VFIO_SPAPR_TCE_v2_IOMMU = 7
VFIO_NOIOMMU_IOMMU = 8
VFIO_UNMAP_ALL = 9
VFIO_UPDATE_VADDR = 10


class vfio_info_cap_header(Structure):
    """Head of each capability in the chain that an INFO request returns.

    `next`, as the `cap_offset` that starts the chain, counts bytes from the start of the INFO
    buffer; 0 ends the chain.
    """

    _fields_ = [
        ("id", c_uint16),
        ("version", c_uint16),
        ("next", c_uint32),
    ]


# Container: /dev/vfio/vfio.

VFIO_GET_API_VERSION = IO("VFIO_GET_API_VERSION", VFIO_TYPE, VFIO_BASE + 0)
VFIO_CHECK_EXTENSION = IO("VFIO_CHECK_EXTENSION", VFIO_TYPE, VFIO_BASE + 1)
VFIO_SET_IOMMU = IO("VFIO_SET_IOMMU", VFIO_TYPE, VFIO_BASE + 2)

# Group: /dev/vfio/$GROUP.


class vfio_group_status(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
    ]


VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1

VFIO_GROUP_GET_STATUS = IO("VFIO_GROUP_GET_STATUS", VFIO_TYPE, VFIO_BASE + 3)
VFIO_GROUP_SET_CONTAINER = IO("VFIO_GROUP_SET_CONTAINER", VFIO_TYPE, VFIO_BASE + 4)
VFIO_GROUP_UNSET_CONTAINER = IO("VFIO_GROUP_UNSET_CONTAINER", VFIO_TYPE, VFIO_BASE + 5)
VFIO_GROUP_GET_DEVICE_FD = IO("VFIO_GROUP_GET_DEVICE_FD", VFIO_TYPE, VFIO_BASE + 6)

# Device: what it is.


class vfio_device_info(Structure):
    """`num_regions` and `num_irqs` are the highest index plus one; `pad` is 6.12's."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
        ("pad", c_uint32),
    ]


VFIO_DEVICE_FLAGS_RESET = 1 << 0
VFIO_DEVICE_FLAGS_PCI = 1 << 1
VFIO_DEVICE_FLAGS_PLATFORM = 1 << 2
VFIO_DEVICE_FLAGS_AMBA = 1 << 3
VFIO_DEVICE_FLAGS_CCW = 1 << 4
VFIO_DEVICE_FLAGS_AP = 1 << 5
VFIO_DEVICE_FLAGS_FSL_MC = 1 << 6
VFIO_DEVICE_FLAGS_CAPS = 1 << 7
VFIO_DEVICE_FLAGS_CDX = 1 << 8

VFIO_DEVICE_GET_INFO = IO("VFIO_DEVICE_GET_INFO", VFIO_TYPE, VFIO_BASE + 7)

# Device info capabilities. The contents of those of s390 are in linux/vfio_zdev.h.

VFIO_DEVICE_INFO_CAP_ZPCI_BASE = 1
VFIO_DEVICE_INFO_CAP_ZPCI_GROUP = 2
VFIO_DEVICE_INFO_CAP_ZPCI_UTIL = 3
VFIO_DEVICE_INFO_CAP_ZPCI_PFIP = 4
VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP = 5


class vfio_device_info_cap_pci_atomic_comp(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


VFIO_PCI_ATOMIC_COMP32 = 1 << 0
VFIO_PCI_ATOMIC_COMP64 = 1 << 1
VFIO_PCI_ATOMIC_COMP128 = 1 << 2

# Device: regions. `size` is in bytes; `offset` is where the region starts in the device's file.


class vfio_region_info(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    ]


VFIO_REGION_INFO_FLAG_READ = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS = 1 << 3

VFIO_DEVICE_GET_REGION_INFO = IO("VFIO_DEVICE_GET_REGION_INFO", VFIO_TYPE, VFIO_BASE + 8)

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_BAR1_REGION_INDEX = 1
VFIO_PCI_BAR2_REGION_INDEX = 2
VFIO_PCI_BAR3_REGION_INDEX = 3
VFIO_PCI_BAR4_REGION_INDEX = 4
VFIO_PCI_BAR5_REGION_INDEX = 5
VFIO_PCI_ROM_REGION_INDEX = 6
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_VGA_REGION_INDEX = 8
VFIO_PCI_NUM_REGIONS = 9

# Region capabilities.

VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1


class vfio_region_sparse_mmap_area(Structure):
    """A part of the region that may be mapped; bytes, from the region's start."""

    _fields_ = [
        ("offset", c_uint64),
        ("size", c_uint64),
    ]


class vfio_region_info_cap_sparse_mmap(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("nr_areas", c_uint32),
        ("reserved", c_uint32),
        ("areas", vfio_region_sparse_mmap_area * 0),
    ]


VFIO_REGION_INFO_CAP_TYPE = 2


class vfio_region_info_cap_type(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("type", c_uint32),
        ("subtype", c_uint32),
    ]


# The type of a PCI vendor's region is VENDOR_TYPE | vendor ID.
VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 1 << 31
VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xFFFF
VFIO_REGION_TYPE_GFX = 1
VFIO_REGION_TYPE_CCW = 2
VFIO_REGION_TYPE_MIGRATION_DEPRECATED = 3

VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION = 1
VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG = 2
VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG = 3
VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = 1
VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD = 1
VFIO_REGION_SUBTYPE_GFX_EDID = 1
VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD = 1
VFIO_REGION_SUBTYPE_CCW_SCHIB = 2
VFIO_REGION_SUBTYPE_CCW_CRW = 3
VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED = 1

# A header alone: the whole region may be mapped, the MSI-X table in it too.
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3

VFIO_REGION_INFO_CAP_NVLINK2_SSATGT = 4


class vfio_region_info_cap_nvlink2_ssatgt(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("tgt", c_uint64),
    ]


VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD = 5


class vfio_region_info_cap_nvlink2_lnkspd(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("link_speed", c_uint32),
        ("__pad", c_uint32),
    ]


# Device: interrupts.


class vfio_irq_info(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    ]


VFIO_IRQ_INFO_EVENTFD = 1 << 0
VFIO_IRQ_INFO_MASKABLE = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED = 1 << 2
VFIO_IRQ_INFO_NORESIZE = 1 << 3

VFIO_DEVICE_GET_IRQ_INFO = IO("VFIO_DEVICE_GET_IRQ_INFO", VFIO_TYPE, VFIO_BASE + 9)


class vfio_irq_set(Structure):
    """Followed by `count` entries: bytes for DATA_BOOL, 32-bit descriptors for DATA_EVENTFD."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
        ("data", c_uint8 * 0),
    ]


VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_BOOL = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_MASK = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5
VFIO_IRQ_SET_DATA_TYPE_MASK = (
    VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD
)
VFIO_IRQ_SET_ACTION_TYPE_MASK = (
    VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER
)

VFIO_DEVICE_SET_IRQS = IO("VFIO_DEVICE_SET_IRQS", VFIO_TYPE, VFIO_BASE + 10)

VFIO_PCI_INTX_IRQ_INDEX = 0
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2
VFIO_PCI_ERR_IRQ_INDEX = 3
VFIO_PCI_REQ_IRQ_INDEX = 4
VFIO_PCI_NUM_IRQS = 5

# Device: reset, alone or with all that share its bus or slot.

VFIO_DEVICE_RESET = IO("VFIO_DEVICE_RESET", VFIO_TYPE, VFIO_BASE + 11)


class _group_id_or_devid(Union):
    _fields_ = [
        ("group_id", c_uint32),
        ("devid", c_uint32),
    ]


class vfio_pci_dependent_device(Structure):
    """`devid` where VFIO_PCI_HOT_RESET_FLAG_DEV_ID is set, else `group_id`."""

    _anonymous_ = ("_group_id_or_devid",)
    _fields_ = [
        ("_group_id_or_devid", _group_id_or_devid),
        ("segment", c_uint16),
        ("bus", c_uint8),
        ("devfn", c_uint8),
    ]


VFIO_PCI_DEVID_OWNED = 0
VFIO_PCI_DEVID_NOT_OWNED = 0xFFFFFFFF  # -1 in the header, this when read from `devid`


class vfio_pci_hot_reset_info(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("count", c_uint32),
        ("devices", vfio_pci_dependent_device * 0),
    ]


VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1 << 0
VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 1 << 1

VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = IO(
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", VFIO_TYPE, VFIO_BASE + 12
)


class vfio_pci_hot_reset(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("count", c_uint32),
        ("group_fds", c_int32 * 0),
    ]


VFIO_DEVICE_PCI_HOT_RESET = IO("VFIO_DEVICE_PCI_HOT_RESET", VFIO_TYPE, VFIO_BASE + 13)

# Device: a write that an eventfd triggers.


class vfio_device_ioeventfd(Structure):
    """`offset` is in the device's file; `fd` -1 takes the write away; `reserved` is 6.12's."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("offset", c_uint64),
        ("data", c_uint64),
        ("fd", c_int32),
        ("reserved", c_uint32),
    ]


VFIO_DEVICE_IOEVENTFD_8 = 1 << 0
VFIO_DEVICE_IOEVENTFD_16 = 1 << 1
VFIO_DEVICE_IOEVENTFD_32 = 1 << 2
VFIO_DEVICE_IOEVENTFD_64 = 1 << 3
VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xF

VFIO_DEVICE_IOEVENTFD = IO("VFIO_DEVICE_IOEVENTFD", VFIO_TYPE, VFIO_BASE + 16)

# Device: features. The feature's number is in the low bits of `flags`, its data follows.


class vfio_device_feature(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("data", c_uint8 * 0),
    ]


VFIO_DEVICE_FEATURE_MASK = 0xFFFF
VFIO_DEVICE_FEATURE_GET = 1 << 16
VFIO_DEVICE_FEATURE_SET = 1 << 17
VFIO_DEVICE_FEATURE_PROBE = 1 << 18

VFIO_DEVICE_FEATURE = IO("VFIO_DEVICE_FEATURE", VFIO_TYPE, VFIO_BASE + 17)

VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0  # data: 16 bytes of UUID
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4
VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5
VFIO_DEVICE_FEATURE_DMA_BUF = 11


class vfio_device_low_power_entry_with_wakeup(Structure):
    _fields_ = [
        ("wakeup_eventfd", c_int32),
        ("reserved", c_uint32),
    ]


class vfio_region_dma_range(Structure):
    _fields_ = [
        ("offset", c_uint64),
        ("length", c_uint64),
    ]


class vfio_device_feature_dma_buf(Structure):
    _fields_ = [
        ("region_index", c_uint32),
        ("open_flags", c_uint32),
        ("flags", c_uint32),
        ("nr_ranges", c_uint32),
        ("dma_ranges", vfio_region_dma_range * 0),
    ]


# Device opened as /dev/vfio/devices/vfioX: binding to an iommufd.


class vfio_device_bind_iommufd(Structure):
    """`token_uuid_ptr`, of 7.3, counts only with VFIO_DEVICE_BIND_FLAG_TOKEN."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
        ("token_uuid_ptr", c_uint64),
    ]


VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0

VFIO_DEVICE_BIND_IOMMUFD = IO("VFIO_DEVICE_BIND_IOMMUFD", VFIO_TYPE, VFIO_BASE + 18)


class vfio_device_attach_iommufd_pt(Structure):
    """`pasid`, of 7.3, counts only with VFIO_DEVICE_ATTACH_PASID."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("pt_id", c_uint32),
        ("pasid", c_uint32),
    ]


VFIO_DEVICE_ATTACH_PASID = 1 << 0

VFIO_DEVICE_ATTACH_IOMMUFD_PT = IO("VFIO_DEVICE_ATTACH_IOMMUFD_PT", VFIO_TYPE, VFIO_BASE + 19)


class vfio_device_detach_iommufd_pt(Structure):
    """`pasid`, of 7.3, counts only with VFIO_DEVICE_DETACH_PASID."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("pasid", c_uint32),
    ]


VFIO_DEVICE_DETACH_PASID = 1 << 0

VFIO_DEVICE_DETACH_IOMMUFD_PT = IO("VFIO_DEVICE_DETACH_IOMMUFD_PT", VFIO_TYPE, VFIO_BASE + 20)

# Type1 IOMMU, on the container. Addresses and sizes are bytes.


class vfio_iommu_type1_info(Structure):
    """Bit n of `iova_pgsizes`: pages of 2**n bytes; `pad` is 6.12's."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
        ("pad", c_uint32),
    ]


VFIO_IOMMU_INFO_PGSIZES = 1 << 0
VFIO_IOMMU_INFO_CAPS = 1 << 1

VFIO_IOMMU_GET_INFO = IO("VFIO_IOMMU_GET_INFO", VFIO_TYPE, VFIO_BASE + 12)

VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1


class vfio_iova_range(Structure):
    """`end` is the last byte, not the one after it."""

    _fields_ = [
        ("start", c_uint64),
        ("end", c_uint64),
    ]


class vfio_iommu_type1_info_cap_iova_range(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("nr_iovas", c_uint32),
        ("reserved", c_uint32),
        ("iova_ranges", vfio_iova_range * 0),
    ]


VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2


class vfio_iommu_type1_info_cap_migration(Structure):
    _fields_ = [
        ("header", vfio_info_cap_header),
        ("flags", c_uint32),
        ("pgsize_bitmap", c_uint64),
        ("max_dirty_bitmap_size", c_uint64),
    ]


VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3


class vfio_iommu_type1_info_dma_avail(Structure):
    """`avail`: how many more mappings the container may hold."""

    _fields_ = [
        ("header", vfio_info_cap_header),
        ("avail", c_uint32),
    ]


class vfio_iommu_type1_dma_map(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    ]


VFIO_DMA_MAP_FLAG_READ = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1
VFIO_DMA_MAP_FLAG_VADDR = 1 << 2

VFIO_IOMMU_MAP_DMA = IO("VFIO_IOMMU_MAP_DMA", VFIO_TYPE, VFIO_BASE + 13)


class vfio_bitmap(Structure):
    """`size` is of the bitmap, in bytes; one bit per page of `pgsize` bytes."""

    _fields_ = [
        ("pgsize", c_uint64),
        ("size", c_uint64),
        ("data", c_void_p),
    ]


class vfio_iommu_type1_dma_unmap(Structure):
    """The kernel writes back into `size` what it really unmapped.

    Followed by a vfio_bitmap with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
    """

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova", c_uint64),
        ("size", c_uint64),
        ("data", c_uint8 * 0),
    ]


VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0
VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1
VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2

VFIO_IOMMU_UNMAP_DMA = IO("VFIO_IOMMU_UNMAP_DMA", VFIO_TYPE, VFIO_BASE + 14)


class vfio_iommu_type1_dirty_bitmap(Structure):
    """Followed by a vfio_iommu_type1_dirty_bitmap_get with FLAG_GET_BITMAP."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("data", c_uint8 * 0),
    ]


VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0
VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1
VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2


class vfio_iommu_type1_dirty_bitmap_get(Structure):
    _fields_ = [
        ("iova", c_uint64),
        ("size", c_uint64),
        ("bitmap", vfio_bitmap),
    ]


VFIO_IOMMU_DIRTY_PAGES = IO("VFIO_IOMMU_DIRTY_PAGES", VFIO_TYPE, VFIO_BASE + 17)

# SPAPR TCE IOMMU of POWER, on the container. Version 2 adds memory registration and windows.

VFIO_IOMMU_ENABLE = IO("VFIO_IOMMU_ENABLE", VFIO_TYPE, VFIO_BASE + 15)
VFIO_IOMMU_DISABLE = IO("VFIO_IOMMU_DISABLE", VFIO_TYPE, VFIO_BASE + 16)


class vfio_iommu_spapr_tce_ddw_info(Structure):
    """Dynamic DMA windows; bit n of `pgsizes`: pages of 2**n bytes."""

    _fields_ = [
        ("pgsizes", c_uint64),
        ("max_dynamic_windows_supported", c_uint32),
        ("levels", c_uint32),
    ]


class vfio_iommu_spapr_tce_info(Structure):
    """The default window, as bus addresses; `ddw` counts only with VFIO_IOMMU_SPAPR_INFO_DDW."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("dma32_window_start", c_uint32),
        ("dma32_window_size", c_uint32),
        ("ddw", vfio_iommu_spapr_tce_ddw_info),
    ]


VFIO_IOMMU_SPAPR_INFO_DDW = 1 << 0

VFIO_IOMMU_SPAPR_TCE_GET_INFO = IO("VFIO_IOMMU_SPAPR_TCE_GET_INFO", VFIO_TYPE, VFIO_BASE + 12)


class vfio_iommu_spapr_register_memory(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("size", c_uint64),
    ]


VFIO_IOMMU_SPAPR_REGISTER_MEMORY = IO("VFIO_IOMMU_SPAPR_REGISTER_MEMORY", VFIO_TYPE, VFIO_BASE + 17)
VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY = IO(
    "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY", VFIO_TYPE, VFIO_BASE + 18
)


class vfio_iommu_spapr_tce_create(Structure):
    """The kernel returns the new window's bus address in `start_addr`."""

    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("page_shift", c_uint32),
        ("__resv1", c_uint32),
        ("window_size", c_uint64),
        ("levels", c_uint32),
        ("__resv2", c_uint32),
        ("start_addr", c_uint64),
    ]


VFIO_IOMMU_SPAPR_TCE_CREATE = IO("VFIO_IOMMU_SPAPR_TCE_CREATE", VFIO_TYPE, VFIO_BASE + 19)


class vfio_iommu_spapr_tce_remove(Structure):
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("start_addr", c_uint64),
    ]


VFIO_IOMMU_SPAPR_TCE_REMOVE = IO("VFIO_IOMMU_SPAPR_TCE_REMOVE", VFIO_TYPE, VFIO_BASE + 20)

# EEH of POWER, on the container.


class vfio_eeh_pe_err(Structure):
    _fields_ = [
        ("type", c_uint32),
        ("func", c_uint32),
        ("addr", c_uint64),
        ("mask", c_uint64),
    ]


class _eeh_argument(Union):
    _fields_ = [
        ("err", vfio_eeh_pe_err),
    ]


class vfio_eeh_pe_op(Structure):
    """`err` counts only for VFIO_EEH_PE_INJECT_ERR."""

    _anonymous_ = ("_argument",)
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("op", c_uint32),
        ("_argument", _eeh_argument),
    ]


VFIO_EEH_PE_DISABLE = 0
VFIO_EEH_PE_ENABLE = 1
VFIO_EEH_PE_UNFREEZE_IO = 2
VFIO_EEH_PE_UNFREEZE_DMA = 3
VFIO_EEH_PE_GET_STATE = 4
VFIO_EEH_PE_RESET_DEACTIVATE = 5
VFIO_EEH_PE_RESET_HOT = 6
VFIO_EEH_PE_RESET_FUNDAMENTAL = 7
VFIO_EEH_PE_CONFIGURE = 8
VFIO_EEH_PE_INJECT_ERR = 9

# What VFIO_EEH_PE_GET_STATE gives as the request's result.
VFIO_EEH_PE_STATE_NORMAL = 0
VFIO_EEH_PE_STATE_RESET = 1
VFIO_EEH_PE_STATE_STOPPED = 2
VFIO_EEH_PE_STATE_STOPPED_DMA = 4
VFIO_EEH_PE_STATE_UNAVAIL = 5

VFIO_EEH_PE_OP = IO("VFIO_EEH_PE_OP", VFIO_TYPE, VFIO_BASE + 21)
