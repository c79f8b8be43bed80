"""Preprocessing: from a CT on any grid to the input of the network, with exact geometry (paper 5.5.2 and 5.5.3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataError
from deepatlas.space.constants import AIR, FINE_SIZE, HU_RANGE, MODEL_SIZE
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.intensity import filled, in_view, largest, tissue
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.morphology import dilated, filled_slices, opened
from deepatlas.space.upright import upright
from deepatlas.space.volume import Volume

CROPS = (None, "foreground", "midline")
# The width that ``crop="midline"`` keeps: any head and neck with some margin, and only the middle of the shoulders.
MIDLINE_MM = 240.0

# Paper 5.5.3: the blur in voxels and the threshold in HU of the foreground mask.
_MASK_SIGMA = 0.7
_MASK_THRESHOLD = -900.0
# The size of the blocks whose means are used to find the patient.
_COARSE_MM = 4.0
# The HU of a block that belongs to the patient: above foam couch tops, blankets and lungs, below fat.
_BODY_THRESHOLD = -400.0
# The side of the square that a full axial slice contains: smaller than the neck of an infant, larger than a tube.
_SLICE_MM = 36.0
# A second region is a body part, such as the other leg, if it has at least this share of the largest one's volume.
_COMPANION = 0.25
# The number of overlapping structures that are resampled at once, each as one bit.
_BITS = 16


def to_model_grid(
    volume: Volume, size: int = MODEL_SIZE, crop: str | None = None, intensity: str = "hu"
) -> Volume:
    """Resample an exam to the grid of the network's input (paper 5.5.2); the values remain what they are.

    The exam is turned to the axes of the patient (see :func:`~deepatlas.space.upright.upright`), cropped, resized to
    128³ with corner-aligned linear interpolation, and average-pooled by ``128 // size``.

    Args:
        volume: Hounsfield units on any grid, or another image on the scale of the network, as
            :func:`~deepatlas.space.check_input.check_input` returns it.
        size: voxels along each side, a divisor of 128.
        crop: None, ``"foreground"`` to crop to the patient (see :func:`foreground_box`), or ``"midline"`` to crop also
            from left to right to at most the middle 240 mm of the patient (see :func:`midline_box`; CT only).
        intensity: what the values are (``data.intensity``).

    Returns a float32 :class:`Volume` with its exact grid, which includes the half-voxel shift of the pooling.

    Raises :class:`~deepatlas.errors.DataError` if no patient is found to crop to.
    """
    if size < 1 or FINE_SIZE % size:
        raise ValueError(f"to_model_grid: size must divide {FINE_SIZE}, got {size}")
    return pool_volume(to_fine_grid(volume, crop, intensity), FINE_SIZE // size)


def to_fine_grid(volume: Volume, crop: str | None = None, intensity: str = "hu") -> Volume:
    """The float32 volume of 128³ voxels that :func:`to_model_grid` pools."""
    if crop not in CROPS:
        raise ValueError(f"preprocess: crop must be one of {CROPS}, got {crop!r}")
    volume = upright(volume)
    if crop:
        volume = volume.cropped(*foreground_box(volume, intensity))
    if crop == "midline":
        volume = volume.cropped(*midline_box(volume))
    tensor = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32)).clamp(min=AIR)
    fine = ops.resize(tensor[None, None], (FINE_SIZE,) * 3)[0, 0]
    return replace(volume, array=fine.numpy(), grid=volume.grid.resized(FINE_SIZE))


def pool_volume(volume: Volume, kernel: int) -> Volume:
    """Average-pool by ``kernel`` along each axis; the corner voxels move inward by (kernel - 1) / 2 voxels."""
    if kernel == 1:
        return volume
    tensor = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))[None, None]
    pooled = torch.nn.functional.avg_pool3d(tensor, kernel)[0, 0]
    return replace(volume, array=pooled.numpy(), grid=volume.grid.pooled(kernel))


def labels_to_grid(seg: Volume, grid: Grid) -> Labels:
    """Resample labels to ``grid`` with nearest-neighbour sampling, overlaps included.

    The dtype is kept; outside it is 0.
    """
    seg = Labels.of(seg)
    array = _nearest(seg.array, seg.grid, grid).astype(seg.array.dtype)
    hidden = {}
    ids = sorted(seg.hidden)
    for first in range(0, len(ids), _BITS):
        some = ids[first : first + _BITS]
        planes = np.zeros(seg.grid.shape, dtype=np.uint16)
        for bit, identity in enumerate(some):
            mask = seg.hidden[identity]
            planes[mask.box] |= mask.array() * np.uint16(1 << bit)
        there = _nearest(planes, seg.grid, grid).astype(np.uint16)
        for bit, identity in enumerate(some):
            part = (there >> bit & 1).astype(bool)
            if part.any():
                hidden[identity] = BoxMask.of(part)
    return Labels(array, grid, seg.name, hidden)


def _nearest(array: NDArray, source: Grid, grid: Grid) -> NDArray[np.float32]:
    theta = torch.from_numpy(source.theta_from(grid)).float()[None]
    # float32 represents integers below 2**24 exactly.
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    return ops.affine_resample(tensor, theta, grid.shape, mode="nearest", padding="zeros")[0, 0].numpy()


def pool_drawn(seg: Labels, kernel: int) -> Labels:
    """:func:`pool_labels` of the label image, and of the whole mask of every structure that overlaps others."""
    array, grid = pool_labels(seg.array, kernel), seg.grid.pooled(kernel)
    hidden = {}
    # Blocks are even and odd in turn, so that a box must begin at an even one.
    step = 2 * kernel
    for identity, mask in seg.hidden.items():
        low = [a // step * step for a in mask.start]
        ends = np.add(mask.start, mask.shape).tolist()
        high = [min(n, -(-end // step) * step) for end, n in zip(ends, seg.grid.shape, strict=True)]
        part = seg.cropped(low, [b - a for a, b in zip(low, high, strict=True)])
        pooled = pool_labels(part.mask(identity).astype(np.uint8), kernel).astype(bool)
        start = [a // kernel for a in low]
        box = tuple(slice(a, a + n) for a, n in zip(start, pooled.shape, strict=True))
        pooled &= array[box] != identity
        if pooled.any():
            hidden[identity] = BoxMask.of(pooled, start)
    return Labels(array, grid, seg.name, hidden)


def pool_labels(labels: NDArray, kernel: int) -> NDArray:
    """The most frequent label of each block of ``kernel``³ voxels of a ``[D, H, W]`` array; the dtype is kept.

    Nearest-neighbour sampling would instead take one corner of the block, a fraction of a voxel from its centre. A
    tie is decided by one voxel, so that structures neither grow nor move: the first voxel of even blocks and the last
    of odd ones, which alternate as on a chessboard. If the label of that voxel is not tied, the higher id wins.
    """
    if kernel == 1:
        return labels
    d, h, w = (n // kernel for n in labels.shape)
    blocks = labels[: d * kernel, : h * kernel, : w * kernel].reshape(d, kernel, h, kernel, w, kernel)
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(d * h * w, kernel**3)
    pooled = blocks[:, 0].copy()
    # Only blocks at the border of a structure hold different labels.
    mixed = np.flatnonzero((blocks != blocks[:, :1]).any(axis=1))
    ordered = np.sort(blocks[mixed], axis=1)
    best = np.zeros(len(mixed), dtype=np.int64)
    run = np.zeros(len(mixed), dtype=np.int64)
    for column in range(kernel**3):
        same = ordered[:, column] == ordered[:, column - 1] if column else np.zeros(len(mixed), dtype=bool)
        run = np.where(same, run + 1, 1)
        winner = run >= best
        pooled[mixed[winner]] = ordered[winner, column]
        best = np.maximum(best, run)
    odd = np.indices((d, h, w)).sum(axis=0).ravel()[mixed] % 2
    judge = blocks[mixed, odd * (kernel**3 - 1)]
    decides = (blocks[mixed] == judge[:, None]).sum(axis=1) == best
    pooled[mixed[decides]] = judge[decides]
    return pooled.reshape(d, h, w)


def normalize(hu: Tensor) -> Tensor:
    """Clip Hounsfield units to [-256, 256] and scale them to [0, 1] (paper 5.5.2); integers become float32."""
    low, high = HU_RANGE
    hu = hu if hu.is_floating_point() else hu.float()
    return (hu.clamp(low, high) - low) / (high - low)


def denormalize(values: NDArray) -> NDArray:
    """The inverse of :func:`normalize` in its window: [0, 1] to [-256, 256]."""
    low, high = HU_RANGE
    return values * (high - low) + low


def foreground_mask(hu: NDArray, intensity: str = "hu") -> NDArray[np.bool_]:
    """The mask of the patient for the masked losses (paper 5.5.3).

    In CT: Gaussian blur (sigma 0.7 voxel), threshold at -900 HU, largest connected region, holes filled. The first and
    the last slice of the patient are treated as closed, so that lungs and airway that a truncated scan cuts open are
    inside. In images of other ``intensity``: :func:`~deepatlas.space.intensity.tissue` in the field of view.

    Args:
        hu: Hounsfield units, or the scale of the network, ``[D, H, W]`` at the resolution of the network, with axial
            slices along the first axis.
        intensity: what the values are (``data.intensity``).

    Returns a boolean mask of the same shape, which is empty for an image of air.
    """
    if intensity != "hu":
        return tissue(hu, in_view(hu))
    blurred = ndimage.gaussian_filter(np.maximum(hu, AIR).astype(np.float32), _MASK_SIGMA)
    return filled(largest(blurred > _MASK_THRESHOLD))


def foreground_box(volume: Volume, intensity: str = "hu") -> tuple[Shape, Shape]:
    """The bounding box of the patient with a margin of a few millimetres: ``(start, shape)`` in voxels (z, y, x).

    The patient is found on block means of about 4 mm. In CT, a morphological opening removes thin and small objects
    (couch top, tubes, debris, head frame); only large regions count. Axial slices at both ends without a full
    cross-section are left out: empty slices, and slices of published data that show only the surroundings of one
    structure. In images of other ``intensity`` the box is that of :func:`foreground_mask`.

    Raises :class:`~deepatlas.errors.DataError` if the image shows no patient.
    """
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    kernel = tuple(
        max(1, min(round(_COARSE_MM / mm), n // 8))
        for mm, n in zip(volume.grid.spacing[::-1], array.shape, strict=True)
    )
    tensor = torch.from_numpy(array).clamp(min=AIR)[None, None]
    coarse = torch.nn.functional.avg_pool3d(tensor, kernel, ceil_mode=True)[0, 0].numpy()
    kept = foreground_mask(coarse, intensity) if intensity != "hu" else _body(coarse, kernel, volume)
    if not kept.any():
        raise DataError(
            f"{volume.name or 'image'}: no patient found, all of it is padding; prepare without a crop"
        )
    start, shape = [], []
    for axis, (k, n) in enumerate(zip(kernel, array.shape, strict=True)):
        hit = np.flatnonzero(kept.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = max(0, (int(hit[0]) - 1) * k), min(n, (int(hit[-1]) + 2) * k)
        start.append(low)
        shape.append(high - low)
    return tuple(start), tuple(shape)  # type: ignore[return-value]


def _body(coarse: NDArray, kernel: tuple[int, ...], volume: Volume) -> NDArray[np.bool_]:
    """The patient on block means of a CT, ``[D, H, W]``; ``kernel`` are the voxels of ``volume`` in a block."""
    body = coarse > _BODY_THRESHOLD
    core = opened(body)
    regions, count = ndimage.label(core if core.any() else body)
    if not count:
        raise DataError(
            f"{volume.name or 'image'}: no patient found (no region above {_BODY_THRESHOLD:g} HU); "
            "check that the values are Hounsfield units, or prepare without crop=foreground"
        )
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    kept = (sizes >= max(1.0, _COMPANION * sizes.max()))[regions]
    # The opening also removed voxels from the surface of the patient.
    kept = dilated(kept) & body
    kept &= _full_slices(kept, kernel, volume)[:, None, None]
    return kept


def midline_box(volume: Volume) -> tuple[Shape, Shape]:
    """The middle ``MIDLINE_MM`` of a RAS image from left to right, as a box ``(start, shape)`` in voxels (z, y, x).

    The middle is the median, over the axial slices, of the patient's centre in each slice. This crop is for exams of
    head and neck: an uncropped image is as wide as the shoulders, three times the width of a head, or as narrow as
    the field of view, so that a head would fill a third of the network's input in one exam and all of it in another.
    """
    depth, height, width = volume.grid.shape
    keep = min(width, round(MIDLINE_MM / volume.grid.spacing[0]))
    body = opened(np.asarray(volume.array) > _BODY_THRESHOLD, (1, 2))
    # Voxels of the patient in each column, [z, x].
    columns = body.sum(axis=1)
    filled = columns.sum(axis=1)
    if keep == width or not filled.any():
        start = (width - keep) // 2
    else:
        centres = (columns @ np.arange(width))[filled > 0] / filled[filled > 0]
        start = min(max(0, round(float(np.median(centres)) - (keep - 1) / 2)), width - keep)
    return (0, 0, start), (depth, height, keep)


def _full_slices(body: NDArray[np.bool_], kernel: tuple[int, ...], volume: Volume) -> NDArray[np.bool_]:
    """Boolean ``[D]``: the axial slices from the first to the last full one, or all slices if none is full."""
    filled = filled_slices(body)
    x, y, _ = volume.grid.spacing
    square = (max(1, round(_SLICE_MM / (y * kernel[1]))), max(1, round(_SLICE_MM / (x * kernel[2]))))
    solid = ndimage.minimum_filter(filled.view(np.uint8), size=(1, *square), mode="constant")
    full = np.flatnonzero(solid.any(axis=(1, 2)))
    if not len(full):
        return np.ones(len(body), dtype=bool)
    index = np.arange(len(body))
    return (index >= full[0]) & (index <= full[-1])
