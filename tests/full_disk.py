"""A limit on the size of files, which stands for a full disk."""

from __future__ import annotations

import resource
import sys
from contextlib import contextmanager


@contextmanager
def small_files(size: int):
    """Files may have so many bytes meanwhile; a longer one fails as on a full disk, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python would keep half of the bytecode of a module that is imported meanwhile.
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written
