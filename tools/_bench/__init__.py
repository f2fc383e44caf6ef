"""The bench: unmodified Debian kernels on hosts emulated by QEMU, with VFIO and PCI devices.

How it is laid out, in the order in which a run goes through it:

    cli.py        what people type: list, run, shell
    profiles.py   the emulated hosts, as data: architecture, kernel, devices and their addresses
    debian.py     Debian packages of any architecture, fetched by an apt of the bench's own
    cpio.py       the kernel's format for an initramfs
    image.py      kernel and initramfs made of those packages, cached by the hash of their recipe
    guest/        what runs inside: init and pyvfio from the image, session sent in each run
    machine.py    one boot: QEMU started, the command's streams carried, QEMU ended
    progress.py   what is going on, on stderr
"""

from __future__ import annotations


class BenchError(Exception):
    """The bench itself failed (not the command run on it); the message says what to do next."""
