"""gzip, compressed by several threads into one member, which every program reads."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

# The bytes that a thread compresses at once. A piece knows nothing of those before it, which costs next to nothing.
PIECE = 1 << 20
# A higher level takes several times as long for voxels, and saves a few per cent.
LEVEL = 1
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"


def write_gzip(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> None:
    """Write ``parts``, one after another, as a gzip stream without a name and a time.

    Args:
        file: where to write; its errors are not caught.
        parts: bytes and contiguous memory.
    """
    views = [memoryview(part).cast("B") for part in parts]
    pieces = [view[i : i + PIECE] for view in views for i in range(0, len(view), PIECE)] or [memoryview(b"")]
    file.write(_HEADER)
    check = length = 0
    with ThreadPoolExecutor(min(_threads(), len(pieces))) as pool:
        last = len(pieces) - 1
        packed = pool.map(_deflated, pieces, (row == last for row in range(len(pieces))))
        for piece, data in zip(pieces, packed, strict=True):
            check, length = zlib.crc32(piece, check), length + len(piece)
            file.write(data)
    file.write(struct.pack("<II", check, length & 0xFFFFFFFF))


def _deflated(piece: memoryview, last: bool) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A flush that ends at a byte lets the next piece follow, as if one had been compressed after the other.
    return packer.compress(piece) + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def _threads() -> int:
    """As many as PyTorch would take: what OMP_NUM_THREADS says, or a thread for each processor that may be used."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
