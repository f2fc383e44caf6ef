"""IOMMU groups, and whether VFIO may have them."""

from __future__ import annotations

import pytest

from pyvfio.pci import IommuGroup

from .tree import Tree


@pytest.mark.parametrize(
    ("driver", "in_the_way"),
    [
        (None, False),
        ("vfio-pci", False),
        ("mlx5_vfio_pci", False),
        ("nvgrace-gpu-vfio-pci", False),
        ("pci-stub", False),
        ("pcieport", False),
        ("nvme", True),
        ("shpchp", True),
        ("xhci_hcd", True),
    ],
)
def test_who_keeps_a_group_from_vfio(tree: Tree, driver: str | None, in_the_way: bool) -> None:
    tree.function("0000:01:00.0", driver="vfio-pci", group=3)
    other = tree.function("0000:01:00.1", driver=driver, group=3)
    assert IommuGroup(3).culprits == ((other,) if in_the_way else ())


def test_members_are_in_order_and_of_pci(tree: Tree) -> None:
    later, first = tree.function("0000:02:00.0", group=3), tree.function("0000:01:00.0", group=3)
    (tree.sys / "kernel/iommu_groups/3/devices/fe200000.usb").mkdir()
    assert IommuGroup(3).members == (first, later)
    assert IommuGroup(4).members == ()


def test_the_node_of_a_group(tree: Tree) -> None:
    tree.function(group=3)
    group = IommuGroup(3)
    assert not group.is_noiommu
    assert group.path == f"{tree.dev}/vfio/3"
    tree.write(tree.sys / "kernel/iommu_groups/3/name", "vfio-noiommu\n")
    assert group.is_noiommu
