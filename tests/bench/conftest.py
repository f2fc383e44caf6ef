"""Emulated hosts for the tests that are marked `bench`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tools._bench.hosts import Bench


# The groups of tests that take several minutes each.
LONGEST = ("x86 binding", "x86", "power9")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first, so that no worker is left alone with it at the end."""

    def group(item: pytest.Item) -> str | None:
        mark = item.get_closest_marker("xdist_group")
        return mark and mark.args[0]

    items.sort(key=lambda item: group(item) not in LONGEST)
    for item in items:
        if "hosts" in getattr(item, "fixturenames", ()) and group(item) is None:
            raise pytest.UsageError(
                f"{item.nodeid} must have a mark xdist_group: tests of one group share a host"
            )


class Hosts:
    """Runs commands on emulated hosts and checks how they end."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.crashes: list[str] = []

    def run(
        self,
        profile: str,
        command: str | Sequence[str],
        *,
        status: int = 0,
        time_limit: float = 1800,
        **host: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, which is booted if another or none is up.

        Args:
            profile: The host's name.
            command: A script for its sh, or a program and its arguments.
            status: The exit status that it must have.
            time_limit: In seconds.
            host: Further attributes of tools._bench.hosts.Wanted.
        """
        from tools._bench.hosts import Wanted
        from tools._bench.machine import QemuCrashed

        wanted = Wanted(profile, **host)
        try:
            result = self.bench.run(wanted, command, time_limit)
        except QemuCrashed as error:
            # A crash of the emulator says nothing of what is tested. It is counted in the summary.
            print(error)
            self.crashes.append(f"{profile}: {str(error).partition(';')[0]}")
            result = self.bench.run(wanted, command, time_limit)
        print(result.stdout, result.stderr)  # shown when the test fails
        assert result.returncode == status
        return result


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    from tools._bench.hosts import Bench

    with Bench() as bench:
        yield bench


@pytest.fixture
def hosts(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    if "PYTEST_XDIST_WORKER" in os.environ and "@" not in request.node.nodeid:
        pytest.fail(
            "pytest-xdist does not group the tests that share a host, so each worker would boot "
            "it: give --dist loadgroup; pytest 9.2 is too new for pytest-xdist 3.8"
        )
    before = len(bench.boots)
    hosts = Hosts(bench)
    yield hosts
    # For the summary at the end of the run.
    request.node.user_properties += [("crash", crash) for crash in hosts.crashes]
    for boot in bench.boots[before:]:
        request.node.user_properties.append(("boot", (boot.wanted.profile, boot.seconds)))
        if boot.failure:
            print(boot.failure)
            request.node.user_properties.append(("failed boot", boot.wanted.profile))


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where QEMU's trace of a host goes whose tests look at accesses from outside."""
    return tmp_path_factory.mktemp("trace") / "trace"
