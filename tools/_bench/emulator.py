"""QEMU: the machine's own, or that of another Debian suite unpacked into a directory.

Nothing of the machine is changed by the latter: its own dynamic loader starts it with its own
libraries, modules and firmware.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import BenchError, cache, debian
from .progress import step
from .suites import QEMU_SUITES

SYSTEM = "system"
NAMES = (SYSTEM, *QEMU_SUITES)
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True)
class Emulator:
    """One QEMU.

    Attributes:
        name: Its name for `--qemu`.
        directory: Where it is unpacked; None for the machine's own.
        major: Its major version; 0 if it is not known.
    """

    name: str = SYSTEM
    directory: Path | None = None
    major: int = 0

    def command(self, program: str) -> list[str]:
        """Return the words that start a program of it: "qemu-system-x86_64"."""
        if self.directory is None:
            return [program]
        (loader,) = self.directory.glob("usr/lib*/ld-linux*.so.*")
        libraries = self._libraries()
        command = [str(loader), "--library-path", str(libraries), "--argv0", program]
        command.append(str(self.directory / "usr/bin" / program))
        for place in FIRMWARE:
            command += ["-L", str(self.directory / place)]
        return command

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which it runs."""
        if self.directory is None:
            return dict(os.environ)
        return {**os.environ, "QEMU_MODULE_DIR": str(self._libraries() / "qemu")}

    def version(self, program: str) -> tuple[int, ...]:
        """Ask a program of it for its version: (7, 2, 18)."""
        command = [*self.command(program), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        found = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
        if done.returncode != 0 or found is None:
            raise BenchError(f"{program} --version failed: {done.stderr or done.stdout}")
        return int(found[1]), int(found[2]), int(found[3])

    def _libraries(self) -> Path:
        assert self.directory is not None
        (libc,) = self.directory.glob("usr/lib/*/libc.so.6")
        return libc.parent


def get(name: str, package: str, program: str) -> Emulator:
    """Return a QEMU, unpacked now if it is not in the cache.

    Args:
        name: One of NAMES; "system" must be installed.
        package: The Debian package that has the program: "qemu-system-ppc".
        program: The program: "qemu-system-ppc64".
    """
    found = Emulator() if name == SYSTEM else _unpacked(name, package)
    return replace(found, major=found.version(program)[0])


def _unpacked(name: str, package: str) -> Emulator:
    architecture = debian.machine_architecture()

    def candidates() -> Iterator[cache.Candidate[Sequence[Path]]]:
        for suite in QEMU_SUITES[name]:
            yield cache.Candidate(suite, partial(debian.fetch, suite, architecture, (package,)))

    title = f"QEMU {name} ({package})"
    key = cache.recipe((package,), (Path(__file__),))
    return Emulator(name, cache.select(title, f"{package}-{name}", key, candidates, _build))


def _build(packages: Sequence[Path], entry: Path, scratch: Path) -> None:
    with step("Unpacking QEMU") as progress:
        for package in packages:
            progress.update(package.name.partition("_")[0])
            debian.unpack(package, entry)
    # From Debian 13 on the packages rely on /lib and /lib64 being links.
    for path in ("lib", "lib64"):
        if not (entry / path).exists():
            (entry / path).symlink_to(f"usr/{path}")
    (entry / "packages").write_text("".join(f"{path.name}\n" for path in packages))
