"""A Debian kernel and the modules that the emulated hosts need."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import BenchError, Unavailable, cache, cpio, debian, iommufd
from .packages import need_packages
from .profiles import Profile
from .progress import step
from .suites import DEFAULT_SERIES, SERIES

# The bench's own: the root file system's disk, how the guest talks to the bench, the checkout.
MODULES = (
    *("virtio_pci", "virtio_blk", "squashfs", "overlay"),
    *("virtio_console", "9p", "9pnet_virtio"),
)
# What a kernel's packages depend on beside each other. They would bring half of a system, which the
# root file system has from another suite.
ASSUMED = ("kmod", "linux-base", "initramfs-tools", "binutils", "xz-utils")
IOMMUFD, IOMMUFD_SERIES = "iommufd", "7"
VERSIONS = 3  # so many of a suite are tried, newest first


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache.

    Attributes:
        directory: The entry.
    """

    directory: Path

    @property
    def image(self) -> Path:
        """What QEMU boots."""
        return self.directory / "linux"

    @property
    def modules(self) -> Path:
        """The part of the initramfs that has the modules."""
        return self.directory / "modules.cpio"


@dataclass(frozen=True)
class Wanted:
    """A kernel by the name that `--kernel` takes.

    Attributes:
        series: Keys of SERIES, best first.
        flavour: Debian's name of the flavour: "powerpc64le-64k".
        iommufd: Whether VFIO's modules are built anew with iommufd.
    """

    series: tuple[str, ...]
    flavour: str
    iommufd: bool = False


def names(profile: Profile) -> list[str]:
    """Names of the kernels of a host, for `--kernel`."""
    plain = [*SERIES, *([IOMMUFD] if profile.architecture == iommufd.ARCHITECTURE else [])]
    return plain + [
        name
        for flavour in profile.flavours
        if flavour
        for name in (flavour, *(f"{series}-{flavour}" for series in SERIES if series != "6.1"))
    ]


def wanted(profile: Profile, name: str | None) -> Wanted:
    """Find the kernel that a name means: "6.12", "64k", "7-64k"; None for the default."""
    if name is None:
        return Wanted(DEFAULT_SERIES, profile.flavours[""])
    if name not in names(profile):
        raise BenchError(
            f"--kernel {name} is not a kernel of {profile.name} nor a file: give one of "
            f"{', '.join(names(profile))}, or the path of a kernel image"
        )
    if name == IOMMUFD:
        return Wanted((IOMMUFD_SERIES,), profile.flavours[""], iommufd=True)
    series, _, flavour = name.rpartition("-")
    if name in SERIES:
        series, flavour = name, ""
    return Wanted((series,) if series else DEFAULT_SERIES, profile.flavours[flavour])


def get(profile: Profile, it: Wanted, suite: str | None = None) -> Kernel:
    """Return a kernel with the modules of a host, made now if it is not in the cache.

    Args:
        profile: The emulated host.
        it: The kernel.
        suite: The suite to take it from, where that has the series.
    """
    sources = [__file__, cpio.__file__, *([iommufd.__file__] if it.iommufd else [])]
    key = cache.recipe(profile.modules, map(Path, sources))

    def build(files: Sequence[Path], entry: Path, scratch: Path) -> None:
        _build(profile, it, files, entry, scratch)

    name = f"kernel-{it.flavour}" + it.iommufd * f"-{IOMMUFD}"
    suites = [each for name in it.series for each in SERIES[name].suites]
    if suite and suite not in suites:
        raise BenchError(
            f"Debian {suite} has no Linux {' or '.join(it.series)}: leave out --suite, or take one "
            f"of {', '.join(suites)}"
        )
    choice = "-or-".join(it.series) + "-of-" + (suite or "-".join(suites))
    title = f"Linux {it.series[0]} for {it.flavour}" + it.iommufd * " with iommufd"
    return Kernel(
        cache.select(title, name, key, lambda: _candidates(profile, it, suite), build, choice)
    )


def _candidates(
    profile: Profile, it: Wanted, suite: str | None
) -> Iterator[cache.Candidate[Sequence[Path]]]:
    """Give a suite's newest kernel, then older ones that its index has, then the next suite's."""
    for name in it.series:
        series = SERIES[name]
        before, after = "linux-image-", f"-{it.flavour}"
        for each in series.suites:
            if suite not in (None, each):
                continue
            pattern = re.escape(before) + series.version + re.escape(after)
            try:
                with debian.archive(each, profile.architecture) as archive:
                    packages = archive.names(pattern)
            except Unavailable as error:
                yield cache.Candidate(each, partial(_fail, error))
                continue
            if not packages:
                reason = f"the suite has no Linux {name} of the flavour {it.flavour}"
                yield cache.Candidate(each, partial(_fail, Unavailable(reason)))
            for package in packages[:VERSIONS]:
                version = package.removeprefix(before).removesuffix(after)
                yield cache.Candidate(version, partial(_fetch, each, profile, it, package, version))


def _fail(error: Unavailable) -> Sequence[Path]:
    raise error


def _fetch(suite: str, profile: Profile, it: Wanted, package: str, version: str) -> Sequence[Path]:
    packages = [package]
    if it.iommufd:
        packages.append("linux-source-" + ".".join(version.split(".")[:2]))
    fetched = debian.fetch(suite, profile.architecture, packages, ASSUMED)
    # A suite has only the newest version of a source package.
    number = version.partition("+")[0]
    if it.iommufd and not any(path.name.startswith(f"{packages[1]}_{number}-") for path in fetched):
        raise Unavailable(f"{packages[1]} is not of version {number}")
    return fetched


def _build(
    profile: Profile, it: Wanted, packages: Sequence[Path], entry: Path, scratch: Path
) -> None:
    everything = scratch / "everything"
    need_packages("kmod", *(iommufd.PACKAGES if it.iommufd else ()))
    with step("Unpacking the kernel"):
        for package in packages:
            debian.unpack(package, everything)
    _merge_usr(everything)
    (tree,) = (everything / "usr/lib/modules").iterdir()
    if it.iommufd:
        _add_iommufd(everything, tree, scratch / "build")
    with step("Choosing kernel modules"):
        shutil.copyfile(_image(everything, tree), entry / "linux")
        chosen = scratch / "chosen"
        _choose_modules(everything, tree.name, (*MODULES, *profile.modules), chosen)
        with (entry / "modules.cpio").open("wb") as output:
            cpio.write(chosen, output)
    (entry / "packages").write_text("".join(f"{path.name}\n" for path in packages))


def _add_iommufd(everything: Path, tree: Path, work: Path) -> None:
    (source,) = (everything / "usr/src").glob("linux-source-*.tar.xz")
    work.mkdir()
    with step("Building VFIO with iommufd") as progress:
        modules = iommufd.rebuild(source, tree / "config", tree.name, work, progress)
    (tree / "updates").mkdir(exist_ok=True)  # depmod prefers it to Debian's own
    for module in modules:
        shutil.copy(module, tree / "updates")


def _merge_usr(everything: Path) -> None:
    """Bring the modules of older packages from /lib to /usr/lib, and make /lib a link to it."""
    lib = everything / "lib"
    if lib.exists():
        (everything / "usr/lib").mkdir(parents=True, exist_ok=True)
        (lib / "modules").rename(everything / "usr/lib/modules")
        shutil.rmtree(lib)
    lib.symlink_to("usr/lib")


def _image(everything: Path, tree: Path) -> Path:
    """The kernel image: /boot/vmlinuz-R up to Linux 6.x, /usr/lib/modules/R/vmlinuz from 7.x on."""
    images = [*everything.glob("boot/vmlinu[xz]-*"), *tree.glob("vmlinu[xz]")]
    if not images:
        raise BenchError(
            f"the packages of Linux {tree.name} have no kernel image: their layout changed"
        )
    return images[0]


def _choose_modules(everything: Path, release: str, modules: Sequence[str], chosen: Path) -> None:
    """Copy modules with all that they depend on, uncompressed, to another tree."""
    subprocess.run(["depmod", "-b", str(everything), release], check=True)
    command = ["modprobe", "-d", str(everything), "-S", release, "--show-depends", "-a", *modules]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    if shown.returncode != 0:
        raise BenchError(f"a module is not in Linux {release}: {shown.stderr.strip()}")
    # Each line is "insmod PATH" or "builtin NAME".
    paths = {Path(line.split()[1]) for line in shown.stdout.splitlines() if line[0] == "i"}
    tree = everything / "usr/lib/modules" / release
    lists = (tree / f"modules.{name}" for name in ("builtin", "builtin.modinfo", "order"))
    for source in (*paths, *lists):
        target = chosen / source.resolve().relative_to(everything.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".xz":
            # The guest would decompress it under emulation.
            target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)
    (chosen / "lib").symlink_to("usr/lib")
    subprocess.run(["depmod", "-b", str(chosen), release], check=True)
    (chosen / "lib").unlink()  # the root's part of the initramfs has it
