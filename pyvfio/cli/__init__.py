"""The `pyvfio` command: prints what the library knows, decides nothing itself."""

from __future__ import annotations

# As in pyvfio/__init__.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; None for this process's own, which ends with it:
            Ctrl-C then ends it with one line and status 130 at any instant.

    Returns:
        The exit status; see ``pyvfio --help``.
    """
    # All that takes time to import is imported in here.
    if arguments is None:
        try:
            from pyvfio.cli.process import run
        except KeyboardInterrupt:  # which that module would have handled
            return 130

        return run("pyvfio", _command)
    return _command(arguments)


def _command(arguments: Sequence[str] | None = None) -> int:
    from pyvfio.cli.command import run

    return run(arguments)
