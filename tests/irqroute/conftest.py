from __future__ import annotations

from collections.abc import Iterator

import pytest

from .rig import Guest, make_guest


@pytest.fixture(params=["routed", "direct"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Both mappings, one after the other."""
    guest = make_guest(request.param)
    yield guest
    guest.close()


@pytest.fixture
def routed() -> Iterator[Guest]:
    """The kernel's VM, with a table of routes."""
    guest = make_guest("routed")
    yield guest
    guest.close()


@pytest.fixture
def direct() -> Iterator[Guest]:
    """A modelled VM, whose GSIs are computed from messages."""
    guest = make_guest("direct")
    yield guest
    guest.close()
