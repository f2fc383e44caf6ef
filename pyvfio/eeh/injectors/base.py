"""What every injector can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pyvfio.eeh.error import InjectedError
from pyvfio.eeh.pe import Pe
from pyvfio.pci import Function


class Injector(ABC):
    """A way to make an error happen in a PE.

    It says what it did and promises nothing: whether the PE froze is for the caller to see. One of
    your own is a subclass, offered by an entry point of the group ``pyvfio.eeh.injectors`` under
    the name that ``--injector`` takes.

    Attributes:
        by_holder: whether it asks VFIO, and so works only in the process that holds the device.
        default: the error it injects when not told which.
    """

    by_holder: ClassVar[bool] = False
    default: ClassVar[InjectedError] = InjectedError()

    @abstractmethod
    def refusal(self, function: Function) -> str | None:
        """Why it cannot work on this function of this host, in words; None where it may."""

    @abstractmethod
    def inject(self, function: Function, pe: Pe | None, error: InjectedError | None) -> str:
        """Make the error happen.

        Args:
            function: a function of the PE.
            pe: its PE, for whom who holds it; None for others.
            error: which error; None for the injector's :attr:`default`. One that knows a single
                error raises :class:`~pyvfio.errors.ArgumentError` for another.

        Returns:
            What it did, in words that begin like "wrote ...".

        Raises:
            Error: it could not.
        """
