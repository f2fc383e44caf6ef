"""What particular devices do; the others leave these tests out (see `for_device` in conftest)."""
