"""Texts that a device, a process or a file chose."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape what is not printable: a terminal would obey it.

    The model of a disk, the name of a process, and errors that quote either may hold anything.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
