"""The bench's apt against a package archive whose server fails on request."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("rich")

from tests.bench.package_archive import Fault, Package, PackageArchive, Request, missing_tools
from tools._bench import BenchError, Unavailable, cache, debian
from tools._bench.progress import step

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"needs the programs {', '.join(missing_tools())}"
)

# apt of the machine with nothing of the machine's settings: no proxy, and no waiting for a server
# that is broken on purpose.
APT_CONF = """\
Dir::Etc::parts "/dev/null";
Dir::Etc::main "/dev/null";
Acquire::http::Proxy "DIRECT";
Acquire::http::Timeout "1";
Acquire::Retries "0";
"""


def kernel(version: str) -> Package:
    return Package(f"linux-image-{version}-test", files={f"boot/vmlinuz-{version}": version})


@pytest.fixture
def packages() -> list[Package]:
    new = kernel("1.2.4")
    return [
        Package("library", architecture="all", files={"usr/lib/library": "words " * 1000}),
        Package("tool", depends=("library (>= 1.0)",), files={"usr/bin/tool": "#!/bin/sh\n"}),
        kernel("1.2.3"),
        new,
        Package("linux-image-test", depends=(new.name,)),
    ]


@pytest.fixture
def archive(
    tmp_path: Path, packages: list[Package], monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackageArchive]:
    (tmp_path / "apt.conf").write_text(APT_CONF)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    with PackageArchive(tmp_path / "archive") as archive:
        monkeypatch.setenv(debian.MIRROR_VARIABLE, archive.url)
        monkeypatch.setattr(debian, "KEYRING", archive.keyring)
        archive.add_suite("first", packages)
        yield archive


@pytest.fixture
def client(tmp_path: Path) -> debian.Archive:
    return debian.Archive(tmp_path / "client", debian.machine_architecture(), "first")


def update(client: debian.Archive) -> None:
    with step("test") as progress:
        client.update(progress)


def fetch(client: debian.Archive, *names: str) -> list[Path]:
    with step("test") as progress:
        return client.fetch(names, [], progress)


def paths(requests: list[Request]) -> list[str]:
    return [request.path for request in requests]


def test_suite_is_fetched_with_its_dependencies(
    archive: PackageArchive, client: debian.Archive, packages: list[Package], tmp_path: Path
) -> None:
    update(client)
    files = fetch(client, "tool", "linux-image-test")
    wanted = [it for it in packages if it.name != "linux-image-1.2.3-test"]
    assert {file.name for file in files} == {Path(it.path).name for it in wanted}
    for file in files:
        debian.unpack(file, tmp_path / "unpacked")
    assert (tmp_path / "unpacked/boot/vmlinuz-1.2.4").read_text() == "1.2.4"


def test_older_kernel_is_fetched_by_its_name(
    archive: PackageArchive, client: debian.Archive
) -> None:
    update(client)
    (file,) = fetch(client, "linux-image-1.2.3-test")
    assert file.name.startswith("linux-image-1.2.3-test_")


@pytest.mark.parametrize("fault", Fault)
def test_package_fault_names_the_file(
    archive: PackageArchive, client: debian.Archive, packages: list[Package], fault: Fault
) -> None:
    update(client)
    library = packages[0]
    archive.fault(library.path, fault)
    with pytest.raises(Unavailable) as raised:
        fetch(client, "tool")
    assert library.path in str(raised.value)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("index", ["InRelease", "main/binary-{}/Packages.xz"])
def test_index_fault_names_the_suite(
    archive: PackageArchive, client: debian.Archive, index: str, fault: Fault
) -> None:
    archive.fault(f"dists/first/{index.format(debian.machine_architecture())}", fault)
    if (index, fault) == ("InRelease", Fault.MISSING):
        # apt then takes Release, which has no detached signature.
        archive.fault("dists/first/Release", fault)
    with pytest.raises(BenchError, match=f"{archive.url}.* first"):
        update(client)


def test_suite_is_asked_by_its_second_name(
    archive: PackageArchive,
    client: debian.Archive,
    packages: list[Package],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(debian.OTHER_NAMES, "first", "stable")
    archive.add_suite("first", packages, name="stable")
    archive.fault("dists/first/InRelease", Fault.TRUNCATED)
    update(client)
    assert "dists/stable/InRelease" in paths(archive.requests)


@pytest.mark.parametrize("fault", Fault)
def test_second_try_fetches_only_missing_files(
    archive: PackageArchive, client: debian.Archive, packages: list[Package], fault: Fault
) -> None:
    update(client)
    library, tool = packages[:2]
    archive.fault(tool.path, fault)
    with pytest.raises(Unavailable):
        fetch(client, "tool")
    assert library.path in paths(archive.requests)
    archive.repair(tool.path)
    archive.requests.clear()
    files = fetch(client, "tool")
    assert set(paths(archive.requests)) == {tool.path}
    assert {file.name for file in files} == {Path(library.path).name, Path(tool.path).name}


def test_broken_download_is_continued(
    archive: PackageArchive, client: debian.Archive, packages: list[Package]
) -> None:
    update(client)
    library = packages[0]
    archive.fault(library.path, Fault.BROKEN_OFF)
    with pytest.raises(Unavailable):
        fetch(client, "library")
    archive.repair(library.path)
    archive.requests.clear()
    (file,) = fetch(client, "library")
    assert [(it.path, it.status) for it in archive.requests] == [(library.path, 206)]
    subprocess.run(["dpkg-deb", "--info", str(file)], check=True, capture_output=True)


def test_archive_signed_by_another_key_is_refused(
    archive: PackageArchive,
    client: debian.Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with PackageArchive(tmp_path / "other") as other:
        monkeypatch.setattr(debian, "KEYRING", other.keyring)
        with pytest.raises(BenchError, match="not signed"):
            update(client)
    monkeypatch.setattr(debian, "KEYRING", archive.keyring)
    update(client)


def test_replaced_suite_has_only_its_new_packages(
    archive: PackageArchive, client: debian.Archive
) -> None:
    update(client)
    archive.add_suite("first", [Package("tool", version="2.0")])
    update(client)
    (file,) = fetch(client, "tool")
    assert file.name.startswith("tool_2.0_")
    with pytest.raises(Unavailable, match="library"):
        fetch(client, "library")


def test_fault_of_an_unknown_file_is_refused(archive: PackageArchive) -> None:
    with pytest.raises(ValueError, match=r"pool/tool_1\.0_"):
        archive.fault("pool/tool.deb", Fault.MISSING)


def test_first_whole_suite_is_taken(
    archive: PackageArchive,
    packages: list[Package],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYVFIO_CACHE", str(tmp_path / "cache"))
    architecture = debian.machine_architecture()
    library, tool = packages[:2]
    archive.add_suite("second", [library, Package("tool", version="2.0")])
    archive.fault(tool.path, Fault.MISSING)

    def candidates() -> Iterator[cache.Candidate[list[Path]]]:
        for suite in ("first", "second"):
            yield cache.Candidate(suite, partial(debian.fetch, suite, architecture, ("tool",)))

    def build(files: list[Path], entry: Path, scratch: Path) -> None:
        for file in files:
            debian.unpack(file, entry)

    entry = cache.select("A system", "system", "key", candidates, build)
    assert entry.name == "system-second-key"
    reason = "A system: second, because of first: tool cannot be fetched (404 "
    assert reason in capsys.readouterr().err
    archive.requests.clear()
    assert cache.select("A system", "system", "key", candidates, build) == entry
    assert archive.requests == []
