"""Stand-ins of the kernel that tests of several packages use."""
