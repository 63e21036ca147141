"""What the C library does with freed memory during training on a CPU.

By default glibc returns large blocks to the operating system at once. Each step then gets all its activations and
gradients as fresh pages, which the system must clear first: 30,000 pages and a tenth of a step for 4 layers of 256
channels.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on freed memory stays with this process and is used again; false if the C library has no such option."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return all(mallopt(option, LARGE) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))
