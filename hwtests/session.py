"""The process in which tools/hwtest runs pytest; Ctrl-C ends it without a word."""

from __future__ import annotations

import sys

from pyvfio.cli import process


def main(arguments: list[str]) -> int:
    """Run pytest; returns the exit status."""
    import signal

    import pytest

    class Interruption:
        """Ends the session as always, without the lines that say where it was."""

        was = False

        @pytest.hookimpl(tryfirst=True)
        def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
            if not isinstance(excinfo.value, KeyboardInterrupt):
                return
            self.was = True
            # tools/hwtest says it, and sends it again where only it was told.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        def pytest_configure(self, config: pytest.Config) -> None:
            reporter = config.pluginmanager.getplugin("terminalreporter")
            if hasattr(reporter, "_report_keyboardinterrupt"):
                reporter._report_keyboardinterrupt = lambda: None

    interruption = Interruption()
    status = int(pytest.main(arguments, plugins=[interruption]))
    return process.INTERRUPTED if interruption.was else status


if __name__ == "__main__":
    sys.exit(process.run(None, lambda: main(sys.argv[1:])))
