"""Contenders take turns, many times, on one processor.

The machine's speed changes from second to second, by more than the differences of interest. So
every contender runs for about a millisecond in each of many rounds, in an order that changes, and
contenders are compared round by round. What is counted is processor time, so that other processes'
turns on the processor are not ours.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
import timeit
from collections.abc import Callable, Iterator, Mapping

ROUNDS = 400

_UNROLLED = 20
_SAMPLE_SECONDS = 1e-3


def statement(code: str, **names: object) -> Callable[[], float]:
    """A contender: what `code` costs, in nanoseconds of processor time.

    Args:
        code: a statement; written out many times over, so that the loop around it weighs nothing.
        names: what it uses, as local variables.
    """
    setup = "\n".join(f"{name} = held[{name!r}]" for name in names)
    body = "\n".join([code] * _UNROLLED)
    timer = timeit.Timer(body, setup, time.thread_time, globals={"held": names})
    timer.timeit(10)
    number = max(1, round(_SAMPLE_SECONDS / (timer.timeit(10) / 10)))
    return lambda: timer.timeit(number) / number / _UNROLLED * 1e9


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    progress: Callable[[str], None],
    rounds: int = ROUNDS,
    every: Mapping[str, int] = {},
) -> dict[str, list[float | None]]:
    """Let contenders take turns.

    Args:
        contenders: by name, what measures one once and returns its cost.
        progress: is told which round it is.
        rounds: how many turns each gets; one more comes first, to warm up.
        every: by name, in how many rounds a contender has only one turn, where it takes long.

    Returns:
        By contender, its cost in each round; None in those without a turn.
    """
    costs: dict[str, list[float | None]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    with _quiet():
        for number in range(rounds + 1):
            progress(f"round {number} of {rounds}")
            shuffle(order)
            for name in order:
                turn = number % every.get(name, 1) == 0
                cost = contenders[name]() if turn else None
                if number:
                    costs[name].append(cost)
    return costs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection, no moving between processors."""
    processors = os.sched_getaffinity(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    os.sched_setaffinity(0, {max(processors)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)
        if collecting:
            gc.enable()
