"""Names out of pci.ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.pci import names, paths
from pyvfio.pci.names import PciIds

from .tree import Tree

TEXT = b"""\
#
# Comment with a C 02  line
#
1022  AMD
\t1000  Zen
8086  Intel Corporation
# a comment within
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  Gigabit CT Desktop Adapter
\t5845  QEMU NVM Express Controller
8087  Other
\t10d4  Not Intel's

C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
\t00  Ethernet controller
"""


def test_names_are_found_in_their_own_entry() -> None:
    ids = PciIds(TEXT)
    assert ids.vendor(0x8086) == "Intel Corporation"
    assert ids.device(0x8086, 0x10D3) == "82574L Gigabit Network Connection"
    assert ids.device(0x8086, 0x5845) == "QEMU NVM Express Controller"
    assert ids.device(0x8086, 0x10D4) is None
    assert ids.device(0x8086, 0x1000) is None
    assert ids.device(0x1234, 0x10D3) is None
    assert ids.vendor(0x1234) is None
    assert ids.device_class(0x010802) == "Non-Volatile memory controller"
    assert ids.device_class(0x018000) == "Mass storage controller"
    assert ids.device_class(0x020000) == "Ethernet controller"
    assert ids.device_class(0x030000) is None


_entries = st.dictionaries(
    st.integers(0, 0xFFFF),
    st.dictionaries(st.integers(0, 0xFFFF), st.text("abC 0x\t#", max_size=6), max_size=4),
    max_size=5,
)


@given(_entries, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_lookup_agrees_with_a_dictionary(
    entries: dict[int, dict[int, str]], vendor: int, device: int
) -> None:
    lines = []
    for number, devices in entries.items():
        lines.append(f"{number:04x}  V{number}\n")
        lines += [f"\t{key:04x}  D{name}\n\t\t{vendor:04x} {device:04x}  sub\n"
                  for key, name in devices.items()]  # fmt: skip
    ids = PciIds("".join(lines).encode())
    for number in {*entries, vendor}:
        assert ids.vendor(number) == (f"V{number}" if number in entries else None)
        devices = entries.get(number, {})
        for key in {*devices, device}:
            assert ids.device(number, key) == (
                f"D{devices[key]}".strip() if key in devices else None
            )


def test_without_pci_ids_the_base_class_has_a_name(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tree.root)
    names._system_ids.cache_clear()
    try:
        function = tree.function()
        assert function.class_name == "Network controller"
        assert function.vendor_name is None
        assert function.device_name is None
        names._system_ids.cache_clear()
        (tree.root / "usr/share/misc").mkdir(parents=True)
        (tree.root / "usr/share/misc/pci.ids").write_bytes(TEXT)
        assert function.class_name == "Ethernet controller"
        assert function.vendor_name == "Intel Corporation"
        assert function.device_name == "82574L Gigabit Network Connection"
    finally:
        names._system_ids.cache_clear()
