"""``VFIO_EEH_PE_OP``: the one request behind all that a PE's holder can do.

Documentation/driver-api/vfio.rst tells what each operation is for; what the kernel makes of it is
in eeh_pe_set_option(), eeh_pe_get_state() and eeh_pe_reset() of its arch/powerpc/kernel/eeh.c.
"""

from __future__ import annotations

import ctypes
import errno

from pyvfio import errors
from pyvfio.abi import vfio
from pyvfio.eeh.error import InjectedError
from pyvfio.iommu import ContainerSpace


def check_one_group(space: ContainerSpace) -> None:
    """Check that a PE can be driven through an address space.

    Raises:
        StateError: it holds several groups.
    """
    groups = space.groups
    if len(groups) > 1:
        # For the kernel one call goes to each group in turn, up to the first that returns not 0.
        raise errors.StateError(
            f"groups {', '.join(str(group.id) for group in groups)} are in one address space, "
            "and EEH works on one PE: open each device in an address space of its own"
        )


def operate(
    space: ContainerSpace, who: object, operation: int, error: InjectedError | None = None
) -> int:
    """Ask for an operation on the PE of the one group in an address space.

    Args:
        space: the address space.
        who: whose PE it is, for messages.
        operation: ``VFIO_EEH_PE_...``.
        error: for ``VFIO_EEH_PE_INJECT_ERR``.

    Returns:
        The request's own result: the state, for ``VFIO_EEH_PE_GET_STATE``.

    Raises:
        StateError: a second group is in the container; the kernel is not asked.
        Unsupported: the device has no PE.
        KernelError: the kernel refused.
    """
    check_one_group(space)
    argument = vfio.vfio_eeh_pe_op(argsz=ctypes.sizeof(vfio.vfio_eeh_pe_op), op=operation)
    if error is not None:
        argument.err = error.argument
    try:
        return space.container.file.ioctl(vfio.VFIO_EEH_PE_OP, argument)
    except errors.KernelError as refusal:
        if refusal.errno == errno.ENODEV:
            raise errors.Unsupported(
                f"{who} has no PE: the kernel did not set up EEH for it"
            ) from None
        name, meaning = _NAMES[operation], _MEANINGS.get(refusal.errno or 0)
        raise refusal.from_call(refusal, f"{name}: {meaning}" if meaning else name) from None


_NAMES = {
    getattr(vfio, name): name
    for name in (
        "VFIO_EEH_PE_DISABLE",
        "VFIO_EEH_PE_ENABLE",
        "VFIO_EEH_PE_UNFREEZE_IO",
        "VFIO_EEH_PE_UNFREEZE_DMA",
        "VFIO_EEH_PE_GET_STATE",
        "VFIO_EEH_PE_RESET_DEACTIVATE",
        "VFIO_EEH_PE_RESET_HOT",
        "VFIO_EEH_PE_RESET_FUNDAMENTAL",
        "VFIO_EEH_PE_CONFIGURE",
        "VFIO_EEH_PE_INJECT_ERR",
    )
}
_MEANINGS = {
    errno.EIO: "the firmware refused, or it did not come to pass",
    errno.EINVAL: "the kernel knows no such operation or error",
    errno.ERANGE: "this platform cannot inject that error",
    errno.ENOENT: "this platform cannot do it",
    errno.EPERM: "the platform does not allow it",
}
