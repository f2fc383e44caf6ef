"""The bench: what it asks of apt and QEMU, and (marked `bench`) emulated hosts that really boot."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("qemu.qmp")

from tests.bench.conftest import Hosts
from tools._bench import BenchError, Unavailable, cli, cpio, debian, kernel, machine, profiles, root
from tools._bench.progress import step

CHECKOUT = Path(__file__).resolve().parents[2]
BENCH = (sys.executable, "-m", "tools._bench")
X86 = profiles.X86


def bench(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        timeout=timeout,
        capture_output=True,
        text=True,
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
def test_directory_without_a_mirror_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, f"file:{tmp_path}/empty")
    archive = debian.Archive(tmp_path / "apt", "amd64", "trixie")
    with step("test") as progress, pytest.raises(Unavailable, match=debian.MIRROR_VARIABLE):
        archive.update(progress)


def test_mirror_that_is_changing_one_name_is_asked_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mirror.example/debian")
    archive = debian.Archive(tmp_path, "ppc64el", "trixie")
    stable = "trixie"

    def apt(arguments: list[str], step: object) -> str:
        name = (tmp_path / "sources.list").read_text().split()[-2]
        if name == "trixie":
            raise Unavailable("File has unexpected size. Mirror sync in progress?")
        (tmp_path / "lists/mirror_InRelease").write_text(f"Suite: stable\nCodename: {stable}\n")
        return ""

    monkeypatch.setattr(archive, "_apt", apt)
    with step("test") as progress:
        archive.update(progress)
        # Some day that name is another release's.
        stable = "forky"
        with pytest.raises(BenchError, match="not Debian trixie"):
            archive.update(progress)


def test_brief_reason_names_the_first_package_and_counts_the_rest() -> None:
    message = (
        "E: Failed to fetch http://mirror.example/pool/l/libc6_2.41-12%2bdeb13u5_ppc64el.deb"
        "  404  Not Found [IP: 192.0.2.1 80]\n"
        "E: Failed to fetch http://mirror.example/pool/z/linux-image-6.12%2bdeb13_1_ppc64el.deb"
        "  404  Not Found [IP: 192.0.2.1 80]\n"
        "E: Some files failed to download\n"
    )
    assert debian.brief(message) == "libc6 and 1 more cannot be fetched (404 Not Found)"
    last = message.splitlines()[1]
    assert debian.brief(last) == "linux-image-6.12+deb13 cannot be fetched (404 Not Found)"
    assert debian.brief("E: Unable to locate package x\nE: more") == "Unable to locate package x"


def test_newest_kernel_comes_first() -> None:
    names = [f"linux-image-{version}-amd64" for version in ("6.12.9+deb13", "6.12.107+deb13")]
    assert sorted(names, key=debian.version_key, reverse=True) == names[::-1]


# The image


def test_packages_and_architecture_decide_the_root_file_system() -> None:
    keys = [
        root.key("amd64", []),
        root.key("ppc64el", []),
        root.key("amd64", ["fio"]),
        root.key("amd64", ["fio", "nvme-cli"]),
    ]
    assert len(set(keys)) == len(keys)


def test_added_package_brings_its_libraries() -> None:
    assert {"libtirpc3t64", "perl"} <= set(root.left_out([]))
    assert "libtirpc3t64" not in root.left_out(["fio"])  # by way of GlusterFS's libraries
    assert "perl" in root.left_out(["fio"])
    assert "perl" not in root.left_out(["perl"])


def test_assumed_packages_are_whole_names() -> None:
    assert [name for name in root.ASSUMED if len(name) < 3] == []


@pytest.mark.parametrize(
    ("profile", "name", "series", "flavour"),
    [
        (X86, None, ("6.12", "7"), "amd64"),
        (X86, "6.1", ("6.1",), "amd64"),
        (profiles.POWER9, "64k", ("6.12", "7"), "powerpc64le-64k"),
        (profiles.POWER9, "7-64k", ("7",), "powerpc64le-64k"),
    ],
)
def test_kernel_names_are_series_and_flavour(
    profile: profiles.Profile, name: str | None, series: tuple[str, ...], flavour: str
) -> None:
    assert kernel.wanted(profile, name) == kernel.Wanted(series, flavour)
    assert name is None or name in kernel.names(profile)


def test_unknown_kernel_is_answered_with_those_there_are() -> None:
    with pytest.raises(BenchError, match=r"6\.1, 6\.12, 7"):
        kernel.wanted(X86, "64k")


def test_both_layouts_of_debians_kernel_packages_are_read(tmp_path: Path) -> None:
    tree = tmp_path / "usr/lib/modules/7.2"
    for path in (tmp_path / "boot", tree):
        path.mkdir(parents=True)
    with pytest.raises(BenchError, match="layout"):
        kernel._image(tmp_path, tree)
    (tree / "vmlinuz").touch()
    assert kernel._image(tmp_path, tree) == tree / "vmlinuz"
    (tmp_path / "boot/vmlinux-6.12").touch()
    assert kernel._image(tmp_path, tree) == tmp_path / "boot/vmlinux-6.12"


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
    plain = machine.Options(checkout=Path("/home/user/pyvfio"), kernel=Path("linux"), initrd=[])
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def arguments(**changes: object) -> list[str]:
    return machine.qemu_arguments(X86, options(**changes), Path("run"), {"qmp": 3})


def test_user_arguments_for_qemu_come_last() -> None:
    added = ("-device", "virtio-rng-pci,bus=spare")
    assert tuple(arguments(qemu_arguments=added)[-2:]) == added


def test_checkout_with_a_comma_in_its_path_is_shared() -> None:
    words = arguments(checkout=Path("/home/user/a,b"))
    assert any("path=/home/user/a,,b,security_model" in word for word in words)


def test_disk_is_attached_where_there_is_one() -> None:
    assert not any("bench-root" in word for word in arguments())
    disk = [word for word in arguments(disk=Path("a,b")) if "bench-root" in word]
    assert disk[0].startswith("file=a,,b,")
    assert "serial=bench-root" in disk[1]


def emulator(tmp_path: Path, ends: str) -> profiles.Profile:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{ends}\n")
    qemu.chmod(0o755)
    return dataclasses.replace(X86, qemu=str(qemu))


@pytest.mark.parametrize(("ends", "crashes"), [("kill -SEGV $$", True), ("exit 1", False)])
def test_crash_of_qemu_is_told_from_death_of_the_guest(
    tmp_path: Path, ends: str, crashes: bool
) -> None:
    async def boot() -> None:
        async with machine.boot(emulator(tmp_path, ends), options()):
            pass

    with pytest.raises(machine.MachineDied) as raised:
        asyncio.run(boot())
    assert isinstance(raised.value, machine.QemuCrashed) == crashes
    assert ("QEMU itself crashed (SIGSEGV)" in str(raised.value)) == crashes


def test_guest_that_never_comes_up_ends_at_the_limit(tmp_path: Path) -> None:
    async def boot() -> None:
        async with machine.boot(emulator(tmp_path, "exec sleep 60"), options(), 0.2):
            pass

    with pytest.raises(machine.TimeLimit, match="not up"):
        asyncio.run(boot())


def test_command_reaches_the_guests_shell_word_by_word() -> None:
    words = ("printf", "%s|", "two words", "$HOME", "quote'", "line\nbreak", "")
    script = machine.Command(words, Path("/")).script("marker").removesuffix("# end\n")
    printed = subprocess.run(
        ["sh", "-c", f'{script}\neval "$command"'], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "two words|$HOME|quote'|line\nbreak||"


@given(st.lists(st.sampled_from([b"a", b"bench-", b"bench-1", b"-12", b"2", b"\n"])), st.data())
def test_output_is_cut_at_each_marker(pieces: list[bytes], data: st.DataObject) -> None:
    marker = b"bench-12"
    text = b"".join(pieces).replace(marker, b"")
    assume(marker not in text and marker not in (text + marker)[:-1])
    stream = text + marker + b"next" + marker
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    async def copied() -> list[bytes]:
        ours, guests = socket.socketpair()
        with ours, guests:
            ours.setblocking(False)
            output = machine._Output(ours)
            results = []
            for start, end in itertools.pairwise([0, *cuts, len(stream)]):
                guests.sendall(stream[start:end])
            guests.shutdown(socket.SHUT_WR)
            for _ in range(3):
                parts: list[bytes] = []
                await output.copy(parts.append, marker)
                results.append(b"".join(parts))
            return results

    assert asyncio.run(copied()) == [text, b"next", b""]


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


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (machine.TimeLimit("over"), cli.TIME_LIMIT_STATUS),
        (machine.MachineDied("died"), cli.FAILED_STATUS),
    ],
)
def test_exit_status_tells_a_time_limit_from_a_death(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "prepare", lambda *_, **__: options())
    monkeypatch.setattr(machine, "boot", boot)
    assert cli.main(["run", "x86", "--", "true"]) == status


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
    (x86,) = (it for it in json.loads(capsys.readouterr().out)["profiles"] if it["name"] == "x86")
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
@pytest.mark.xdist_group("bench command")
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
@pytest.mark.xdist_group("x86")
def test_hung_guest_is_ended_at_the_limit_and_replaced(hosts: Hosts) -> None:
    with pytest.raises(machine.TimeLimit, match=r"(?s)begun.*time limit of 3 s"):
        hosts.run("x86", "echo begun; dmesg -n 7; sleep 3600", time_limit=3)
    assert hosts.run("x86", "echo again").stdout == "again\n"


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_panic_is_reported_at_once_and_the_guest_replaced(hosts: Hosts) -> None:
    with pytest.raises(machine.MachineDied, match="Kernel panic"):
        hosts.run("x86", "echo c >/proc/sysrq-trigger")
    assert hosts.run("x86", "echo again").stdout == "again\n"


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_host_runs_commands_of_many_tests(hosts: Hosts) -> None:
    first = hosts.run("x86", "echo out; echo err >&2; touch /run/mark; exit 3", status=3)
    assert (first.stdout, first.stderr) == ("out\n", "err\n")
    assert hosts.run("x86", "ls /run/mark").stdout == "/run/mark\n"


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_what_a_command_leaves_running_ends_with_it(hosts: Hosts) -> None:
    hosts.run("x86", "(while :; do echo left; sleep 0.1; done) & sleep 100 & echo done")
    left = "sleep 1; grep -l '(sleep) [^Z]' /proc/[0-9]*/stat; echo next"
    assert hosts.run("x86", left).stdout == "next\n"


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_command_does_not_ignore_ctrl_c(hosts: Hosts) -> None:
    # A shell's "&" would have it do so.
    assert hosts.run("x86", "kill -INT $$; sleep 1; echo ignored", status=130).stdout == ""


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_change_outside_is_seen_by_the_next_command(hosts: Hosts) -> None:
    file = CHECKOUT / f".reports-{os.getpid()}"
    try:
        for content in ("one", "other"):
            file.write_text(content)
            assert hosts.run("x86", f"cat {file}").stdout == content
    finally:
        file.unlink()
    hosts.run("x86", f"ls {file}", status=1)


@pytest.mark.bench
@pytest.mark.xdist_group("x86")
def test_host_that_died_between_commands_is_replaced(hosts: Hosts) -> None:
    hosts.run("x86", "setsid sh -c 'sleep 1; poweroff -f' & sleep 0.1")
    time.sleep(5)
    assert hosts.run("x86", "echo again").stdout == "again\n"


@pytest.mark.bench
@pytest.mark.xdist_group("bench command")
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
