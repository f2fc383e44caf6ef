"""Debian packages of any architecture, fetched by apt with nothing of the machine's apt changed.

apt is given directories of its own for everything that it writes, so no privileges are needed. It
inherits the machine's settings (proxies, credentials) and takes the mirror from the machine's
sources. What it fetches is verified as always: Release files by Debian's signature, the rest by
the hashes therein; a file half fetched stays in partial/.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from . import BenchError, Unavailable, cache
from .progress import Step, step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "PYVFIO_DEBIAN_MIRROR"


def mirrors(indextargets: str) -> list[str]:
    """Mirrors that may hold Debian, likeliest first.

    Args:
        indextargets: Output of `apt-get indextargets` in the format of MIRROR_FORMAT.
    """
    found = dict.fromkeys(
        uri
        for uri, component in (
            line.rsplit(" ", 1) for line in indextargets.splitlines() if " " in line
        )
        if component == "main" and not re.search(r"[-/]security\b", uri)
    )
    return list(found)


MIRROR_FORMAT = "$(REPO_URI) $(COMPONENT)"


def machine_mirrors() -> list[str]:
    """Mirrors named in this machine's apt configuration, or the one in PYVFIO_DEBIAN_MIRROR."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return [chosen]
    # Without --no-release-info only what `apt-get update` has already fetched would be listed.
    command = ["apt-get", "indextargets", "--no-release-info", "--format", MIRROR_FORMAT]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return mirrors(listed)


def machine_architecture() -> str:
    """Debian's name of the architecture that this machine runs."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# What Debian calls the suites beside their code names. A mirror that takes over a new point release
# name by name, or architecture by architecture, has for a while one name under which the signed
# hashes do not match.
OTHER_NAMES = {"bookworm": "oldstable", "trixie": "stable", "forky": "testing", "sid": "unstable"}


def fetch(
    suite: str, architecture: str, packages: Sequence[str], assumed: Iterable[str] = ()
) -> list[Path]:
    """Fetch packages and all that they depend on, as :meth:`Archive.fetch`, with progress shown."""
    with (
        archive(suite, architecture) as ready,
        step(f"Fetching packages of Debian {suite} for {architecture}") as progress,
    ):
        return ready.fetch(packages, assumed, progress)


@contextlib.contextmanager
def archive(suite: str, architecture: str) -> Iterator[Archive]:
    """Give the archive of a suite and architecture, its lists up to date, during the body.

    Raises:
        Unavailable: No mirror has it in order.
    """
    place = cache.directory() / "debian" / f"{suite}-{architecture}"
    it = Archive(place, architecture, suite)
    title = f"a copy of packages of Debian {suite} for {architecture}"
    with cache.locked(place.parent / f"{place.name}.lock", title):
        if place not in _updated:
            try:
                with step(f"Fetching the lists of Debian {suite} for {architecture}") as progress:
                    it.update(progress)
                _updated[place] = None
            except Unavailable as error:
                _updated[place] = error
        if refused := _updated[place]:
            raise refused
        os.utime(place)
        yield it


_updated: dict[Path, Unavailable | None] = {}
"""What came of fetching the lists, so that this process asks once."""


class Archive:
    """Packages of one architecture and suite."""

    def __init__(self, directory: Path, architecture: str, suite: str) -> None:
        """Prepare an apt with directories of its own.

        Args:
            directory: Where its lists and packages are kept.
            architecture: Debian's name of it.
            suite: The release's code name.
        """
        self.suite = suite
        self._directory = directory
        self._architecture = architecture
        for part in ("lists/partial", "archives/partial"):
            (directory / part).mkdir(parents=True, exist_ok=True)

    def update(self, step: Step) -> None:
        """Fetch the list of packages from the first mirror that has the suite, signed by Debian.

        Raises:
            Unavailable: No mirror of this machine's apt configuration has it in order.
        """
        if not KEYRING.exists():
            raise BenchError(f"{KEYRING} is absent: install the package debian-archive-keyring")
        names = [self.suite]
        if other := OTHER_NAMES.get(self.suite):
            names.append(other)
        failures: dict[str, Unavailable] = {}
        for mirror, name in itertools.product(machine_mirrors(), names):
            self._file("sources.list").write_text(
                f"deb [signed-by={KEYRING}] {mirror} {name} main\n"
            )
            try:
                self._apt(["update", "--error-on=any"], step)
                self._check_suite()
            except Unavailable as error:
                failures[f"{mirror} {name}"] = error
            else:
                return
        raise Unavailable(
            f"no mirror in this machine's apt configuration gives Debian {self.suite}"
            f" for {self._architecture}: name one in {MIRROR_VARIABLE}, or update the package"
            " debian-archive-keyring if a signature's key is unknown\n"
            + "\n".join(f"{where}:\n{error}" for where, error in failures.items()),
            next((error.brief for error in failures.values()), "no mirror is configured"),
            passing=any(error.passing for error in failures.values()),
        )

    def names(self, pattern: str) -> list[str]:
        """Names of the suite's packages that match a whole regular expression, newest first."""
        listed = self._run(["apt-cache", *self._options(), "pkgnames"])
        found = [name for name in listed.split() if re.fullmatch(pattern, name)]
        return sorted(found, key=version_key, reverse=True)

    def fetch(self, packages: Sequence[str], assumed: Iterable[str], step: Step) -> list[Path]:
        """Fetch packages and all that they depend on.

        What was fetched before an error is kept, so that the next try does not begin again.

        Args:
            packages: Their names.
            assumed: Packages to leave out, whatever depends on them.
            step: Where progress is shown.

        Returns:
            The package files.

        Raises:
            Unavailable: One of them cannot be had, whole and with the hash that the index gives.
        """
        self._file("status").write_text(
            "".join(
                f"Package: {name}\nStatus: install ok installed\nVersion: 999:1\n"
                f"Architecture: {self._architecture}\nMulti-Arch: foreign\n"
                "Maintainer: none\nDescription: left out\n\n"
                for name in assumed
            )
        )
        install = ["install", "--no-install-recommends", *packages]
        plan = self._apt(["--simulate", *install], step)
        self._apt(["--download-only", *install], step)
        self._apt(["autoclean"], step)
        return [self._file("archives") / name for name in planned_files(plan)]

    def _check_suite(self) -> None:
        """Refuse another release: what is called stable changes every other year."""
        releases = [path.read_text() for path in self._file("lists").glob("*Release")]
        if not all(f"\nCodename: {self.suite}\n" in release for release in releases):
            raise Unavailable(f"that is not Debian {self.suite}")

    def _file(self, name: str) -> Path:
        return self._directory / name

    def _options(self) -> list[str]:
        options = {
            "Dir::State": self._directory,
            "Dir::State::lists": self._file("lists"),
            "Dir::State::status": self._file("status"),
            "Dir::Cache": self._directory,
            "Dir::Cache::archives": self._file("archives"),
            "Dir::Etc::sourcelist": self._file("sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            # As root, apt would fetch as the user _apt, who may not enter this directory.
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            # A container's apt configuration may delete what was fetched.
            "APT::Keep-Downloaded-Packages": "true",
        }
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode != 0:
            raise Unavailable(done.stderr.strip())
        return done.stdout

    def _apt(self, arguments: list[str], step: Step) -> str:
        command = ["apt-get", "-q", "-y", "-o", "APT::Status-Fd=1", *self._options(), *arguments]
        lines = []
        verbose = os.environ.get("PYVFIO_VERBOSE", "0") != "0"
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        ) as apt:
            for line in _lines(apt):
                if progress := re.match(r"dlstatus:\d+:(\d+)", line):
                    step.update(f"{progress[1]} %")
                else:
                    lines.append(line)
                    if verbose:
                        print(line, end="", file=sys.stderr, flush=True)
        if apt.returncode != 0:
            complaints = [line for line in lines if line.startswith(("E:", "W:"))]
            if any("broken packages" in line for line in complaints):
                complaints = lines  # the lines above name the packages
            message = "".join(complaints or lines).strip()
            raise Unavailable(message, brief(message), passing=bool(_PASSING.search(message)))
        return "".join(lines)


# Reasons of apt that pass by themselves: a mirror takes over a point release.
_PASSING = re.compile(r"404|unexpected size|[Hh]ash [Ss]um mismatch|Mirror sync in progress")


def _lines(apt: subprocess.Popen[str]) -> Iterator[str]:
    """Give apt's lines; whatever ends this process before apt ends apt."""
    assert apt.stdout is not None
    try:
        yield from apt.stdout
    except BaseException:
        apt.terminate()
        raise


def version_key(name: str) -> list[int]:
    """Order names like linux-image-6.12.107+deb13-amd64 by the numbers in them."""
    return [int(number) for number in re.findall(r"\d+", name)]


def brief(message: str) -> str:
    """Say in one line why apt failed.

    Args:
        message: Its lines that begin with E: or W:.
    """
    failures = re.findall(
        r"^[EW]: Failed to fetch \S*?([^/\s]+)  (.*?)(?: \[IP: .*)?$", message, re.M
    )
    if not failures:
        return message.partition("\n")[0].removeprefix("E: ")
    file, reason = failures[0]
    name = urllib.parse.unquote(file.partition("_")[0])
    more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"{name}{more} cannot be fetched ({' '.join(reason.split())})"


def planned_files(plan: str) -> list[str]:
    """Names of the package files that a simulated installation would install.

    Args:
        plan: Output of `apt-get --simulate install`.
    """
    planned = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", plan, re.MULTILINE)
    # apt escapes the colon of an epoch in file names.
    return [
        f"{name.split(':')[0]}_{version.replace(':', '%3a')}_{architecture}.deb"
        for name, version, architecture in planned
    ]


def unpack(package: Path, directory: Path) -> None:
    """Unpack a package file, running nothing of it."""
    subprocess.run(["dpkg-deb", "-x", str(package), str(directory)], check=True)
