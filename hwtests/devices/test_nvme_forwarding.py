"""An NVMe controller interrupts a guest, by MSI-X (NVMe Base Specification 2.0).

Two queues, so two vectors: the administrator's has vector 0, one for reading has the last vector
that there is a handler for. Nothing is written to the medium.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import pyvfio
from hwtests.counting_guest import CountingGuest
from hwtests.devices.test_nvme import CAP, CC, DOORBELLS, ENTRIES, become, start
from hwtests.receivers import guest_of, seen_by_us, sent_by, until
from pyvfio.device import Device, MsixEntry, Region
from pyvfio.iommu import DmaBuffer
from pyvfio.irqroute import MsixForwarder
from pyvfio.kvm import apic_message

pytestmark = [
    pytest.mark.for_device(class_code=0x010802),
    pytest.mark.usefixtures("namespace"),
]

CREATE_SUBMISSION, CREATE_COMPLETION, SET_FEATURES, GET_FEATURES = 0x01, 0x05, 0x09, 0x0A
NUMBER_OF_QUEUES, COALESCING = 0x07, 0x08
READ = 0x02
CONTIGUOUS, INTERRUPTS = 1, 2

FIRST = 0x40
MOST = 128  # vectors, of those that the host has for all its devices
TIMES = 10_000
SOON = 0.2


class Queue:
    """A submission queue and its completion queue, with one command in them at a time."""

    def __init__(
        self, registers: Region, number: int, commands: DmaBuffer, completions: DmaBuffer
    ) -> None:
        stride = 4 << (registers.read64(CAP) >> 32 & 0xF)
        self._registers = registers
        self._tail_doorbell = DOORBELLS + 2 * number * stride
        self._head_doorbell = self._tail_doorbell + stride
        self._commands, self._completions = commands.view, completions.view
        self._sent = 0

    def send(self, opcode: int, *dwords: int, namespace: int = 0, data: int = 0) -> None:
        """Send a command: `data` is an IOVA, `dwords` are its dwords from 10 on."""
        number = self._sent
        at = number % ENTRIES * 64
        dwords += (0,) * (6 - len(dwords))
        self._commands[at : at + 64] = struct.pack(
            "<II8xQQQ6I", opcode | (number & 0xFFFF) << 16, namespace, 0, data, 0, *dwords
        )
        self._sent = number + 1
        pyvfio.fence()
        self._registers.write32(self._tail_doorbell, self._sent % ENTRIES)

    def completed(self) -> bool:
        """Whether the command that was sent last is done."""
        number = self._sent - 1
        phase = self._completions[number % ENTRIES * 16 + 14] & 1
        pyvfio.fence()
        return phase != number // ENTRIES % 2  # it alternates from round to round, 1 first

    def finish(self) -> int:
        """Take the completion of the command that was sent last; returns its status."""
        assert self.completed()
        number = self._sent - 1
        at = number % ENTRIES * 16
        echoed, status = struct.unpack("<HH", self._completions[at + 12 : at + 16])
        assert echoed == number & 0xFFFF
        self._registers.write32(self._head_doorbell, self._sent % ENTRIES)
        return int(status) >> 1

    def do(self, opcode: int, *dwords: int, data: int = 0, may_fail: bool = False) -> None:
        """Send a command, look whether it is done, time and again, and take its completion."""
        self.send(opcode, *dwords, data=data)
        until(self.completed)
        assert self.finish() == 0 or may_fail


@contextmanager
def forwarded(
    device: Device,
) -> Iterator[tuple[CountingGuest, MsixForwarder, list[tuple[int, Queue]]]]:
    """A guest with a handler for each vector; and the vectors with a queue, with the queues."""
    registers = device.bars[0]
    registers.write32(CC, 0)
    become(registers, 0)
    commands, completions, reads, read = (device.dma.alloc(4096) for _ in range(4))
    with guest_of(device) as (vm, guest), MsixForwarder(device.msix, vm) as forwarder:
        vector = min(device.msix.count, MOST) - 1
        for number in range(vector + 1):
            forwarder.msix[number] = MsixEntry(*apic_message(FIRST + number), masked=False)
        # A queue gets only a vector that can be used.
        forwarder.msix.enabled = True
        start(registers, commands, completions)
        try:
            administrator = Queue(registers, 0, commands, completions)
            size = (ENTRIES - 1) << 16
            flags = vector << 16 | INTERRUPTS | CONTIGUOUS
            for number, (opcode, dwords, data) in enumerate(
                (
                    (SET_FEATURES, (NUMBER_OF_QUEUES, 0), 0),  # which is one
                    # No interrupt for several completions; who refuses has none anyway.
                    (SET_FEATURES, (COALESCING, 0), 0),
                    (CREATE_COMPLETION, (size | 1, flags), read.iova),
                    (CREATE_SUBMISSION, (size | 1, 1 << 16 | CONTIGUOUS), reads.iova),
                ),
                1,
            ):
                administrator.do(opcode, *dwords, data=data, may_fail=dwords[0] == COALESCING)
                # One at a time: two that wait at the local APIC are one.
                assert guest.wait(FIRST, number) == number, "one for each of these commands"
            yield guest, forwarder, [(0, administrator), (vector, Queue(registers, 1, reads, read))]
        finally:
            registers.write32(CC, 0)
            become(registers, 0)


def command(queue: Queue, vector: int, buffer: DmaBuffer) -> None:
    """One that ends with an interrupt, and changes nothing."""
    if vector:
        queue.send(READ, 0, 0, 0, namespace=1, data=buffer.iova)  # one block, the first
    else:
        queue.send(GET_FEATURES, NUMBER_OF_QUEUES)


def test_ten_thousand_interrupts_are_ten_thousand(device: Device) -> None:
    buffer = device.dma.alloc(4096)
    with forwarded(device) as (guest, forwarder, queues):
        before = guest.total()
        for number in range(TIMES):
            vector, queue = queues[number % len(queues)]
            count = guest.counts(FIRST + vector) + 1
            command(queue, vector, buffer)
            assert guest.wait(FIRST + vector, count) == count
            assert queue.finish() == 0
        assert sent_by(device) == before + TIMES
        count = guest.counts(FIRST)
        assert guest.wait(FIRST, count + 1, SOON) == count
        assert guest.total() == before + TIMES
        assert seen_by_us(forwarder) == 0
        assert guest.exits == 0


def test_a_masked_interrupt_is_pending_and_comes_once(device: Device) -> None:
    buffer = device.dma.alloc(4096)
    with forwarded(device) as (guest, forwarder, queues):
        msix, total = forwarder.msix, guest.total()
        for vector, queue in queues:
            before = guest.counts(FIRST + vector)
            msix[vector] = msix[vector]._replace(masked=True)
            for _ in range(2):
                command(queue, vector, buffer)
                until(queue.completed)
                assert queue.finish() == 0
            until(lambda vector=vector: msix.is_pending(vector))  # type: ignore[misc]
            assert guest.wait(FIRST + vector, before + 1, SOON) == before
            msix[vector] = msix[vector]._replace(masked=False)
            assert guest.wait(FIRST + vector, before + 1) == before + 1
            assert guest.wait(FIRST + vector, before + 2, SOON) == before + 1
            assert not msix.is_pending(vector)
        assert guest.total() == total + len(queues)
