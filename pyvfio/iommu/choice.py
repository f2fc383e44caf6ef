"""The address space that this host's IOMMU takes."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio import errors
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.type1 import Type1


def _spapr_v2(container: Container) -> ContainerSpace:
    # Imported on POWER alone: no other host's start waits for it.
    from pyvfio.iommu.spapr import SpaprTceV2

    return SpaprTceV2(container)


def _spapr_v1(container: Container) -> ContainerSpace:
    from pyvfio.iommu.spapr import SpaprTceV1

    return SpaprTceV1(container)


# Best first. The drivers of both IOMMUs may be loaded, but a host has the hardware of one.
_SPACES: tuple[tuple[int, Callable[[Container], ContainerSpace]], ...] = (
    (vfio.VFIO_SPAPR_TCE_v2_IOMMU, _spapr_v2),
    (vfio.VFIO_SPAPR_TCE_IOMMU, _spapr_v1),
    (vfio.VFIO_TYPE1v2_IOMMU, Type1),
    (vfio.VFIO_TYPE1_IOMMU, Type1),
)


def open_space() -> ContainerSpace:
    """Make an address space of the kind that this host's IOMMU takes.

    Raises:
        NoVfio, AccessDenied, OpenFilesLimit, KernelError: no container can be opened.
        Unsupported: the kernel has no IOMMU interface that pyvfio knows.
    """
    with deferred_signals() as section:
        container = Container.open()
        section.undo(container.close)
        for extension, space in _SPACES:
            if container.check_extension(extension):
                return space(container)
        raise errors.Unsupported(
            "the kernel's VFIO has no IOMMU interface: load it with: modprobe vfio_iommu_type1 "
            "(vfio_iommu_spapr_tce on POWER)"
        )
