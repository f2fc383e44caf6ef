"""`irqroute replay` with a device, against what the kernel's own functions saw."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hwtests.bench import loopback_reaches_guests
from hwtests.kernel_trace import KernelTrace, Seen, Unavailable, tracing
from pyvfio import errors, kvm
from pyvfio.abi import vfio
from pyvfio.cli import main
from pyvfio.pci import Function

_POWER = platform.machine().startswith("ppc")
_PROBES = {
    "irqfd": "kvm:kvm_irqfd gsi=+4($arg2):u32 flags=+8($arg2):u32",
    # POWER's KVM is built without a table of routes.
    **({} if _POWER else {"routing": "kvm:kvm_set_irq_routing entries=$arg3:u32"}),
    "set_irqs": "vfio_pci_core:vfio_pci_set_irqs_ioctl flags=$arg2:u32 index=$arg3:u32 "
    "start=$arg4:u32 count=$arg5:u32",
}
_KINDS = {
    "irqfd": "KVM_IRQFD",
    "routing": "KVM_SET_GSI_ROUTING",
    "set_irqs": "VFIO_DEVICE_SET_IRQS",
}
_NETWORK = 0x02  # base class
_INJECTIONS = () if _POWER else ("kvm/kvm_msi_set_irq",)
_MSIX = vfio.VFIO_PCI_MSIX_IRQ_INDEX

needs_routes = pytest.mark.skipif(_POWER, reason="the routed mapping is x86's")


@pytest.fixture
def vectors(function: Function) -> Iterator[int]:
    """How many vectors to use: few, of those that the device has."""
    try:
        kvm.VM().close()
    except errors.Error as error:
        pytest.skip(f"no VM can be had here: {error}")
    msix = function.config.msix
    if msix is None:
        pytest.skip("the device has no MSI-X")
    if _POWER and function.class_code >> 16 != _NETWORK:
        pytest.skip("each life resets the device by EEH, ten seconds and more: a card is enough")
    with loopback_reaches_guests():
        yield min(3, msix.vectors)


def replay(
    function: Function, vectors: int, capsys: pytest.CaptureFixture[str], policy: str
) -> dict:  # type: ignore[type-arg]
    mapping = "direct" if _POWER else "routed"
    command = ["irqroute", "replay", "--json", "--mapping", mapping, "--policy", policy]
    status = main([*command, "--vectors", str(vectors), "--device", str(function.address)])
    assert status == 0
    (life,) = json.loads(capsys.readouterr().out)
    assert isinstance(life, dict)
    return life


@needs_routes
@pytest.mark.parametrize("policy", ["before", "d1f6af6", "patched", "today"])
def test_every_policy_delivers_with_real_vfio(
    function: Function, vectors: int, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    life = replay(function, vectors, capsys, policy)
    assert life["kvm"] == life["vfio"] == f"Linux {platform.release()}"
    assert life["device"] == str(function.address)
    assert all(control["passed"] for control in life["controls"])
    assert life["verdict"]["healthy"]
    probes = {step["name"]: step["probe"] for step in life["steps"]}
    for name in ("unmask", "moved", "restore"):
        assert probes[name]["arrived"] == list(range(vectors))
    assert probes["mask 0"]["pending"] == [0]
    assert probes["move 0"]["arrived"] == [0]


@pytest.mark.parametrize("policy", ["d1f6af6", "today"])
def test_the_kernel_saw_the_same_calls(
    function: Function, vectors: int, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        try:
            trace: KernelTrace = stack.enter_context(tracing(_PROBES, _INJECTIONS))
        except Unavailable as unavailable:
            pytest.skip(str(unavailable))
        life = replay(function, vectors, capsys, policy)
        seen = trace.take()
    parts = [*life["controls"], *life["steps"], {"events": life["closing"]}]
    said = [_said(event) for part in parts for event in part["events"]]
    saw = [_saw(one) for one in seen if one.name in _KINDS and _is_ours(one)]
    if _POWER:
        assert saw == said
        assert ("KVM_IRQFD", 0, False) in saw or policy != "d1f6af6", "the dummy, on GSI 0"
        return
    # Before any of ours, KVM_CREATE_IRQCHIP routes the pins by the same function.
    assert saw[0] == ("KVM_SET_GSI_ROUTING", 40)
    assert saw[1:] == said
    # Each interrupt that is said to have arrived was injected, with its vector.
    injected = {
        int(m[1]) for one in seen if (m := re.search(r"vec (\d+)", one.values.get("text", "")))
    }
    first = 0x40
    assert set(range(first, first + vectors)) <= injected
    strays = [
        message for step in life["steps"] if step["probe"] for message in step["probe"]["strays"]
    ]
    assert {data for _, data in strays} <= injected
    assert bool(strays) == (policy == "d1f6af6")


def _is_ours(one: Seen) -> bool:
    """Not VFIO_DEVICE_SET_IRQS of other indexes, or what fires vectors: those are no steps."""
    if one.name != "set_irqs":
        return True
    fires = one.number("flags") & vfio.VFIO_IRQ_SET_DATA_NONE and one.number("count")
    return one.number("index") == _MSIX and not fires


def _saw(one: Seen) -> tuple[object, ...]:
    kind = _KINDS[one.name]
    if one.name == "irqfd":
        return kind, one.number("gsi"), bool(one.number("flags") & 1)
    if one.name == "routing":
        return kind, one.number("entries")
    return kind, one.number("start"), one.number("count")


def _said(event: dict) -> tuple[object, ...]:  # type: ignore[type-arg]
    kind, arguments = event["ioctl"], event["arguments"]
    if kind == "KVM_IRQFD":
        return kind, arguments["gsi"], arguments["deassign"]
    if kind == "KVM_SET_GSI_ROUTING":
        return kind, arguments["entries"]
    return kind, arguments["start"], arguments["count"]
