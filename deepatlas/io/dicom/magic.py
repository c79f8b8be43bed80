"""Whether a file is DICOM, from its first bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

# Bytes that decide it: the preamble, the mark, and the first element.
_HEAD = 140


def looks_like_dicom(path: str | Path) -> bool:
    """Whether a file begins as DICOM does, with or without the preamble, or as DICOM inside gzip.

    Reading the latter tells that it has to be unpacked.
    """
    try:
        with open(path, "rb") as handle:
            return starts_as_dicom(handle) or is_zipped_dicom(handle)
    except OSError:
        return False


def starts_as_dicom(handle: BinaryIO) -> bool:
    """Look at the first bytes of a file, and rewind it."""
    head = handle.read(_HEAD)
    handle.seek(0)
    if head[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(head[0:2], "little"), int.from_bytes(head[2:4], "little")
    if len(head) < 132 or group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= 1024


def is_zipped_dicom(handle: BinaryIO) -> bool:
    """Whether a file is DICOM inside gzip (``.dcm.gz``). The file is rewound."""
    mark = handle.read(2)
    handle.seek(0)
    if mark != b"\x1f\x8b":
        return False
    try:
        with gzip.open(handle) as inside:
            return starts_as_dicom(io.BytesIO(inside.read(_HEAD)))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    finally:
        handle.seek(0)
