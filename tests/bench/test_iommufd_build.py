"""The build of VFIO modules with iommufd, on a stand-in of Linux's source: no network, no boot."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tools._bench import BenchError, iommufd
from tools._bench.progress import Step

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for amd64 on amd64 only"),
    pytest.mark.skipif(not (shutil.which("make") and shutil.which("xz")), reason="no make or xz"),
]

RELEASE = "7.3.4+deb13-amd64"
CONFIG = """\
CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
CONFIG_PAHOLE_VERSION=130
# CONFIG_MODVERSIONS is not set
# CONFIG_MODULE_SIG_FORCE is not set
# CONFIG_IOMMUFD is not set
"""
# The form of drivers/iommu/iommufd/Makefile in Linux.
IOMMUFD_MAKEFILE = """\
iommufd-y := \\
\tdevice.o \\
\tmain.o

iommufd-$(CONFIG_IOMMUFD_TEST) += selftest.o

obj-$(CONFIG_IOMMUFD) += iommufd.o
obj-$(CONFIG_IOMMUFD_DRIVER) += iova_bitmap.o

iommufd_driver-y := driver.o sw_msi.o
obj-$(CONFIG_IOMMUFD_DRIVER_CORE) += iommufd_driver.o
"""
KERNELVERSION = "kernelversion:\n\t@echo 7.3.4\n"
OLDDEFCONFIG = "olddefconfig:\n\t@true\n"
# A module that says how it was made. Linux's makefile, too, sets options from the configuration.
KO = (
    "CONFIG_DEBUG_INFO := y\n%.ko:\n\t@mkdir -p $(@D)\n"
    "\t@echo '$(LOCALVERSION) $(PAHOLE_VERSION) [$(ARCH)$(CONFIG_DEBUG_INFO)]' >$@\n"
)


def source(directory: Path, makefile: str) -> Path:
    """Pack a stand-in of Linux's source whose top makefile is `makefile`."""
    tree = directory / "linux-source-7.3"
    for pattern in iommufd.UNPACKED:
        path = tree / pattern.replace("*", "init")
        if path.suffix == ".c" or path.name.startswith(("K", "Makefile")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
    (tree / "Makefile").write_text(makefile)
    (tree / "drivers/iommu/iommufd").mkdir()
    (tree / "drivers/iommu/iommufd/Makefile").write_text(IOMMUFD_MAKEFILE)
    packed = directory / "linux-source-7.3.tar.xz"
    subprocess.run(["tar", "-C", directory, "-cJf", packed, tree.name], check=True)
    return packed


def rebuild(
    directory: Path, makefile: str, config: str = CONFIG, release: str = RELEASE
) -> list[Path]:
    packed = source(directory, makefile)
    (directory / "config").write_text(config)
    work = directory / "work"
    work.mkdir()
    return iommufd.rebuild(packed, directory / "config", release, work, Step("building", None))


def test_modules_are_built_for_debians_release(tmp_path: Path) -> None:
    modules = rebuild(tmp_path, KERNELVERSION + OLDDEFCONFIG + KO)
    assert [module.name for module in modules] == [
        *("iommufd.ko", "vfio.ko", "vfio_iommu_type1.ko", "vfio-pci-core.ko", "vfio-pci.ko")
    ]
    assert {module.read_text() for module in modules} == {"+deb13-amd64 130 []\n"}


def test_kernel_developers_environment_stays_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCH", "arm64")
    monkeypatch.setenv("MAKEFLAGS", "-n")
    modules = rebuild(tmp_path, KERNELVERSION + OLDDEFCONFIG + KO)
    assert {module.read_text() for module in modules} == {"+deb13-amd64 130 []\n"}


def test_failure_of_make_shows_its_last_lines(tmp_path: Path) -> None:
    failing = "drivers/iommu/%.ko:\n\t@seq 1000\n\t@echo 'gelf.h: No such file' >&2; false\n"
    failing += "drivers/vfio/%.ko:\n\t@true\n"
    with pytest.raises(BenchError, match=r"make failed") as caught:
        rebuild(tmp_path, KERNELVERSION + OLDDEFCONFIG + failing)
    assert "gelf.h: No such file" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= iommufd.TAIL_LINES + 1


@pytest.mark.parametrize("release", ["7.3.40+deb13-amd64", "7.3.5+deb13-amd64", "6.12.1-amd64"])
def test_source_of_another_version_is_refused(tmp_path: Path, release: str) -> None:
    with pytest.raises(BenchError, match=r"linux-source-7\.3\.tar\.xz is Linux 7\.3\.4"):
        rebuild(tmp_path, KERNELVERSION + OLDDEFCONFIG + KO, release=release)


def test_option_that_kconfig_drops_is_named(tmp_path: Path) -> None:
    dropping = "olddefconfig:\n\t@sed -i /CDEV/d .config\n"
    with pytest.raises(BenchError, match=r"drops CONFIG_VFIO_DEVICE_CDEV=y$"):
        rebuild(tmp_path, KERNELVERSION + dropping + KO)


@pytest.mark.parametrize("option", iommufd.REFUSING)
def test_kernel_that_would_refuse_modules_is_named(tmp_path: Path, option: str) -> None:
    with pytest.raises(BenchError, match=option):
        rebuild(tmp_path, KERNELVERSION, config=f"{CONFIG}{option}\n")


def test_kernel_with_iommufd_needs_no_modules(tmp_path: Path) -> None:
    assert rebuild(tmp_path, KERNELVERSION, config=f"{CONFIG}CONFIG_IOMMUFD=m\n") == []


def test_archive_without_the_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "linux-7.3").mkdir()
    packed = tmp_path / "linux-7.3.tar.xz"
    subprocess.run(["tar", "-C", tmp_path, "-cJf", packed, "linux-7.3"], check=True)
    (tmp_path / "config").write_text(CONFIG)
    (tmp_path / "work").mkdir()
    with pytest.raises(BenchError, match=r"cannot be unpacked:\n.*Not found in archive"):
        iommufd.rebuild(
            packed, tmp_path / "config", RELEASE, tmp_path / "work", Step("building", None)
        )


def test_objects_for_vmlinux_go_into_the_module(tmp_path: Path) -> None:
    show = "\nshow:\n\t@echo $(iommufd-y)\n\t@echo [$(obj-y)] $(obj-m)\n"
    (tmp_path / "Makefile").write_text(IOMMUFD_MAKEFILE + iommufd.LINKED + show)
    options = ["CONFIG_IOMMUFD=m", "CONFIG_IOMMUFD_DRIVER=y", "CONFIG_IOMMUFD_DRIVER_CORE=y"]
    shown = subprocess.run(
        ["make", "-C", tmp_path, "--no-print-directory", "-s", *options, "show"],
        check=True,
        capture_output=True,
        text=True,
    )
    objects, for_others = shown.stdout.splitlines()
    assert objects == "device.o main.o iova_bitmap.o driver.o sw_msi.o interval_tree.o"
    assert for_others == "[] iommufd.o"


def test_option_that_is_not_set_is_not_found() -> None:
    assert iommufd.options_in("# CONFIG_A is not set\nCONFIG_AB=y\n", ["CONFIG_A=y"]) == []
    assert iommufd.options_in("CONFIG_B=m\nCONFIG_A=y\n", ["CONFIG_A=y"]) == ["CONFIG_A=y"]


def test_pahole_version_of_a_kernel_without_btf() -> None:
    assert iommufd.pahole_version(CONFIG) == "130"
    assert iommufd.pahole_version("CONFIG_BTF=n\n") == "0"
