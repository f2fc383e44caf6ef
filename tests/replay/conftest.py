from __future__ import annotations

import pytest

from pyvfio import errors, kvm


@pytest.fixture
def real_kvm() -> None:
    """Skips where there is no /dev/kvm."""
    try:
        kvm.System().close()
    except errors.Error as error:
        pytest.skip(str(error))
