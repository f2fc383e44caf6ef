"""The emulated hosts, as data."""

from __future__ import annotations

from dataclasses import dataclass


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
        channel_bus: QEMU properties that place the two devices through which bench and guest talk:
            virtio-serial, then virtio-9p.
        kernel_package: Debian's kernel for this architecture.
        kernel_arguments: The kernel's command line.
        modules: Kernel modules that go into the image (with all that they depend on), beside the
            bench's own.
        load: Those of them that init loads; drivers of devices present are loaded in any case.
        shell_tty: The guest's terminal for `tools/bench shell`.
        spare_port: QEMU's id of the root port left free for --qemu-args "-device X,bus=...".
        devices: The PCI devices on offer, in order of address.
    """

    name: str
    description: str
    architecture: str
    qemu: str
    qemu_package: str
    machine: tuple[str, ...]
    tcg_cpu: tuple[str, ...]
    kvm_cpu: tuple[str, ...]
    channel_bus: tuple[str, str]
    kernel_package: str
    kernel_arguments: str
    modules: tuple[str, ...]
    load: tuple[str, ...]
    shell_tty: str
    spare_port: str
    devices: tuple[PciDevice, ...]


SCRATCH_BYTES = 64 << 20

# Bus numbers are given by firmware in order of the root ports' device numbers; every device number
# is fixed here, so a device keeps its address whatever --qemu-args adds.
X86 = Profile(
    name="x86",
    description="Intel q35 with VT-d and interrupt remapping; KVM works inside",
    architecture="amd64",
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    machine=(
        # VT-d's interrupt remapping needs the I/O APIC outside KVM.
        *("-machine", "q35,kernel-irqchip=split"),
        *("-nodefaults", "-m", "3G", "-smp", "2"),
        *("-device", "intel-iommu,intremap=on"),
        *("-device", "edu,addr=0x4"),
        *("-device", "pci-testdev,addr=0x5"),
        *("-device", "pcie-root-port,id=nvme-port,chassis=1,slot=1,addr=0x10"),
        *("-device", "pcie-root-port,id=e1000e-port,chassis=2,slot=2,addr=0x11"),
        *("-device", "pcie-root-port,id=spare,chassis=3,slot=3,addr=0x12"),
        *("-drive", "file={scratch},if=none,id=scratch,format=raw"),
        *("-device", "nvme,drive=scratch,serial=pyvfio-bench,bus=nvme-port"),
        *("-netdev", "user,id=net,restrict=on"),
        *("-device", "e1000e,netdev=net,bus=e1000e-port"),
    ),
    # -cpu max under TCG has SVM with nested paging: KVM inside the guest runs guest code.
    tcg_cpu=("-accel", "tcg,thread=multi", "-cpu", "max"),
    kvm_cpu=("-accel", "kvm", "-cpu", "host"),
    channel_bus=("addr=0x1c", "addr=0x1d"),
    kernel_package="linux-image-amd64",
    kernel_arguments="console=ttyS0 quiet intel_iommu=on iommu=nopt panic=-1",
    modules=(
        *("vfio-pci", "vfio-iommu-type1", "kvm-amd", "kvm-intel"),
        *("nvme", "e1000e", "igb", "igbvf", "virtio-net", "virtio-blk", "virtio-rng"),
        *("aer_inject", "ext4"),
    ),
    load=("vfio-pci", "vfio-iommu-type1", "kvm-amd"),
    shell_tty="hvc0",
    spare_port="spare",
    devices=(
        PciDevice("edu", "0000:00:04.0", "QEMU's teaching device: factorial, DMA in 28 bits, MSI"),
        PciDevice("pci-testdev", "0000:00:05.0", "QEMU's test device: access widths"),
        PciDevice("nvme", "0000:01:00.0", "NVM Express controller, a 64 MiB disk, MSI-X"),
        PciDevice("e1000e", "0000:02:00.0", "Intel 82574L network card, MSI-X, reset"),
    ),
)

PROFILES = {profile.name: profile for profile in (X86,)}
