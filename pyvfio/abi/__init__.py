"""The kernel's words: ioctl numbers, structures and constants, one module per kernel header.

Everything bears the name that the kernel gives it, and nothing here decides anything. What a name
means is said in the header; these modules say only what a Python user must know besides.
"""
