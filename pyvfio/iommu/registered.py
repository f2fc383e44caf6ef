"""Which of this process's memory is registered with a container, for SPAPR TCE version 2.

The kernel pins and counts memory when it is registered, and maps only what is. It registers no
byte twice, and unregisters only what was registered as a whole, so memory that several mappings
overlap on is registered in pieces, each as long as a mapping needs it.

A refused unregistering leaves the piece registered. Nobody holds it then, and it is tried again.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress

from pyvfio import errors


class _Piece:
    """Addresses from `start` up to and not including `end`, and how many mappings need them."""

    __slots__ = ("end", "start", "users")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.users = 0


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
        self._refused: list[_Piece] = []  # those of them that the kernel would not unregister

    def hold(self, address: int, size: int) -> None:
        """Have memory registered until :meth:`release` with the same arguments.

        Raises:
            KernelError: `register` was refused; nothing is held.
        """
        self._retry_quietly()
        end = address + size
        first, last = self._overlap(address, end)
        known = self._pieces[first:last]
        made: list[_Piece] = []
        at = address
        with ExitStack() as undo:
            undo.callback(self._unregister_all, made)
            try:
                for piece in (*known, _Piece(end, end)):
                    if at < piece.start:
                        # Before it is: what interrupts the call (Ctrl-C) undoes it, maybe in vain.
                        made.append(_Piece(at, piece.start))
                        try:
                            self._register(at, piece.start - at)
                        except Exception:
                            made.pop()
                            raise
                    at = piece.end
            finally:
                pieces = sorted((*known, *made), key=lambda piece: piece.start)
                self._pieces[first:last] = pieces
            undo.pop_all()
        for piece in pieces:
            piece.users += 1
        self._refused = [piece for piece in self._refused if not piece.users]

    def release(self, address: int, size: int) -> None:
        """Unregister what nobody else holds.

        Raises:
            KernelError: `unregister` was refused; all else is done.
        """
        self._retry_quietly()
        # While it was held, no piece of it went and none could be added.
        first, last = self._overlap(address, address + size)
        pieces = self._pieces[first:last]
        for piece in pieces:
            piece.users -= 1
        self._unregister_all([piece for piece in pieces if not piece.users])

    def retry(self) -> None:
        """Unregister what was refused before.

        Raises:
            KernelError: `unregister` was refused again.
        """
        refused, self._refused = self._refused, []
        self._unregister_all(refused)

    def clear(self) -> None:
        """Unregister all of it, held or not.

        Raises:
            KernelError: `unregister` was refused; all else is done.
        """
        self._refused.clear()
        self._unregister_all(tuple(self._pieces))

    def _retry_quietly(self) -> None:
        # That it was refused was told when it was released.
        with suppress(errors.KernelError):
            self.retry()

    def _unregister_all(self, pieces: Iterable[_Piece]) -> None:
        with ExitStack() as steps:
            for piece in pieces:
                steps.callback(self._unregister_piece, piece)

    def _unregister_piece(self, piece: _Piece) -> None:
        try:
            self._unregister(piece.start, piece.end - piece.start)
        except BaseException as error:
            # ENOENT: it is not, since the call was interrupted before or after it.
            if not (isinstance(error, errors.KernelError) and error.errno == errno.ENOENT):
                self._refused.append(piece)
                raise
        del self._pieces[bisect_left(self._pieces, piece.start, key=lambda piece: piece.start)]

    def _overlap(self, start: int, end: int) -> tuple[int, int]:
        """The slice of pieces that share a byte with these addresses."""
        first = bisect_right(self._pieces, start, key=lambda piece: piece.end)
        return first, bisect_left(self._pieces, end, lo=first, key=lambda piece: piece.start)
