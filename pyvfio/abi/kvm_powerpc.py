"""POWER's part of KVM's interface: its ``asm/kvm.h``, what concerns interrupt controllers.

Names, layouts and values are the kernel's. Left out: registers and their IDs, MMU information and
TCE tables, debugging, and XIVE in its native mode (a guest's XICS on a XIVE host needs nothing of
it).
"""

from __future__ import annotations

# The XICS device: KVM_DEV_TYPE_XICS.

KVM_DEV_XICS_GRP_SOURCES = 1
"""Attribute: a source's number. Value: 64 bits, laid out as below."""

KVM_DEV_XICS_GRP_CTRL = 2
KVM_DEV_XICS_NR_SERVERS = 1

KVM_XICS_DESTINATION_SHIFT = 0
KVM_XICS_DESTINATION_MASK = 0xFFFFFFFF
KVM_XICS_PRIORITY_SHIFT = 32
KVM_XICS_PRIORITY_MASK = 0xFF
KVM_XICS_LEVEL_SENSITIVE = 1 << 40
KVM_XICS_MASKED = 1 << 41
KVM_XICS_PENDING = 1 << 42
KVM_XICS_PRESENTED = 1 << 43
KVM_XICS_QUEUED = 1 << 44

# A vCPU's side of XICS, its presentation controller: a register for KVM_GET_ONE_REG.

KVM_REG_PPC_ICP_STATE = 0x1030_0000_0000_008C
KVM_REG_PPC_ICP_CPPR_SHIFT = 56
KVM_REG_PPC_ICP_CPPR_MASK = 0xFF
KVM_REG_PPC_ICP_XISR_SHIFT = 32
KVM_REG_PPC_ICP_XISR_MASK = 0xFFFFFF
KVM_REG_PPC_ICP_MFRR_SHIFT = 24
KVM_REG_PPC_ICP_MFRR_MASK = 0xFF
KVM_REG_PPC_ICP_PPRI_SHIFT = 16
KVM_REG_PPC_ICP_PPRI_MASK = 0xFF
