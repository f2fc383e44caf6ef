"""Which of this process's memory is registered with a container, for SPAPR TCE version 2.

The kernel pins and counts memory when it is registered, and maps only what is. It registers no
byte twice, and unregisters only what was registered as a whole, so memory that several mappings
overlap on is registered in pieces, each as long as a mapping needs it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass


@dataclass
class _Piece:
    """Addresses from `start` up to and not including `end`, and how many mappings need them."""

    start: int
    end: int
    users: int = 0


class RegisteredMemory:
    """The pieces; no two overlap. Sizes and addresses are bytes, whole pages."""

    def __init__(
        self, register: Callable[[int, int], None], unregister: Callable[[int, int], None]
    ) -> None:
        """Begin with none.

        Args:
            register: has the kernel register (address, size).
            unregister: has the kernel undo it.
        """
        self._register = register
        self._unregister = unregister
        self._pieces: list[_Piece] = []

    def hold(self, address: int, size: int) -> None:
        """Have memory registered until :meth:`release` with the same arguments.

        Raises:
            KernelError: `register` was refused; nothing has changed.
        """
        end = address + size
        first, last = self._overlap(address, end)
        pieces: list[_Piece] = []
        at = address
        with ExitStack() as undo:
            for known in (*self._pieces[first:last], _Piece(end, end)):
                if at < known.start:
                    self._register(at, known.start - at)
                    undo.callback(self._unregister, at, known.start - at)
                    pieces.append(_Piece(at, known.start))
                if known.start < known.end:
                    pieces.append(known)
                at = known.end
            undo.pop_all()
        for piece in pieces:
            piece.users += 1
        self._pieces[first:last] = pieces

    def release(self, address: int, size: int) -> None:
        """Unregister what nobody else holds.

        Raises:
            KernelError: `unregister` was refused; all else is done.
        """
        # While it was held, no piece of it went and none could be added.
        first, last = self._overlap(address, address + size)
        kept = []
        with ExitStack() as steps:
            for piece in self._pieces[first:last]:
                piece.users -= 1
                if piece.users:
                    kept.append(piece)
                else:
                    steps.callback(self._unregister, piece.start, piece.end - piece.start)
            self._pieces[first:last] = kept

    def forget(self) -> None:
        """Nothing is registered any more; the kernel is not asked."""
        self._pieces.clear()

    def _overlap(self, start: int, end: int) -> tuple[int, int]:
        """The slice of pieces that share a byte with these addresses."""
        first = bisect_right(self._pieces, start, key=lambda piece: piece.end)
        return first, bisect_left(self._pieces, end, lo=first, key=lambda piece: piece.start)
