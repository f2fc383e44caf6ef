"""Kernel and initramfs, made of Debian's packages and cached by the hash of their recipe.

The whole system is the initramfs: it needs nothing of a kernel but what every kernel has, so that a
small kernel of one's own (--kernel) boots it too.

Nothing of the guest is run to make it, save Python's compiler: byte code is the same on every
architecture, so the machine's own architecture's build of the guest's Python compiles the guest's
library, in seconds. Under emulation the guest would do so anew in every run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import BenchError, cpio, debian
from .profiles import Profile
from .progress import Step, say, step

SUITE = "trixie"

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
    *("openssl-provider-legacy"),
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

# The bench's own: how the guest talks to it, and the checkout's file system.
MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio")

GUEST = Path(__file__).parent / "guest"
GUEST_FILES = {"init": "init", "pyvfio": "usr/bin/pyvfio"}
UNUSED_IMAGES_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Image:
    """A bootable image: `directory` holds the kernel `linux` and the initramfs `initrd`."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "linux"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def cache_directory() -> Path:
    """Where everything that can be made again is kept, outside the checkout."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvfio"
    return Path(os.environ.get("PYVFIO_CACHE") or default)


def recipe(profile: Profile, more: Sequence[str] = ()) -> str:
    """Hash of all that decides what is in the image of a profile with `more` packages, sorted."""
    digest = hashlib.sha256()
    parts = (SUITE, profile.architecture, profile.kernel_package, profile.modules, more)
    digest.update(json.dumps(parts).encode())
    modules = (__file__, cpio.__file__, debian.__file__)
    sources = (*map(Path, modules), *(GUEST / name for name in GUEST_FILES))
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def get(profile: Profile, more: Sequence[str] = ()) -> Image:
    """The image of a profile, built now if it is not in the cache.

    Profiles that differ only in what QEMU emulates share one.

    Args:
        profile: The emulated host.
        more: Debian packages to have in it beside PACKAGES, in any order.
    """
    more = sorted(set(more))
    images = cache_directory() / "images"
    image = Image(images / f"{profile.kernel_package}-{recipe(profile, more)}")
    images.mkdir(parents=True, exist_ok=True)
    with _locked(images / f"{profile.kernel_package}.lock"):
        if not image.directory.exists():
            unfinished = f"unfinished-{profile.kernel_package}-"
            for leftover in images.glob(f"{unfinished}*"):
                shutil.rmtree(leftover)  # of a build that was killed: we hold its lock
            with tempfile.TemporaryDirectory(dir=images, prefix=unfinished) as scratch:
                built = Path(scratch, "image")
                _build(profile, more, built, Path(scratch))
                # Only a complete image gets the name under which it is looked for.
                built.rename(image.directory)
            _remove_unused(images)
    os.utime(image.directory)
    return image


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another bench is making the same; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unused(images: Path) -> None:
    for path in images.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > UNUSED_IMAGES_SECONDS:
            shutil.rmtree(path)


def _build(profile: Profile, more: Sequence[str], image: Path, scratch: Path) -> None:
    image.mkdir()
    root, compiler = scratch / "root", scratch / "compiler"
    wanted = (*PACKAGES, *more, profile.kernel_package)
    packages = _fetch(profile.architecture, wanted, left_out(more))
    with step("Unpacking") as progress:
        _unpack(packages, root, progress)
    with step("Choosing kernel modules"):
        release = _install_kernel(profile, root, image, scratch)
    if profile.architecture == debian.machine_architecture():
        compiler = root
    else:
        host_python = _fetch(debian.machine_architecture(), PYTHON, ASSUMED)
        with step("Unpacking Python's compiler") as progress:
            _unpack(host_python, compiler, progress)
    with step("Compiling the guest's Python library"):
        _finish_root(root)
        _byte_compile(root, compiler)
    with step("Writing the image"), (image / "initrd").open("wb") as output:
        cpio.write(root, output)
    (image / "release").write_text(release)
    (image / "packages").write_text("".join(f"{path.name}\n" for path in packages))


def left_out(more: Sequence[str]) -> list[str]:
    """Those of ASSUMED that are left out of an image with `more` packages."""
    return [it for it in ASSUMED if it not in more and not (more and it.startswith("lib"))]


def _fetch(architecture: str, packages: Sequence[str], assumed: Sequence[str]) -> list[Path]:
    directory = cache_directory() / "debian" / f"{SUITE}-{architecture}"
    archive = debian.Archive(directory, architecture, SUITE)
    with (
        step(f"Fetching Debian {SUITE} for {architecture}") as progress,
        _locked(directory / "bench.lock"),  # another profile may want the same architecture
    ):
        archive.update(progress)
        return archive.fetch(packages, assumed, progress)


def _unpack(packages: list[Path], root: Path, progress: Step) -> None:
    for path, target in MERGED_USR.items():
        (root / target).mkdir(parents=True)
        (root / path).symlink_to(target)
    for package in packages:
        progress.update(package.name.partition("_")[0])
        debian.unpack(package, root)


def _install_kernel(profile: Profile, root: Path, image: Path, scratch: Path) -> str:
    """Take the kernel to `image` and leave only the modules wanted; returns its release."""
    (kernel,) = (root / "boot").glob("vmlinu[xz]-*")
    shutil.copyfile(kernel, image / "linux")
    shutil.rmtree(root / "boot")
    # All modules go aside, those wanted come back.
    aside = scratch / "modules"
    (aside / "usr/lib").mkdir(parents=True)
    (aside / "lib").symlink_to("usr/lib")
    (root / "usr/lib/modules").rename(aside / "usr/lib/modules")
    (tree,) = (aside / "usr/lib/modules").iterdir()
    release = tree.name
    subprocess.run(["depmod", "-b", str(aside), release], check=True)
    command = ["modprobe", "-d", str(aside), "-S", release, "--show-depends", "-a"]
    command += [*MODULES, *profile.modules]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    if shown.returncode != 0:
        raise BenchError(f"a module is not in {profile.kernel_package}: {shown.stderr.strip()}")
    # Each line is "insmod PATH" or "builtin NAME".
    wanted = {Path(line.split()[1]) for line in shown.stdout.splitlines() if line[0] == "i"}
    lists = (tree / f"modules.{name}" for name in ("builtin", "builtin.modinfo", "order"))
    for source in (*wanted, *lists):
        target = root / source.resolve().relative_to(aside.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".xz":
            # The guest would decompress it under emulation.
            target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)
    subprocess.run(["depmod", "-b", str(root), release], check=True)
    return release


def _finish_root(root: Path) -> None:
    for pattern in UNUSED:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    for directory in ("proc", "sys", "dev", "run", "tmp", "root", "etc"):
        (root / directory).mkdir(exist_ok=True)
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
