"""Drivers written with pyvfio; small enough to be read as examples."""
