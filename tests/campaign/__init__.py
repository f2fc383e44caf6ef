"""Every operation is interrupted at each step, and each system call of it fails in each way."""
