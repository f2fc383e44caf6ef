"""From an MSI message to the GSI that an irqfd is bound to: two ways.

Where the irqchip has routes (x86, arm64 with an ITS) a GSI is any free number, and a table says
what it stands for. Where it has none (POWER's XICS and XIVE) the GSI *is* the interrupt source,
and the message says which: another message is another GSI.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from pyvfio import errors
from pyvfio.kvm import MsiMessage, Routes
from pyvfio.kvm.xics import LAST_SOURCE

_SOURCE_BITS_2016 = 0xFFFF


class GsiMapping(ABC):
    """How GSIs are had for messages."""

    @abstractmethod
    def add(self, messages: Iterable[MsiMessage]) -> list[int]:
        """A GSI for each message.

        Raises:
            RoutesExhausted, ArgumentError, KernelError: as :meth:`pyvfio.kvm.Routes.add`; then
                none was made.
        """

    @abstractmethod
    def update(self, gsi: int, message: MsiMessage) -> int:
        """A vector that has `gsi` has another message now.

        Returns:
            The GSI that it must have from now on; an irqfd of another one is to be moved.

        Raises:
            ArgumentError, KernelError: as :meth:`pyvfio.kvm.Routes.change`.
        """

    @abstractmethod
    def remove(self, gsis: Sequence[int]) -> None:
        """These GSIs are not used any more.

        Raises:
            KernelError: the kernel refused.
        """

    def forget(self, gsis: Sequence[int]) -> None:  # noqa: B027 (nothing to do by default)
        """As :meth:`remove`, without a call to the kernel, which learns of it some time."""

    def batch(self) -> AbstractContextManager[object]:
        """What is changed in the block is told to the kernel at once, or, if it fails, not."""
        return nullcontext()


class RoutedGsis(GsiMapping):
    """A free GSI for each vector, its message in the VM's table of routes."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def add(self, messages: Iterable[MsiMessage]) -> list[int]:
        return self._routes.add_many(messages)

    def update(self, gsi: int, message: MsiMessage) -> int:
        self._routes.change(gsi, message)
        return gsi

    def remove(self, gsis: Sequence[int]) -> None:
        try:
            self._routes.remove(*gsis)
        except errors.Error as error:
            self.forget(gsis)
            if not isinstance(error, errors.Closed):  # with a VM that is closed its routes went
                raise

    def forget(self, gsis: Sequence[int]) -> None:
        self._routes.remove(*gsis, lazily=True)

    def batch(self) -> AbstractContextManager[object]:
        return self._routes.batch()


class RoutedGsis2016(RoutedGsis):
    """The same in QEMU's order of 2016: an update may commit an unchanged table, and a route that
    is not used any more stays in the kernel until the next commit."""

    def __init__(self, routes: Routes, *, commit_unchanged: bool) -> None:
        """
        Args:
            commit_unchanged: every update commits (since 3f1fea0fb5).
        """
        super().__init__(routes)
        self._commit_unchanged = commit_unchanged

    def update(self, gsi: int, message: MsiMessage) -> int:
        if not self._routes.change(gsi, message) and self._commit_unchanged:
            self._routes.commit()
        return gsi

    def remove(self, gsis: Sequence[int]) -> None:
        self.forget(gsis)


def xics_source(message: MsiMessage) -> int:
    """The interrupt source that a message stands for on POWER: the number in its data.

    Raises:
        ArgumentError: there is no source of that number; KVM would accept it and drop what comes.
    """
    if message.data > LAST_SOURCE:
        raise errors.ArgumentError(
            f"a message's data is the number of an interrupt source, 0 to {LAST_SOURCE:#x}, "
            f"not {message.data:#x}"
        )
    return message.data


class DirectGsis(GsiMapping):
    """The GSI computed from the message, no table."""

    def __init__(self, source: Callable[[MsiMessage], int] = xics_source) -> None:
        """
        Args:
            source: from message to GSI.
        """
        self._source = source

    def add(self, messages: Iterable[MsiMessage]) -> list[int]:
        return list(map(self._source, messages))

    def update(self, gsi: int, message: MsiMessage) -> int:
        return self._source(message)

    def remove(self, gsis: Sequence[int]) -> None:
        """There is nothing to remove."""


class DirectGsis2016(DirectGsis):
    """The same, as QEMU had it: an update does nothing (``kvm_irqchip_update_msi_route`` returns at
    once under direct mapping), so a vector keeps the GSI of its first message. And of the data only
    the low 16 bits count (``kvm_arch_msi_data_to_gsi`` for ppc)."""

    def __init__(self) -> None:
        super().__init__(lambda message: message.data & _SOURCE_BITS_2016)

    def update(self, gsi: int, message: MsiMessage) -> int:
        return gsi
