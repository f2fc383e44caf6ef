"""Debian packages of this machine that the bench needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import BenchError

BOOTSTRAP = Path(__file__).resolve().parents[1] / "lib/bootstrap.sh"


def need_packages(*packages: str) -> None:
    """Install Debian packages that are missing, as tools/lib/bootstrap.sh does it."""
    script = '. "$0"; need_packages "$@"'
    done = subprocess.run(["bash", "-c", script, str(BOOTSTRAP), *packages], check=False)
    if done.returncode != 0:
        raise BenchError(
            f"packages are missing: apt-get install --no-install-recommends {' '.join(packages)}"
        )
