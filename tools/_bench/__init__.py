"""The bench: unmodified Debian kernels on hosts emulated by QEMU, with VFIO and PCI devices.

How it is laid out, in the order in which a run goes through it:

    cli.py        the command line: list, run, shell, clean
    profiles.py   the emulated hosts, as data: architecture, devices and their addresses
    suites.py     which of Debian's suites gives what, as data
    debian.py     Debian packages of any suite and architecture, fetched by an apt of our own
    cache.py      what was made of them, by the hash of its recipe; the first suite that is whole
    root.py       the guest's root file system     cpio.py   the kernel's format for an initramfs
    kernel.py     a Debian kernel and its modules
    emulator.py   QEMU: the machine's own, or another suite's in a directory
    guest/        what runs inside: early-init and init from the image, session sent each time
    machine.py    one emulated host: QEMU started, commands run on it, QEMU ended
    progress.py   progress on stderr
"""

from __future__ import annotations


class BenchError(Exception):
    """The bench itself failed (not the command run on it); the message says what to do next."""


class Unavailable(BenchError):
    """A suite, or a package of it, cannot be had.

    Attributes:
        brief: The reason in one line.
        passing: Whether the reason passes by itself: a mirror is incomplete.
    """

    def __init__(self, message: str, brief: str = "", *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        self.brief = brief or message.partition("\n")[0]
