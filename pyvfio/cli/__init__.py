"""The `pyvfio` command: prints what the library knows, decides nothing itself."""

from __future__ import annotations

from pyvfio.cli.main import main

__all__ = ["main"]
