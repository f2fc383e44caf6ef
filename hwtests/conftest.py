"""Options, and the device under test.

`pytest hwtests --device 0000:01:00.0` binds the device to vfio-pci, runs what holds for every
device and what is known of this one, and gives it back to the driver it had, also after Ctrl-C.
Without --device everything is skipped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import pyvfio
from hwtests import machine
from hwtests.bench import ON_BENCH
from hwtests.field import originals
from hwtests.kernel_log import KernelLog
from hwtests.report import Report
from pyvfio import errors
from pyvfio.device import Device, Irq
from pyvfio.pci import Function, bound, functions
from pyvfio.pci.group import is_vfio
from pyvfio.pci.usage import vfio_holders

HERE = Path(__file__).parent

# A run in the background of a script has Ctrl-C ignored, and tests of Ctrl-C would wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is about the host and its drivers is asked for by its own path, the field's tests by --field.
collect_ignore = ["host", "field"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hwtests", "tests of a device through VFIO")
    group.addoption("--device", metavar="BDF", help="the device to test, e.g. 0000:01:00.0")
    group.addoption("--no-bind", action="store_true", help="only test it if vfio-pci has it")
    group.addoption("--host-driver", metavar="NAME", help="the driver that it was taken from")
    group.addoption("--force", action="store_true", help="take it even from a host that uses it")
    group.addoption("--field", action="store_true", help="what the field's own tests assert, alone")
    group.addoption("--report", metavar="FILE", type=Path, help="write host and results, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "for_device(vendor, device, class_code): only for devices of these identifiers",
    )
    config.addinivalue_line("markers", "messages: of the IRQ indexes, only MSI and MSI-X")
    if config.getoption("field"):
        config.args = originals.paths()
    config.stash[_report] = Report(config)
    config.pluginmanager.register(config.stash[_report])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [
        item
        for item in items
        if HERE in item.path.parents and HERE / "host" not in item.path.parents
    ]
    for item in ours:
        # A descriptor that is closed only because Python happens to collect it is a leak.
        for warning in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
            item.add_marker(pytest.mark.filterwarnings(f"error::{warning}"))
    address = config.getoption("device")
    if address is None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="needs a device: --device BDF"))
        return
    try:
        function = Function(address)
    except errors.Error as error:
        raise pytest.UsageError(str(error)) from None
    others = [item for item in ours if not _is_for(item, function)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of `irq` once for every IRQ index that the device has."""
    address = metafunc.config.getoption("device")
    if "irq" not in metafunc.fixturenames:
        return
    names = ["req"]
    if address is not None:
        with suppress(errors.Error):
            config = Function(address).config
            has: dict[str, object] = {"intx": config.interrupt_pin, "err": config.pcie}
            has |= {"msi": config.msi, "msix": config.msix}
            names += [name for name, present in has.items() if present]
    if metafunc.definition.get_closest_marker("messages"):
        names = [name for name in names if name in ("msi", "msix")]
    neither = pytest.mark.skip(reason="the device has neither MSI nor MSI-X")
    metafunc.parametrize("irq", names or [pytest.param("", marks=neither)], indirect=True)


def _is_for(item: pytest.Item, function: Function) -> bool:
    return all(
        getattr(function, {"vendor": "vendor_id", "device": "device_id"}.get(name, name)) == value
        for mark in item.iter_markers("for_device")
        for name, value in mark.kwargs.items()
    )


_report = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def function(pytestconfig: pytest.Config) -> Iterator[Function]:
    """The device under test on its bus, bound to vfio-pci."""
    report = pytestconfig.stash[_report]
    with ExitStack() as stack:
        try:
            function = Function(pytestconfig.getoption("device"))
            report.device = machine.describe_function(function)
            # tools/hwtest has bound it in another process.
            if (host_driver := pytestconfig.getoption("host_driver")) is not None:
                report.device["driver"] = host_driver or None
            if not pytestconfig.getoption("no_bind"):
                force = pytestconfig.getoption("force")
                stack.enter_context(bound(function.address, force=force))
            with pyvfio.open(function) as device:
                report.device |= machine.describe_device(device)
        except errors.Error as error:
            pytest.exit(f"{pytestconfig.getoption('device')}: {error}", returncode=4)
        yield function


@pytest.fixture
def device(function: Function) -> Iterator[Device]:
    """The device, opened afresh."""
    with pyvfio.open(function) as device:
        yield device


@pytest.fixture
def irq(request: pytest.FixtureRequest, device: Device) -> Irq:
    """Each IRQ index that the device should have, by what its config space says."""
    irq: Irq = getattr(device, request.param)
    if not irq.count:
        pytest.skip(f"VFIO shows no {irq.name} interrupts of this device")
    return irq


# pci-testdev and e1000e, and edu for POWER: one of them is another than the device under test.
_OF_THE_BENCH = ((0x1B36, 0x0005), (0x8086, 0x10D3), (0x1234, 0x11E8))


def _preference(function: Function) -> int:
    ids = function.vendor_id, function.device_id
    return _OF_THE_BENCH.index(ids) if ids in _OF_THE_BENCH else len(_OF_THE_BENCH)


@pytest.fixture
def other(function: Function) -> Iterator[Function]:
    """A second device, of another group: one that vfio-pci has and nobody holds."""
    for candidate in sorted(functions(), key=_preference):
        group = candidate.iommu_group
        if group is None or group == function.iommu_group or candidate.is_bridge:
            continue
        if is_vfio(candidate.driver) and not vfio_holders(candidate):
            yield candidate
            return
        if ON_BENCH and (candidate.vendor_id, candidate.device_id) in _OF_THE_BENCH:
            with bound(candidate.address):
                yield candidate
            return
    pytest.skip("needs a second device, of another IOMMU group, bound to vfio-pci")


@pytest.fixture(autouse=True)
def kernel_log(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config
) -> Iterator[KernelLog | None]:
    """What the kernel logs during a test goes into the report; a kernel warning fails the test."""
    if pytestconfig.getoption("device") is None or "host" in request.path.parts:
        yield None
        return
    with KernelLog() as log:
        yield log
        lines = log.lines()
        pytestconfig.stash[_report].kernel_log += lines
        assert not [line for line in lines if any(word in line for word in _KERNEL_BUGS)]


_KERNEL_BUGS = ("WARNING: CPU", "BUG:", "Oops", "Call Trace", "general protection")
