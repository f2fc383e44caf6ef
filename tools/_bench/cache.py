"""Everything that the bench makes and can make again, kept outside the checkout.

An entry is a directory, named by the hash of its recipe, that appears only when it is complete.
What Debian gives on one day it may not give on another, so an entry can often be made from several
origins (suites, kernel versions). :func:`select` takes the first that can be had whole and
remembers the choice: an entry that is in the cache needs no mirror.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import BenchError, Unavailable
from .progress import say

T = TypeVar("T")

UNUSED_SECONDS = 30 * 24 * 3600
RETRY_SECONDS = 24 * 3600  # how often a better origin is tried again


def directory() -> Path:
    """Return where everything is kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvfio"
    return Path(os.environ.get("PYVFIO_CACHE") or default)


def images() -> Path:
    """Return where the entries are: root file systems, kernels, QEMUs."""
    path = directory() / "images"
    path.mkdir(parents=True, exist_ok=True)
    return path


def recipe(parts: Any, sources: Iterable[Path]) -> str:
    """Hash all that decides the contents of an entry.

    Args:
        parts: Data, as JSON writes it.
        sources: The files that make it, and those that go into it.
    """
    digest = hashlib.sha256(json.dumps(parts).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file during the body; say so where another bench has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another bench is making the same: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """One origin from which an entry can be made.

    Attributes:
        origin: Its name for people, and part of the entry's name: "trixie".
        fetch: Fetches all that it takes, or raises Unavailable.
    """

    origin: str
    fetch: Callable[[], T]


def select(
    title: str,
    name: str,
    key: str,
    candidates: Callable[[], Iterator[Candidate[T]]],
    build: Callable[[T, Path, Path], None],
    choice_of: str = "",
) -> Path:
    """Return the entry made from the first candidate that can be had whole.

    Args:
        title: The entry for people: "Root file system for ppc64el".
        name: The entry's name; its directories begin with it.
        key: The hash of its recipe.
        candidates: Gives the origins, best first. It may raise Unavailable after the last one.
        build: Makes the entry of what `fetch` gave, in the entry's directory, which exists; its
            last argument is a directory for scratch.
        choice_of: What the candidates were chosen for, where several choices share entries.

    Raises:
        BenchError: No candidate can be had; the message has each one's reason.
    """
    record = images() / f"{name}{choice_of and '-'}{choice_of}-{key}.json"
    with locked(images() / f"{name}.lock"):
        choice = _Choice.read(record)
        if choice is None or choice.stale:
            choice = _choose(title, name, key, candidates, build, choice)
            record.write_text(json.dumps(vars(choice)))
        entry = images() / choice.entry
        os.utime(entry)
        os.utime(record)
        return entry


@dataclass
class _Choice:
    """What was chosen, from which origin, and why nothing better."""

    entry: str
    origin: str
    refused: list[str]
    made: float
    tried: float

    @classmethod
    def read(cls, record: Path) -> _Choice | None:
        try:
            choice = cls(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return choice if (images() / choice.entry).is_dir() else None

    @property
    def stale(self) -> bool:
        return bool(self.refused) and not 0 <= time.time() - self.tried < RETRY_SECONDS

    @property
    def age(self) -> str:
        days = int(max(0, time.time() - self.made) // (24 * 3600))
        return f"made {days} day{'s' * (days != 1)} ago" if days else "made today"


def _choose(
    title: str,
    name: str,
    key: str,
    candidates: Callable[[], Iterator[Candidate[T]]],
    build: Callable[[T, Path, Path], None],
    present: _Choice | None,
) -> _Choice:
    refused: list[str] = []
    try:
        for candidate in candidates():
            if present and candidate.origin == present.origin:
                break
            try:
                fetched = candidate.fetch()
            except Unavailable as error:
                refused.append(f"{candidate.origin}: {error.brief}")
                continue
            entry = f"{name}-{candidate.origin}-{key}"
            _make(name, images() / entry, partial(build, fetched))
            if refused:
                say(f"{title}: {candidate.origin}, because of {'; '.join(refused)}")
            now = time.time()
            return _Choice(entry, candidate.origin, refused, now, now)
    except Unavailable as error:
        refused.append(error.brief)
    if present is None:
        raise BenchError(
            f"{title} cannot be made: no suite has all its packages. Mirrors are in such a state "
            f"for hours or days after a point release: try again later.\n  " + "\n  ".join(refused)
        )
    present.refused, present.tried = refused or present.refused, time.time()
    say(f"{title}: still {present.origin}, {present.age}, because of {'; '.join(present.refused)}")
    return present


def _make(name: str, entry: Path, build: Callable[[Path, Path], None]) -> None:
    if entry.is_dir():
        return
    unfinished = f"unfinished-{name}-"
    for leftover in images().glob(f"{unfinished}*"):
        shutil.rmtree(leftover)  # of a build that was killed: the lock is ours
    with tempfile.TemporaryDirectory(dir=images(), prefix=unfinished) as scratch:
        made = Path(scratch, "entry")
        made.mkdir()
        build(made, Path(scratch))
        made.rename(entry)  # only a complete entry gets the name under which it is looked for
    _remove_unused()


def _remove_unused() -> None:
    for path in images().iterdir():
        if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".json":
                path.unlink()


@dataclass(frozen=True)
class Entry:
    """One thing in the cache, for a listing.

    Attributes:
        path: File or directory.
        size: In bytes.
        age: Seconds since it was last used.
    """

    path: Path
    size: int
    age: float


def entries() -> list[Entry]:
    """List what is in the cache: images, packages, Python environments."""
    found = []
    for group in ("images", "debian"):
        for path in sorted((directory() / group).glob("*")):
            if path.is_dir():
                found.append(_entry(path))
    found += [_entry(path) for path in sorted(directory().glob("venv-*")) if path.is_dir()]
    return found


def _entry(path: Path) -> Entry:
    size = 0
    for parent, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, file))
                size += status.st_blocks * 512
    return Entry(path, size, max(0.0, time.time() - path.stat().st_mtime))


def clean(unused_days: float | None) -> int:
    """Remove images and packages; returns how many bytes were freed.

    Args:
        unused_days: Only what was not used for so long; None for all.

    Python environments stay: the caller may run in one.
    """
    freed = 0
    for entry in entries():
        if entry.path.name.startswith("venv-"):
            continue
        if unused_days is None or entry.age > unused_days * 24 * 3600:
            shutil.rmtree(entry.path)
            freed += entry.size
    return freed
