"""The emulated hosts, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class PciDevice:
    """One emulated PCI device that a profile offers for tests.

    Attributes:
        name: What people call it.
        address: Where the guest's kernel finds it, domain:bus:device.function.
        description: One line for `tools/bench list`.
    """

    name: str
    address: str
    description: str


@dataclass(frozen=True)
class Addition:
    """What a profile has besides under newer versions of QEMU.

    Attributes:
        since: QEMU's first major version that has it.
        machine: QEMU arguments.
        devices: The PCI devices on offer, in order of address.
    """

    since: int
    machine: tuple[str, ...]
    devices: tuple[PciDevice, ...]


@dataclass(frozen=True)
class Profile:
    """One emulated host: everything about it that differs between architectures.

    Attributes:
        name: What `tools/bench run` takes.
        description: One line for `tools/bench list`.
        architecture: Debian's name of the guest's architecture.
        qemu: The QEMU program.
        qemu_package: The Debian package that brings it.
        machine: QEMU arguments for board, CPU, IOMMU and devices. `{scratch}` is a writable raw
            file of SCRATCH_BYTES, new in every run.
        tcg_cpu: QEMU arguments for the CPU under software emulation.
        kvm_cpu: The same under KVM; empty where KVM is not offered.
        channel_bus: QEMU properties that place the devices of the bench itself: virtio-serial,
            virtio-9p, and virtio-blk with the root file system.
        flavours: Debian's kernel flavours for this architecture, by their name for --kernel: the
            default's is "".
        kernel_arguments: The kernel's command line.
        modules: Kernel modules that go into the image (with all that they depend on), beside the
            bench's own.
        load: Those of them that init loads; drivers of devices present are loaded in any case.
        shell_tty: The guest's terminal for `tools/bench shell`.
        spare_port: QEMU's id of the root port left free for --qemu-args "-device X,bus=...".
        devices: The PCI devices on offer, in order of address.
        additions: What it has besides where QEMU is newer than 7.
    """

    name: str
    description: str
    architecture: str
    qemu: str
    qemu_package: str
    machine: tuple[str, ...]
    tcg_cpu: tuple[str, ...]
    kvm_cpu: tuple[str, ...]
    channel_bus: tuple[str, str, str]
    flavours: dict[str, str]
    kernel_arguments: str
    modules: tuple[str, ...]
    load: tuple[str, ...]
    shell_tty: str
    spare_port: str
    devices: tuple[PciDevice, ...]
    additions: tuple[Addition, ...] = ()

    def device(self, name: str) -> PciDevice:
        """Return the device of that name.

        Raises:
            StopIteration: There is none.
        """
        return next(device for device in self.devices if device.name == name)

    def with_qemu(self, version: int) -> Profile:
        """Return the profile as it is under a version of QEMU, given by its major number."""
        had = [addition for addition in self.additions if addition.since <= version]
        return replace(
            self,
            machine=(*self.machine, *(word for addition in had for word in addition.machine)),
            devices=(*self.devices, *(it for addition in had for it in addition.devices)),
            additions=(),
        )


SCRATCH_BYTES = 64 << 20

# After a hot reset Linux waits for a link of more than 5 GT/s to say that it is up (Data Link Layer
# Link Active), which no port of QEMU's does: VFIO_DEVICE_PCI_HOT_RESET would fail with ENOTTY.
_SLOW_PORTS = ("-global", "pcie-root-port.x-speed=5")


def _q35(iommu: str, *devices: str) -> tuple[str, ...]:
    """Build the QEMU arguments of an x86 host: what all have, then devices of its own."""
    return (
        # Interrupt remapping needs the I/O APIC outside KVM.
        *("-machine", "q35,kernel-irqchip=split"),
        *("-nodefaults", "-m", "3G", "-smp", "2"),
        *("-device", iommu),
        *("-device", "edu,addr=0x4"),
        *("-device", "pci-testdev,addr=0x5"),
        *("-drive", "file={scratch},if=none,id=scratch,format=raw,discard=unmap"),
        *("-netdev", "user,id=net,restrict=on"),
        *(word for device in devices for word in ("-device", device)),
    )


# Bus numbers are given by firmware in order of the root ports' device numbers; every device number
# is fixed here, so a device keeps its address whatever --qemu-args adds. Only a port at 0x13 takes
# bus 4 from the SR-IOV controller, which is on bus 5 then.
X86 = Profile(
    name="x86",
    description="Intel q35 with VT-d and interrupt remapping; KVM works inside",
    architecture="amd64",
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    machine=(
        *_SLOW_PORTS,
        *_q35(
            "intel-iommu,intremap=on",
            "pcie-root-port,id=nvme-port,chassis=1,slot=1,addr=0x10",
            "pcie-root-port,id=e1000e-port,chassis=2,slot=2,addr=0x11",
            "pcie-root-port,id=spare,chassis=3,slot=3,addr=0x12",
            "pcie-root-port,id=sriov-port,chassis=4,slot=4,addr=0x14",
            "nvme,drive=scratch,serial=pyvfio-bench,bus=nvme-port",
            "e1000e,netdev=net,bus=e1000e-port",
            "nvme-subsys,id=sriov-nvm",
            "nvme,serial=pyvfio-sriov,subsys=sriov-nvm,bus=sriov-port,max_ioqpairs=8,msix_qsize=8,"
            "sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2",
        ),
    ),
    # -cpu max under TCG has SVM with nested paging: KVM inside the guest runs guest code.
    tcg_cpu=("-accel", "tcg,thread=multi", "-cpu", "max"),
    kvm_cpu=("-accel", "kvm", "-cpu", "host"),
    channel_bus=("addr=0x1c", "addr=0x1d", "addr=0x1b"),
    flavours={"": "amd64"},
    kernel_arguments="console=ttyS0 quiet intel_iommu=on iommu=nopt panic=-1",
    modules=(
        *("vfio-pci", "vfio-iommu-type1", "kvm-amd", "kvm-intel"),
        *("nvme", "e1000e", "igb", "igbvf", "virtio-net", "virtio-blk", "virtio-rng"),
        *("aer_inject", "ext4", "loop"),
    ),
    load=("vfio-pci", "vfio-iommu-type1", "kvm-amd"),
    shell_tty="hvc0",
    spare_port="spare",
    devices=(
        PciDevice("edu", "0000:00:04.0", "QEMU's teaching device: factorial, DMA in 28 bits, MSI"),
        PciDevice("pci-testdev", "0000:00:05.0", "QEMU's test device: access widths"),
        PciDevice("nvme", "0000:01:00.0", "NVM Express controller, a 64 MiB disk, MSI-X"),
        PciDevice("e1000e", "0000:02:00.0", "Intel 82574L network card, MSI-X, reset"),
        PciDevice(
            "nvme-sriov",
            "0000:04:00.0",
            "NVM Express controller without a disk, SR-IOV with 2 functions, MSI-X",
        ),
    ),
    additions=(
        Addition(
            since=8,
            machine=(
                *("-device", "pcie-root-port,id=igb-port,chassis=5,slot=5,addr=0x15"),
                *("-netdev", "user,id=igb-net,restrict=on"),
                *("-device", "igb,netdev=igb-net,bus=igb-port"),
            ),
            devices=(
                PciDevice(
                    "igb",
                    "0000:05:00.0",
                    "Intel 82576 network card, SR-IOV with 7 functions, MSI-X, reset",
                ),
            ),
        ),
    ),
)

# All its devices are on the root bus: QEMU 7.2's AMD-Vi reads the number of a device's bus when the
# device is made, before the firmware assigns it, and so finds no table for one behind a root port.
X86_AMD = replace(
    X86,
    name="x86-amd",
    description="The same board with AMD-Vi; all devices on the root bus",
    machine=_q35(
        "amd-iommu,intremap=on",
        "nvme,drive=scratch,serial=pyvfio-bench,addr=0x6",
        "e1000e,netdev=net,addr=0x7",
    ),
    kernel_arguments="console=ttyS0 quiet iommu=nopt panic=-1",
    spare_port="pcie.0",
    devices=(
        *X86.devices[:2],
        replace(X86.devices[2], address="0000:00:06.0"),
        replace(X86.devices[3], address="0000:00:07.0"),
    ),
    additions=(),
)

# No firmware runs here: the kernel itself numbers the buses.
ARM64 = Profile(
    name="arm64",
    description="Arm virt with SMMUv3 and GICv3 with ITS; the kernel runs at EL2",
    architecture="arm64",
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    machine=(
        *("-machine", "virt,virtualization=on,gic-version=3,iommu=smmuv3"),
        *("-nodefaults", "-m", "3G", "-smp", "2"),
        *_SLOW_PORTS,
        *("-device", "edu,addr=0x4"),
        *("-device", "pci-testdev,addr=0x5"),
        *("-device", "pcie-root-port,id=nvme-port,chassis=1,slot=1,addr=0x10"),
        *("-device", "pcie-root-port,id=e1000e-port,chassis=2,slot=2,addr=0x11"),
        *("-device", "pcie-root-port,id=spare,chassis=3,slot=3,addr=0x12"),
        *("-drive", "file={scratch},if=none,id=scratch,format=raw,discard=unmap"),
        *("-device", "nvme,drive=scratch,serial=pyvfio-bench,bus=nvme-port"),
        *("-netdev", "user,id=net,restrict=on"),
        *("-device", "e1000e,netdev=net,bus=e1000e-port,romfile="),
    ),
    tcg_cpu=("-accel", "tcg,thread=multi", "-cpu", "max,pauth-impdef=on"),
    kvm_cpu=(),
    channel_bus=("addr=0x1c", "addr=0x1d", "addr=0x1b"),
    flavours={"": "arm64"},
    kernel_arguments="console=ttyAMA0 quiet panic=-1",
    modules=(
        *("vfio-pci", "vfio-iommu-type1"),
        *("nvme", "e1000e", "igb", "igbvf", "virtio-net", "virtio-blk", "virtio-rng"),
        *("aer_inject", "ext4", "loop"),
    ),
    load=("vfio-pci", "vfio-iommu-type1"),
    shell_tty="hvc0",
    spare_port="spare",
    devices=X86.devices[:4],
)

# What the two POWER hosts share. Without -nodefaults, which would take the PHBs away; their root
# ports are pcie.0, pcie.1 and so on, PCI domain 0 below the first. A bus is a PE, and so an IOMMU
# group, of its own, for edu's conventional PCI as well. edu has a neighbour there because it has no
# reset of its own: alone, it would have its bus reset whenever VFIO opens or closes it, which takes
# the firmware 5 s. No BIOS runs here that could use e1000e's boot ROM, which is in yet another
# package.
_POWERNV: dict[str, Any] = {
    "architecture": "ppc64el",
    "qemu": "qemu-system-ppc64",
    "qemu_package": "qemu-system-ppc",
    "tcg_cpu": ("-accel", "tcg,thread=multi"),
    "kvm_cpu": (),
    "flavours": {"": "powerpc64le", "64k": "powerpc64le-64k"},
    "kernel_arguments": "console=hvc0 quiet panic=-1",
    "modules": (
        *("vfio-pci", "vfio-iommu-spapr-tce", "kvm-hv"),
        *("nvme", "e1000e", "virtio-net", "virtio-blk", "virtio-rng", "ext4"),
    ),
    "load": ("vfio-pci", "vfio-iommu-spapr-tce", "kvm-hv"),
    "shell_tty": "hvc1",  # the firmware's console is hvc0
}
_POWERNV_MACHINE = (
    *("-m", "4G", "-smp", "2", "-nic", "none", "-vga", "none"),
    *("-drive", "file={scratch},if=none,id=scratch,format=raw,discard=unmap"),
    *("-netdev", "user,id=net,restrict=on"),
    *("-device", "e1000e,netdev=net,bus=pcie.0,romfile="),
)

POWER8 = Profile(
    name="power8",
    description="OpenPOWER with POWER8, three PHB3, OPAL; 4 KiB pages (64k: 64 KiB)",
    machine=(
        *("-M", "powernv8", *_POWERNV_MACHINE),
        # Three PHBs are too few for a device each; below a switch each port is a bus.
        *("-device", "x3130-upstream,id=switch,bus=pcie.1"),
        *("-device", "xio3130-downstream,id=nvme-port,bus=switch,chassis=1,slot=1,addr=0x1"),
        *("-device", "xio3130-downstream,id=edu-port,bus=switch,chassis=2,slot=2,addr=0x2"),
        *("-device", "xio3130-downstream,id=spare,bus=switch,chassis=3,slot=3,addr=0x3"),
        *("-device", "nvme,drive=scratch,serial=pyvfio-bench,bus=nvme-port"),
        *("-device", "edu,bus=edu-port,addr=0.0,multifunction=on"),
        *("-device", "pci-testdev,bus=edu-port,addr=0.1"),
    ),
    channel_bus=(
        "bus=pcie.2,addr=0.0,multifunction=on",
        "bus=pcie.2,addr=0.1",
        "bus=pcie.2,addr=0.2",
    ),
    spare_port="spare",
    devices=(
        PciDevice("e1000e", "0000:01:00.0", "Intel 82574L network card, MSI-X, reset"),
        PciDevice("nvme", "0001:03:00.0", "NVM Express controller, a 64 MiB disk, MSI-X"),
        PciDevice("edu", "0001:04:00.0", "QEMU's teaching device: factorial, DMA in 28 bits, MSI"),
        PciDevice(
            "pci-testdev", "0001:04:00.1", "QEMU's test device: access widths; in edu's group"
        ),
    ),
    **_POWERNV,
)

POWER9 = Profile(
    name="power9",
    description="OpenPOWER with POWER9, six PHB4, OPAL; 4 KiB pages (64k: 64 KiB)",
    machine=(
        *("-M", "powernv9", *_POWERNV_MACHINE),
        *("-device", "nvme,drive=scratch,serial=pyvfio-bench,bus=pcie.1"),
        *("-device", "edu,bus=pcie.2,addr=0.0,multifunction=on"),
        *("-device", "pci-testdev,bus=pcie.2,addr=0.1"),
    ),
    channel_bus=(
        "bus=pcie.4,addr=0.0,multifunction=on",
        "bus=pcie.4,addr=0.1",
        "bus=pcie.4,addr=0.2",
    ),
    spare_port="pcie.3",
    devices=(
        PciDevice("e1000e", "0000:01:00.0", "Intel 82574L network card, MSI-X, reset"),
        PciDevice("nvme", "0001:01:00.0", "NVM Express controller, a 64 MiB disk, MSI-X"),
        PciDevice("edu", "0002:01:00.0", "QEMU's teaching device: factorial, DMA in 28 bits, MSI"),
        PciDevice(
            "pci-testdev", "0002:01:00.1", "QEMU's test device: access widths; in edu's group"
        ),
    ),
    # Root may write the PHBs' registers: that is how guest/ioda.py freezes a PE.
    **_POWERNV | {"kernel_arguments": f"{_POWERNV['kernel_arguments']} iomem=relaxed"},
)

PROFILES = {profile.name: profile for profile in (X86, X86_AMD, ARM64, POWER8, POWER9)}
