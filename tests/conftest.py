"""Settings of the whole suite."""

from __future__ import annotations

import signal

from hypothesis import settings

# Emulated and shared machines are slow at times: how long an example takes says nothing.
settings.register_profile("pyvfio", deadline=None)
settings.load_profile("pyvfio")

# A run in the background of a script has Ctrl-C ignored, and tests of Ctrl-C would wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)
