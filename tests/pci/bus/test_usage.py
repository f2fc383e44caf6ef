"""What the host uses a function for."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyvfio._sys import calls
from pyvfio.pci import functions, paths, users
from pyvfio.pci.usage import netlink, vfio_holders

from .others import number
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")


def mount(tree: Tree, *lines: str) -> None:
    tree.write(tree.proc / "self/mountinfo", "".join(f"{line}\n" for line in lines))


def test_an_idle_function(tree: Tree) -> None:
    function = tree.function(driver="nvme")
    tree.child(function, "block", "nvme/nvme0/nvme0n1", dev="259:0")
    tree.child(function, "net", "net/eth7", flags="0x1003", ifindex="99999")
    assert users(function) == ()


def test_mounted_disk_and_partition(tree: Tree) -> None:
    function = tree.function(driver="nvme")
    tree.child(function, "block", "nvme/nvme0/nvme0n1", dev="259:0")
    tree.child(function, "block", "nvme/nvme0/nvme0n1/nvme0n1p1", dev="259:1", partition="1")
    tree.child(function, "block", "nvme/nvme0/nvme0n2", dev="259:7")
    mount(
        tree,
        "28 1 259:1 / /mnt/my\\040disk rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw",
        "29 1 259:7 / /srv rw - xfs /dev/nvme0n2 rw",
        "30 1 8:0 / /other rw - xfs /dev/sda rw",
    )
    assert users(function) == (
        "disk nvme0n1 partition 1 is mounted on /mnt/my disk",
        "disk nvme0n2 is mounted on /srv",
    )


def test_a_file_system_with_a_number_of_its_own(tree: Tree) -> None:
    # Any block device's node will do for the source; the root disk's is surely there.
    nodes = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not nodes:
        pytest.skip("this machine has no block device")
    number = nodes[0].stat().st_rdev
    function = tree.function(driver="ahci")
    tree.child(function, "block", "host0/sda", dev=f"{os.major(number)}:{os.minor(number)}")
    mount(tree, f"28 1 0:33 / /data rw - btrfs {nodes[0]} rw")
    assert users(function) == ("disk sda is mounted on /data",)


def test_a_member_of_a_btrfs(tree: Tree) -> None:
    function = tree.function(driver="ahci")
    tree.child(function, "block", "host0/sda", dev="8:0")
    (tree.sys / "fs/btrfs/5ca1ab1e/devices/sda").mkdir(parents=True)
    assert users(function) == ("disk sda is part of the mounted btrfs 5ca1ab1e",)


def test_what_is_built_on_a_disk(tree: Tree) -> None:
    function = tree.function(driver="ahci")
    disk = tree.child(function, "block", "host0/sda", dev="8:0")
    part = tree.child(function, "block", "host0/sda/sda2", dev="8:2", partition="2")
    array = tree.device("block", tree.sys / "devices/virtual/block/md0", dev="9:0")
    volume = tree.device("block", tree.sys / "devices/virtual/block/dm-0", dev="253:0")
    tree.write(volume / "dm/name", "vg-root\n")
    (part / "holders").mkdir()
    (part / "holders/md0").symlink_to(array)
    (array / "holders").mkdir()
    (array / "holders/dm-0").symlink_to(volume)
    (disk / "holders").mkdir()
    assert users(function) == (
        "disk sda partition 2 is part of md0, which is part of dm-0 (vg-root)",
    )
    mount(tree, "28 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw")
    assert users(function) == (
        "disk sda partition 2 is part of md0, which is part of dm-0 (vg-root), "
        "which is mounted on /",
    )


def test_swap(tree: Tree) -> None:
    nodes = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not nodes:
        pytest.skip("this machine has no block device")
    number = nodes[0].stat().st_rdev
    function = tree.function(driver="ahci")
    tree.child(function, "block", "host0/sda", dev=f"{os.major(number)}:{os.minor(number)}")
    tree.write(
        tree.proc / "swaps",
        "Filename\tType\tSize\tUsed\tPriority\n" + f"{nodes[0]} partition 1048572 0 -2\n",
    )
    assert users(function) == ("disk sda is swap space",)


def test_a_disk_claimed_by_somebody_unknown(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    function = tree.function(driver="ahci")
    tree.child(function, "block", "host0/sda", dev="8:0")
    tree.child(function, "block", "host0/cciss!c0d0", dev="104:0")
    tree.write(tree.dev / "sda", "")
    tree.write(tree.dev / "cciss/c0d0", "")
    asked = []

    def busy(path: str, flags: int) -> int:
        if str(path).startswith(str(tree.dev)):
            asked.append(path)
            assert flags & os.O_EXCL
            raise OSError(16, "Device or resource busy")
        return os.open(path, flags)

    monkeypatch.setattr(calls, "open", busy)
    assert len(users(function)) == 2
    assert all("claimed by the kernel or a program" in user for user in users(function))
    assert set(asked) == {f"{tree.dev}/sda", f"{tree.dev}/cciss/c0d0"}


def test_a_multipath_nvme_disk(tree: Tree) -> None:
    function = tree.function(driver="nvme")
    controller = tree.child(function, "nvme", "nvme/nvme0", cntlid="0")
    tree.child(function, "block", "nvme/nvme0/nvme0c0n1", hidden="1")
    subsystem = tree.device("nvme-subsystem", tree.sys / "devices/virtual/nvme-subsystem/nvme-sub0")
    subsystem.mkdir(parents=True)
    (subsystem / "nvme0").symlink_to(controller)
    tree.device("block", subsystem / "nvme0n1", dev="259:0")
    mount(tree, "28 1 259:0 / /mnt rw - ext4 /dev/nvme0n1 rw")
    assert users(function) == ("disk nvme0n1 is mounted on /mnt",)
    assert users(tree.function("0000:02:00.0", driver="nvme")) == ()


@pytest.mark.parametrize("broken", ["", "x", "1 2 3 4 5 - ext4", "1 2 - ext4 /dev/sda rw", "\x85"])
def test_a_line_of_mountinfo_that_makes_no_sense_is_skipped(tree: Tree, broken: str) -> None:
    function = tree.function(driver="nvme")
    tree.child(function, "block", "nvme/nvme0/nvme0n1", dev="259:0")
    mount(tree, broken, "28 1 259:0 / /mnt/a\u2028b rw - ext4 /dev/nvme0n1 rw", broken)
    assert users(function) == ("disk nvme0n1 is mounted on /mnt/a\u2028b",)


def test_the_last_of_very_many_mounts_counts(tree: Tree) -> None:
    function = tree.function(driver="nvme")
    tree.child(function, "block", "nvme/nvme0/nvme0n1", dev="259:0")
    others = [f"{n} 1 0:{n} / /mnt/{n} rw - tmpfs tmpfs rw,size={'1' * 50}" for n in range(2000)]
    mount(tree, *others, "28 1 259:0 / /last rw - ext4 /dev/nvme0n1 rw")
    assert (tree.proc / "self/mountinfo").stat().st_size > 180 << 10
    assert users(function) == ("disk nvme0n1 is mounted on /last",)


def test_a_share(tree: Tree) -> None:
    function = tree.function(driver="virtio-pci")
    tree.write(function.sysfs / "virtio3/mount_tag", "checkout\0")
    mount(tree, "28 1 0:40 / /srv/checkout rw - 9p checkout rw")
    assert users(function) == ("share checkout is mounted on /srv/checkout",)


def test_network_interface(tree: Tree) -> None:
    # The index of this machine's loopback interface, which has 127.0.0.1 when it is up.
    index = socket.if_nametoindex("lo")
    addresses = netlink.addresses().get(index, [])
    if not addresses:
        pytest.skip("the loopback interface is not up")
    assert "127.0.0.1/8" in addresses
    function = tree.function(driver="e1000e")
    eth0 = tree.child(function, "net", "net/eth0", flags="0x1003", ifindex=str(index))
    assert users(function) == (f"network interface eth0 is up with {', '.join(addresses)}",)
    (eth0 / "flags").write_text("0x1002\n")
    assert users(function) == ()


def address_message(family: int, *attributes: tuple[int, bytes]) -> bytes:
    """An RTM_NEWADDR for interface 2, prefix length 8."""
    body = struct.pack("=BBBBI", family, 8, 0, 0, 2)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    return body


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (address_message(socket.AF_INET, (1, b"\x0a\0\0\2"), (2, b"\x0a\0\0\1")), "10.0.0.1/8"),
        (address_message(socket.AF_INET6, (1, b"\0" * 15 + b"\1")), "::1/8"),
        (address_message(45, (2, b"\x08")), "an address of family 45"),  # MCTP
        (address_message(socket.AF_INET), "an address"),
        (address_message(socket.AF_INET6, (1, b"\1")), "an address"),
    ],
    ids=["v4", "v6", "another family", "none", "cut off"],
)
def test_an_address_of_any_family_is_named(message: bytes, said: str) -> None:
    assert netlink.parse_address(message) == (2, said)


def test_a_port_of_a_bridge(tree: Tree) -> None:
    function = tree.function(driver="e1000e")
    eth0 = tree.child(function, "net", "net/eth0", flags="0x1003", ifindex="99999")
    (eth0 / "upper_br0").mkdir()
    assert users(function) == ("network interface eth0 is up as part of br0",)


def test_addresses_are_those_the_kernel_lists() -> None:
    found = netlink.addresses()
    listed: dict[int, set[str]] = {}
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        raw, index, prefix, *_ = line.split()
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw))
        listed.setdefault(int(index, 16), set()).add(f"{address}/{int(prefix, 16)}")
    six = {index: {text for text in texts if ":" in text} for index, texts in found.items()}
    assert {index: texts for index, texts in six.items() if texts} == listed


def test_boot_display(tree: Tree) -> None:
    assert users(tree.function(boot_vga="1")) == ("it is the boot display",)
    assert users(tree.function("0000:02:00.0", boot_vga="0")) == ()


def test_framebuffer_console(tree: Tree) -> None:
    function = tree.function(driver="ast")
    tree.child(function, "graphics", "graphics/fb0", name="astdrmfb")
    console = tree.device(
        "vtconsole", tree.sys / "devices/virtual/vtconsole/vtcon1", name="(M) frame buffer device"
    )
    (console / "bind").write_text("0\n")
    assert users(function) == ()
    (console / "bind").write_text("1\n")
    assert users(function) == ("framebuffer fb0 may show the text console",)


INPUT_DEVICES = """\
I: Bus=0003 Vendor=046d Product=c31c Version=0110
N: Name="Logi\x1b[2J Keyboard"
P: Phys=usb-0000:01:00.0-1/input0
S: Sysfs=/devices/pci0000:00/0000:01:00.0/usb1/1-1/1-1:1.0/input/input3
U: Uniq=
H: Handlers=sysrq kbd event3 leds
B: PROP=0
B: EV=120013
B: KEY=1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe

I: Bus=0003 Vendor=046d Product=0825 Version=0012
N: Name="UVC Camera"
S: Sysfs=/devices/pci0000:00/0000:01:00.0/usb1/1-2/1-2:1.0/input/input4
H: Handlers=kbd event4
B: EV=3
B: KEY=100000 0 0 0

I: Bus=0011 Vendor=0001 Product=0001 Version=ab41
N: Name="AT Translated Set 2 keyboard"
S: Sysfs=/devices/platform/i8042/serio0/input/input0
H: Handlers=sysrq kbd event0 leds
B: KEY=402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe
"""


def test_keyboard_of_the_console_is_in_use(tree: Tree) -> None:
    function = tree.function(driver="xhci_hcd")
    tree.write(tree.proc / "bus/input/devices", INPUT_DEVICES)
    assert users(function) == ("keyboard Logi\\x1b[2J Keyboard types on the console",)
    assert users(tree.function("0000:02:00.0", driver="xhci_hcd")) == ()


def test_screen_is_in_use(tree: Tree) -> None:
    function = tree.function(driver="i915")
    for output, enabled in (("HDMI-A-1", "enabled"), ("DP-1", "disabled")):
        tree.child(function, "drm", f"drm/card0/card0-{output}", enabled=enabled)
    assert users(function) == ("graphics output card0-HDMI-A-1 shows a picture",)


def test_mediated_device_is_a_use(tree: Tree) -> None:
    function = tree.function(driver="i915")
    name = "4b20d080-1b54-4048-85b3-a6a62d165c01"
    (function.sysfs / name).mkdir()
    assert users(function) == ()
    (function.sysfs / name / "mdev_type").symlink_to(function.sysfs)
    assert users(function) == (f"mediated device {name} is made on it",)


@pytest.mark.parametrize(
    ("attribute", "text", "who"),
    [
        ("nvmet/subsystems/s/namespaces/1/device_path", "{node}", "an NVMe target"),
        (
            "target/core/fileio_0/disk/info",
            "Status: ACTIVATED\n        TCM FILEIO ID: 0        File: {node}  Size: 1",
            "a SCSI target",
        ),
        ("usb_gadget/g/functions/mass_storage.0/lun.0/file", "{node}", "a USB gadget"),
    ],
)
def test_exported_disk_is_in_use(tree: Tree, attribute: str, text: str, who: str) -> None:
    nodes = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not nodes:
        pytest.skip("this machine has no block device")
    function = tree.function(driver="ahci")
    tree.child(function, "block", "host0/sda", dev=number(nodes[0]))
    file = tree.write(tree.sys / "kernel/config" / attribute, text.format(node=nodes[0]) + "\n")
    assert users(function) == (f"disk sda is exported by {who}",)
    (file.parent / "enable").write_text("0\n")
    assert users(function) == ()


def attribute(kind: int, *parts: bytes) -> bytes:
    """An attribute of netlink."""
    content = b"".join(parts)
    return struct.pack("=HH", 4 + len(content), kind) + content + b"\0" * (-len(content) % 4)


def test_link_of_another_namespace_is_parsed() -> None:
    message = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + b"".join(
        (
            attribute(3, b"macvlan0\0"),
            attribute(5, struct.pack("=I", 2)),
            attribute(37, struct.pack("=i", 4)),
            attribute(0x8000 | 18, attribute(1, b"macvlan\0")),
            attribute(0x8000 | 43, attribute(2, b"\1")),
        )
    )
    assert netlink.parse_link(message) == netlink.Link("macvlan0", 7, "macvlan", 2, 4, True)


def test_program_that_takes_packets_is_a_use(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    function = tree.function(driver="e1000e")
    tree.child(function, "net", "net/eth0", flags="0x1003", ifindex="99999")
    link = netlink.Link("eth0", 99999, "", None, None, True)
    monkeypatch.setattr(netlink, "links", lambda: [link])
    assert users(function) == ("network interface eth0 is up with an XDP program",)


def test_pppoe_is_a_use(tree: Tree) -> None:
    function = tree.function(driver="e1000e")
    tree.child(function, "net", "net/eth0", flags="0x1003", ifindex="99999")
    tree.write(
        tree.proc / "thread-self/net/pppoe",
        "Id       Address              Device\n0000A2F1 00:11:22:33:44:55     eth0\n",
    )
    assert users(function) == ("network interface eth0 is up with a PPPoE session",)


def test_serial_console(tree: Tree) -> None:
    function = tree.function(driver="serial")
    tree.child(function, "tty", "tty/ttyS4", dev="4:68")
    tree.write(
        tree.proc / "consoles",
        "ttyS4                -W- (EC  p a)    4:68\nnetcon0              -W- (E     )\n",
    )
    assert users(function) == ("ttyS4 is a console",)


def test_virtual_functions(tree: Tree) -> None:
    function = tree.function()
    tree.virtual_functions(function, 1)
    assert users(function) == ("1 SR-IOV virtual function is enabled on it",)
    function = tree.function("0000:02:00.0")
    tree.virtual_functions(function, 4)
    assert users(function) == ("4 SR-IOV virtual functions are enabled on it",)


def test_who_holds_it_open_through_vfio(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    assert vfio_holders(function) == ()
    node = tree.dev / "vfio/3"
    with node.open():
        assert vfio_holders(function) == ((True, f"this process holds {node} open: close it"),)
    code = "import sys; node = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, node],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (holder,) = vfio_holders(function)
        assert not holder.mine
        assert holder.text.startswith(f"process {process.pid} (")
        process.communicate()

    def busy(path: str, flags: int) -> int:
        if path == str(node):
            raise OSError(16, "Device or resource busy")
        return os.open(path, flags)

    monkeypatch.setattr(calls, "open", busy)
    assert vfio_holders(function) == (
        (False, f"a process that does not show its files holds {node} open: close it"),
    )


def test_the_disk_with_the_root_file_system_is_in_use() -> None:
    number = os.stat("/").st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not block.exists():
        pytest.skip("the root file system is not on a disk")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(line.split()[4] == "/" for line in mounts):
        pytest.skip("a chroot does not see its root mounted")
    carriers = [f for f in functions() if f.sysfs.resolve() in block.resolve().parents]
    if not carriers:
        pytest.skip("the root disk is not on a PCI function")
    assert any(user.endswith("is mounted on /") for user in users(carriers[0]))
