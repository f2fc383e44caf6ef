"""Numbers of the NVM Express specifications: registers, commands, features (Base 2.0, NVM 1.0)."""

from __future__ import annotations

from enum import IntEnum

CLASS_CODE = 0x010802
"""PCI class of a controller with this register interface."""

# Registers (Base 2.0, 3.1.3), bytes from the start of BAR 0.
CAP = 0x00
VS = 0x08
CC = 0x14
CSTS = 0x1C
AQA = 0x24
ASQ = 0x28
ACQ = 0x30
DOORBELLS = 0x1000

CC_ENABLE = 1 << 0
CC_SHUTDOWN = 3 << 14
CC_NORMAL_SHUTDOWN = 1 << 14
CC_ENTRY_SIZES = 6 << 16 | 4 << 20  # 64 and 16 bytes, as powers of two
CSTS_READY = 1 << 0
CSTS_FATAL = 1 << 1
CSTS_SHUTDOWN = 3 << 2
CSTS_SHUT_DOWN = 2 << 2
GONE = 0xFFFFFFFF
"""What a register reads where nothing answers."""

SUBMISSION_ENTRY = 64
COMPLETION_ENTRY = 16

ALL_NAMESPACES = 0xFFFFFFFF


class Admin(IntEnum):
    """Admin commands (Base 2.0, figure 138)."""

    DELETE_SUBMISSION_QUEUE = 0x00
    CREATE_SUBMISSION_QUEUE = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_COMPLETION_QUEUE = 0x04
    CREATE_COMPLETION_QUEUE = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    FORMAT = 0x80


class Io(IntEnum):
    """I/O commands of the NVM command set (NVM 1.0, figure 18)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    DATASET_MANAGEMENT = 0x09


class Identify(IntEnum):
    """What Identify tells of (Base 2.0, figure 273)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02


class Feature(IntEnum):
    """Features (Base 2.0, figure 316)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E


class Log(IntEnum):
    """Log pages (Base 2.0, figure 202)."""

    ERRORS = 0x01
    SMART = 0x02
    FIRMWARE_SLOTS = 0x03


QUEUE_CONTIGUOUS = 1 << 0
QUEUE_INTERRUPTS = 1 << 1
QUEUE_MEDIUM_PRIORITY = 2 << 1
"""Without weight by default; Intel's P3100 looks at it all the same (docs/nvme.md)."""
DEALLOCATE = 1 << 2
MOST_RANGES = 256  # of one Dataset Management command
MOST_BLOCKS = 1 << 16  # of one Read or Write: NLB has 16 bits, and begins at 0
LEAST_BLOCK = 512  # bytes
