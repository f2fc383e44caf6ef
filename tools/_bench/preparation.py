"""Get what a host boots from, out of the cache or made anew: kernel, root file system, QEMU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import emulator, kernel, machine, root
from .packages import need_packages
from .profiles import Profile
from .progress import say
from .suites import DEFAULT_QEMU

CHECKOUT = Path(__file__).resolve().parents[2]


def prepare(
    profile: Profile,
    kernel_name: str | None = None,
    qemu: str = DEFAULT_QEMU,
    suite: str | None = None,
    more: Sequence[str] = (),
    **others: Any,
) -> machine.Options:
    """Get all that it takes to boot a host, from the cache or anew.

    Args:
        profile: The host.
        kernel_name: As for --kernel.
        qemu: As for --qemu.
        suite: As for --suite.
        more: Debian packages to have in the root file system beside the bench's own.
        others: Further attributes of machine.Options.
    """
    need_packages("debian-archive-keyring")
    if others.get("accelerator") == "kvm" and not profile.kvm_cpu:
        say(f"{profile.name} is emulated without KVM; going on with tcg")
        others["accelerator"] = "tcg"
    if qemu == emulator.SYSTEM:
        need_packages(profile.qemu_package)
    options = {
        "emulator": emulator.get(qemu, profile.qemu_package, profile.qemu),
        "checkout": CHECKOUT,
        **others,
    }
    roots = root.get(profile.architecture, more, suite)
    if kernel_name and kernel_name not in kernel.names(profile) and Path(kernel_name).is_file():
        return machine.Options(kernel=Path(kernel_name), initrd=[roots.whole()], **options)
    chosen = kernel.get(profile, kernel.wanted(profile, kernel_name), suite)
    initrd = [roots.early, chosen.modules]
    return machine.Options(kernel=chosen.image, initrd=initrd, disk=roots.disk, **options)
