"""Interrupts: every vector of every index by loopback, and what the kernel refuses."""

from __future__ import annotations

import asyncio
import os
import resource
import select

import pytest

from hwtests.holdings import Holdings
from pyvfio import errors
from pyvfio.device import Device, Irq, Vector
from pyvfio.pci import Function

WAIT = 30.0
# An x86 CPU has about 200 vectors for all devices together.
WINDOW = 128


def test_every_vector_arrives_where_it_should(irq: Irq) -> None:
    """In windows that the host can hold; where the kernel adds vectors one by one, all of them."""
    poll = select.poll()
    tested = 0
    for start in range(0, irq.count, WINDOW):
        count = min(WINDOW, irq.count - start)
        if start:
            if irq.noresize:
                break
            # The kernel allocates up to the last vector of the first call, then only what is named.
            irq.enable(1)
        with irq.enable(count, start=start) as vectors:
            by_fd = {vector.fileno(): vector for vector in vectors}
            for fd in by_fd:
                poll.register(fd, select.POLLIN)
            for vector in vectors:
                irq.trigger(vector.index)
                assert [by_fd[fd] for fd, _ in poll.poll(WAIT * 1000)] == [vector]
                assert vector.take() == 1
            for fd in by_fd:
                poll.unregister(fd)
            tested += count
        irq.disable()
    assert tested == irq.count or (irq.noresize and tested >= WINDOW)


def test_one_trigger_for_several_vectors(irq: Irq) -> None:
    with irq.enable(min(irq.count, 8)) as vectors:
        irq.trigger(0, len(vectors))
        assert [vector.wait(WAIT) for vector in vectors] == [1] * len(vectors)
        assert [vector.count for vector in vectors] == [1] * len(vectors)


def test_interrupts_that_nobody_waited_for_are_counted(irq: Irq) -> None:
    with irq.enable(1) as vectors:
        for _ in range(3):
            irq.trigger()
        assert vectors[0].wait(WAIT) == 3
        assert vectors[0].wait(0) == 0


def test_disabled_vectors_are_silent_and_can_be_had_again(irq: Irq) -> None:
    before = Holdings.now()
    vectors = irq.enable(1)
    irq.disable()
    assert not vectors[0].enabled
    with pytest.raises(errors.StateError, match="not enabled"):
        irq.trigger()
    with irq.enable(1) as again:
        irq.trigger()
        assert again[0].wait(WAIT) == 1
    irq.disable()
    assert Holdings.now() == before


def test_select_and_asyncio(irq: Irq) -> None:
    with irq.enable(1) as vectors:
        vector = vectors[0]
        assert select.select([vector], [], [], 0)[0] == []
        irq.trigger()
        assert select.select([vector], [], [], WAIT)[0] == [vector]
        assert vector.take() == 1

        async def wait() -> int:
            asyncio.get_running_loop().call_soon(irq.trigger)
            return await asyncio.wait_for(vector.wait_async(), WAIT)

        assert asyncio.run(wait()) == 1


def test_all_vectors_are_awaited_and_watched_in_one_loop(irq: Irq) -> None:
    rounds = 3
    before = Holdings.now()

    async def count(vector: Vector) -> int:
        while vector.count < rounds:
            await vector
        return vector.index

    async def main() -> None:
        with irq.enable(min(irq.count, WINDOW)) as vectors:
            watched, awaited = vectors[::2], vectors[1::2]
            for vector in watched:
                vector.watch(vector.take)
            tasks = [asyncio.create_task(count(vector)) for vector in awaited]
            for done in range(1, rounds + 1):
                irq.trigger(0, len(vectors))
                while any(vector.count < done for vector in vectors):
                    await asyncio.sleep(0.001)
            assert await asyncio.gather(*tasks) == [vector.index for vector in awaited]
            assert [vector.count for vector in vectors] == [rounds] * len(vectors)
            waiting = asyncio.create_task(vectors[0].wait_async())
            await asyncio.sleep(0.001)
        with pytest.raises(errors.Closed):
            await waiting

    asyncio.run(asyncio.wait_for(main(), WAIT))
    irq.disable()
    assert Holdings.now() == before


def test_asking_for_more_than_there_is_says_how_many_there_are(irq: Irq) -> None:
    for count, start in ((irq.count + 1, 0), (1, irq.count), (0, 0), (1, -1)):
        with pytest.raises(errors.RangeError, match=f"has {irq.count} {irq.name} vectors"):
            irq.enable(count, start=start)
    assert irq.enabled == []


def test_vfio_shows_what_config_space_says(function: Function, device: Device) -> None:
    config = function.config
    assert device.msi.count == (config.msi.vectors if config.msi else 0)
    assert device.msix.count == (config.msix.vectors if config.msix else 0)
    assert device.intx.count <= (1 if config.interrupt_pin else 0)
    # From Linux 7.3 on conventional PCI devices have one, too (vfio_pci_get_irq_count()).
    assert device.err.count in ({1} if config.pcie else {0, 1})
    assert device.req.count == 1


def test_interrupts_that_the_device_has_not_got(device: Device) -> None:
    missing = [irq for irq in device.irqs if not irq.count]
    if not missing:
        pytest.skip("the device has all sorts of interrupts")
    for irq in missing:
        with pytest.raises(errors.Unsupported, match=f"no {irq.name}"):
            irq.enable()


def test_masking(irq: Irq) -> None:
    with irq.enable(1) as vectors:
        if not irq.maskable:
            with pytest.raises(errors.Unsupported, match="cannot mask"):
                irq.mask()
            with pytest.raises(errors.Unsupported):
                irq.unmask()
            with pytest.raises(errors.Unsupported):
                irq.unmask_by(vectors[0].fileno())
            return
        assert irq.automasked, "a level-triggered interrupt masks itself"
        irq.mask()
        irq.mask()
        irq.unmask()
        fd = os.eventfd(0)
        irq.unmask_by(fd)
        os.eventfd_write(fd, 1)
        irq.unmask_by(None)
        os.close(fd)
        irq.trigger()
        assert vectors[0].wait(WAIT) == 1


@pytest.mark.messages
def test_a_fixed_number_is_fixed_and_others_grow(irq: Irq) -> None:
    if irq.count < 2:
        pytest.skip(f"its one {irq.name} vector cannot become more")
    first = irq.enable(1)
    if irq.noresize:
        with pytest.raises(errors.StateError, match="enable 2 at once"):
            irq.enable(1, start=1)
    else:
        more = irq.enable(1, start=irq.count - 1)
        irq.trigger(irq.count - 1)
        assert more[0].wait(WAIT) == 1
        more.close()
    irq.trigger()
    assert first[0].wait(WAIT) == 1, "the first one was not disturbed"


@pytest.mark.messages
def test_a_part_is_disabled_without_the_rest(irq: Irq) -> None:
    if irq.count < 3:
        pytest.skip(f"it has no three {irq.name} vectors")
    # The last one first: where the number of vectors is fixed, it makes them three.
    with irq.enable(1, start=2) as last, irq.enable(1) as first:
        for _ in range(2):
            with irq.enable(1, start=1) as middle:
                irq.trigger(0, 3)
                assert [v.wait(WAIT) for v in (*first, *middle, *last)] == [1, 1, 1]
            with pytest.raises(errors.StateError, match="vector 1 is not enabled"):
                irq.trigger(1)
            irq.trigger(0)
            irq.trigger(2)
            assert [v.wait(WAIT) for v in (*first, *last)] == [1, 1]
        with pytest.raises(errors.StateError, match="vector 0 is already enabled"):
            irq.enable(1)


def test_one_sort_of_interrupt_at_a_time(device: Device) -> None:
    sorts = [irq for irq in (device.intx, device.msi, device.msix) if irq.count]
    if len(sorts) < 2:
        pytest.skip("the device has only one sort of interrupt")
    for now, then in zip(sorts, [*sorts[1:], sorts[0]], strict=True):
        with now.enable(1) as vectors:
            with pytest.raises(errors.StateError, match=f"disable {now.name} first"):
                then.enable(1)
            now.trigger()
            assert vectors[0].wait(WAIT) == 1


def test_more_vectors_than_the_host_has(device: Device) -> None:
    host = 256 * (os.cpu_count() or 1)
    if device.msix.count <= host:
        pytest.skip(f"its {device.msix.count} MSI-X vectors fit into this host's {host}")
    before = Holdings.now()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with pytest.raises(errors.VectorsExhausted, match="ask for fewer"):
            device.msix.enable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert Holdings.now() == before
    with device.msix.enable(1) as vectors:
        device.msix.trigger()
        assert vectors[0].wait(WAIT) == 1


def test_more_vectors_than_the_process_may_have_descriptors(irq: Irq) -> None:
    before = Holdings.now()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free descriptor is the limit: none is left.
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(errors.OpenFilesLimit, match="ulimit -n"):
            irq.enable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert Holdings.now() == before
    assert irq.enabled == []
    irq.enable(1).close()
