"""The guest's root file system, made of Debian's packages.

It is a read-only squashfs on a disk of its own, over which the guest lays a tmpfs, so its size
costs neither memory nor time, and QEMU's limits for an initramfs (128 MiB on POWER) do not matter.
One serves every kernel of the architecture.

A kernel of one's own may lack squashfs, overlayfs or the disk's driver. It gets the same tree as an
initramfs (:attr:`Root.whole`), which every kernel can read.

Nothing of the guest is run to make it but Python's compiler: byte code is the same on every
architecture, so the machine's own architecture's build of the guest's Python compiles the guest's
library, in seconds. Under emulation the guest would do so anew in every run.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import BenchError, cache, cpio, debian
from .packages import need_packages
from .progress import Step, step
from .suites import ROOT_SUITES

PYTHON = ("python3", "libpython3-stdlib")
PACKAGES = (
    *PYTHON,
    *("python3-pyudev", "python3-pytest", "python3-hypothesis", "python3-rich", "python3-numpy"),
    *("bash", "busybox-static", "kmod", "pciutils", "pci.ids", "strace"),
)

# What the packages above depend on but is of no use in an initramfs without a package manager. Of
# libraries that is known for those packages alone: what else is brought in may be linked with them.
ASSUMED = (
    *("coreutils", "debconf", "debianutils", "dpkg", "initramfs-tools", "install-info"),
    *("linux-base", "media-types", "netbase", "perl", "python3-pkg-resources", "tar", "tzdata"),
    *("udev", "base-files", "readline-common"),
    *("krb5-locales", "libtirpc3t64", "libnsl2", "libsqlite3-0", "libdb5.3t64"),
    *("openssl-provider-legacy",),
)

# Without maintainer scripts some links are missing.
MERGED_USR = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
LINKS = {"usr/bin/sh": "busybox", "usr/bin/env": "busybox"}
ALTERNATIVES = ("blas/libblas.so.3", "lapack/liblapack.so.3")

UNUSED = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "usr/share/bug"),
    *("usr/share/lintian", "usr/share/icons", "usr/share/applications", "usr/include"),
    *("usr/lib/python3*/dist-packages/numpy/**/tests", "usr/lib/python3*/lib2to3"),
    *(
        "usr/lib/*/gconv",
        "usr/lib/python3*/ensurepip",
        "usr/lib/python3*/idlelib",
        "usr/lib/python3*/test",
    ),
)

GUEST = Path(__file__).parent / "guest"
GUEST_FILES = {"init": "init", "pyvfio": "usr/bin/pyvfio"}
EARLY_FILES = {"early-init": "init"}


@dataclass(frozen=True)
class Root:
    """A root file system in the cache.

    Attributes:
        directory: The entry.
    """

    directory: Path

    @property
    def disk(self) -> Path:
        """The squashfs."""
        return self.directory / "root.squashfs"

    @property
    def early(self) -> Path:
        """The part of the initramfs that finds the disk and starts init from it."""
        return self.directory / "early.cpio"

    def whole(self) -> Path:
        """Return the tree as an initramfs, made when it is first asked for.

        It is without numpy: QEMU's powernv machines take 128 MiB at most.
        """
        path = self.directory / "whole.cpio"
        if not path.exists():
            with (
                step("Writing the root file system as an initramfs"),
                tempfile.TemporaryDirectory(dir=cache.images()) as scratch,
            ):
                tree, unfinished = Path(scratch, "root"), Path(scratch, "cpio")
                _run(["unsquashfs", "-quiet", "-no-progress", "-d", str(tree), str(self.disk)])
                for numpy in tree.glob("usr/lib/python3*/dist-packages/numpy"):
                    shutil.rmtree(numpy)
                with unfinished.open("wb") as output:
                    cpio.write(tree, output)
                unfinished.rename(path)
        return path


def key(architecture: str, more: Sequence[str]) -> str:
    """Hash all that decides what is in a root file system with `more` packages, sorted."""
    ours = (__file__, cpio.__file__)
    guest = (GUEST / name for name in (*GUEST_FILES, *EARLY_FILES))
    return cache.recipe((architecture, more), (*map(Path, ours), *guest))


def get(architecture: str, more: Sequence[str] = (), suite: str | None = None) -> Root:
    """Return the root file system of an architecture, made now if it is not in the cache.

    Args:
        architecture: Debian's name of it.
        more: Debian packages to have in it beside PACKAGES, in any order.
        suite: The suite to take, whatever is in another one.
    """
    more = sorted(set(more))
    suites = (suite,) if suite else ROOT_SUITES

    def candidates() -> Iterator[cache.Candidate[_Packages]]:
        for each in suites:
            yield cache.Candidate(each, partial(_fetch, architecture, more, each))

    title = f"Root file system for {architecture}"
    name, choice = f"root-{architecture}", f"of-{'-'.join(suites)}"
    return Root(cache.select(title, name, key(architecture, more), candidates, _build, choice))


@dataclass(frozen=True)
class _Packages:
    """The guest's packages, and those of the Python that compiles the guest's library."""

    suite: str
    guest: Sequence[Path]
    compiler: Sequence[Path]  # empty where the machine itself can run the guest's Python


def _fetch(architecture: str, more: Sequence[str], suite: str) -> _Packages:
    guest = debian.fetch(suite, architecture, (*PACKAGES, *more), left_out(more))
    compiler: Sequence[Path] = ()
    if architecture != debian.machine_architecture():
        compiler = debian.fetch(suite, debian.machine_architecture(), PYTHON, ASSUMED)
    return _Packages(suite, guest, compiler)


def left_out(more: Sequence[str]) -> list[str]:
    """Those of ASSUMED that are left out of a root file system with `more` packages."""
    return [it for it in ASSUMED if it not in more and not (more and it.startswith("lib"))]


def _build(packages: _Packages, entry: Path, scratch: Path) -> None:
    root, compiler = scratch / "root", scratch / "compiler"
    need_packages("squashfs-tools")
    with step("Unpacking") as progress:
        _unpack(packages.guest, root, progress)
        if packages.compiler:
            _unpack(packages.compiler, compiler, progress)
        else:
            compiler = root
    with step("Compiling the guest's Python library"):
        _finish(root)
        _byte_compile(root, compiler)
    with step("Writing the root file system"):
        _squash(root, entry / "root.squashfs")
        with (entry / "early.cpio").open("wb") as output:
            cpio.write(_early(root, scratch / "early"), output)
    (entry / "suite").write_text(packages.suite)
    (entry / "packages").write_text("".join(f"{path.name}\n" for path in packages.guest))


def _squash(root: Path, disk: Path) -> None:
    # LZ4 costs an emulated processor next to nothing, and there is half as much to read.
    options = ("-comp", "lz4", "-all-root", "-no-xattrs", "-no-progress", "-quiet")
    _run(["mksquashfs", str(root), str(disk), *options])


def _early(root: Path, early: Path) -> Path:
    """Make the tree of the initramfs: busybox and the script that mounts the disk."""
    for directory in ("usr/bin", "usr/lib", "proc", "sys", "dev", "disk", "changes", "root"):
        (early / directory).mkdir(parents=True)
    for path in ("bin", "lib"):
        (early / path).symlink_to(MERGED_USR[path])
    shutil.copy(root / "usr/bin/busybox", early / "usr/bin/busybox")
    for name, place in EARLY_FILES.items():
        shutil.copy(GUEST / name, early / place)
    return early


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def _unpack(packages: Sequence[Path], root: Path, progress: Step) -> None:
    for path, target in MERGED_USR.items():
        (root / target).mkdir(parents=True)
        (root / path).symlink_to(target)
    for package in packages:
        progress.update(package.name.partition("_")[0])
        debian.unpack(package, root)


def _finish(root: Path) -> None:
    for pattern in UNUSED:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    for directory in ("proc", "sys", "dev", "run", "tmp", "root", "etc", "usr/lib/modules"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for link, target in LINKS.items():
        (root / link).symlink_to(target)
    for library in ALTERNATIVES:
        for path in root.glob(f"usr/lib/*/{library}"):
            (path.parents[1] / path.name).symlink_to(library)
    for name, place in GUEST_FILES.items():
        shutil.copy(GUEST / name, root / place)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")


def _byte_compile(root: Path, compiler: Path) -> None:
    (loader,) = compiler.glob("usr/lib*/ld-linux*.so.*")
    (python,) = compiler.glob("usr/bin/python3.[0-9]*[0-9]")
    (libc,) = compiler.glob("usr/lib/*/libc.so.6")
    command = [str(loader), "--library-path", str(libc.parent), str(python), "-m", "compileall"]
    # Nobody edits these files in the guest: it need not look whether the sources are newer.
    command += ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    command += [str(path) for path in root.glob("usr/lib/python3*")]
    subprocess.run(command, check=True, env={"PYTHONHOME": str(compiler / "usr")})
