"""A full memory barrier: data before doorbell, completion before data.

Python has none. A store to a DMA buffer and the store to a BAR that tells the device may reach the
device in the other order on POWER and arm64, since a BAR access through a memoryview is a plain
store; so may the reads of a completion and of the data it announces. No C library exports a
barrier that also orders memory against device registers (C11's orders processors among
themselves: `lwsync`, `dmb ish`), so the one instruction it takes is put into executable memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.file import refused

_CODE = {
    "x86_64": bytes.fromhex("0faef0 c3"),  # mfence; ret
    "ppc64le": bytes.fromhex("ac04007c 2000804e"),  # sync; blr
    "aarch64": bytes.fromhex("bf3f03d5 c0035fd6"),  # dmb sy; ret
    "riscv64": bytes.fromhex("0f00f00f 67800000"),  # fence iorw, iorw; ret
}


def fence() -> None:
    """Order all loads and stores before the call against all after it, device registers included.

    Call it between the last store to a DMA buffer and the BAR write that tells the device, and
    between reading a completion and reading the data that it announces.

    Raises:
        Unsupported: no barrier is known for this processor, or executable memory is refused.
        OpenFilesLimit: the process has no descriptor left, at the first use.
    """
    (_barrier or _prepare())()


_barrier: Callable[[], object] | None = None


def _prepare() -> Callable[[], object]:
    """The barrier as a function; made once, at its first use."""
    global _barrier
    machine = os.uname().machine
    code = _CODE.get(machine)
    if code is None or sys.maxsize < 1 << 32:
        raise errors.Unsupported(f"pyvfio knows no memory barrier for a {machine} process")
    # The kernel writes the code and maps it without write permission: nothing is ever writable and
    # executable at once, and the instruction cache is the kernel's business.
    try:
        fd = calls.memfd_create("pyvfio-fence", os.MFD_CLOEXEC)
        try:
            calls.pwrite(fd, code, 0)
            prot = mmap.PROT_READ | mmap.PROT_EXEC
            address = calls.mmap(0, mmap.PAGESIZE, prot, mmap.MAP_PRIVATE, fd, 0)
        finally:
            calls.close(fd)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise refused(error, "memfd_create", "pyvfio-fence") from None
        raise errors.Unsupported(
            f"a memory barrier needs a page of executable memory, which was refused ({error}): "
            "a security policy (SELinux, seccomp) must allow it to this process"
        ) from None
    # PYFUNCTYPE keeps the interpreter lock: releasing it would cost more than the barrier.
    _barrier = ctypes.PYFUNCTYPE(None)(address)
    return _barrier
