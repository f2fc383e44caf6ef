"""The kernel's own word on which ioctls were made: kprobes on the functions that serve them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TRACEFS = Path("/sys/kernel/tracing")
_GROUP = "pyvfio"


@dataclass(frozen=True)
class Seen:
    """One line of the trace.

    Attributes:
        name: of the event.
        values: its fields, as the kernel prints them.
    """

    name: str
    values: dict[str, str]

    def number(self, name: str) -> int:
        """A field as a number."""
        return int(self.values[name], 0)


class Unavailable(Exception):
    """This kernel cannot be asked; the message says why."""


class KernelTrace:
    """What the events saw while they were switched on."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    def take(self) -> list[Seen]:
        """What was seen by this process so far."""
        lines = (self._instance / "trace").read_text().splitlines()
        seen = []
        for line in lines:
            # task-pid [cpu] flags time: event: (function+offset) name=value ...
            match = re.match(rf"\s*\S+-{os.getpid()}\s+\[\d+\]\s+\S+\s+[\d.]+: (\w+): (.*)", line)
            if match:
                fields = dict(re.findall(r"(\w+)=(\S+)", match[2]))
                if match[1].startswith("kvm_"):
                    fields = {"text": match[2]}
                seen.append(Seen(match[1], fields))
        return seen


@contextmanager
def tracing(probes: dict[str, str], events: tuple[str, ...] = ()) -> Iterator[KernelTrace]:
    """Watch kernel functions while the block lasts, in a trace buffer of our own.

    Args:
        probes: by name, "module:function field=where:type ..." (Documentation/trace/kprobetrace).
        events: tracepoints, as "kvm/kvm_msi_set_irq".

    Raises:
        Unavailable: no tracefs, no kprobes, or no such function.
    """
    definitions = _TRACEFS / "kprobe_events"
    if not definitions.exists():
        raise Unavailable("there is no /sys/kernel/tracing/kprobe_events")
    instance = _TRACEFS / "instances" / f"{_GROUP}-{os.getpid()}"
    made: list[str] = []
    try:
        for name, probe in probes.items():
            try:
                _append(definitions, f"p:{_GROUP}/{name} {probe}")
            except OSError as error:
                raise Unavailable(f"{probe}: {error.strerror}") from None
            made.append(name)
        instance.mkdir()
        (instance / "buffer_size_kb").write_text("4096")
        for event in (*(f"{_GROUP}/{name}" for name in made), *events):
            (instance / "events" / event / "enable").write_text("1")
        yield KernelTrace(instance)
    finally:
        if instance.exists():
            instance.rmdir()
        for name in made:
            _append(definitions, f"-:{_GROUP}/{name}")


def _append(file: Path, text: str) -> None:
    # Python's own append mode seeks to the end first, which the kernel refuses here.
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)
