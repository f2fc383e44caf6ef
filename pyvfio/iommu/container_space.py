"""Address spaces made of a container and groups."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.signals import deferred_signals
from pyvfio.iommu.container import Container
from pyvfio.iommu.group import Group
from pyvfio.iommu.space import AddressSpace
from pyvfio.pci import Function, check_openable


class ContainerSpace(AddressSpace):
    """An address space whose kernel side is a container that groups are put into.

    Devices of one group share its file; it is opened for the first and closed after the last.

    Attributes:
        container: the container.
    """

    def __init__(self, container: Container | None = None) -> None:
        """Make one.

        Args:
            container: an open container to use, closed with the space; what it already maps stays
                unknown to the space. None opens one.
        """
        super().__init__()
        self.container = Container.open() if container is None else container
        self._groups: dict[int, Group] = {}
        self._devices: dict[File, Group] = {}

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups in it."""
        return tuple(self._groups.values())

    @property
    def closed(self) -> bool:
        return self.container.file.closed

    def open_device(self, function: Function) -> File:
        with deferred_signals() as section, self._lock:
            self._refuse_closed()
            name = str(function.address)
            wanted = check_openable(function)
            group = self._groups.get(wanted.id)
            if any(file.path == name and its is group for file, its in self._devices.items()):
                raise errors.StateError(
                    f"{name} is open in this address space already: use that one, or close it first"
                )
            if group is None:
                group = Group.open(wanted.id)
                section.undo(group.close)
                self.attach(group)
                section.undo(self._detach, group)
            file = group.open_device(name)
            section.undo(file.close)
            self._devices[file] = group
            section.undo(self._devices.pop, file, None)
            return file

    def close_device(self, file: File) -> None:
        with deferred_signals(), self._lock, ExitStack() as steps:
            group = self._devices.pop(file, None)
            self._stops.pop(file, None)
            leaves = group is not None and group not in self._devices.values()
            if group is not None and leaves:
                steps.callback(self._detach, group)
            steps.callback(file.close)
            # Before its file: a host that is waiting to take the device away frees the container's
            # IOMMU as soon as that is closed, also under a request that is using it (Linux 6.12).
            if leaves and len(self._groups) == 1 and self._info is not None:
                steps.callback(self._unmap_all)

    def attach(self, group: Group, *, joined: bool = False) -> None:
        """Put an open group into the space; for groups that the caller opened.

        The space closes it after the last of its devices, or when the space is closed. A group
        that cannot join stays the caller's to close.

        Args:
            group: an open group.
            joined: whether it is in the space's container already. The kernel does not tell in
                which one a group is.

        Raises:
            GroupNotViable, NoInterruptRemapping, KernelError: it cannot join.
            Closed: the space was closed.
        """
        with deferred_signals() as section, self._lock:
            self._refuse_closed()
            if group.id in self._groups:
                raise errors.StateError(f"group {group.id} is in this address space already")
            if not joined:
                group.set_container(self.container)
            self._groups[group.id] = group
            section.undo(self._leave_out, group)
            try:
                if self._ask() is None:
                    self._set_iommu()
            except errors.KernelError as error:
                raise group.refusal(error) from None
            self._refresh()

    def _leave_out(self, group: Group) -> None:
        """A group that was being put in is not in."""
        del self._groups[group.id]
        if not self._groups:
            self._forget()

    def _detach(self, group: Group) -> None:
        """Take a group out. Closing its file does that, unless its device counts as open still: so
        mappings are undone first."""
        with deferred_signals(), ExitStack() as steps:
            del self._groups[group.id]
            if self._groups and not self.closed:
                steps.callback(self._refresh)
            steps.callback(group.close)
            if not self._groups and self._info is not None:
                self._unmap_all()

    def _close_devices(self) -> None:
        with ExitStack() as steps:
            for file in self._devices:
                steps.callback(file.close)
            self._devices = {}

    def _close(self) -> None:
        with ExitStack() as steps:
            steps.callback(self.container.close)
            for group in self._groups.values():
                steps.callback(group.close)
            self._groups = {}

    @abstractmethod
    def _set_iommu(self) -> None:
        """Choose the container's IOMMU interface; its first group is in."""
