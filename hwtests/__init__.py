"""Tests of a real device through VFIO, as root: see tools/hwtest.

conftest.py     options and fixtures: the device, bound for the run and given back after it
report.py       the summary and --report FILE
machine.py      what a report says of kernel, host and device
kernel_log.py   what the kernel logs meanwhile
child.py        a test's part in a forked child: another user, or what may crash
holdings.py     what a process holds of VFIO
counting_guest.py
                a guest that counts its interrupts
receivers.py    a VM for a device's interrupts: that guest, or a local APIC alone
test_*.py       what holds for every device, one subject a file
field/          what the field's own tests of VFIO assert
devices/        what is known of one sort of device
host/           binding and commands; for the bench alone, run by its path
"""
