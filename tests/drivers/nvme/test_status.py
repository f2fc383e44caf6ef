"""What a controller answers becomes the exception that says so."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import status

CLASSES = status.CommandFailed._classes


def test_each_status_has_a_class_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(status).values()
        if isinstance(kind, type)
        and issubclass(kind, status.CommandFailed)
        and kind is not status.CommandFailed
    ]
    # Of two classes with one status the second would take the first one's place.
    assert sorted(CLASSES.values(), key=id) == sorted(kinds, key=id)
    names = {status.failure(number, "x").name for number in CLASSES}
    assert len(names) == len(CLASSES)


@pytest.mark.parametrize(("number", "kind"), sorted(CLASSES.items()))
def test_a_class(number: int, kind: type[status.CommandFailed]) -> None:
    error = status.failure(number, "read of 1 blocks")
    assert type(error) is kind
    assert isinstance(error, nvme.NvmeError)
    assert getattr(nvme, kind.__name__) is kind
    assert error.name
    assert str(error) == (
        f"read of 1 blocks: {error.name} (status {number >> 8:#x}/{number & 0xFF:#04x})"
    )


@given(st.integers(1, 0x7FFF).filter(lambda field: field & 0x7FF))
def test_any_status(field: int) -> None:
    error = status.failure(field, "a command")
    number = field & 0x7FF
    assert error.status == number
    assert type(error) is CLASSES.get(number, status.CommandFailed)
    assert error.retry == (field < 0x4000)
    assert f"{number >> 8:#x}/{number & 0xFF:#04x}" in str(error)
    assert isinstance(error, errors.Error)


@given(st.integers(1, 0x7FFF), st.text())
def test_an_error_reaches_another_process(field: int, command: str) -> None:
    error = status.failure(field, command)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.retry) == (str(error), error.retry)
