"""What is about hosts of one kind is left out on others."""

from __future__ import annotations

from pathlib import Path

collect_ignore = [] if Path("/proc/powerpc/eeh").exists() else ["test_eeh.py"]
