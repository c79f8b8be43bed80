"""Keeps the memory that a training step frees in the process, for the next step (Linux, CPU)."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc reuse the large buffers of a step instead of mapping new, zeroed pages for each of them.

    Every step allocates and frees the same tens of megabytes. With the losses of preset headneck, four exams and one
    thread, this takes a step from 510 ms to 465 ms. It has no effect with another C library.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
