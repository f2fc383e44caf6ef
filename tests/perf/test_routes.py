"""tools/perf routes: its contenders do what they say. With so few vectors nothing is timed."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from pyvfio import errors, kvm
from pyvfio.irqroute import Trace
from tools._perf.peers import Peers
from tools._perf.report import result
from tools._perf.row import Row, Setting
from tools._perf.rows import routes

COUNT = 3


@pytest.fixture
def vm() -> Iterator[kvm.VM]:
    try:
        vm = kvm.VM()
    except errors.Error as error:
        pytest.skip(str(error))
    with vm:
        yield vm


def test_every_contender_enables_alike_and_leaves_nothing(vm: kvm.VM) -> None:
    before = dict(vm.routes)
    made = routes._Contenders(vm, COUNT)
    try:
        for contender in made.by_name().values():
            assert contender() > 0
            assert dict(vm.routes) == before
            assert len(vm.irqfds) == 0
    finally:
        made.close()


def test_the_bare_table_is_the_one_that_the_library_commits(vm: kvm.VM) -> None:
    given: list[bytes] = []
    made = routes._Contenders(vm, COUNT)
    vm.file.watcher = lambda request, argument, outcome: given.append(bytes(argument))
    vm.routes.add_many(made.messages)
    vm.file.watcher = None
    made.close()
    assert given == [bytes(made.table)]


def test_the_forwarder_commits_once(vm: kvm.VM) -> None:
    made = routes._Contenders(vm, COUNT)
    with Trace().watching(vm.file) as trace:
        made.forward()
    made.close()
    said = [event.ioctl for event in trace.events]
    assert said.count("KVM_SET_GSI_ROUTING") == 2  # one to enable, one to disable
    assert said.count("KVM_IRQFD") == COUNT + 1


def test_the_row_is_measured_and_compares_growth_by_the_vector(
    vm: kvm.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "COUNTS", (2, 4))
    monkeypatch.setattr(routes, "GROWTH", (2, 4))
    monkeypatch.setattr(routes, "ROUNDS", 4)
    monkeypatch.setattr(routes, "SELDOM", 2)
    samples = routes._measure(Setting(Peers(), "", lambda words: None))
    assert sum(cost is not None for cost in samples.costs[routes.of(routes.EACH, 4)]) == 2
    whole = samples.costs[routes.of(routes.ENABLE, 4)]
    each = samples.costs[routes.per_vector(routes.ENABLE, 4)]
    assert each == [cost and cost / 4 for cost in whole]
    row = Row("routes", "", "ns", tuple(routes._comparisons()), routes.ROW.measure)
    assert len(result(row, samples)["compared"]) == len(row.comparisons)


def test_too_low_a_limit_of_descriptors_is_told() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No kernel gives so many (fs.nr_open).
    with (
        pytest.raises(OSError, match=r"vectors need .* descriptors, this process may have"),
        routes._descriptors(1 << 40),
    ):
        pass
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
