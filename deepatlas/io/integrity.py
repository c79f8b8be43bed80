"""Checks that an image file is complete and that its header is consistent, which the decoding libraries do not do.

ITK reads a truncated NIfTI without an error (the rest of the array is whatever was in memory), turns NaN voxels of a
NIfTI into 0, takes spacing and axes of a NIfTI from two places that may contradict each other, does not verify the
checksum of an NRRD, reads ``40&5`` as 40, treats an unknown key as if it were absent, and reports a damaged MetaImage
on stderr alone. The header is therefore also parsed here, strictly, and compared with the geometry that ITK returns;
compressed voxels are decompressed once to count their bytes. This module holds what the formats have in common.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.grid import Grid

CHUNK = 1 << 20
AGAIN = "copy or export it again"
RENAME = "give it the suffix of its true format"


@dataclass
class Checked:
    """The content of a header: its oddities, and its geometry in every form in which the header gives it.

    ``affines`` maps the name of a source in the header (such as ``"qform"``) to a 4x4 matrix from voxel indices to RAS+
    millimetres; it is empty where the header does not define a geometry. ``beside`` is the name that the header gives
    to the file of its voxels, relative to its own folder, if they are in another file. ``surplus`` is what ITK adds to
    every voxel although the format does not mean it. ``scale`` is millimetres in the header's unit of length, which ITK
    takes for one.
    """

    notes: list[str] = field(default_factory=list)
    affines: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    beside: str = ""
    surplus: float = 0.0
    scale: float = 1.0


def compare_geometry(path: Path, grid: Grid, checked: Checked) -> None:
    """Compare ``grid``, which ITK has read, with the geometries of the header.

    A note is added where the header holds different geometries. Raises :class:`DataError` where ``grid`` is none of
    them. Positions count as equal if they are at most 5 % of the smallest voxel spacing apart.
    """
    if not checked.affines:
        return
    corners = grid.corners()
    away = {name: _distance(grid, corners, affine) for name, affine in checked.affines.items()}
    limit = 0.05 * min(grid.spacing)
    used = [name for name, distance in away.items() if distance <= limit]
    if not used:
        raise DataError(
            f"{path}: its header contradicts itself ({', '.join(away)} and voxel size give positions "
            f"{min(away.values()):.3g} mm apart); write the file again with one geometry"
        )
    if len(used) < len(away):
        checked.notes.append(
            f"header holds geometries {max(away.values()):.3g} mm apart ({', '.join(away)}); "
            f"{used[0]} is used, check that structures are where they should be"
        )


def _distance(grid: Grid, corners: NDArray[np.float64], affine: NDArray[np.float64]) -> float:
    """The largest difference in mm along an axis between corner voxels on ``grid`` and under ``affine``."""
    with np.errstate(all="ignore"):
        points = grid.world_to_voxel(corners) @ affine[:3, :3].T + affine[:3, 3]
        distance = float(np.abs(points - corners).max())
    return distance if np.isfinite(distance) else float("inf")


def check_length(path: Path, found: int, needed: int, notes: list[str]) -> None:
    """Compare the number of bytes in a file with the number it needs: too few are an error, too many a note."""
    if found < needed:
        raise DataError(f"{path}: truncated, it holds {found} of {needed} bytes; {AGAIN}")
    if found > needed:
        notes.append(f"file holds {found - needed} bytes more than its header says; is the header right?")


def check_memory(path: Path, needed: int) -> None:
    """Raise :class:`DataError` for voxels (``needed`` bytes) that do not fit into the memory of this machine.

    The header alone decides, because decompressing such a file to count its bytes could take hours.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # The size of the memory is unknown on this system.
        return
    if needed > memory:
        raise DataError(
            f"{path}: its header asks for {needed / 1e9:.3g} GB of voxels, and this machine has {memory / 1e9:.3g} GB "
            f"of memory; {AGAIN}, or crop it"
        )


def nonfinite_error(path: Path, count: int) -> DataError:
    """The error for ``count`` voxels that are NaN or infinite."""
    return DataError(
        f"{path}: {count} voxels are NaN or infinite; replace them (with -1024 HU outside the patient)"
    )


def decompressed(path: Path) -> Iterator[bytes]:
    """The content of a plain or gzip file in chunks. The checksum of a gzip file is verified at the end."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with gzip.open(raw) if zipped else raw as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except EOFError as error:
            raise DataError(f"{path}: truncated, the gzip stream ends early; {AGAIN}") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: damaged gzip data ({error}); {AGAIN}") from error


def inflated_length(path: Path, handle: BinaryIO) -> int:
    """Decompressed size in bytes of the gzip or zlib stream at the position of ``handle``; its checksum is verified."""
    stream, length = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
    try:
        while not stream.eof and (chunk := stream.unconsumed_tail or handle.read(CHUNK)):
            length += len(stream.decompress(chunk, CHUNK))
        length += len(stream.flush())
    except zlib.error as error:
        raise DataError(f"{path}: the compressed voxels are damaged ({error}); {AGAIN}") from error
    if not stream.eof:
        raise DataError(f"{path}: truncated, the compressed voxels end early; {AGAIN}")
    return length
