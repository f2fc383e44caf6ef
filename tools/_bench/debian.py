"""Debian packages of any architecture, fetched by apt with nothing of the machine's apt changed.

apt is given directories of its own for everything that it writes, so no privileges are needed. It
inherits the machine's settings (proxies, credentials) and takes the mirror from the machine's
sources. What it fetches is verified as always: Release files by Debian's signature, the rest by
the hashes therein; a file half fetched stays in partial/.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import BenchError
from .progress import Step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "PYVFIO_DEBIAN_MIRROR"


class AptError(BenchError):
    """apt refused; the message is its own."""


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


class Archive:
    """Packages of one architecture and suite."""

    def __init__(self, directory: Path, architecture: str, suite: str) -> None:
        """Prepare an apt of one's own.

        Args:
            directory: Where its lists and packages are kept.
            architecture: Debian's name of it.
            suite: The release's code name.
        """
        self._directory = directory
        self._architecture = architecture
        self._suite = suite
        # A mirror that takes over a new point release name by name, or architecture by
        # architecture, has for a while one name under which the signed hashes do not match.
        self._names = (suite, "stable")
        for part in ("lists/partial", "archives/partial"):
            (directory / part).mkdir(parents=True, exist_ok=True)

    def update(self, step: Step) -> None:
        """Fetch the list of packages from the first mirror that has the suite, signed by Debian."""
        if not KEYRING.exists():
            raise BenchError(f"{KEYRING} is absent: install the package debian-archive-keyring")
        failures = []
        for mirror, name in itertools.product(machine_mirrors(), self._names):
            self._file("sources.list").write_text(
                f"deb [signed-by={KEYRING}] {mirror} {name} main\n"
            )
            try:
                self._apt(["update", "--error-on=any"], step)
                self._check_suite()
            except AptError as error:
                failures.append(f"{mirror} {name}:\n{error}")
            else:
                return
        raise BenchError(
            f"no mirror in this machine's apt configuration gives Debian {self._suite}"
            f" for {self._architecture}; name one in {MIRROR_VARIABLE}, or update the package"
            " debian-archive-keyring if a signature's key is unknown\n" + "\n".join(failures)
        )

    def fetch(self, packages: Sequence[str], assumed: Iterable[str], step: Step) -> list[Path]:
        """Fetch packages and all that they depend on.

        Args:
            packages: Their names.
            assumed: Packages to leave out, whoever depends on them.
            step: Told how far it is.

        Returns:
            The package files.
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
        if not all(f"\nCodename: {self._suite}\n" in release for release in releases):
            raise AptError(f"that is not Debian {self._suite}")

    def _file(self, name: str) -> Path:
        return self._directory / name

    def _apt(self, arguments: list[str], step: Step) -> str:
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
            "APT::Status-Fd": "1",
        }
        command = ["apt-get", "-q", "-y"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        lines = []
        with subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        ) as apt:
            assert apt.stdout is not None
            for line in apt.stdout:
                if progress := re.match(r"dlstatus:\d+:(\d+)", line):
                    step.update(f"{progress[1]} %")
                else:
                    lines.append(line)
        if apt.returncode != 0:
            complaints = [line for line in lines if line.startswith(("E:", "W:"))]
            raise AptError("".join(complaints or lines).strip())
        return "".join(lines)


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
