"""What a controller may answer instead of success, as exceptions (Base 2.0, section 3.3.3.2).

Each has the specification's name as the first line of its documentation. What has no class of its
own here is a plain :class:`CommandFailed`.
"""

from __future__ import annotations

from typing import ClassVar

from pyvfio import errors


class NvmeError(errors.Error):
    """Root of what the NVMe driver itself raises."""


class CommandFailed(NvmeError):
    """The controller did not do a command.

    Attributes:
        status: status code type << 8 | status code.
        command: what was asked, for people.
        retry: whether the same command may succeed later (DNR is clear).
    """

    _classes: ClassVar[dict[int, type[CommandFailed]]] = {}

    def __init_subclass__(cls, *, status: int) -> None:
        CommandFailed._classes[status] = cls

    def __init__(self, status: int, command: str, *, retry: bool = False) -> None:
        super().__init__(status, command)  # from which a copy is made
        self.status = status
        self.command = command
        self.retry = retry

    @property
    def name(self) -> str:
        """The status as the specification calls it."""
        if type(self) is CommandFailed:
            return f"status {self.status >> 8:#x}/{self.status & 0xFF:#04x}"
        return (type(self).__doc__ or "").split("\n")[0].rstrip(".")

    def __str__(self) -> str:
        return (
            f"{self.command}: {self.name} (status {self.status >> 8:#x}/{self.status & 0xFF:#04x})"
        )


def failure(field: int, command: str) -> CommandFailed:
    """The exception for a status field that is not success.

    Args:
        field: the completion's status, without the phase tag: 15 bits.
        command: what was asked, for people.
    """
    status = field & 0x7FF
    kind = CommandFailed._classes.get(status, CommandFailed)
    return kind(status, command, retry=not field >> 14 & 1)


# Generic command status.


class InvalidOpcode(CommandFailed, status=0x001):
    """Invalid Command Opcode."""


class InvalidField(CommandFailed, status=0x002):
    """Invalid Field in Command."""


class CommandIdConflict(CommandFailed, status=0x003):
    """Command ID Conflict."""


class DataTransferError(CommandFailed, status=0x004):
    """Data Transfer Error."""


class PowerLossAbort(CommandFailed, status=0x005):
    """Commands Aborted due to Power Loss Notification."""


class InternalError(CommandFailed, status=0x006):
    """Internal Error."""


class AbortRequested(CommandFailed, status=0x007):
    """Command Abort Requested."""


class QueueDeleted(CommandFailed, status=0x008):
    """Command Aborted due to SQ Deletion."""


class InvalidNamespace(CommandFailed, status=0x00B):
    """Invalid Namespace or Format."""


class SequenceError(CommandFailed, status=0x00C):
    """Command Sequence Error."""


class InvalidPrpOffset(CommandFailed, status=0x013):
    """PRP Offset Invalid."""


class OperationDenied(CommandFailed, status=0x015):
    """Operation Denied."""


class SanitizeFailed(CommandFailed, status=0x01C):
    """Sanitize Failed."""


class SanitizeInProgress(CommandFailed, status=0x01D):
    """Sanitize In Progress."""


class NamespaceWriteProtected(CommandFailed, status=0x020):
    """Namespace is Write Protected."""


class CommandInterrupted(CommandFailed, status=0x021):
    """Command Interrupted."""


class TransientTransportError(CommandFailed, status=0x022):
    """Transient Transport Error."""


class LbaOutOfRange(CommandFailed, status=0x080):
    """LBA Out of Range."""


class CapacityExceeded(CommandFailed, status=0x081):
    """Capacity Exceeded."""


class NamespaceNotReady(CommandFailed, status=0x082):
    """Namespace Not Ready."""


class ReservationConflict(CommandFailed, status=0x083):
    """Reservation Conflict."""


class FormatInProgress(CommandFailed, status=0x084):
    """Format In Progress."""


# Command specific status.


class InvalidCompletionQueue(CommandFailed, status=0x100):
    """Completion Queue Invalid."""


class InvalidQueueIdentifier(CommandFailed, status=0x101):
    """Invalid Queue Identifier."""


class InvalidQueueSize(CommandFailed, status=0x102):
    """Invalid Queue Size."""


class AbortLimitExceeded(CommandFailed, status=0x103):
    """Abort Command Limit Exceeded."""


class AsyncEventLimitExceeded(CommandFailed, status=0x105):
    """Asynchronous Event Request Limit Exceeded."""


class InvalidInterruptVector(CommandFailed, status=0x108):
    """Invalid Interrupt Vector."""


class InvalidLogPage(CommandFailed, status=0x109):
    """Invalid Log Page."""


class InvalidFormat(CommandFailed, status=0x10A):
    """Invalid Format."""


class InvalidQueueDeletion(CommandFailed, status=0x10C):
    """Invalid Queue Deletion."""


class FeatureNotSaveable(CommandFailed, status=0x10D):
    """Feature Identifier Not Saveable."""


class FeatureNotChangeable(CommandFailed, status=0x10E):
    """Feature Not Changeable."""


class FeatureNotNamespaceSpecific(CommandFailed, status=0x10F):
    """Feature Not Namespace Specific."""


class NamespaceNotAttached(CommandFailed, status=0x11A):
    """Namespace Not Attached."""


class ConflictingAttributes(CommandFailed, status=0x180):
    """Conflicting Attributes."""


class InvalidProtectionInformation(CommandFailed, status=0x181):
    """Invalid Protection Information."""


class WriteToReadOnlyRange(CommandFailed, status=0x182):
    """Attempted Write to Read Only Range."""


class CommandSizeLimitExceeded(CommandFailed, status=0x183):
    """Command Size Limit Exceeded."""


# Media and data integrity.


class WriteFault(CommandFailed, status=0x280):
    """Write Fault."""


class UnrecoveredReadError(CommandFailed, status=0x281):
    """Unrecovered Read Error."""


class GuardCheckFailed(CommandFailed, status=0x282):
    """End-to-end Guard Check Error."""


class ApplicationTagCheckFailed(CommandFailed, status=0x283):
    """End-to-end Application Tag Check Error."""


class ReferenceTagCheckFailed(CommandFailed, status=0x284):
    """End-to-end Reference Tag Check Error."""


class CompareFailed(CommandFailed, status=0x285):
    """Compare Failure."""


class AccessToMediaDenied(CommandFailed, status=0x286):
    """Access Denied."""


class UnwrittenBlock(CommandFailed, status=0x287):
    """Deallocated or Unwritten Logical Block."""


# What the driver finds out by itself.


class CommandTimedOut(NvmeError):
    """A command took too long; it was aborted, or ended by a reset of the controller."""


class ControllerReset(NvmeError):
    """The controller was reset while the command was under way: whether it was done is unknown."""


class ControllerFatal(ControllerReset):
    """The controller reported a fatal status (CSTS.CFS), and was reset."""


class ControllerFailed(NvmeError):
    """The controller does not come up, or did not come back after a reset."""
