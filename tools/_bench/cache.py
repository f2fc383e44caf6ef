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
from typing import IO, Any, Generic, TypeVar

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
def locked(path: Path, title: str) -> Iterator[None]:
    """Hold a lock file during the body; say so where another bench has it.

    Args:
        path: The file; it must not be in a directory that is removed.
        title: What the other bench is making.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another bench is making {title}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_in_use: IO[bytes] | None = None


def _use() -> None:
    """Keep `clean` of other processes from removing entries while this process runs."""
    global _in_use
    if _in_use is None:
        _in_use = (directory() / "in-use.lock").open("wb")
        fcntl.flock(_in_use, fcntl.LOCK_SH)


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
        candidates: Gives the origins, best first.
        build: Makes the entry of what `fetch` gave, in the entry's directory, which exists; its
            last argument is a directory for scratch.
        choice_of: What the candidates were chosen for, where several choices share entries.

    Raises:
        BenchError: No candidate can be had; the message has each one's reason.
    """
    record = images() / f"{name}{choice_of and '-'}{choice_of}-{key}.json"
    _use()
    choice = _Choice.read(record)
    if choice is None or choice.stale:
        with locked(images() / f"{name}.lock", title):
            choice = _Choice.read(record)  # another bench may have made it meanwhile
            if choice is None or choice.stale:
                choice = _choose(title, name, key, candidates, build, choice)
                choice.write(record)
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

    def write(self, record: Path) -> None:
        unfinished = record.with_suffix(".new")
        unfinished.write_text(json.dumps(vars(self)))
        unfinished.replace(record)

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
    passing = False
    for candidate in candidates():
        if present and candidate.origin == present.origin:
            break
        try:
            fetched = candidate.fetch()
        except Unavailable as error:
            refused.append(f"{candidate.origin}: {error.brief}")
            passing |= error.passing
            continue
        entry = f"{name}-{candidate.origin}-{key}"
        _make(name, images() / entry, partial(build, fetched))
        if refused:
            say(f"{title}: {candidate.origin}, because of {'; '.join(refused)}")
        now = time.time()
        return _Choice(entry, candidate.origin, refused, now, now)
    if present is None:
        advice = (
            " A mirror lacks files for hours or days after a point release: try again later."
            if passing
            else ""
        )
        reasons = "".join(f"\n  {reason}" for reason in refused)
        raise BenchError(f"{title} cannot be made.{advice}{reasons}")
    present.refused, present.tried = refused, time.time()
    if refused:
        say(f"{title}: still {present.origin}, {present.age}, because of {'; '.join(refused)}")
    return present


def _make(name: str, entry: Path, build: Callable[[Path, Path], None]) -> None:
    if entry.is_dir():
        return
    # No name has the character @, so this is no part of another name's directories.
    unfinished = f"unfinished@{name}@"
    for leftover in images().glob(f"{unfinished}*"):
        # Its build was killed: a build that runs holds the lock that this process has.
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=images(), prefix=unfinished) as scratch:
        made = Path(scratch, "entry")
        made.mkdir()
        build(made, Path(scratch))
        made.rename(entry)  # only a complete entry gets the name under which it is looked for
    _remove_unused()


def _remove_unused() -> None:
    for path in images().iterdir():
        with contextlib.suppress(FileNotFoundError):  # another bench does the same
            if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
                if path.is_dir():
                    _remove(path)
                elif path.suffix == ".json":
                    path.unlink()


def _remove(path: Path) -> None:
    """Remove a directory. It loses its name first: half of an entry must not look like one."""
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix="unfinished@removed@", ignore_cleanup_errors=True
    ) as graveyard:
        path.rename(Path(graveyard, path.name))


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

    Raises:
        BenchError: Another bench is running.
    """
    freed = 0
    directory().mkdir(parents=True, exist_ok=True)
    lock = (directory() / "in-use.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchError("another bench is running: run `tools/bench clean` after it") from None
    for entry in entries():
        if entry.path.name.startswith("venv-"):
            continue
        if unused_days is None or entry.age > unused_days * 24 * 3600:
            _remove(entry.path)
            freed += entry.size
    lock.close()
    return freed
