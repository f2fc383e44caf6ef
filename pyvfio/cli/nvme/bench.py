"""`pyvfio nvme bench`: how many commands a second, and how long one takes."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio.cli import common
from pyvfio.cli.nvme import holding, show, sizes

if TYPE_CHECKING:
    from pyvfio.drivers.nvme import Controller, Namespace, Queue

PATTERNS = ("random-read", "random-write", "sequential-read", "sequential-write")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)

_RANDOM_LBAS = 1 << 16  # drawn before the clock starts, then used again
_SEED = 1
_BATCH = 16  # times the depth
_BATCH_BYTES = 16 << 20
_MOST_BYTES = 1 << 30  # that the device reaches
_LATENCY_PART = 5  # a fifth of the time again, for single commands
_EPILOG = """\
First `depth` commands are kept under way in each queue for the given time; then single
commands, one at a time, for a fifth of it, which give the latencies. Reading harms nothing; writing
overwrites the whole namespace with noise.

  default    commands are started one by one, and each rings the doorbell
  --batch    many are started at once, with one ring of the doorbell: the fastest way
  --polled   completions are looked for; otherwise the process sleeps until an interrupt comes

examples:
  sudo pyvfio nvme bench 0000:01:00.0
  sudo pyvfio nvme bench 0000:01:00.0 --polled --batch --depth 128 --queues 2
  sudo pyvfio nvme bench 0000:01:00.0 --pattern sequential-write --size 128K --depth 16 --yes
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="commands a second, and how long one takes",
        description="Measure a namespace: IOPS, MiB/s, and the latency of single commands.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(parser)
    holding.add_namespace(parser)
    parser.add_argument(
        "--pattern", choices=PATTERNS, default=PATTERNS[0], help=f"default: {PATTERNS[0]}"
    )
    parser.add_argument(
        "--size", type=sizes.parse, default="4K", help="of one command (default: 4K)"
    )
    parser.add_argument(
        "--depth", type=int, default=64, metavar="N", help="under way in each queue (default: 64)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="how long (default: 5)"
    )
    parser.add_argument(
        "--queues", type=int, default=1, metavar="N", help="each with a thread (default: 1)"
    )
    parser.add_argument("--polled", action="store_true", help="without interrupts")
    parser.add_argument("--batch", action="store_true", help="ring the doorbell once for many")
    common.add_json(parser)
    holding.add_yes(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import mmap

    for name in ("depth", "queues", "size"):
        sizes.at_least(1, f"--{name}", getattr(options, name))
    if not options.seconds > 0:
        raise errors.ArgumentError("--seconds is more than 0")
    writing = options.pattern.endswith("write")
    if writing:
        holding.check_can_ask(options)
    console = None if options.json else common.console(width=120)
    pieces = options.depth
    if options.batch:
        # Long enough that filling and draining the queue does not weigh, short enough to end.
        pieces = max(2 * pieces, min(_BATCH * pieces, _BATCH_BYTES // options.size))
    part = -(-pieces * options.size // mmap.PAGESIZE) * mmap.PAGESIZE
    if part * options.queues > _MOST_BYTES:
        raise errors.ArgumentError(
            f"--size, --depth and --queues ask for {sizes.words(part * options.queues)} of memory "
            f"together; it must be {sizes.words(_MOST_BYTES)} at most"
        )
    memory = mmap.mmap(-1, part * options.queues)
    with holding.opened(
        options.address,
        memory,
        queues=options.queues,
        depth=options.depth + 1,  # a queue of N entries holds N - 1 commands
        interrupts=not options.polled,
    ) as controller:
        # What there is of it: it is measured, and reported.
        options.queues = len(controller.queues)
        options.depth = min(options.depth, controller.queues[0].depth - 1)
        options.polled = not controller.interrupts
        disk = holding.namespace(controller, options.namespace)
        _check_size(options.size, disk, controller)
        if writing and not options.yes:
            holding.ask("all of", controller, disk)
        if writing:
            memory[:] = os.urandom(len(memory))
        view = memoryview(memory)
        jobs = [
            Job(disk, queue, view[number * part :][: pieces * options.size], options)
            for number, queue in enumerate(controller.queues)
        ]
        result = {
            "address": str(controller.device.address),
            "model": controller.identity.model,
            **{
                name: getattr(options, name)
                for name in ("pattern", "size", "depth", "queues", "polled", "batch")
            },
            **_throughput(jobs, options.size, options.seconds),
            "latency": latency(jobs[0].singles(options.seconds / _LATENCY_PART)),
        }
    if console is None:
        common.print_json(result)
    else:
        console.print(_table(result))


def _check_size(size: int, disk: Namespace, controller: Controller) -> None:
    sizes.in_blocks("--size", size, disk.block_size)
    if size > min(controller.max_transfer, disk.size):
        raise errors.ArgumentError(
            f"--size {size}: one command moves up to {controller.max_transfer} bytes here"
        )


class Job:
    """What one queue, and the thread that serves it, has to do."""

    def __init__(
        self,
        disk: Namespace,
        queue: Queue,
        memory: memoryview,
        options: argparse.Namespace,
    ) -> None:
        """A job on part of the memory."""
        writing = options.pattern.endswith("write")
        self._start = disk.start_write if writing else disk.start_read
        self._many = disk.write_many if writing else disk.read_many
        self._queue = queue
        self._memory = memory
        self._depth = options.depth
        self._size = options.size
        self._blocks = options.size // disk.block_size
        self._batch = options.batch
        number = queue.number - 1
        lbas = range(0, disk.blocks - self._blocks + 1, self._blocks)
        if options.pattern.startswith("random"):
            from random import Random

            # Other ones for each queue.
            chosen = Random(_SEED + number).choices(lbas, k=_RANDOM_LBAS)
            self._round: tuple[Sequence[int], ...] = (chosen,)
        else:
            # Queues begin in different parts of the disk.
            first = len(lbas) * number // options.queues
            self._round = (lbas[first:], lbas[:first])

    def lbas(self) -> Iterator[int]:
        """The first blocks of its commands, without end."""
        return chain.from_iterable(cycle(self._round))

    def until(self, over: Callable[[], bool]) -> int:
        """Keep the queue full until it is over; returns how many commands were done."""
        return self._batches(over) if self._batch else self._one_by_one(over)

    def singles(self, seconds: float) -> list[float]:
        """Do one command at a time; returns how many seconds each took, sorted."""
        memory = self._memory[: self._size]
        taken = []
        clock, start = time.perf_counter, self._start
        end = clock() + seconds
        for lba in self.lbas():
            before = clock()
            start(lba, memory, queue=self._queue).wait()
            after = clock()
            taken.append(after - before)
            if after >= end:
                break
        return sorted(taken)

    def _one_by_one(self, over: Callable[[], bool]) -> int:
        start, queue, size = self._start, self._queue, self._size
        slots = [self._memory[at : at + size] for at in range(0, self._depth * size, size)]
        done = 0
        under_way: deque[Any] = deque()
        for lba, slot in zip(self.lbas(), cycle(slots)):
            if len(under_way) == len(slots):
                under_way.popleft().wait()
                done += 1
                if over():
                    break
            under_way.append(start(lba, slot, queue=queue))
        for transfer in under_way:
            transfer.wait()
        return done + len(under_way)

    def _batches(self, over: Callable[[], bool]) -> int:
        lbas = self.lbas()
        count = len(self._memory) // self._size
        done = 0
        while not over():
            self._many(
                list(islice(lbas, count)),
                self._memory,
                blocks=self._blocks,
                depth=self._depth,
                queue=self._queue,
            )
            done += count
        return done


def _throughput(jobs: list[Job], size: int, seconds: float) -> dict[str, float]:
    stopped = threading.Event()
    began = time.perf_counter()
    end = began + seconds
    processor = time.process_time()

    def over() -> bool:
        return time.perf_counter() >= end or stopped.is_set()

    if len(jobs) == 1:
        done = jobs[0].until(over)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(jobs)) as threads:
            try:
                running = [threads.submit(job.until, over) for job in jobs]
                done = sum(future.result() for future in running)
            finally:
                stopped.set()
    elapsed = time.perf_counter() - began
    return {
        "seconds": elapsed,
        "commands": done,
        "iops": done / elapsed,
        "mib_per_second": done * size / elapsed / (1 << 20),
        "processor": (time.process_time() - processor) / elapsed,
    }


def latency(taken: Sequence[float]) -> dict[str, float]:
    """Microseconds of single commands, from their seconds, sorted: percentiles, least and most."""
    return {
        "commands": len(taken),
        "min": taken[0] * 1e6,
        **{
            f"p{percentile:g}": taken[min(int(len(taken) * percentile / 100), len(taken) - 1)] * 1e6
            for percentile in PERCENTILES
        },
        "max": taken[-1] * 1e6,
    }


def _table(result: dict[str, Any]) -> Any:
    how = "polled" if result["polled"] else "interrupts"
    how += ", batches" if result["batch"] else ", one by one"
    queues = f"{result['queues']} queues of " if result["queues"] > 1 else ""
    times = dict(result["latency"])
    singles = times.pop("commands")
    return show.pairs(
        [
            ("disk", f"{result['address']} {result['model']}"),
            (
                "what",
                f"{result['pattern']}, {sizes.words(result['size'])}, {queues}{result['depth']} "
                f"under way, {how}",
            ),
            ("IOPS", f"{result['iops']:,.0f}"),
            ("MiB/s", f"{result['mib_per_second']:,.1f}"),
            ("processor", f"{100 * result['processor']:.0f} % of one"),
            ("latency", f"of {singles:,} commands, one at a time:"),
            *(("", f"{name:5} {micros:10,.1f} µs") for name, micros in times.items()),
        ]
    )
