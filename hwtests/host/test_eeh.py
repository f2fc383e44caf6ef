"""`pyvfio eeh` as people type it, on the bench: a process that holds a device, and the host."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hwtests.forked import said as pyvfio
from pyvfio import eeh, errors
from pyvfio.pci import Function, bound, functions

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes devices from the host: only on the bench"
)

WAIT = 60.0

# Holds the device and says its PE's state as it changes; thaws in two steps when it is told to.
HOLDER = """
import select, sys, time
import pyvfio
from pyvfio import eeh

with pyvfio.open(sys.argv[1]) as device:
    pe, last = eeh.Pe(device), None
    while True:
        if pe.state is not last:
            last = pe.state
            print(last, flush=True)
        if select.select([sys.stdin], [], [], 0.05)[0]:
            word = sys.stdin.readline().strip()
            if word == "reset":
                pe.assert_reset(eeh.Reset.HOT)
                print("in reset", flush=True)
            elif word:
                getattr(pe, word)()
            else:
                break
"""


@pytest.fixture
def card() -> Iterator[str]:
    """A device that VFIO has and nobody holds."""
    address = next(f.address for f in functions() if (f.vendor_id, f.device_id) == (0x8086, 0x10D3))
    with bound(address):
        yield str(address)


@pytest.fixture
def freezable(card: str) -> str:
    """One whose PE can be frozen."""
    try:
        name, _ = eeh.choose(Function(card))
    except errors.HostError as error:
        pytest.skip(str(error))
    if name != "bench-ioda":
        refusal = eeh.injectors()["bench-ioda"].refusal(Function(card))
        pytest.skip(f"no freeze can be made here: {refusal}")
    return card


class Holder:
    """A process that holds the device."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.communicate(timeout=WAIT)


def state(address: str) -> tuple[str, list[str]]:
    """What the command's status says."""
    (entry,) = json.loads(pyvfio("eeh", "status", address, "--json"))["functions"]
    return entry["state"], entry["noted"]


def step_names(output: str) -> list[str]:
    """The steps of a drill, by name."""
    return [name.strip() for name in re.findall(r"^ *[\d.]+ s  (.{20})", output, re.MULTILINE)]


def test_status_opens_nothing_and_shows_every_pe() -> None:
    report = json.loads(pyvfio("eeh", "status", "all", "--json"))
    found = {entry["address"]: entry for entry in report["functions"]}
    assert found.keys() == {str(function.address) for function in functions()}
    assert all(entry["state"] == "normal" for entry in found.values())
    assert report["settings"]["enabled"]
    assert report["settings"]["recovery"]
    lines = pyvfio("eeh", "status", "all").splitlines()
    assert lines[0].startswith("EEH is on")
    assert len(lines) == 2 + len(found)


def test_bridges_and_unbound_devices_are_refused() -> None:
    bridge = next(function.address for function in functions() if function.is_bridge)
    assert "is a bridge" in pyvfio("eeh", "drill", str(bridge), status=4)
    assert "is a bridge" in pyvfio("eeh", "freeze", str(bridge), status=4)
    card = next(f.address for f in functions() if f.device_id == 0x10D3)
    assert f"pyvfio bind {card}" in pyvfio("eeh", "reset", str(card), status=4)


def test_debugfs_that_is_not_mounted(card: str) -> None:
    subprocess.run(["umount", "/sys/kernel/debug"], check=True)
    try:
        assert "debugfs is not mounted: mount -t debugfs" in pyvfio("eeh", "status", card)
        said = pyvfio("eeh", "freeze", card, "--injector", "err_injct", status=4)
        assert "debugfs is not mounted" in said
    finally:
        mount = ["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"]
        subprocess.run(mount, check=True)


def test_an_injection_that_freezes_nothing_is_a_failure(card: str) -> None:
    said = pyvfio("eeh", "freeze", card, "--injector", "eeh_dev_break", status=1)
    assert "accepted, but no freeze followed" in said
    assert state(card) == ("normal", [])


def test_one_freezes_while_another_holds_and_both_see_it(freezable: str) -> None:
    card = freezable
    with Holder(card) as holder:
        assert holder.hears() == "normal"
        assert "is stopped (isolated)" in pyvfio("eeh", "freeze", card)
        assert holder.hears() == "stopped"
        assert state(card) == ("stopped", ["isolated"])
        assert "frozen already" in pyvfio("eeh", "freeze", card, status=1)
        holder.tell("unfreeze_io")
        assert holder.hears() == "DMA stopped"
        assert state(card) == ("DMA stopped", ["isolated"])
        holder.tell("unfreeze_dma")
        assert holder.hears() == "normal"
        assert state(card) == ("normal", ["isolated"])
        assert "normal (isolated) -> normal" in pyvfio("eeh", "thaw", card)
        # And the other way: thawed by the host, under its holder.
        pyvfio("eeh", "freeze", card)
        assert holder.hears() == "stopped"
        assert "stopped (isolated) -> normal" in pyvfio("eeh", "thaw", card)
        assert holder.hears() == "normal"


def test_a_freeze_is_watched(freezable: str) -> None:
    command = ["pyvfio", "eeh", "status", freezable, "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["functions"][0]["state"] == "normal"
        pyvfio("eeh", "freeze", freezable)
        assert json.loads(watch.stdout.readline())["state"] == "stopped"
        pyvfio("eeh", "thaw", freezable)
        assert json.loads(watch.stdout.readline())["state"] == "normal"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(WAIT) == 130


def test_the_drill_thaws_in_two_steps(freezable: str) -> None:
    output = pyvfio("eeh", "drill", freezable)
    assert step_names(output) == [
        *("works before", "injected", "frozen"),
        *("I/O thawed", "DMA thawed", "note cleared", "works after"),
    ]
    assert output.count("fetched by DMA") == 2
    assert output.count("an MSI-X arrived") == 2
    assert state(freezable) == ("normal", [])


def test_the_drill_recovers(freezable: str) -> None:
    output = pyvfio("eeh", "drill", freezable, "--recover")
    assert step_names(output) == [
        *("works before", "injected", "frozen", "detected", "noted", "MMIO enabled", "reset"),
        *("configured", "config restored", "set up by user", "verified", "works after"),
    ]
    assert output.count("fetched by DMA") == 2
    assert state(freezable) == ("normal", [])


def test_what_was_frozen_before_the_open_is_said(freezable: str) -> None:
    pyvfio("eeh", "freeze", freezable)
    command = ["pyvfio", "read", freezable, "config+0/16"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is frozen: stopped (isolated). Opening the device thaws it" in result.stderr
    assert state(freezable) == ("normal", [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recovery_that_is_interrupted_leaves_no_reset(card: str, number: signal.Signals) -> None:
    command = ["pyvfio", "eeh", "recover", card]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recovery:
        assert recovery.stdout is not None
        while "noted" not in recovery.stdout.readline():
            pass
        while not eeh.HostPe(Function(card)).state.reset_left:
            time.sleep(0.01)
        recovery.send_signal(number)
        assert recovery.wait(WAIT) == 130
    assert state(card) == ("normal", [])


def test_a_reset_whose_process_was_killed_is_told_and_ended(card: str) -> None:
    with Holder(card) as holder:
        assert holder.hears() == "normal"
        holder.tell("reset")
        while holder.hears() != "in reset":
            pass
        holder.kill()
    assert "config blocked" in state(card)[1]
    assert f"pyvfio eeh reset {card}" in pyvfio("eeh", "thaw", card, status=1)
    names = step_names(pyvfio("eeh", "recover", card))
    assert (names[0], names[-1]) == ("leftover", "works after")
    assert state(card) == ("normal", [])
