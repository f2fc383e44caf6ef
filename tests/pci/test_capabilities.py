"""Typed capabilities: every field against samples worked out by hand, and against lspci."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.abi import pci_regs as pci
from pyvfio.pci.bars import Bar, BarKind
from pyvfio.pci.capabilities import (
    EXTENDED_HIDDEN_BY_VFIO,
    HIDDEN_BY_VFIO,
    Acs,
    AcsCapability,
    Aspm,
    Capability,
    Correctable,
    LinkSpeed,
    PortType,
    PowerState,
    ResizableBar,
    Uncorrectable,
    Vpd,
    hidden_by_vfio,
)
from pyvfio.pci.capabilities import vpd as vpd_module
from pyvfio.pci.capabilities.express import Indicator
from pyvfio.pci.capabilities.names import EXTENDED_NAMES, STANDARD_NAMES
from pyvfio.pci.config import ConfigSpace

from .configs import as_lspci, build, dump, lspci_text

NONE = Uncorrectable(0)


def flat(capability: Capability) -> dict[str, Any]:
    """Fields by name, as attributes give them; those of a part as ``part.name``."""
    values: dict[str, Any] = {}
    for name, value in capability.fields().items():
        live = getattr(capability, name)
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": getattr(live, inner) for inner in value}
        else:
            values[name] = live
    return values


def standard(id: int, body: str) -> Capability:
    (capability,) = ConfigSpace.from_bytes(build([(id, bytes.fromhex(body))])).capabilities
    return capability


def extended(id: int, body: str) -> Capability:
    config = ConfigSpace.from_bytes(build(extended=[(id, bytes.fromhex(body))]))
    (capability,) = config.extended_capabilities
    return capability


def test_power_management() -> None:
    capability = standard(0x01, "c35b 0b81 0000")
    assert flat(capability) == {
        "interface_version": 3,
        "device_specific_init": False,
        "aux_current": 375,
        "d1": True,
        "d2": False,
        "pme_from": ("D0", "D1", "D3hot"),
        "state": PowerState.D3HOT,
        "no_soft_reset": True,
        "pme_enabled": True,
        "pme_status": True,
    }
    assert capability.fields()["state"] == "D3hot"
    assert capability.length == 8


@pytest.mark.parametrize(
    ("body", "expected", "length"),
    [
        # 32-bit: address, data.
        ("0300 0010e0fe c241", (1, 2, 1, False, False, 0xFEE01000, 0x41C2, None, None), 10),
        # 64-bit: address, upper address, data.
        (
            "b500 0010e0fe 04030201 c241",
            (1, 4, 8, True, False, 0x01020304FEE01000, 0x41C2, None, None),
            14,
        ),
        # 32-bit with masks: address, data, reserved, mask, pending.
        (
            "0a01 0010e0fe c241 0000 0f000000 05000000",
            (0, 32, 1, False, True, 0xFEE01000, 0x41C2, 0xF, 0x5),
            20,
        ),
        # 64-bit with masks: address, upper address, data, reserved, mask, pending.
        (
            "8801 0010e0fe 04030201 c241 0000 0f000000 05000000",
            (0, 16, 1, True, True, 0x01020304FEE01000, 0x41C2, 0xF, 0x5),
            24,
        ),
    ],
    ids=["32", "64", "32 masked", "64 masked"],
)
def test_msi_layouts(body: str, expected: tuple[int, ...], length: int) -> None:
    capability = standard(0x05, body)
    assert tuple(flat(capability).values()) == expected
    assert list(flat(capability)) == [
        "enabled",
        "vectors",
        "vectors_enabled",
        "is_64bit",
        "maskable",
        "address",
        "data",
        "mask",
        "pending",
    ]
    assert capability.length == length
    assert capability.raw[2:] == bytes.fromhex(body)


def test_msix() -> None:
    capability = standard(0x11, "ffc7 03200000 05303412")
    assert flat(capability) == {
        "enabled": True,
        "masked": True,
        "vectors": 2048,
        "table_bar": 3,
        "table_offset": 0x2000,
        "pba_bar": 5,
        "pba_offset": 0x12343000,
    }
    assert capability.length == 12


# An endpoint whose registers are all different.
ENDPOINT = (
    "0204"  # version 2, endpoint, interrupt message 2
    "2281 0010"  # 512 B supported, extended tags, role-based errors, FLR
    "5f29 2f00"  # 512 B, 512 B read requests; four errors and auxiliary power seen
    "44dc 0702"  # 16 GT/s, x4, L0s and L1, clock management, port 2
    "4201 4310"  # L1, common clock; 8 GT/s, x4
    "00000000 0000 0000 0000 0000 00000000"  # no slot, no root
    "a00b 0000"  # ARI forwarding, 32- and 64-bit atomics, LTR (and bit 9, 128-bit)
    "1604 0000"  # timeout code 6, disabled, LTR
    "1e00 0000"  # 2.5 to 16 GT/s
    "2300 0000"  # target 8 GT/s, no autonomous speed
    "00000000 0000 0000"
)


def test_express_endpoint() -> None:
    capability = standard(0x10, ENDPOINT)
    assert flat(capability) == {
        "structure_version": 2,
        "type": PortType.ENDPOINT,
        "slot_implemented": False,
        "interrupt_message": 2,
        "device.max_payload_supported": 512,
        "device.max_payload": 512,
        "device.max_read_request": 512,
        "device.flr": True,
        "device.extended_tag_supported": True,
        "device.extended_tag_enabled": True,
        "device.phantom_functions_enabled": False,
        "device.role_based_errors": True,
        "device.relaxed_ordering_enabled": True,
        "device.no_snoop_enabled": True,
        "device.correctable_reporting": True,
        "device.nonfatal_reporting": True,
        "device.fatal_reporting": True,
        "device.unsupported_request_reporting": True,
        "device.correctable_detected": True,
        "device.nonfatal_detected": True,
        "device.fatal_detected": True,
        "device.unsupported_request_detected": True,
        "device.aux_power_detected": False,
        "device.transactions_pending": True,
        "link.speed": LinkSpeed.GT_8,
        "link.max_speed": LinkSpeed.GT_16,
        "link.width": 4,
        "link.max_width": 4,
        "link.port_number": 2,
        "link.aspm_supported": Aspm.L0S_L1,
        "link.aspm_enabled": Aspm.L1,
        "link.clock_power_management": True,
        "link.surprise_down_reporting": False,
        "link.active_reporting": False,
        "link.bandwidth_notification": False,
        "link.disabled": False,
        "link.common_clock": True,
        "link.training": False,
        "link.slot_clock": True,
        "link.active": False,
        "slot": None,
        "root": None,
        "device2.completion_timeout": 6,
        "device2.completion_timeout_disabled": True,
        "device2.ari_forwarding_supported": True,
        "device2.ari_forwarding_enabled": False,
        "device2.atomic_routing": False,
        "device2.atomic_32": True,
        "device2.atomic_64": True,
        "device2.atomic_128": True,
        "device2.atomic_requests_enabled": False,
        "device2.ltr_supported": True,
        "device2.ltr_enabled": True,
        "device2.tlp_prefix_supported": False,
        "link2.speeds_supported": (
            LinkSpeed.GT_2_5,
            LinkSpeed.GT_5,
            LinkSpeed.GT_8,
            LinkSpeed.GT_16,
        ),
        "link2.target_speed": LinkSpeed.GT_8,
        "link2.crosslink": False,
        "link2.autonomous_speed_disabled": True,
        "link2.flit_mode": False,
        "slot2": None,
    }


def test_express_root_port() -> None:
    pcie = dump("root-port").pcie
    assert pcie is not None
    assert pcie.type == PortType.ROOT_PORT
    assert pcie.slot is not None
    assert pcie.root is not None
    assert pcie.link is not None
    assert pcie.slot.physical_number == 1
    assert (pcie.slot.hot_plug_capable, pcie.slot.hot_plug_surprise) == (True, True)
    assert (pcie.slot.attention_indicator, pcie.slot.power_indicator) == (
        Indicator.OFF,
        Indicator.ON,
    )
    assert not pcie.slot.occupied
    assert not pcie.root.pme_interrupt_enabled
    assert (pcie.link.max_speed, pcie.link.max_width) == (LinkSpeed.GT_16, 32)
    assert pcie.length == 0x3C


@pytest.mark.parametrize(
    ("flags", "parts", "length"),
    [
        (0x0001, {"device", "link"}, 0x14),
        (0x0091, {"device"}, 0x0C),
        (0x0161, {"device", "link", "slot"}, 0x1C),
        (0x0141, {"device", "link", "slot", "root"}, 0x24),
        (0x00A1, {"device", "root"}, 0x24),
        (0x0092, {"device", "device2"}, 0x3C),
        (0x0162, {"device", "link", "slot", "device2", "link2", "slot2"}, 0x3C),
    ],
)
def test_express_has_the_parts_of_its_type(flags: int, parts: set[str], length: int) -> None:
    capability = standard(0x10, struct.pack("<H56x", flags).hex())
    present = {name for name, value in capability.fields().items() if isinstance(value, dict)}
    assert present == parts
    assert capability.length == length


def test_a_reserved_value_has_a_name_too() -> None:
    assert str(LinkSpeed(9)) == "reserved 9"
    assert LinkSpeed(9) == 9
    assert str(PortType(0xF)) == "reserved 15"
    assert str(LinkSpeed.GT_2_5) == "2.5 GT/s"


def test_vendor_specific() -> None:
    capability = standard(0x09, "06 aabbcc ffff")
    assert capability.length == 6
    assert capability.raw == bytes.fromhex("09 00 06 aabbcc")
    assert standard(0x09, "01 aabbcc").length is None


def test_advanced_features() -> None:
    capability = standard(0x13, "06 03 00 01")
    assert flat(capability) == {"flr": True, "transactions_pending": True}


def test_bridge_subsystem() -> None:
    assert flat(standard(0x0D, "0000 3412 7856")) == {"vendor_id": 0x1234, "device_id": 0x5678}


AER = "10400000 00000800 30204600 41000000 00200000 b4000000 04030201 08070605 00000000 0d0c0b0a"


def test_advanced_error_reporting() -> None:
    capability = extended(0x01, AER)
    assert flat(capability) == {
        "uncorrectable_status": Uncorrectable.DATA_LINK_PROTOCOL | Uncorrectable.COMPLETION_TIMEOUT,
        "uncorrectable_mask": Uncorrectable.ECRC,
        "uncorrectable_severity": Uncorrectable.DATA_LINK_PROTOCOL
        | Uncorrectable.SURPRISE_DOWN
        | Uncorrectable.FLOW_CONTROL_PROTOCOL
        | Uncorrectable.RECEIVER_OVERFLOW
        | Uncorrectable.MALFORMED_TLP
        | Uncorrectable.INTERNAL,
        "correctable_status": Correctable.RECEIVER | Correctable.BAD_TLP,
        "correctable_mask": Correctable.ADVISORY_NONFATAL,
        "first_error": 20,
        "ecrc_generation_capable": True,
        "ecrc_generation_enabled": False,
        "ecrc_check_capable": True,
        "ecrc_check_enabled": False,
        "header_log": (0x01020304, 0x05060708, 0, 0x0A0B0C0D),
        "root": None,
    }
    assert capability.fields()["correctable_status"] == ["receiver", "bad_tlp"]
    assert capability.length == 0x2C


def test_flags_without_a_name_are_shown_as_a_number() -> None:
    assert extended(0x01, "03000000" + "00" * 40).fields()["uncorrectable_status"] == ["0x3"]


def test_advanced_error_reporting_of_a_root_port() -> None:
    aer = dump("root-port").aer
    assert aer is not None
    assert aer.root is not None
    assert not aer.root.correctable_interrupt
    assert aer.length == 0x38


def test_advanced_error_root_registers() -> None:
    pcie = (0x10, struct.pack("<H56x", 0x0142))
    body = bytes.fromhex("00" * 40 + "05000000 65000010 34127856")
    aer = ConfigSpace.from_bytes(build([pcie], [(0x01, body)])).aer
    assert aer is not None
    assert aer.fields()["root"] == {
        "correctable_interrupt": True,
        "nonfatal_interrupt": False,
        "fatal_interrupt": True,
        "correctable_received": True,
        "uncorrectable_received": True,
        "nonfatal_received": True,
        "fatal_received": True,
        "interrupt_message": 2,
        "correctable_source": 0x1234,
        "uncorrectable_source": 0x5678,
    }


def test_serial_number() -> None:
    capability = extended(0x03, "563412ff ff005452")
    assert flat(capability) == {"serial": "52-54-00-ff-ff-12-34-56"}
    assert capability.length == 12


def test_alternative_routing_id() -> None:
    assert flat(extended(0x0E, "0203 5100")) == {
        "next_function": 3,
        "mfvc_groups_supported": False,
        "acs_groups_supported": True,
        "mfvc_groups_enabled": True,
        "acs_groups_enabled": False,
        "function_group": 5,
    }


@pytest.mark.parametrize(
    ("body", "values"),
    [("2000 0480", (True, 32, True, 1 << 16)), ("1000 0000", (False, 16, False, 4096))],
)
def test_address_translation(body: str, values: tuple[int, ...]) -> None:
    fields = flat(extended(0x0F, body))
    assert list(fields) == [
        "enabled",
        "invalidate_queue_depth",
        "page_aligned_request",
        "smallest_translation_unit",
    ]
    assert tuple(fields.values()) == values


def test_page_request() -> None:
    assert flat(extended(0x13, "0100 0281 00020000 40000000")) == {
        "enabled": True,
        "response_failure": False,
        "unexpected_group_index": True,
        "stopped": True,
        "pasid_required": True,
        "max_requests": 512,
        "allowed_requests": 64,
    }


def test_process_address_spaces() -> None:
    assert flat(extended(0x1B, "0414 0300")) == {
        "enabled": True,
        "width": 20,
        "execute_supported": False,
        "execute_enabled": True,
        "privileged_supported": True,
        "privileged_enabled": False,
    }


SRIOV = (
    "01000000 1900 0000 0800 0700 0600 0500 0301 0200 0000 0010 53050000 01000000"
    "0c000000 41000000 00000000 0000a0fe 00000000 00000000 00000000"
)


def test_virtual_functions() -> None:
    capability = extended(0x10, SRIOV)
    assert flat(capability) == {
        "total_vfs": 7,
        "initial_vfs": 8,
        "num_vfs": 6,
        "enabled": True,
        "memory_enabled": True,
        "ari_hierarchy": True,
        "migration_capable": True,
        "dependency_link": 5,
        "vf_offset": 0x103,
        "vf_stride": 2,
        "vf_device_id": 0x1000,
        "page_sizes_supported": (4096, 8192, 65536, 262144, 1048576, 4194304),
        "system_page_size": 4096,
        "vf_bars": (
            Bar(0, BarKind.MEMORY64, True, 0x41_0000_0000),
            Bar(3, BarKind.MEMORY32, False, 0xFEA00000),
        ),
    }
    assert capability.length == 64


REBAR = "f0ff0000 41080000 01000080 000b0100"


def test_resizable_bars() -> None:
    capability = extended(0x15, REBAR)
    assert flat(capability) == {
        "bars": (
            ResizableBar(1, 1 << 28, tuple(1 << 20 + bit for bit in range(12))),
            ResizableBar(0, 1 << 31, (1 << 47, 1 << 48)),
        )
    }
    assert capability.length == 20


def test_resizable_vf_bars_are_read_in_the_same_way() -> None:
    assert flat(extended(0x24, REBAR)) == flat(extended(0x15, REBAR))


def test_access_control() -> None:
    capability = extended(0x0D, "5f00 1d00")
    assert isinstance(capability, AcsCapability)
    assert capability.supported == ~Acs.EGRESS_CONTROL & 0x7F
    assert capability.enabled == (
        Acs.SOURCE_VALIDATION
        | Acs.REQUEST_REDIRECT
        | Acs.COMPLETION_REDIRECT
        | Acs.UPSTREAM_FORWARDING
    )
    assert capability.length == 8


@pytest.mark.parametrize(("bits", "length"), [(1, 12), (32, 12), (33, 16), (0, 40)])
def test_access_control_with_an_egress_vector(bits: int, length: int) -> None:
    assert extended(0x0D, f"20{bits:02x} 0000" + "00" * 32).length == length


def test_vendor_specific_extended() -> None:
    capability = extended(0x0B, "34121002 aabbccdd" + "00" * 32)
    assert flat(capability) == {"vsec_id": 0x1234, "revision": 0}
    assert capability.length == 0x21
    assert len(capability.raw) == 0x21
    assert extended(0x0B, "34120000").length is None


def test_designated_vendor_specific() -> None:
    capability = extended(0x23, "981e8103 0300 aabb")
    assert flat(capability) == {"vendor_id": 0x1E98, "revision": 1, "dvsec_id": 3}
    assert capability.length == 0x38


def test_unknown_capabilities_are_listed_with_their_bytes() -> None:
    data = build([(0xC0, b"abcdef"), (0x11, bytes(10))], [(0xABCD, b"wxyz1234"), (0x02, bytes(4))])
    config = ConfigSpace.from_bytes(data)
    unknown, _ = config.capabilities
    assert (unknown.id, unknown.name, unknown.length) == (0xC0, "unknown", None)
    assert unknown.raw == b"\xc0\x48abcdef"
    assert unknown.fields() == {}
    unknown_extended, named = config.extended_capabilities
    assert unknown_extended.raw[4:] == b"wxyz1234"
    assert (named.name, named.length) == ("Virtual Channel", None)
    assert len(named.raw) == 4096 - named.offset


def test_every_identifier_of_the_kernels_header_has_a_name() -> None:
    for name, value in vars(pci).items():
        if name.startswith("PCI_CAP_ID_") and name != "PCI_CAP_ID_MASK":
            assert value in STANDARD_NAMES, name
        if name.startswith("PCI_EXT_CAP_ID_"):
            assert value in EXTENDED_NAMES, name


def test_what_vfio_hides() -> None:
    config = dump("root-port")
    assert [item.name for item in config.capabilities if hidden_by_vfio(item)] == [
        "Bridge Subsystem ID"
    ]
    assert not any(map(hidden_by_vfio, config.extended_capabilities))
    assert pci.PCI_CAP_ID_EA in HIDDEN_BY_VFIO
    assert {
        pci.PCI_EXT_CAP_ID_PASID,
        pci.PCI_EXT_CAP_ID_DPC,
        pci.PCI_EXT_CAP_ID_PTM,
        pci.PCI_EXT_CAP_ID_L1SS,
    } <= EXTENDED_HIDDEN_BY_VFIO


def _resource(tag: int, data: bytes) -> bytes:
    return struct.pack("<BH", tag, len(data)) + data


def _keyword(name: bytes, value: bytes) -> bytes:
    return name + bytes([len(value)]) + value


def product_data(serial: bytes = b"SN-0042", spoil: int = 0) -> bytes:
    """A VPD with a valid checksum (plus `spoil`)."""
    keywords = _keyword(b"PN", b"BCM95719") + _keyword(b"SN", serial) + b"RV\x03"
    start = _resource(0x82, b"Gigabit Ethernet ") + struct.pack("<BH", 0x90, len(keywords) + 3)
    checksum = (-sum(start + keywords) + spoil) % 256
    read_only = start + keywords + bytes([checksum, 0, 0])
    return read_only + _resource(0x91, _keyword(b"YA", b"rack 7")) + b"\x78" + b"\xff" * 9


def test_product_data() -> None:
    vpd = Vpd.parse(product_data())
    assert vpd.identifier == "Gigabit Ethernet"
    assert vpd.read_only["PN"] == b"BCM95719"
    assert vpd.read_only["SN"] == b"SN-0042"
    assert list(vpd.read_only) == ["PN", "SN", "RV"]
    assert vpd.writable == {"YA": b"rack 7"}
    assert vpd.checksum_ok is True


def test_product_data_with_a_wrong_checksum() -> None:
    assert Vpd.parse(product_data(spoil=1)).checksum_ok is False


def test_product_data_without_a_checksum() -> None:
    assert Vpd.parse(_resource(0x82, b"x") + b"\x78").checksum_ok is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no end tag"),
        (b"\x00" * 16, "reads 0x00 at 0x0"),
        (b"\xff" * 16, "reads 0xff at 0x0"),
        (_resource(0x82, b"name")[:-1], "inside of a resource"),
        (_resource(0x82, b"name"), "no end tag"),
        (_resource(0x90, b"PN\x09short") + b"\x78", "PN.* beyond the end"),
    ],
)
def test_malformed_product_data(data: bytes, message: str) -> None:
    with pytest.raises(errors.MalformedConfig, match=message):
        Vpd.parse(data)


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda tail: product_data()[:60] + tail))
def test_arbitrary_product_data_parses_or_is_malformed(data: bytes) -> None:
    try:
        vpd = Vpd.parse(data)
    except errors.MalformedConfig:
        return
    assert sum(map(len, (vpd.identifier, *vpd.read_only.values()))) <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        _resource(0x90, b"RV\x01\0" * 8190) + b"\x78",
        _resource(0x90, b"RV\x01\0") * 4600 + b"\x78",
        b"\x90\0\0" * 10_000 + b"\x78",
        _resource(0x91, b"RV\0" * 10_000) + b"\x78",
        b"\x08" * 40_000,
        product_data(),
    ],
    ids=["checksums", "one each", "empty", "keywords", "no end", "usual"],
)
def test_product_data_is_read_a_few_times_at_most(data: bytes) -> None:
    """So that it takes no longer for its length than it must."""
    fetched = 0

    def fetch(offset: int, length: int) -> bytes:
        nonlocal fetched
        if offset + length > len(data):
            raise errors.MalformedConfig("the end")
        fetched += length
        return data[offset : offset + length]

    with suppress(errors.MalformedConfig):
        vpd_module._decode(fetch)
    assert fetched <= 3 * len(data)


def test_product_data_ends_where_the_window_ends() -> None:
    """After 32 KiB, whatever follows."""
    with pytest.raises(errors.MalformedConfig, match="ends after 32768 bytes"):
        Vpd.parse(_resource(0x82, bytes(30_000)) + _resource(0x82, bytes(3_000)) + b"\x78")
    with pytest.raises(errors.MalformedConfig, match="ends after 32768 bytes"):
        Vpd.parse(b"\x08" * (1 << 20))


class VpdWindow:
    """A device with product data behind its VPD capability at 0x40, slow by some polls."""

    size = 256

    def __init__(self, content: bytes, polls: int = 2) -> None:
        self.data = bytearray(build([(0x03, bytes(6))], size=256))
        self.content = content
        self.polls = polls
        self.left = 0

    def read(self, offset: int, width: int) -> int:
        if (offset, width) == (0x42, 2) and self.left > 0:
            self.left -= 1
            if self.left == 0:
                address = int.from_bytes(self.data[0x42:0x44], "little")
                self.data[0x44:0x48] = self.content[address : address + 4].ljust(4, b"\0")
                self.data[0x43] |= 0x80
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        assert (offset, width) == (0x42, 2)
        assert value & 0x8003 == 0
        self.data[0x42:0x44] = value.to_bytes(2, "little")
        self.left = self.polls


def test_product_data_through_the_window() -> None:
    vpd = ConfigSpace(VpdWindow(product_data())).vpd
    assert vpd is not None
    assert vpd.load() == Vpd.parse(product_data())


def test_a_window_that_never_answers() -> None:
    vpd = ConfigSpace(VpdWindow(product_data(), polls=-1)).vpd
    assert vpd is not None
    with pytest.raises(errors.Unsupported, match="did not deliver its VPD at 0x0"):
        vpd.load(timeout=0)


def test_a_window_to_endless_data() -> None:
    vpd = ConfigSpace(VpdWindow(b"\x0f" * 0x10000, polls=1)).vpd
    assert vpd is not None
    with pytest.raises(errors.MalformedConfig, match="no end tag within 32768 bytes"):
        vpd.load()


def test_a_window_that_is_always_just_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it takes a minute at most, not an hour."""
    now = 1000.0

    def monotonic() -> float:
        nonlocal now
        now += 0.1
        return now

    clock = SimpleNamespace(monotonic=monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr(vpd_module, "time", clock)
    vpd = ConfigSpace(VpdWindow(b"\x0f" * 0x10000, polls=2)).vpd
    assert vpd is not None
    with pytest.raises(errors.Unsupported, match="in 60 s, and there is no end tag yet"):
        vpd.load()
    assert now < 1000 + 70


def test_product_data_is_not_in_a_dump() -> None:
    vpd = ConfigSpace.from_bytes(build([(0x03, bytes(6))])).vpd
    assert vpd is not None
    with pytest.raises(errors.Unsupported, match="dump"):
        vpd.load()


def lspci(text: str, tmp_path: Path) -> str:
    """How lspci decodes a dump."""
    if shutil.which("lspci") is None:
        pytest.skip("lspci is not installed")
    file = tmp_path / "dump"
    file.write_text(text)
    command = ["lspci", "-vvv", "-n", "-F", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_lspci_decodes_the_samples_alike(tmp_path: Path) -> None:
    """The samples above were worked out by hand; lspci must read the same out of them."""
    data = build(
        [
            (0x01, bytes.fromhex("c35b 0b81 0000")),
            (0x05, bytes.fromhex("8801 0010e0fe 04030201 c241 0000 0f000000 05000000")),
            (0x11, bytes.fromhex("ffc7 03200000 05303412")),
            (0x10, bytes.fromhex(ENDPOINT)),
        ],
        [
            (0x01, bytes.fromhex(AER)),
            (0x03, bytes.fromhex("563412ff ff005452")),
            (0x0E, bytes.fromhex("0203 5100")),
            (0x0F, bytes.fromhex("2000 0480")),
            (0x10, bytes.fromhex(SRIOV)),
            (0x13, bytes.fromhex("0100 0281 00020000 40000000")),
            (0x1B, bytes.fromhex("0414 0300")),
            (0x0D, bytes.fromhex("5f00 1d00")),
            (0x15, bytes.fromhex(REBAR)),
            (0x0B, bytes.fromhex("34121002 aabbccdd" + "00" * 32)),
            (0x23, bytes.fromhex("981e8103 0300" + "00" * 46)),
        ],
        header={0x10: bytes.fromhex("0000a0fe")},
    )
    text = lspci(as_lspci(data), tmp_path)
    # Only what lspci 3.9 and 3.13 word alike.
    expected = (
        "DSI- D1+ D2- AuxCurrent=375mA PME(D0+,D1+,D2-,D3hot+,D3cold-)",
        "Status: D3 NoSoftRst+ PME-Enable+ DSel=0 DScale=0 PME+",
        "MSI: Enable- Count=1/16 Maskable+ 64bit+",
        "Address: 01020304fee01000  Data: 41c2",
        "Masking: 0000000f  Pending: 00000005",
        "MSI-X: Enable+ Count=2048 Masked+",
        "Vector table: BAR=3 offset=00002000",
        "PBA: BAR=5 offset=12343000",
        "Express (v2) Endpoint",
        "MaxPayload 512 bytes, MaxReadReq 512 bytes",
        "DevSta:	CorrErr+ NonFatalErr+ FatalErr+ UnsupReq+ AuxPwr- TransPend+",
        "LnkCap:	Port #2, Speed 16GT/s, Width x4, ASPM L0s L1",
        "LnkCtl:	ASPM L1 Enabled; RCB 64 bytes",
        "LnkSta:	Speed 8GT/s",
        "TrErr- Train- SlotClk+ DLActive-",
        "AtomicOpsCap: 32bit+ 64bit+ 128bitCAS+",
        "TimeoutDis+",
        "LnkCap2: Supported Link Speeds: 2.5-16GT/s, Crosslink-",
        "LnkCtl2: Target Link Speed: 8GT/s, EnterCompliance- SpeedDis+",
        "UESta:	DLP+ SDES- TLP- FCP- CmpltTO+ CmpltAbrt-",
        "CESta:	RxErr+ BadTLP+ BadDLLP-",
        "AERCap:	First Error Pointer: 14, ECRCGenCap+ ECRCGenEn- ECRCChkCap+ ECRCChkEn-",
        "HeaderLog: 01020304 05060708 00000000 0a0b0c0d",
        "Device Serial Number 52-54-00-ff-ff-12-34-56",
        "ARICap:	MFVC- ACS+, Next Function: 3",
        "ARICtl:	MFVC+ ACS-, Function Group: 5",
        "ATSCtl:	Enable+, Smallest Translation Unit: 04",
        "IOVCtl:	Enable+ Migration- Interrupt- MSE+ ARIHierarchy+",
        "Initial VFs: 8, Total VFs: 7, Number of VFs: 6, Function Dependency Link: 05",
        "VF offset: 259, stride: 2, Device ID: 1000",
        "Region 0: Memory at 0000004100000000 (64-bit, prefetchable)",
        "Region 3: Memory at fea00000 (32-bit, non-prefetchable)",
        "PRISta: RF- UPRGI+ Stopped+",
        "Page Request Capacity: 00000200, Page Request Allocation: 00000040",
        "PASIDCap: Exec- Priv+, Max PASID Width: 14",
        "PASIDCtl: Enable+ Exec+ Priv-",
        "ACSCap:	SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl-",
        "ACSCtl:	SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl-",
        "BAR 1: current size: 256MB, supported: 1MB 2MB 4MB 8MB 16MB 32MB 64MB 128MB 256MB 512MB",
        "BAR 0: current size: 2GB, supported: 128TB 256TB",
        "Vendor Specific Information: ID=1234 Rev=0 Len=021",
        "Designated Vendor-Specific: Vendor=1e98 ID=0003 Rev=1 Len=56",
    )
    assert [phrase for phrase in expected if phrase not in text] == []


@pytest.mark.parametrize("name", ["e1000e", "nvme", "root-port", "virtio-net"])
def test_lspci_finds_the_same_capabilities_in_a_dump(name: str, tmp_path: Path) -> None:
    text = lspci(lspci_text(name), tmp_path)
    config = dump(name)
    listed = [
        *(f"[{item.offset:02x}]" for item in config.capabilities),
        *(f"[{item.offset:03x} v{item.version}]" for item in config.extended_capabilities),
    ]
    assert re.findall(r"Capabilities: (\[[^]]*\])", text) == listed
