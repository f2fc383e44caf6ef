"""The address space that this host's IOMMU takes."""

from __future__ import annotations

from pyvfio import errors
from pyvfio.abi import vfio
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.spapr import SpaprTceV1, SpaprTceV2
from pyvfio.iommu.type1 import Type1

# Best first. The drivers of both IOMMUs may be loaded, but a host has the hardware of one.
_SPACES = (
    (vfio.VFIO_SPAPR_TCE_v2_IOMMU, SpaprTceV2),
    (vfio.VFIO_SPAPR_TCE_IOMMU, SpaprTceV1),
    (vfio.VFIO_TYPE1v2_IOMMU, Type1),
    (vfio.VFIO_TYPE1_IOMMU, Type1),
)


def open_space() -> ContainerSpace:
    """Make an address space of the kind that this host's IOMMU takes.

    Raises:
        NoVfio, AccessDenied, OpenFilesLimit, KernelError: no container can be opened.
        Unsupported: the kernel has no IOMMU interface that pyvfio knows.
    """
    container = Container.open()
    try:
        for extension, space in _SPACES:
            if container.check_extension(extension):
                return space(container)
        raise errors.Unsupported(
            "the kernel's VFIO has no IOMMU interface: load it with: modprobe vfio_iommu_type1 "
            "(vfio_iommu_spapr_tce on POWER)"
        )
    except BaseException:
        container.close()
        raise
