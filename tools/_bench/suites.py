"""Which of Debian's suites gives what, as data: the first that can be had whole is taken."""

from __future__ import annotations

from dataclasses import dataclass

# The guest's root file system, Python among it.
ROOT_SUITES = ("trixie", "forky", "sid")


@dataclass(frozen=True)
class Series:
    """One series of Linux in Debian.

    Attributes:
        version: A regular expression of the versions in names of packages: linux-image-VERSION-...
        suites: Those that have it, best first.
    """

    version: str
    suites: tuple[str, ...]


SERIES = {
    "6.1": Series(r"6\.1\.\d+-\d+", ("bookworm",)),
    "6.12": Series(r"6\.12\.\d+\+deb13", ("trixie",)),
    "7": Series(r"7\.\d+\.\d+\+deb\d+", ("trixie-backports", "forky", "sid")),
}

# A kernel that the user did not name: the first series that can be had.
DEFAULT_SERIES = ("6.12", "7")

# QEMU for this machine, by its major version, beside the machine's own ("system").
QEMU_SUITES = {"10": ("trixie",), "11": ("forky", "sid")}
DEFAULT_QEMU = "system"
