"""The compact appearance of an exam: its values, carried into the atlas and averaged in coarse cells.

Cells of the atlas are the same anatomy in every exam, so that exams can be compared cell by cell without registration.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.constants import HU_RANGE
from deepatlas.space.preprocess import denormalize

# Cells along each axis of the atlas.
CELLS = 24
_EMPTY = 0


def cells_of(coords: NDArray[np.float32]) -> NDArray[np.int64]:
    """The cell (flat index) of coordinates ``[3, …]`` (x, y, z) in [-1, 1]; those beyond have that of the border."""
    x, y, z = np.clip(((coords + 1) / 2 * CELLS).astype(np.int64), 0, CELLS - 1)
    return (z * CELLS + y) * CELLS + x


def appearance(found: ExamMap, shown: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The mean value in every cell of the atlas that the exam shows, ``[CELLS]^3``, and nan elsewhere.

    Values are clipped to the range of the network, [-256, 256].

    Args:
        found: the coordinates of the exam.
        shown: ``[S, S, S]``, the voxels that count, from :func:`~deepatlas.index.in_view.in_view`.
    """
    coords = found.field.on(found.grid).cpu().numpy()
    inside = shown & (np.abs(coords) <= 1).all(axis=0)
    place = cells_of(coords[:, inside])
    values = np.clip(np.asarray(found.hu.array)[inside], *HU_RANGE)
    count = np.bincount(place, minlength=CELLS**3)
    total = np.bincount(place, weights=values, minlength=CELLS**3)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, np.nan)
    return mean.reshape((CELLS,) * 3).astype(np.float32)


def packed(cells: NDArray[np.float32]) -> bytes:
    """A compact form: one byte a cell, compressed."""
    low, high = HU_RANGE
    codes = np.where(np.isnan(cells), _EMPTY, 1 + np.rint((np.nan_to_num(cells) - low) / (high - low) * 254))
    return zlib.compress(codes.astype(np.uint8).tobytes(), 1)


def unpacked(data: bytes) -> NDArray[np.float32]:
    """Inverse of :func:`packed`, with flat cells ``[CELLS^3]``."""
    try:
        codes = np.frombuffer(zlib.decompress(data), dtype=np.uint8)
    except zlib.error as error:
        raise DataError(
            f"index: damaged ({error}); delete it, then make it again with `deepatlas index`"
        ) from error
    if codes.size != CELLS**3:
        raise DataError(
            "index: damaged (an appearance of another size); delete it, then make it again with `deepatlas index`"
        )
    values = denormalize((codes.astype(np.float32) - 1) / 254)
    values[codes == _EMPTY] = np.nan
    return values


def on_exam(cells: NDArray[np.float32], found: ExamMap) -> NDArray[np.float32]:
    """Values of cells ``[CELLS^3]`` at every voxel of the network's grid of an exam, interpolated between cells."""
    import deepatlas_ops as ops

    # The centres of cells are half a cell inside the borders of the atlas, where corner-aligned voxels would be.
    coords = found.field.on(found.grid)[None].float() * (CELLS / (CELLS - 1))
    volume = torch.from_numpy(cells.reshape((1, 1) + (CELLS,) * 3)).to(coords)
    known = torch.isfinite(volume).to(coords)
    share = ops.resample(known, coords)
    values = ops.resample(torch.nan_to_num(volume), coords) / share.clamp_min(1e-3)
    values[share < 0.5] = torch.nan
    out: NDArray[np.float32] = values[0, 0].cpu().numpy()
    return out
