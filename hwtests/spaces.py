"""The address spaces that the host's IOMMU has."""

from __future__ import annotations

import platform
from pathlib import Path

from pyvfio.iommu import ContainerSpace, SpaprTceV1, SpaprTceV2, Type1

ON_POWER = platform.machine().startswith("ppc64")

ENTRY_LIMIT = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
"""How many mappings a container of type1 may have that is made from then on."""


def of_version(version: int) -> ContainerSpace:
    """A new one: type1 or SPAPR TCE, each of which has the versions 1 and 2."""
    if ON_POWER:
        return SpaprTceV2() if version == 2 else SpaprTceV1()
    space = Type1(version=version)
    assert space.version == version
    return space
