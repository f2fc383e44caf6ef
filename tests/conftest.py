"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Emulated and shared machines are slow at times: how long an example takes says nothing.
settings.register_profile("pyvfio", deadline=None)
settings.load_profile("pyvfio")
