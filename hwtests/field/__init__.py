"""What the field's own tests assert, on a device: see `tools/hwtest --field`.

originals.py    every test of the field that is about VFIO, and what stands for it here
conftest.py     address spaces of type1
layouts.py      what the larger layouts need of host and device
test_*.py       one test for each original, named after it
"""
