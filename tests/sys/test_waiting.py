"""Waiting for eventfds in threads and in asyncio: each event is taken once, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import select
import selectors
import signal
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvfio import errors
from pyvfio._sys import EventFd, Watch, calls

SELECTORS = (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector)
LONG = 30.0  # seconds that nothing takes


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # what listed them
            continue
    return found


def polls() -> int:
    return list(descriptors().values()).count("anon_inode:[eventpoll]")


def run(main: Coroutine[Any, Any, Any]) -> None:
    """asyncio.run, in whose debug mode a reader of a closed descriptor would not go unnoticed."""
    asyncio.run(asyncio.wait_for(main, LONG), debug=True)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def wait(eventfd: EventFd) -> int:
    return await eventfd


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
        gc.collect()
    assert descriptors() == before


class Waiting(RuleBasedStateMachine):
    """Some eventfds, one loop; tasks that wait and are cancelled, callbacks, and events."""

    eventfds = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._unexpected)
        self.polls = polls()
        self.problems: list[dict[str, Any]] = []
        self.fds = [EventFd(str(number)) for number in range(3)]
        self.signalled = [0, 0, 0]
        self.taken = [0, 0, 0]
        self.tasks: list[tuple[int, asyncio.Task[int]]] = []
        self.cancelled: set[asyncio.Task[int]] = set()
        self.watches: list[tuple[int, Watch]] = []

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(context)

    @rule(which=eventfds)
    def wait(self, which: int) -> None:
        self.tasks.append((which, self.loop.create_task(wait(self.fds[which]))))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        _, task = data.draw(st.sampled_from(self.tasks), "task")
        if not task.done():
            task.cancel()
            self.cancelled.add(task)

    @rule(which=eventfds, count=st.integers(1, 3))
    def signal(self, which: int, count: int) -> None:
        self.fds[which].signal(count)
        self.signalled[which] += count

    @rule(which=eventfds)
    def take(self, which: int) -> None:
        self.taken[which] += self.fds[which].take()

    @rule(which=eventfds)
    def wait_in_a_thread(self, which: int) -> None:
        self.taken[which] += self.fds[which].wait(0)

    @rule(which=eventfds)
    def watch(self, which: int) -> None:
        async def watch() -> Watch:
            return self.fds[which].watch(lambda: self.take(which))

        self.watches.append((which, self.loop.run_until_complete(watch())))

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def end_watch(self, data: st.DataObject) -> None:
        watch = data.draw(st.sampled_from(self.watches), "watch")
        watch[1].close()
        self.watches.remove(watch)

    @rule()
    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(which=eventfds)
    def close(self, which: int) -> None:
        self.loop.run_until_complete(turns())
        self.collect()
        self.fds[which].close()
        self.loop.run_until_complete(turns())
        for number, task in self.tasks:
            if number == which:
                assert task.done(), "whoever waited has been told"
                assert task.cancelled() or isinstance(task.exception(), errors.Closed)
        self.tasks = [(number, task) for number, task in self.tasks if number != which]
        for number, watch in self.watches:
            assert watch.closed == (number == which)
        self.watches = [(number, watch) for number, watch in self.watches if number != which]
        self.fds[which] = EventFd(str(which))
        self.signalled[which] = self.taken[which] = 0

    @rule()
    def settle(self) -> None:
        self.loop.run_until_complete(turns())
        self.collect()
        for which, eventfd in enumerate(self.fds):
            left = eventfd.take()
            self.taken[which] += left
            assert self.taken[which] == self.signalled[which], "each is taken, and once"
            wanted = [number for number, _ in (*self.tasks, *self.watches) if number == which]
            assert not (wanted and left), "events wait for nobody who waits for them"

    def collect(self) -> None:
        """What the tasks took that are done."""
        for which, task in [pair for pair in self.tasks if pair[1].done()]:
            self.tasks.remove((which, task))
            if task in self.cancelled:
                assert task.cancelled()
            else:
                assert task.result() > 0
                self.taken[which] += task.result()

    @invariant()
    def nothing_is_reported(self) -> None:
        assert self.problems == []

    def teardown(self) -> None:
        self.settle()
        for eventfd in self.fds:
            eventfd.close()
        self.loop.run_until_complete(turns())
        for _, task in self.tasks:
            assert task.cancelled() or isinstance(task.exception(), errors.Closed)
        assert polls() == self.polls, "with the last eventfd its epoll descriptor goes"
        self.loop.close()


Waiting.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
test_every_event_is_taken_once = Waiting.TestCase


# Fairness: what is always ready leaves the others their turns.


def test_of_64_busy_eventfds_each_has_its_turn() -> None:
    served = [0] * 64

    async def serve(number: int, eventfd: EventFd) -> None:
        while True:
            eventfd.signal()
            await eventfd
            served[number] += 1

    async def main() -> None:
        eventfds = [EventFd() for _ in served]
        tasks = [asyncio.create_task(serve(*pair)) for pair in enumerate(eventfds)]
        await turns(100)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for eventfd in eventfds:
            eventfd.close()

    run(main())
    assert min(served) > 20
    assert max(served) - min(served) <= 1


def test_callbacks_that_take_nothing_leave_the_others_and_the_loop_their_turns() -> None:
    called = [0] * 64

    async def main() -> None:
        eventfds = [EventFd() for _ in called]
        for number, eventfd in enumerate(eventfds):

            def call(number: int = number) -> None:
                called[number] += 1

            eventfd.watch(call)
            eventfd.signal()
        await turns(100)
        for eventfd in eventfds:
            eventfd.close()

    run(main())
    assert min(called) > 50
    assert max(called) == min(called)


def test_more_than_epoll_gives_at_once_are_served_in_one_turn() -> None:
    many = 1500
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < many + 100:
        pytest.skip(f"it may have {limits[1]} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (many + 100, limits[1]))

    async def main() -> None:
        eventfds = [EventFd() for _ in range(many)]
        tasks = [asyncio.create_task(wait(eventfd)) for eventfd in eventfds]
        await turns(1)
        for eventfd in eventfds:
            eventfd.signal()
        await turns(3)
        assert all(task.done() for task in tasks)
        for eventfd in eventfds:
            eventfd.close()

    try:
        run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_task_that_only_awaits_leaves_the_loop_its_turns() -> None:
    async def main() -> None:
        with EventFd() as eventfd:
            other = asyncio.create_task(turns(10))
            for _ in range(30):
                eventfd.signal()
                await eventfd
            assert other.done()

    run(main())


# Loops: of any sort, several, ended at any moment.


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_loop_needs_nothing_but_readers(selector: Callable[[], selectors.BaseSelector]) -> None:
    async def main() -> None:
        with EventFd() as one, EventFd() as other:
            tasks = [asyncio.create_task(wait(eventfd)) for eventfd in (one, other)]
            seen: list[int] = []
            other.watch(lambda: seen.append(other.take()))
            await turns()
            one.signal(2)
            other.signal(3)
            assert await tasks[0] == 2
            await turns()
            assert seen == [3], "callbacks come first"
            tasks[1].cancel()
            await asyncio.wait(tasks[1:])

    loop = asyncio.SelectorEventLoop(selector())
    try:
        loop.run_until_complete(asyncio.wait_for(main(), LONG))
    finally:
        loop.close()


def test_a_loop_watches_one_descriptor_however_many_wait() -> None:
    async def main() -> None:
        before = polls()
        eventfds = [EventFd() for _ in range(10)]
        tasks = [asyncio.create_task(wait(eventfd)) for eventfd in eventfds * 2]
        await turns()
        assert polls() == before + 1
        for eventfd in eventfds:
            eventfd.close()
        done, _ = await asyncio.wait(tasks)
        assert all(isinstance(task.exception(), errors.Closed) for task in done)
        await turns()
        assert polls() == before

    run(main())


def test_loops_in_several_threads_share_the_events_of_an_eventfd() -> None:
    loops, each = 4, 200
    taken: list[int] = []
    ready = threading.Barrier(loops + 1)
    eventfd = EventFd()

    async def main() -> None:
        task = asyncio.create_task(collect())
        await turns()
        ready.wait(LONG)
        await task

    async def collect() -> None:
        try:
            while True:
                taken.append(await eventfd)
        except errors.Closed:
            pass

    threads = [threading.Thread(target=run, args=(main(),)) for _ in range(loops)]
    for thread in threads:
        thread.start()
    ready.wait(LONG)
    for _ in range(each):
        eventfd.signal()
        time.sleep(0)
    end = time.monotonic() + LONG
    while sum(taken) < each and time.monotonic() < end:
        time.sleep(0.001)
    eventfd.close()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert sum(taken) == each


def test_a_loop_that_is_closed_while_somebody_waits_keeps_nothing() -> None:
    eventfd = EventFd()
    loop = asyncio.new_event_loop()
    task = loop.create_task(wait(eventfd))
    watched: list[int] = []

    async def watch() -> Watch:
        return eventfd.watch(lambda: watched.append(eventfd.take()))

    kept = loop.run_until_complete(watch())
    loop.run_until_complete(turns())
    before = polls()
    loop.close()
    assert polls() == before - 2, "the loop's own, and ours"
    kept.close()
    task.get_coro().close()
    eventfd.signal()
    assert eventfd.wait(LONG) == 1

    async def again() -> None:
        eventfd.signal()
        assert await eventfd == 1

    run(again())
    eventfd.close()
    assert watched == []


def test_one_that_is_not_waited_for_any_more_does_not_keep_the_loop_busy() -> None:
    served = 0

    async def main() -> None:
        nonlocal served
        loop = asyncio.get_running_loop()
        with EventFd() as eventfd:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(eventfd), 0.001)
            eventfd.signal()
            await turns()
            sleeper, waker = os.pipe()
            loop.add_reader(sleeper, lambda: None)
            # Nothing is ready: the loop would sleep.
            assert loop._selector.select(0) == []  # type: ignore[attr-defined]
            loop.remove_reader(sleeper)
            os.close(sleeper)
            os.close(waker)
            assert await eventfd == 1
            served += 1

    run(main())
    assert served == 1


def test_what_is_over_leaves_nothing_behind_in_the_loop() -> None:
    async def main() -> None:
        with EventFd() as eventfd:
            for _ in range(3):
                eventfd.signal()
                await eventfd
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(wait(eventfd), 0.001)
                eventfd.watch(eventfd.take).close()
            assert eventfd.entry
            assert not eventfd.entry.waiters
            assert not eventfd.entry.watches

    run(main())


def test_one_that_is_closed_and_lives_on_elsewhere_does_not_keep_the_loop_busy() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with EventFd() as other:
            eventfd = EventFd()
            elsewhere = os.dup(eventfd.fileno())  # as in a child, for example
            tasks = [asyncio.create_task(wait(one)) for one in (eventfd, other)]
            await turns()
            eventfd.close()
            os.eventfd_write(elsewhere, 1)
            await turns()
            assert loop._selector.select(0) == []  # type: ignore[attr-defined]
            os.close(elsewhere)
            with pytest.raises(errors.Closed):
                await tasks[0]
            other.signal()
            assert await tasks[1] == 1

    run(main())


def test_without_a_loop_it_says_so() -> None:
    with EventFd() as eventfd:
        with pytest.raises(RuntimeError, match="no running event loop"):
            eventfd.__await__().send(None)
        with pytest.raises(RuntimeError, match="no running event loop"):
            eventfd.watch(lambda: None)


@pytest.mark.parametrize("how", ["wait", "watch"])
def test_a_closed_one_says_so_and_leaves_the_loop_alone(how: str) -> None:
    async def main() -> None:
        before = polls()
        eventfd = EventFd()
        eventfd.close()
        with pytest.raises(errors.Closed):
            await eventfd if how == "wait" else eventfd.watch(lambda: None)
        assert polls() == before

    run(main())


class Refusing:
    """An epoll instance that takes no more."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno, self.close = self._epoll.fileno, self._epoll.close

    @property
    def closed(self) -> bool:
        return self._epoll.closed

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, "")


def test_what_the_kernel_refuses_is_said_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "")

    async def main() -> None:
        before = polls()
        with EventFd() as eventfd:
            with monkeypatch.context() as patch:
                patch.setattr(calls, "epoll", refuse)
                with pytest.raises(errors.OpenFilesLimit, match="ulimit -n"):
                    await eventfd
                patch.setattr(calls, "epoll", Refusing)
                with pytest.raises(errors.KernelError, match="epoll_ctl on eventfd"):
                    await eventfd
            assert polls() == before
            eventfd.signal()
            assert await eventfd == 1

    run(main())


def test_a_child_leaves_the_parents_eventfds_where_they_are() -> None:
    async def child() -> None:
        with EventFd() as own:
            own.signal()
            assert await own == 1

    async def main() -> None:
        with EventFd() as eventfd:
            task = asyncio.create_task(wait(eventfd))
            await turns()
            before = polls()
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    # Of the two the loop's own is left, with which we have nothing to do.
                    assert polls() == before - 1
                    asyncio.events._set_running_loop(None)
                    thread = threading.Thread(target=run, args=(child(),))
                    thread.start()
                    thread.join(LONG)
                    assert polls() == before - 1
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            eventfd.signal()
            assert await task == 1

    run(main())


def test_a_task_cancelled_in_the_turn_of_its_event_takes_it_or_leaves_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with EventFd() as eventfd:
            for order in range(2):
                task = asyncio.create_task(wait(eventfd))
                await turns()
                eventfd.signal()
                loop.call_soon(task.cancel)
                await turns(order + 1)
                [result] = await asyncio.gather(task, return_exceptions=True)
                if isinstance(result, asyncio.CancelledError):
                    result = eventfd.take()
                assert result == 1

    run(main())


def test_a_task_cancelled_in_the_turn_of_the_closing_leaves_no_complaint() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[object] = []
        loop.set_exception_handler(lambda _, said: complaints.append(said))
        for cancel_first in (True, False):
            eventfd = EventFd()
            task = asyncio.create_task(wait(eventfd))
            await turns()
            if cancel_first:
                task.cancel()
            eventfd.close()
            if not cancel_first:
                loop.call_soon(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            gc.collect()
        assert complaints == []

    run(main())


def test_others_may_wait_for_what_a_task_waits_for() -> None:
    """asyncio.shield, gather, wait_for and a second waiter, all at once."""

    async def main() -> None:
        with EventFd() as eventfd:
            tasks = [asyncio.ensure_future(eventfd) for _ in range(3)]
            shielded = asyncio.shield(tasks[0])
            both = asyncio.gather(tasks[1], tasks[2])
            await turns()
            shielded.cancel()
            for count in (1, 2, 3):
                eventfd.signal(count)
                await turns()
            assert tasks[0].result() == 1
            assert list(await asyncio.wait_for(both, LONG)) == [2, 3]

    run(main())


# Callbacks.


def test_a_callback_that_raises_is_reported_and_the_others_are_called() -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, said: reported.append(said))
        seen: list[int] = []
        with EventFd("bad") as bad, EventFd() as good:

            def fail() -> None:
                bad.take()
                raise ZeroDivisionError

            bad.watch(fail)
            good.watch(lambda: seen.append(good.take()))
            bad.signal()
            good.signal()
            await turns()
        assert seen == [1]
        (said,) = reported
        assert isinstance(said["exception"], ZeroDivisionError)
        assert "<Watch bad" in said["message"]

    run(main())


def test_a_callback_may_end_itself_and_others_and_close_what_it_watches() -> None:
    async def main() -> None:
        called: list[str] = []
        with EventFd() as eventfd, EventFd() as survivor:

            def first() -> None:
                called.append("first")
                second.close()

            eventfd.watch(first)
            second = eventfd.watch(lambda: called.append("second"))
            third = eventfd.watch(eventfd.close)
            fourth = eventfd.watch(lambda: called.append("fourth"))
            eventfd.signal()
            survivor.watch(lambda: called.append(f"survivor {survivor.take()}"))
            await turns()
            survivor.signal()
            await turns()
            assert called == ["first", "survivor 1"]
            assert second.closed
            assert third.closed
            assert fourth.closed

    run(main())


# Threads.


def test_what_spins_sees_events_and_time_like_what_sleeps() -> None:
    with EventFd() as eventfd:
        assert eventfd.wait(0.001, spin=LONG) == 0
        assert eventfd.wait(0.002, spin=0.001) == 0
        threading.Timer(0.01, eventfd.signal, (2,)).start()
        assert eventfd.wait(LONG, spin=LONG) == 2
        threading.Timer(0.01, eventfd.signal, (3,)).start()
        assert eventfd.wait(spin=0.001) == 3
        threading.Timer(0.01, eventfd.close).start()
        with pytest.raises(errors.Closed):
            eventfd.wait(spin=LONG)


def test_many_threads_share_the_events() -> None:
    threads, events = 8, 500
    taken: list[int] = []
    eventfd = EventFd()

    def collect() -> None:
        try:
            while True:
                taken.append(eventfd.wait())
        except errors.Closed:
            pass

    workers = [threading.Thread(target=collect) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for _ in range(events):
        eventfd.signal()
    end = time.monotonic() + LONG
    while sum(taken) < events and time.monotonic() < end:
        time.sleep(0.001)
    eventfd.close()
    for worker in workers:
        worker.join(LONG)
        assert not worker.is_alive()
    assert sum(taken) == events


def test_who_waits_finds_it_closed_though_another_file_has_its_number_at_once() -> None:
    for _ in range(50):
        eventfd = EventFd()
        raised: list[errors.Closed] = []

        def wait(eventfd: EventFd = eventfd, raised: list[errors.Closed] = raised) -> None:
            try:
                eventfd.wait()
            except errors.Closed as error:
                raised.append(error)

        workers = [threading.Thread(target=wait) for _ in range(3)]
        for worker in workers:
            worker.start()
        while len(eventfd._waiting) < 3:
            time.sleep(0)
        eventfd.close()
        others = [EventFd() for _ in range(4)]  # never ready; one may get the number
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()
        assert len(raised) == 3
        for other in others:
            other.close()


def test_ctrl_c_ends_a_wait_and_leaves_the_events() -> None:
    with EventFd() as eventfd:
        timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            eventfd.wait()
        timer.join()
        eventfd.signal()
        assert eventfd.wait(LONG) == 1


def test_a_signal_handler_may_close_what_the_main_thread_waits_for() -> None:
    eventfd = EventFd()
    before = signal.signal(signal.SIGUSR1, lambda *_: eventfd.close())
    try:
        timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(errors.Closed):
            eventfd.wait()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


# Closing in the middle of what another does.


def await_it(eventfd: EventFd) -> None:
    asyncio.run(asyncio.wait_for(wait(eventfd), LONG))


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(EventFd.take, id="take"),
        pytest.param(EventFd.wait, id="wait"),
        pytest.param(lambda eventfd: eventfd.wait(LONG), id="wait-timeout"),
        pytest.param(lambda eventfd: eventfd.wait(spin=LONG), id="wait-spin"),
        pytest.param(await_it, id="await"),
    ],
)
def test_who_reads_what_closing_wakes_with_takes_no_event_and_leaves_nobody_asleep(
    monkeypatch: pytest.MonkeyPatch, take: Callable[[EventFd], object]
) -> None:
    eventfd = EventFd()
    read = calls.eventfd_read
    asleep = threading.Semaphore(0)
    woken: list[errors.Closed] = []

    class Poll:
        """Says so before it sleeps, when it has been seen that the eventfd is open."""

        def __init__(self) -> None:
            self._poll = select.poll()
            self._poll.register(eventfd, select.POLLIN)

        def poll(self, milliseconds: int | None = None) -> list[tuple[int, int]]:
            asleep.release()
            return self._poll.poll(milliseconds)

    def sleep() -> None:
        try:
            eventfd.wait()
        except errors.Closed as error:
            woken.append(error)

    sleepers = [threading.Thread(target=sleep, daemon=True) for _ in range(3)]

    def read_late(fd: int) -> int:
        monkeypatch.undo()
        assert read(fd) == 1  # another is quicker
        eventfd._polls.extend(Poll() for _ in sleepers)  # type: ignore[misc]
        for sleeper in sleepers:
            sleeper.start()
            assert asleep.acquire(timeout=LONG)
        eventfd.close()
        return read(fd)

    eventfd.signal()
    monkeypatch.setattr(calls, "eventfd_read", read_late)
    with pytest.raises(errors.Closed):
        take(eventfd)
    for sleeper in sleepers:
        sleeper.join(LONG)
        assert not sleeper.is_alive()
    assert len(woken) == len(sleepers)


def test_who_takes_while_it_is_closed_takes_nothing_of_another_with_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eventfd = EventFd()
    others: list[EventFd] = []
    read = calls.eventfd_read

    def read_late(fd: int) -> int:
        monkeypatch.undo()
        eventfd.close()
        others.append(EventFd())
        others[0].signal(2)
        return read(fd)

    monkeypatch.setattr(calls, "eventfd_read", read_late)
    with pytest.raises(errors.Closed):
        eventfd.take()
    with others[0] as other:
        assert other.take() == 2


def test_who_signals_while_it_is_closed_signals_no_other_with_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eventfd = EventFd()
    others: list[EventFd] = []
    write = calls.eventfd_write

    def write_late(fd: int, count: int) -> None:
        monkeypatch.undo()
        eventfd.close()
        others.append(EventFd())
        write(fd, count)

    monkeypatch.setattr(calls, "eventfd_write", write_late)
    eventfd.signal()
    with others[0] as other:
        assert other.take() == 0


def test_a_thread_that_takes_again_and_again_leaves_nobody_asleep() -> None:
    for _ in range(200):
        eventfd = EventFd()

        def repeat(act: Callable[[], object]) -> None:
            with suppress(errors.Closed):
                while True:
                    act()

        workers = [
            threading.Thread(target=repeat, args=(act,), daemon=True)
            for act in (eventfd.take, eventfd.wait, eventfd.wait)
        ]
        for worker in workers:
            worker.start()
        while len(eventfd._waiting) < 2:
            time.sleep(0)
        eventfd.close()
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()
