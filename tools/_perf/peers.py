"""Other projects, from PyPI, each in a directory of its own in the cache.

They are installed beside our dependencies, not among them, and found only by whoever asks for them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tools._bench.cache import directory as cache_directory
from tools._bench.progress import step


class Absent(Exception):
    """A peer cannot be had here; the message says why."""


class Peers:
    """Fetches a peer when it is first asked for.

    Attributes:
        versions: of the peers fetched so far.
    """

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._absent: dict[str, Absent] = {}

    def directory(self, project: str) -> Path:
        """Where a project is installed, for ``sys.path``.

        Raises:
            Absent: it could not be installed.
        """
        if project in self._absent:
            raise self._absent[project]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        directory = cache_directory() / f"peers-{version}" / project
        try:
            if not directory.exists():
                with step(f"Fetching {project} from PyPI"):
                    _install(project, directory)
        except Absent as absent:
            self._absent[project] = absent
            raise
        for found in importlib.metadata.distributions(name=project, path=[str(directory)]):
            self.versions[project] = found.version
        return directory

    def load(self, project: str, module: str) -> ModuleType:
        """Import a module of a project.

        Raises:
            Absent: it could not be installed or imported.
        """
        directory = str(self.directory(project))
        if directory not in sys.path:
            sys.path.append(directory)
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise Absent(f"{module} cannot be imported: {error}") from None


def _install(project: str, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="unfinished-") as scratch:
        # A directory, so no environment is touched; renamed, so that what has the name is complete.
        target = Path(scratch, "target")
        pip = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
        result = subprocess.run(
            (*pip, "--target", str(target), project),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PIP_NO_INPUT": "1"},
        )
        if result.returncode:
            reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
            reason = reasons[-1].removeprefix("ERROR: ") if reasons else "pip failed"
            raise Absent(f"pip could not install it: {reason}")
        target.rename(directory)
