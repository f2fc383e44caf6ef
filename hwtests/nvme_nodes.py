"""The block devices that Linux's NVMe driver makes of a controller, by what sysfs says.

Linux numbers controllers as it finds them: that nvme0 is the first one's is a guess.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pyvfio.pci import Function

_TIMEOUT = 60.0  # seconds; namespaces are looked for after the driver was bound


def nodes(function: Function, count: int) -> dict[int, Path]:
    """The nodes by namespace ID, once there are that many and all can be opened."""
    end = time.monotonic() + _TIMEOUT
    while True:
        found: dict[int, Path] = {}
        with suppress(OSError):
            for path in function.sysfs.glob("nvme/nvme*/nvme*n*"):
                if (path / "nsid").exists():
                    node = Path("/dev", path.name)
                    node.open("rb").close()
                    found[int((path / "nsid").read_text())] = node
            if len(found) == count:
                return found
        assert time.monotonic() < end, f"Linux has found {found} of {count} namespaces"
        time.sleep(0.02)


def node(function: Function) -> Path:
    """The node of a controller with one namespace."""
    (only,) = nodes(function, 1).values()
    return only
