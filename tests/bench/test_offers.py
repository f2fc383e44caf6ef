"""What the bench offers to pyvfio stays on the bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvfio import errors
from tools._bench.guest import ioda

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("bench", "machine", "says"),
    [
        (False, b"qemu,powernv9\0ibm,powernv\0", "bench's power9 alone"),
        (True, b"ibm,witherspoon\0ibm,powernv\0", "bench's power9 alone"),
        (True, b"qemu,powernv8\0ibm,powernv\0", "PHB3 keeps no state"),
        (True, None, "bench's power9 alone"),
        (True, b"qemu,powernv9\0ibm,powernv\0", None),
    ],
)
def test_its_injector_refuses_to_work_elsewhere(
    bench: bool,
    machine: bytes | None,
    says: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYVFIO_BENCH", raising=False)
    if bench:
        monkeypatch.setenv("PYVFIO_BENCH", "1")
    compatible = tmp_path / "compatible"
    if machine is not None:
        compatible.write_bytes(machine)
    monkeypatch.setattr(ioda, "_COMPATIBLE", compatible)
    monkeypatch.setattr(ioda, "_MEMORY", "/nowhere")
    function: Any = SimpleNamespace(address=None)
    refusal = ioda.IodaInjector().refusal(function)
    if says is None:
        assert refusal is None
        return
    assert says in str(refusal)
    with pytest.raises(errors.HostError, match=says):
        ioda.IodaInjector().inject(function, None, None)


def test_it_is_offered_by_entry_point() -> None:
    code = "from pyvfio.eeh import injectors; print(*injectors())"
    path = f"{CHECKOUT}:{CHECKOUT / 'tools/_bench/guest/offers'}"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["bench-ioda", "err_injct", "eeh_dev_break", "vfio"]
