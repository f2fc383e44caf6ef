from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvfio import errors
from pyvfio.abi import vfio
from pyvfio.eeh import end_leftover_reset, leftover
from pyvfio.iommu import Type1
from pyvfio.pci import Function

from .standin import EehKernel, SysfsPe
from .test_host import MakePe


def awake(host: SysfsPe) -> Path:
    """Whether the kernel may put the function to sleep."""
    return host.path.parent / "power/control"


@pytest.fixture
def host(sysfs_pe: MakePe, kernel: EehKernel, monkeypatch: pytest.MonkeyPatch) -> SysfsPe:
    """A function with a PE, whose group can be opened."""
    monkeypatch.setattr(leftover, "check_openable", lambda function: SimpleNamespace(id=1))
    monkeypatch.setattr(leftover, "open_space", Type1)
    host = sysfs_pe()
    (host.path.parent.resolve() / "power").mkdir()
    awake(host).write_text("auto\n")
    opening = host.open
    for name in ("open", "close", "ioctl"):
        monkeypatch.setattr(f"pyvfio._sys.calls.{name}", getattr(kernel, name))
    monkeypatch.setattr(
        "pyvfio._sys.calls.open",
        lambda path, flags: (
            kernel.open(path, flags) if path.startswith("/dev/vfio") else opening(path, flags)
        ),
    )
    return host


def test_it_is_ended_through_the_group_alone(host: SysfsPe, kernel: EehKernel) -> None:
    function = Function("0000:01:00.0")
    assert end_leftover_reset(function) is False
    assert kernel.operations == []
    host.software |= 4
    control: list[str] = []
    kernel.before = lambda name: control.append(awake(host).read_text()[:2])
    assert end_leftover_reset(function) is True
    assert kernel.operations == ["deactivate", "hot", "deactivate"]
    assert control == ["au", "on", "on"], "else waking would write all ones to config space"
    assert awake(host).read_text().strip() == "auto"
    assert vfio.VFIO_GROUP_GET_DEVICE_FD.name not in kernel.log
    assert kernel.files == {}, "nothing stays open"


def test_one_that_somebody_is_about_to_end_is_left_to_them(
    host: SysfsPe, kernel: EehKernel
) -> None:
    host.software |= 4
    kernel.fail["/dev/vfio/1"] = 16  # EBUSY
    with pytest.raises(errors.Busy):
        end_leftover_reset(Function("0000:01:00.0"))
    assert kernel.operations == []
    assert kernel.files == {}
    assert awake(host).read_text().strip() == "auto"


@pytest.mark.parametrize("request_name", ["VFIO_GROUP_SET_CONTAINER", "VFIO_EEH_PE_OP"])
def test_nothing_stays_open_when_it_fails(
    host: SysfsPe, kernel: EehKernel, request_name: str
) -> None:
    host.software |= 4
    kernel.fail[request_name] = 5  # EIO
    with pytest.raises(errors.KernelError):
        end_leftover_reset(Function("0000:01:00.0"))
    assert kernel.files == {}
    assert awake(host).read_text().strip() == "auto"
