"""The bench: what it asks of apt and QEMU, and (marked `bench`) emulated hosts that really boot."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("qemu.qmp")

from tests.bench.running import run
from tools._bench import BenchError, cli, cpio, debian, image, machine, profiles
from tools._bench.progress import step

CHECKOUT = Path(__file__).resolve().parents[2]
BENCH = (sys.executable, "-m", "tools._bench")
X86 = profiles.X86


def bench(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return run(
        [*BENCH, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        timeout=timeout,
    )


# What apt is asked, and what it answers


def test_mirrors_are_those_of_the_machine_without_security_archives_and_duplicates() -> None:
    listed = (
        "http://mirror.example/debian/ main\n"
        "http://mirror.example/debian/ contrib\n"
        "http://mirror.example/debian/ main\n"
        "http://mirror.example/debian-security/ main\n"
        "http://security.example/ main\n"
        "https://other.example/apt/ main\n"
        "https://flat.example/ \n"
    )
    assert debian.mirrors(listed) == ["http://mirror.example/debian/", "https://other.example/apt/"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "debian.sources",
            "Types: deb\nURIs: http://a.example/debian\nSuites: s\nComponents: main\n",
        ),
        ("debian.list", "deb [arch=amd64] http://a.example/debian s main contrib\n"),
    ],
)
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_both_formats_of_apt_sources_are_read(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(content)
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{tmp_path}/sources.list.d";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    assert debian.machine_mirrors() == ["http://a.example/debian/"]


def test_a_mirror_named_in_the_environment_comes_before_the_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://chosen.example/debian")
    assert debian.machine_mirrors() == ["http://chosen.example/debian"]


def test_planned_files_are_named_as_apt_names_them() -> None:
    plan = (
        "Reading package lists...\n"
        "Inst libc6 (2.41-12 Debian:13/stable [amd64])\n"
        "Inst pciutils (1:3.13.0-2 Debian:13/stable [amd64])\n"
        "Inst libzstd1:ppc64el (1.5.7 Debian:13.1/stable, Security:13 [ppc64el]) []\n"
        "Conf libc6 (2.41-12 Debian:13/stable [amd64])\n"
    )
    assert debian.planned_files(plan) == [
        "libc6_2.41-12_amd64.deb",
        "pciutils_1%3a3.13.0-2_amd64.deb",
        "libzstd1_1.5.7_ppc64el.deb",
    ]


@pytest.mark.skipif(not debian.KEYRING.exists(), reason="needs Debian's keyring")
def test_a_mirror_that_is_not_debians_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, f"file:{tmp_path}/empty")
    archive = debian.Archive(tmp_path / "apt", "amd64", image.SUITE)
    with step("test") as progress, pytest.raises(BenchError, match=debian.MIRROR_VARIABLE):
        archive.update(progress)


def test_a_mirror_that_is_changing_one_name_is_asked_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mirror.example/debian")
    archive = debian.Archive(tmp_path, "ppc64el", "trixie")
    stable = "trixie"

    def apt(arguments: list[str], step: object) -> str:
        name = (tmp_path / "sources.list").read_text().split()[-2]
        if name == "trixie":
            raise debian.AptError("File has unexpected size. Mirror sync in progress?")
        (tmp_path / "lists/mirror_InRelease").write_text(f"Suite: stable\nCodename: {stable}\n")
        return ""

    monkeypatch.setattr(archive, "_apt", apt)
    with step("test") as progress:
        archive.update(progress)
        # Some day that name is another release's.
        stable = "forky"
        with pytest.raises(BenchError, match="not Debian trixie"):
            archive.update(progress)


# The image


def test_another_recipe_is_another_image() -> None:
    more = dataclasses.replace(X86, modules=(*X86.modules, "dummy"))
    assert image.recipe(more) != image.recipe(X86)
    described = dataclasses.replace(X86, description="Other words, the same image.")
    assert image.recipe(described) == image.recipe(X86)
    assert image.recipe(X86, ["fio"]) != image.recipe(X86)


def test_the_same_packages_make_one_image_in_whatever_order_and_however_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVFIO_CACHE", str(tmp_path))
    monkeypatch.setattr(image, "_build", lambda profile, more, built, scratch: built.mkdir())
    first = image.get(X86, ["fio", "nvme-cli"])
    assert image.get(X86, ["nvme-cli", "fio", "fio"]) == first
    assert image.get(X86, ["fio"]) != first


def test_what_is_brought_in_brings_its_libraries() -> None:
    assert {"libtirpc3t64", "perl"} <= set(image.left_out([]))
    assert "libtirpc3t64" not in image.left_out(["fio"])  # by way of GlusterFS's libraries
    assert "perl" in image.left_out(["fio"])
    assert "perl" not in image.left_out(["perl"])


def test_hosts_of_one_architecture_share_an_image_until_another_kernel_is_wanted() -> None:
    power8, power9 = profiles.POWER8, profiles.POWER9
    assert image.recipe(power8) == image.recipe(power9)
    large = dataclasses.replace(power8, kernel_package=power8.other_kernels["64k"])
    assert image.recipe(large) != image.recipe(power8)


def test_an_interrupted_build_leaves_no_image_and_the_next_one_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVFIO_CACHE", str(tmp_path))
    images = tmp_path / "images"
    (images / f"unfinished-{X86.kernel_package}-killed").mkdir(parents=True)

    def half(profile: profiles.Profile, more: list[str], built: Path, scratch: Path) -> None:
        built.mkdir()
        (built / "linux").write_text("half of a kernel")
        raise KeyboardInterrupt

    def whole(profile: profiles.Profile, more: list[str], built: Path, scratch: Path) -> None:
        built.mkdir()
        (built / "linux").write_text("kernel")

    monkeypatch.setattr(image, "_build", half)
    with pytest.raises(KeyboardInterrupt):
        image.get(X86)
    assert [path for path in images.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(image, "_build", whole)
    assert image.get(X86).kernel.read_text() == "kernel"
    monkeypatch.setattr(image, "_build", half)
    assert image.get(X86).kernel.read_text() == "kernel"  # from the cache


def test_an_image_nobody_used_for_long_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVFIO_CACHE", str(tmp_path))
    old, recent = tmp_path / "images/x86-old", tmp_path / "images/x86-recent"
    for path in (old, recent):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    monkeypatch.setattr(image, "_build", lambda profile, more, built, scratch: built.mkdir())
    image.get(X86)
    assert recent.exists()
    assert not old.exists()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/tool").write_bytes(b"12345")
    (tmp_path / "usr/bin/tool").chmod(0o755)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "dev").mkdir()
    archive = io.BytesIO()
    cpio.write(tmp_path, archive)
    listed = subprocess.run(
        ["cpio", "-itv", "--numeric-uid-gid"], input=archive.getvalue(), capture_output=True
    )
    assert listed.returncode == 0
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert {(line[0], line[2], line[3]) for line in lines if line[-1] == "usr/bin/tool"} == {
        ("-rwxr-xr-x", "0", "0")
    }
    assert ["bin", "->", "usr/bin"] in [line[-3:] for line in lines]
    assert any(line[0] == "crw-------" and line[-1] == "dev/console" for line in lines)


# QEMU's command line


def options(**changes: object) -> machine.Options:
    plain = machine.Options(kernel=Path("linux"), initrd=Path("initrd"), time_limit=None)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def request_for(*command: str, checkout: str = "/home/user/pyvfio") -> machine.Request:
    return machine.Request(Path(checkout), Path(checkout), command)


def test_what_the_user_adds_for_qemu_comes_last() -> None:
    added = ("-device", "virtio-rng-pci,bus=spare")
    arguments = machine.qemu_arguments(
        X86, options(qemu_arguments=added), request_for("true"), Path("run"), {"qmp": 3}
    )
    assert tuple(arguments[-2:]) == added


def test_a_checkout_with_a_comma_in_its_path_is_shared_whole() -> None:
    request = request_for("true", checkout="/home/user/a,b")
    arguments = machine.qemu_arguments(X86, options(), request, Path("run"), {"qmp": 3})
    assert any("path=/home/user/a,,b,security_model" in word for word in arguments)


@pytest.mark.parametrize(("ends", "crashes"), [("kill -SEGV $$", True), ("exit 1", False)])
def test_a_crash_of_the_emulator_is_told_from_a_death_of_the_guest(
    tmp_path: Path, ends: str, crashes: bool
) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{ends}\n")
    qemu.chmod(0o755)
    profile = dataclasses.replace(X86, qemu=str(qemu))
    with pytest.raises(machine.MachineDied) as raised:
        asyncio.run(machine.run(profile, options(), request_for("true")))
    assert isinstance(raised.value, machine.QemuCrashed) == crashes
    assert ("QEMU itself crashed (SIGSEGV)" in str(raised.value)) == crashes


def test_a_command_reaches_the_guests_shell_word_by_word() -> None:
    words = ("printf", "%s|", "two words", "$HOME", "quote'", "line\nbreak", "")
    script = request_for(*words).script(X86).partition(machine.SESSION.read_text())[0]
    printed = subprocess.run(
        ["sh", "-c", f'{script}\neval "$command"'], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "two words|$HOME|quote'|line\nbreak||"


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_names_its_spare_port_and_distinct_addresses(
    profile: profiles.Profile,
) -> None:
    # A POWER host has root ports of its own, which QEMU names.
    free = any(f"id={profile.spare_port}," in word for word in profile.machine)
    assert free or profile.spare_port.startswith("pcie.")
    taken = [word for word in profile.machine if f"bus={profile.spare_port}" in word.split(",")]
    assert taken == []
    addresses = [device.address for device in profile.devices]
    assert addresses == sorted(set(addresses))


# The command line


def test_an_unknown_profile_is_answered_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "vax", "--", "true"]) == cli.FAILED_STATUS
    message = capsys.readouterr().err
    assert "'vax'" in message
    assert all(name in message for name in profiles.PROFILES)


def test_a_shell_without_a_terminal_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["shell", "x86"]) == cli.FAILED_STATUS
    assert "tools/bench run" in capsys.readouterr().err


def test_list_tells_the_same_to_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    (x86,) = (it for it in json.loads(capsys.readouterr().out) if it["name"] == "x86")
    assert cli.main(["list"]) == 0
    listing = capsys.readouterr().out
    assert {"edu", "nvme", "e1000e", "pci-testdev"} <= {device["name"] for device in x86["devices"]}
    for device in x86["devices"]:
        assert f"{device['address']}  {device['name']}" in listing


# Emulated hosts. Each boot costs some 20 s, so each shows several things.

LIVE = r"""
echo to-stdout; echo to-stderr >&2
echo made in the guest >"$REPORT"
for device in /sys/bus/pci/devices/*; do
    echo "device $(basename $device) $(basename $(readlink $device/iommu_group))" \
        "$(basename $(readlink $device/driver))"
done
pwd; ls -d /dev/vfio/vfio /dev/kvm; uname -r; pyvfio --help >/dev/null && echo pyvfio runs
exit 7
"""


@pytest.mark.bench
def test_a_command_runs_on_the_emulated_host_as_the_listing_says(tmp_path: Path) -> None:
    report = CHECKOUT / f"report-{os.getpid()}"
    try:
        done = bench(
            *("run", "x86", "--qemu-args", "-device virtio-rng-pci,bus=spare", "--", "sh", "-c"),
            LIVE.replace("$REPORT", str(report)),
        )
        assert report.read_text() == "made in the guest\n"
        assert report.stat().st_uid == os.getuid()
    finally:
        report.unlink(missing_ok=True)
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "to-stdout"
    assert "to-stderr" in done.stderr.splitlines()
    found = {words[1]: words[2:] for line in lines if (words := line.split())[0] == "device"}
    for device in X86.devices:
        assert device.address in found
    groups = [found[device.address][0] for device in X86.devices]
    assert len(set(groups)) == len(groups), "every device has an IOMMU group of its own"
    assert found["0000:01:00.0"][1] == "nvme"
    assert found["0000:02:00.0"][1] == "e1000e"
    assert "0000:03:00.0" in found, "the spare root port took the added device"
    assert lines[-5:-2] == [str(CHECKOUT), "/dev/kvm", "/dev/vfio/vfio"]
    assert tuple(map(int, lines[-2].split(".")[:2])) >= (6, 12)
    assert lines[-1] == "pyvfio runs"


@pytest.mark.bench
def test_a_hung_guest_is_ended_at_the_time_limit_and_its_console_shown() -> None:
    hang = ("--append", "loglevel=7", "--", "sleep", "3600")
    done = bench("run", "x86", "--timeout", "20", *hang)
    assert done.returncode == cli.TIME_LIMIT_STATUS
    assert "time limit of 20 s" in done.stderr
    assert re.search(r"^\[ *\d+\.\d+\] ", done.stderr, re.MULTILINE), "the kernel's messages"


@pytest.mark.bench
def test_a_guest_that_panics_is_reported_at_once() -> None:
    done = bench("run", "x86", "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == cli.FAILED_STATUS
    assert "Kernel panic" in done.stderr


@pytest.mark.bench
def test_a_signal_ends_the_emulated_host_and_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*BENCH, "run", "x86", "--", "sh", "-c", "echo started; sleep 3600"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"  # while it runs: output is live
        assert list(tmp_path.iterdir()) != []
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 128 + signal.SIGINT
    assert list(tmp_path.iterdir()) == []
    assert children
    assert not any(Path("/proc", child).exists() for child in children)


@pytest.mark.bench
def test_qemus_trace_shows_each_access_with_its_width(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    read = "setpci -s 0:4.0 COMMAND=2; busybox devmem $(sed -n '1s/ .*//p' "
    read += "/sys/bus/pci/devices/0000:00:04.0/resource) 32"
    arguments = f"-trace memory_region_ops_* -D {trace}"
    done = bench("run", "x86", "--qemu-args", arguments, "--", "sh", "-c", read)
    assert done.stdout == "0x010000ED\n", done.stderr
    accesses = [line for line in trace.read_text().splitlines() if "'edu-mmio'" in line]
    assert len(accesses) == 1
    assert "memory_region_ops_read" in accesses[0]
    assert "value 0x10000ed size 4" in accesses[0]
