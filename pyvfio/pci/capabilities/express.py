"""The PCI Express capability (PCIe 5.0, 7.5.3), in the parts that its specification has."""

from __future__ import annotations

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.capabilities.base import StandardCapability
from pyvfio.pci.registers import Choice, Registers, derived, u16, u32


class PortType(Choice):
    """What kind of PCIe function it is (7.5.3.2)."""

    ENDPOINT = 0x0
    LEGACY_ENDPOINT = 0x1
    ROOT_PORT = 0x4
    UPSTREAM_PORT = 0x5
    DOWNSTREAM_PORT = 0x6
    PCIE_TO_PCI_BRIDGE = 0x7
    PCI_TO_PCIE_BRIDGE = 0x8
    INTEGRATED_ENDPOINT = 0x9
    EVENT_COLLECTOR = 0xA


class LinkSpeed(Choice):
    """Transfers per second on one lane (7.5.3.6)."""

    GT_2_5 = 1
    GT_5 = 2
    GT_8 = 3
    GT_16 = 4
    GT_32 = 5
    GT_64 = 6
    GT_128 = 7

    def __str__(self) -> str:
        if not self.name.startswith("GT_"):
            return super().__str__()
        return self.name[3:].replace("_", ".") + " GT/s"


class Aspm(Choice):
    """Power states that a link may enter by itself (7.5.3.6, 7.5.3.7)."""

    NONE = 0
    L0S = 1
    L1 = 2
    L0S_L1 = 3


class Indicator(Choice):
    """What a slot's light is told to do (7.5.3.10)."""

    ON = 1
    BLINK = 2
    OFF = 3


def _payload(code: int) -> int:
    """Bytes: codes 0 to 5 are 128 to 4096, the others reserved."""
    return 128 << code


class DeviceRegisters(Registers):
    """Device Capabilities, Control and Status (7.5.3.3 to 7.5.3.5); sizes in bytes."""

    max_payload_supported = u32(pci.PCI_EXP_DEVCAP, pci.PCI_EXP_DEVCAP_PAYLOAD, _payload)
    max_payload = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_PAYLOAD, _payload)
    max_read_request = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_READRQ, _payload)
    flr = u32(pci.PCI_EXP_DEVCAP, pci.PCI_EXP_DEVCAP_FLR, bool)
    extended_tag_supported = u32(pci.PCI_EXP_DEVCAP, pci.PCI_EXP_DEVCAP_EXT_TAG, bool)
    extended_tag_enabled = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_EXT_TAG, bool)
    phantom_functions_enabled = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_PHANTOM, bool)
    role_based_errors = u32(pci.PCI_EXP_DEVCAP, pci.PCI_EXP_DEVCAP_RBER, bool)
    relaxed_ordering_enabled = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_RELAX_EN, bool)
    no_snoop_enabled = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_NOSNOOP_EN, bool)
    correctable_reporting = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_CERE, bool)
    nonfatal_reporting = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_NFERE, bool)
    fatal_reporting = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_FERE, bool)
    unsupported_request_reporting = u16(pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_URRE, bool)
    correctable_detected = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_CED, bool)
    nonfatal_detected = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_NFED, bool)
    fatal_detected = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_FED, bool)
    unsupported_request_detected = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_URD, bool)
    aux_power_detected = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_AUXPD, bool)
    transactions_pending = u16(pci.PCI_EXP_DEVSTA, pci.PCI_EXP_DEVSTA_TRPND, bool)


class LinkRegisters(Registers):
    """Link Capabilities, Control and Status (7.5.3.6 to 7.5.3.8)."""

    speed = u16(pci.PCI_EXP_LNKSTA, pci.PCI_EXP_LNKSTA_CLS, LinkSpeed)
    max_speed = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_SLS, LinkSpeed)
    #: In lanes, as is `max_width`.
    width = u16(pci.PCI_EXP_LNKSTA, pci.PCI_EXP_LNKSTA_NLW)
    max_width = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_MLW)
    port_number = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_PN)
    aspm_supported = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_ASPMS, Aspm)
    aspm_enabled = u16(pci.PCI_EXP_LNKCTL, pci.PCI_EXP_LNKCTL_ASPMC, Aspm)
    clock_power_management = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_CLKPM, bool)
    surprise_down_reporting = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_SDERC, bool)
    active_reporting = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_DLLLARC, bool)
    bandwidth_notification = u32(pci.PCI_EXP_LNKCAP, pci.PCI_EXP_LNKCAP_LBNC, bool)
    disabled = u16(pci.PCI_EXP_LNKCTL, pci.PCI_EXP_LNKCTL_LD, bool)
    common_clock = u16(pci.PCI_EXP_LNKCTL, pci.PCI_EXP_LNKCTL_CCC, bool)
    training = u16(pci.PCI_EXP_LNKSTA, pci.PCI_EXP_LNKSTA_LT, bool)
    slot_clock = u16(pci.PCI_EXP_LNKSTA, pci.PCI_EXP_LNKSTA_SLC, bool)
    active = u16(pci.PCI_EXP_LNKSTA, pci.PCI_EXP_LNKSTA_DLLLA, bool)


class SlotRegisters(Registers):
    """Slot Capabilities, Control and Status (7.5.3.9 to 7.5.3.11)."""

    physical_number = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_PSN)
    hot_plug_capable = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_HPC, bool)
    hot_plug_surprise = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_HPS, bool)
    attention_button = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_ABP, bool)
    power_controller = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_PCP, bool)
    mrl_sensor = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_MRLSP, bool)
    attention_indicator_present = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_AIP, bool)
    power_indicator_present = u32(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_SLTCAP_PIP, bool)
    hot_plug_interrupt_enabled = u16(pci.PCI_EXP_SLTCTL, pci.PCI_EXP_SLTCTL_HPIE, bool)
    attention_indicator = u16(pci.PCI_EXP_SLTCTL, pci.PCI_EXP_SLTCTL_AIC, Indicator)
    power_indicator = u16(pci.PCI_EXP_SLTCTL, pci.PCI_EXP_SLTCTL_PIC, Indicator)
    power_off = u16(pci.PCI_EXP_SLTCTL, pci.PCI_EXP_SLTCTL_PCC, bool)
    button_pressed = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_ABP, bool)
    power_fault = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_PFD, bool)
    mrl_open = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_MRLSS, bool)
    occupied = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_PDS, bool)
    occupied_changed = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_PDC, bool)
    link_changed = u16(pci.PCI_EXP_SLTSTA, pci.PCI_EXP_SLTSTA_DLLSC, bool)


class RootRegisters(Registers):
    """Root Control, Capabilities and Status (7.5.3.12 to 7.5.3.14)."""

    error_on_correctable = u16(pci.PCI_EXP_RTCTL, pci.PCI_EXP_RTCTL_SECEE, bool)
    error_on_nonfatal = u16(pci.PCI_EXP_RTCTL, pci.PCI_EXP_RTCTL_SENFEE, bool)
    error_on_fatal = u16(pci.PCI_EXP_RTCTL, pci.PCI_EXP_RTCTL_SEFEE, bool)
    pme_interrupt_enabled = u16(pci.PCI_EXP_RTCTL, pci.PCI_EXP_RTCTL_PMEIE, bool)
    rrs_visible = u16(pci.PCI_EXP_RTCTL, pci.PCI_EXP_RTCTL_RRS_SVE, bool)
    pme_requester = u32(pci.PCI_EXP_RTSTA, pci.PCI_EXP_RTSTA_PME_RQ_ID)
    pme_status = u32(pci.PCI_EXP_RTSTA, pci.PCI_EXP_RTSTA_PME, bool)


class Device2Registers(Registers):
    """Device Capabilities, Control and Status 2 (7.5.3.15 to 7.5.3.17)."""

    #: The code of a range of times; 0 is 50 us to 50 ms.
    completion_timeout = u16(pci.PCI_EXP_DEVCTL2, pci.PCI_EXP_DEVCTL2_COMP_TIMEOUT)
    completion_timeout_disabled = u16(pci.PCI_EXP_DEVCTL2, pci.PCI_EXP_DEVCTL2_COMP_TMOUT_DIS, bool)
    ari_forwarding_supported = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_ARI, bool)
    ari_forwarding_enabled = u16(pci.PCI_EXP_DEVCTL2, pci.PCI_EXP_DEVCTL2_ARI, bool)
    atomic_routing = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_ATOMIC_ROUTE, bool)
    atomic_32 = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_ATOMIC_COMP32, bool)
    atomic_64 = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_ATOMIC_COMP64, bool)
    atomic_128 = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_ATOMIC_COMP128, bool)
    atomic_requests_enabled = u16(pci.PCI_EXP_DEVCTL2, pci.PCI_EXP_DEVCTL2_ATOMIC_REQ, bool)
    ltr_supported = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_LTR, bool)
    ltr_enabled = u16(pci.PCI_EXP_DEVCTL2, pci.PCI_EXP_DEVCTL2_LTR_EN, bool)
    tlp_prefix_supported = u32(pci.PCI_EXP_DEVCAP2, pci.PCI_EXP_DEVCAP2_EE_PREFIX, bool)


class Link2Registers(Registers):
    """Link Capabilities, Control and Status 2 (7.5.3.18 to 7.5.3.20)."""

    speeds_supported = u32(
        pci.PCI_EXP_LNKCAP2,
        pci.PCI_EXP_LNKCAP2_SLS,
        lambda bits: tuple(LinkSpeed(bit + 1) for bit in range(7) if bits >> bit & 1),
    )
    target_speed = u16(pci.PCI_EXP_LNKCTL2, pci.PCI_EXP_LNKCTL2_TLS, LinkSpeed)
    crosslink = u32(pci.PCI_EXP_LNKCAP2, pci.PCI_EXP_LNKCAP2_CROSSLINK, bool)
    autonomous_speed_disabled = u16(pci.PCI_EXP_LNKCTL2, pci.PCI_EXP_LNKCTL2_HASD, bool)
    flit_mode = u16(pci.PCI_EXP_LNKSTA2, pci.PCI_EXP_LNKSTA2_FLIT, bool)


class Slot2Registers(Registers):
    """Slot Capabilities 2 (7.5.3.21)."""

    in_band_presence_disable = u32(pci.PCI_EXP_SLTCAP2, pci.PCI_EXP_SLTCAP2_IBPD, bool)


_WITHOUT_LINK = (PortType.INTEGRATED_ENDPOINT, PortType.EVENT_COLLECTOR)
_WITH_ROOT = (PortType.ROOT_PORT, PortType.EVENT_COLLECTOR)


class PcieCapability(StandardCapability, id=pci.PCI_CAP_ID_EXP):
    """PCI Express; a part that this kind of function does not have is None."""

    structure_version = u16(pci.PCI_EXP_FLAGS, pci.PCI_EXP_FLAGS_VERS)
    type = u16(pci.PCI_EXP_FLAGS, pci.PCI_EXP_FLAGS_TYPE, PortType)
    slot_implemented = u16(pci.PCI_EXP_FLAGS, pci.PCI_EXP_FLAGS_SLOT, bool)
    interrupt_message = u16(pci.PCI_EXP_FLAGS, pci.PCI_EXP_FLAGS_IRQ)

    @derived
    def device(self) -> DeviceRegisters:
        """The function itself."""
        return DeviceRegisters(self)

    @derived
    def link(self) -> LinkRegisters | None:
        """Its link; none inside a root complex."""
        return None if self.type in _WITHOUT_LINK else LinkRegisters(self)

    @derived
    def slot(self) -> SlotRegisters | None:
        """The slot behind a port."""
        return SlotRegisters(self) if self.slot_implemented else None

    @derived
    def root(self) -> RootRegisters | None:
        """What root ports and event collectors have."""
        return RootRegisters(self) if self.type in _WITH_ROOT else None

    @derived
    def device2(self) -> Device2Registers | None:
        """The function itself, continued."""
        return Device2Registers(self) if self.structure_version >= 2 else None

    @derived
    def link2(self) -> Link2Registers | None:
        """Its link, continued."""
        return Link2Registers(self) if self.link and self.structure_version >= 2 else None

    @derived
    def slot2(self) -> Slot2Registers | None:
        """The slot, continued."""
        return Slot2Registers(self) if self.slot and self.structure_version >= 2 else None

    @property
    def length(self) -> int:
        """Bytes: all registers of version 2; up to the last part that version 1 has."""
        if self.structure_version >= 2:
            return pci.PCI_EXP_SLTSTA2 + 2
        if self.root:
            return pci.PCI_EXP_RTSTA + 4
        if self.slot:
            return pci.PCI_EXP_RTCTL
        if self.link:
            return pci.PCI_CAP_EXP_ENDPOINT_SIZEOF_V1
        return pci.PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V1
