"""VFIO with iommufd for one of Debian's kernels, which are configured without it.

The kernel itself stays Debian's. Only the modules in MODULES are compiled, with CONFIG_IOMMUFD and
CONFIG_VFIO_DEVICE_CDEV, from the source package of the same version. That works because nothing
else depends on these options (from Linux 7.2 to 7.3 at least):

* No structure that vmlinux shares with modules does. struct vfio_device does: kvmgt, Debian's one
  other module that uses it, must not be loaded beside these.
* Code that the options would have added to vmlinux goes into iommufd.ko instead: see LINKED.
* Debian's kernels take modules that are unsigned and have no symbol versions: see REFUSING.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import BenchError
from .progress import Step

# What compiling needs on this machine. objtool needs libelf.
PACKAGES = ("gcc", "make", "flex", "bison", "bc", "libelf-dev", "xz-utils")

ARCHITECTURE = "amd64"

MODULES = (
    "drivers/iommu/iommufd/iommufd.ko",
    "drivers/vfio/vfio.ko",
    "drivers/vfio/vfio_iommu_type1.ko",
    "drivers/vfio/pci/vfio-pci-core.ko",
    "drivers/vfio/pci/vfio-pci.ko",
)

# What MODULES and the kernel's build tools are made of: one file in eight of the source. Every
# Kconfig is among it, or an option that others depend on would be lost.
UNPACKED = (
    *("Kbuild", "Kconfig", "*/Kconfig*", "Makefile", "scripts", "include", "arch/x86", "kernel"),
    *("lib/interval_tree.c", "security/selinux"),
    *("drivers/Makefile", "drivers/iommu", "drivers/vfio"),
    *("tools/Makefile", "tools/arch/x86", "tools/build", "tools/include", "tools/lib"),
    *("tools/objtool", "tools/scripts"),
)

WANTED = ("CONFIG_IOMMUFD=m", "CONFIG_VFIO_DEVICE_CDEV=y")

# Under these options a kernel refuses modules made here.
REFUSING = ("CONFIG_MODVERSIONS=y", "CONFIG_MODULE_SIG_FORCE=y")

# Added to iommufd's makefile. Its objects for vmlinux (obj-y) become part of iommufd.ko; where one
# is made of several (X.o of X-y), those do. CONFIG_IOMMUFD also selects functions in
# lib/interval_tree.c, a file that is in Debian's vmlinux without them: the module has a copy of all
# of it, which exports nothing, because a symbol must not be exported twice.
LINKED = """
iommufd-y += $(foreach object,$(obj-y),$(or $($(object:.o=-y)),$(object))) interval_tree.o
obj-y :=
CFLAGS_interval_tree.o := -D__DISABLE_EXPORTS
"""

# Options that make alone takes as unset: debugging information (and BTF, for which it would need
# pahole) and signatures (for which it would need libssl-dev). C code must see them set, because
# members of struct module depend on them.
UNSET_FOR_MAKE = (
    *("CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF=", "CONFIG_DEBUG_INFO_BTF_MODULES="),
    "CONFIG_MODULE_SIG_FORMAT=",
)

TAIL_LINES = 40


def rebuild(source: Path, config: Path, release: str, work: Path, step: Step) -> list[Path]:
    """Build the VFIO modules with iommufd for a Debian kernel for amd64, from its source package.

    Args:
        source: linux-source-*.tar.xz of the Debian package of that name, of the kernel's version.
        config: The kernel's configuration.
        release: The output of `uname -r` on that kernel.
        work: An empty directory for the source and what is built of it.
        step: Shows the progress.

    Returns:
        The modules, without debugging information, to be loaded instead of Debian's of the same
        names. None where the kernel has iommufd of its own.

    Raises:
        BenchError: The kernel would refuse the modules, the source is of another version, or make
            failed; then with the end of its output.
    """
    if platform.machine() != "x86_64":
        raise BenchError("modules for amd64 are built with an amd64 machine's own compiler")
    debian_config = config.read_text()
    if "\nCONFIG_IOMMUFD=" in debian_config:
        return []
    if refusing := options_in(debian_config, REFUSING):
        raise BenchError(
            f"{release} is built with {' and '.join(refusing)}: it would refuse modules built here"
        )
    tree = work / "linux"
    step.update("unpacking the source")
    _unpack(source, tree)
    version = _make(tree, ["-s", "kernelversion"], step).strip()
    if not re.match(rf"{re.escape(version)}\b", release):
        raise BenchError(
            f"{source.name} is Linux {version}: the source package must be of the version of the"
            f" kernel, {release}"
        )
    variables = [
        f"LOCALVERSION={release[len(version) :]}",
        f"PAHOLE_VERSION={pahole_version(debian_config)}",
    ]
    step.update("configuring")
    # Of an option that is there twice, the last counts. Where this machine has Rust, the kernel's
    # Rust code would be compiled, too; no C structure depends on it.
    options = "\n".join((debian_config, *WANTED, "CONFIG_RUST=n", ""))
    (tree / ".config").write_text(options)
    _make(tree, [*variables, "olddefconfig"], step)
    taken = options_in((tree / ".config").read_text(), WANTED)
    if refused := [option for option in WANTED if option not in taken]:
        raise BenchError(f"Linux {version}, as Debian configures it, drops {' and '.join(refused)}")
    shutil.copy(tree / "lib/interval_tree.c", tree / "drivers/iommu/iommufd")
    with (tree / "drivers/iommu/iommufd/Makefile").open("a") as makefile:
        makefile.write(LINKED)
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    # There is no vmlinux here in which the modules' symbols could be looked up.
    lenient = "KBUILD_MODPOST_WARN=1"
    _make(tree, [jobs, *variables, *UNSET_FOR_MAKE, lenient, *MODULES], step)
    return [tree / module for module in MODULES]


def options_in(config: str, options: Iterable[str]) -> list[str]:
    """Those of `options` (CONFIG_X=y) that a kernel's configuration has.

    Args:
        config: The text of a .config file.
        options: Lines to look for.
    """
    lines = set(config.splitlines())
    return [option for option in options if option in lines]


def pahole_version(config: str) -> str:
    """The version of pahole that a kernel was built with, as Kconfig writes it: 130 is 1.30.

    Without a pahole of a certain version Kconfig drops CONFIG_DEBUG_INFO_BTF_MODULES, on which
    struct module depends. It takes the version from a variable of make.

    Args:
        config: The text of a .config file.
    """
    found = re.search(r"^CONFIG_PAHOLE_VERSION=(\d+)$", config, re.MULTILINE)
    return found[1] if found else "0"


def _unpack(source: Path, tree: Path) -> None:
    tree.mkdir()
    top = source.name.removesuffix(".tar.xz")
    # xz decompresses with several processors, which Python's lzma does not.
    command = ["tar", "-I", "xz -T0", "-xf", str(source), "-C", str(tree), "--strip-components=1"]
    command += ["--wildcards", *(f"{top}/{pattern}" for pattern in UNPACKED)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise BenchError(f"{source} cannot be unpacked:\n{done.stderr.strip()}")


def _make(tree: Path, arguments: Sequence[str], step: Step) -> str:
    """Run make in the kernel's source; returns its output."""
    # Variables like ARCH and KBUILD_OUTPUT, which somebody who works on Linux may have set, would
    # change what is built.
    inherited = ("PATH", "HOME", "TMPDIR")
    environment = {name: os.environ[name] for name in inherited if name in os.environ}
    lines = []
    with subprocess.Popen(
        ["make", *arguments],
        cwd=tree,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**environment, "LC_ALL": "C"},
    ) as make:
        assert make.stdout is not None
        for line in make.stdout:
            lines.append(line)
            if words := line.split():
                step.update(words[-1])  # of "  CC [M]  drivers/vfio/vfio_main.o"
    if make.returncode != 0:
        end = "".join(lines[-TAIL_LINES:]).rstrip()
        raise BenchError(f"make failed while building the VFIO modules with iommufd:\n{end}")
    return "".join(lines)
