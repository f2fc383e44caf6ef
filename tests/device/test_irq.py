"""IRQ indexes: what is asked of the kernel, and what happens when it refuses.

The stand-in for ioctl here injects the refusals; that interrupts really arrive is shown on real
kernels by hwtests/.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import DeviceFile, calls
from pyvfio.abi import vfio
from pyvfio.device import Vector
from pyvfio.device.irq import Irq, _runs

MSIX = vfio.VFIO_PCI_MSIX_IRQ_INDEX
INTX = vfio.VFIO_PCI_INTX_IRQ_INDEX
EVENTFD_TRIGGER = vfio.VFIO_IRQ_SET_DATA_EVENTFD | vfio.VFIO_IRQ_SET_ACTION_TRIGGER
NONE_TRIGGER = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_TRIGGER


class Kernel:
    """Keeps what SET_IRQS was asked, and answers as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int, int, tuple[int, ...]]] = []
        self.answer: Callable[[], int] = lambda: 0

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        argsz, flags, index, start, count = struct.unpack_from("<5I", argument)
        assert request == vfio.VFIO_DEVICE_SET_IRQS
        assert argsz == len(argument)
        fds = struct.unpack_from(f"<{(argsz - 20) // 4}i", argument, 20)
        self.calls.append((flags, index, start, count, fds))
        return self.answer()

    def refuse(self, number: int) -> None:
        def answer() -> int:
            raise OSError(number, os.strerror(number))

        self.answer = answer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(calls, "ioctl", kernel.ioctl)
    return kernel


def make(
    count: int = 8, *, index: int = MSIX, flags: int = 0, siblings: list[Irq] | None = None
) -> Irq:
    file = DeviceFile(os.memfd_create("device"), "device")
    siblings = [] if siblings is None else siblings
    irq = Irq(file, index, "MSI-X", flags=flags, count=count, siblings=siblings)
    siblings.append(irq)
    return irq


def open_files() -> int:
    gc.collect()  # what earlier tests left in cycles is closed before the count, not between two
    return len(os.listdir("/proc/self/fd"))


def test_many_vectors_are_enabled_by_one_call_and_disabled_by_one(kernel: Kernel) -> None:
    irq = make(64)
    before = open_files()
    with irq.enable() as vectors:
        assert [vector.index for vector in vectors] == list(range(64))
        fds = tuple(vector.fileno() for vector in vectors)
        assert kernel.calls == [(EVENTFD_TRIGGER, MSIX, 0, 64, fds)]
    assert kernel.calls[1:] == [(NONE_TRIGGER, MSIX, 0, 0, ())]
    assert open_files() == before
    irq.disable()
    assert len(kernel.calls) == 2, "disabling what is disabled asks nothing"


def test_a_part_is_released_without_disturbing_the_rest(kernel: Kernel) -> None:
    irq = make()
    first = irq.enable(3)
    irq.enable(2, start=5)
    first.close()
    assert [vector.index for vector in irq.enabled] == [5, 6]
    irq.disable()
    assert kernel.calls[-2:] == [
        (EVENTFD_TRIGGER, MSIX, 0, 3, (-1, -1, -1)),
        (NONE_TRIGGER, MSIX, 0, 0, ()),
    ]
    assert irq.enabled == []


def test_a_refused_enable_leaves_nothing_behind(kernel: Kernel) -> None:
    irq = make()
    before = open_files()
    kernel.refuse(errno.ENOSPC)
    with pytest.raises(errors.VectorsExhausted, match="about 200"):
        irq.enable(4)
    kernel.refuse(errno.ENODEV)
    with pytest.raises(errors.DeviceGone):
        irq.enable(4)
    kernel.answer = lambda: 2
    with pytest.raises(errors.VectorsExhausted, match="can give 2"):
        irq.enable(4)
    assert open_files() == before
    assert irq.enabled == []
    kernel.answer = lambda: 0
    assert len(irq.enable(4)) == 4
    irq.disable()


def test_running_out_of_descriptors_half_way_leaves_nothing_behind(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    irq = make()
    before = open_files()
    real, left = calls.eventfd, [3]

    def eventfd(*arguments: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*arguments)

    monkeypatch.setattr(calls, "eventfd", eventfd)
    with pytest.raises(errors.OpenFilesLimit, match="ulimit -n"):
        irq.enable()
    assert kernel.calls == []
    assert open_files() == before


def test_eventfds_are_closed_even_if_disabling_fails(kernel: Kernel) -> None:
    irq = make()
    before = open_files()
    irq.enable(2)
    kernel.refuse(errno.EIO)
    with pytest.raises(errors.KernelError):
        irq.disable()
    assert open_files() == before


def test_asking_for_more_than_there_is_says_how_many_there_are(kernel: Kernel) -> None:
    irq = make(5)
    for arguments in ((6, 0), (1, 5), (0, 0), (1, -1), (5, 1)):
        with pytest.raises(errors.RangeError, match="5 MSI-X vectors"):
            irq.enable(arguments[0], start=arguments[1])
    with pytest.raises(errors.Unsupported, match="no MSI-X"):
        make(0).enable()
    assert kernel.calls == []


def test_one_kind_of_interrupt_at_a_time(kernel: Kernel) -> None:
    siblings: list[Irq] = []
    intx = make(1, index=INTX, siblings=siblings)
    msix = make(4, siblings=siblings)
    with intx.enable(), pytest.raises(errors.StateError, match="disable"):
        msix.enable()
    msix.enable()
    msix.disable()


def test_noresize_means_the_number_is_fixed_until_all_are_disabled(kernel: Kernel) -> None:
    irq = make(flags=vfio.VFIO_IRQ_INFO_NORESIZE)
    irq.enable(2)
    with pytest.raises(errors.StateError, match="enable 4 at once"):
        irq.enable(2, start=2)
    irq.disable()
    irq.enable(4)
    irq.disable()


def test_an_enabled_vector_cannot_be_enabled_again(kernel: Kernel) -> None:
    irq = make()
    irq.enable(2)
    with pytest.raises(errors.StateError, match="vector 1 is already enabled"):
        irq.enable(2, start=1)
    irq.disable()


def test_trigger_never_becomes_a_disable(kernel: Kernel) -> None:
    irq = make()
    with pytest.raises(errors.StateError, match="not enabled"):
        irq.trigger(0)
    irq.enable(2)
    with pytest.raises(errors.RangeError):
        irq.trigger(0, 0)
    irq.trigger(1)
    assert kernel.calls[-1] == (NONE_TRIGGER, MSIX, 1, 1, ())
    irq.disable()


def test_masking_is_refused_where_the_kernel_cannot(kernel: Kernel) -> None:
    with pytest.raises(errors.Unsupported, match="cannot mask"):
        make().mask()
    intx = make(1, index=INTX, flags=vfio.VFIO_IRQ_INFO_MASKABLE)
    with pytest.raises(errors.StateError, match="not enabled"):
        intx.mask()
    with intx.enable():
        intx.mask()
        intx.unmask()
    assert [call[0] for call in kernel.calls[1:-1]] == [
        vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_MASK,
        vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_UNMASK,
    ]


def test_a_claimed_index_is_nobody_elses(kernel: Kernel) -> None:
    irq = make()
    with irq.enable(1), pytest.raises(errors.StateError, match="close them first"):
        irq.claim(list)
    with irq.claim(list) as claim:
        claim.signal(0, [77, None])
        asked = len(kernel.calls)
        for refused in (lambda: irq.enable(1, start=2), lambda: irq.claim(list)):
            with pytest.raises(errors.StateError, match="forwarded"):
                refused()
        assert len(kernel.calls) == asked
        irq.trigger(0)
        with pytest.raises(errors.StateError, match="vector 1 is not enabled"):
            irq.trigger(0, 2)
    assert kernel.calls[-1][:4] == (NONE_TRIGGER, MSIX, 0, 0)
    claim.close()
    irq.enable(1).close()


def test_disabling_a_claimed_index_tells_its_holder_first(kernel: Kernel) -> None:
    irq, told = make(), []

    def lose() -> None:
        told.append((len(kernel.calls), claim.closed))

    claim = irq.claim(lose)
    claim.signal(0, [77])
    irq.disable()
    assert told == [(1, False)], "before the kernel was asked, and before it ended"
    assert kernel.calls[1:] == [(NONE_TRIGGER, MSIX, 0, 0, ())]
    assert claim.closed
    assert not irq.claimed
    with pytest.raises(errors.StateError, match="disabled meanwhile"):
        claim.signal(0, [77])
    for harmless in (claim.disable, claim.close, irq.disable):
        harmless()
    assert len(kernel.calls) == 2
    assert len(told) == 1


def test_a_claim_ends_whatever_its_holder_and_the_kernel_say(kernel: Kernel) -> None:
    irq = make()

    def lose() -> None:
        raise errors.StateError("the holder's own")

    claim = irq.claim(lose)
    claim.signal(0, [77])
    with pytest.raises(errors.StateError, match="the holder's own"):
        irq.disable()
    assert claim.closed
    assert kernel.calls[-1] == (NONE_TRIGGER, MSIX, 0, 0, ())
    claim = irq.claim(list)
    claim.signal(0, [77])
    kernel.refuse(errno.EIO)
    with pytest.raises(errors.KernelError):
        claim.close()
    assert claim.closed
    kernel.answer = lambda: 0
    irq.disable()
    assert kernel.calls[-1] == (NONE_TRIGGER, MSIX, 0, 0, ()), "what was refused is asked again"


def test_closing_a_vector_wakes_threads_and_tasks_that_wait_for_it(kernel: Kernel) -> None:
    vectors = make().enable(2)
    raised: list[Exception] = []

    def wait(vector: Vector) -> None:
        try:
            vector.wait()
        except errors.Closed as error:
            raised.append(error)

    threads = [threading.Thread(target=wait, args=(vectors[0],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(vectors[0]._eventfd._waiting) < 2:
        time.sleep(0.001)

    async def main() -> None:
        task = asyncio.create_task(vectors[1].wait_async())
        await asyncio.sleep(0.01)
        vectors.close()
        with pytest.raises(errors.Closed):
            await asyncio.wait_for(task, 10)

    asyncio.run(main())
    for thread in threads:
        thread.join(10)
    assert len(raised) == 2


@pytest.mark.parametrize("timeout", [3e6, float("inf"), 1e300])
def test_a_very_long_timeout_is_no_timeout(kernel: Kernel, timeout: float) -> None:
    with make().enable(1) as (vector,):
        threading.Timer(0.01, os.eventfd_write, (vector.fileno(), 1)).start()
        assert vector.wait(timeout) == 1


def test_a_vector_counts_and_works_with_select_and_asyncio(kernel: Kernel) -> None:
    with make().enable(1) as (vector,):
        assert vector.take() == 0
        assert vector.wait(timeout=0) == 0
        os.eventfd_write(vector.fileno(), 3)
        assert select.select([vector], [], [], 0)[0] == [vector]
        assert vector.wait() == 3

        async def both() -> int:
            asyncio.get_running_loop().call_later(0.01, os.eventfd_write, vector.fileno(), 2)
            return await asyncio.wait_for(vector.wait_async(), 10)

        assert asyncio.run(both()) == 2
        assert vector.count == 5

        async def cancelled() -> int:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(vector.wait_async(), 0.01)
            os.eventfd_write(vector.fileno(), 1)
            return await vector.wait_async()

        assert asyncio.run(cancelled()) == 1
    with pytest.raises(errors.Closed):
        vector.wait(0)


@given(st.sets(st.integers(0, 64)))
def test_runs_cover_the_numbers_and_nothing_else(numbers: set[int]) -> None:
    runs = list(_runs(numbers))
    assert [number for start, length in runs for number in range(start, start + length)] == sorted(
        numbers
    )
    assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(runs)), "runs are whole"
