"""One-shot segmentation: the masks of a template, carried onto an exam by its coordinates (section 5.2.7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.fit import Fit
from deepatlas.model.native import coordinate_slabs, inside, sampled_slabs
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# Exams are processed in tiles of this shape (z, y, x). A tile maps to a small box of the template, and only the
# structures that reach into that box are sampled. The cost follows the anatomy, and not the number of structures times
# the number of voxels.
TILE = (16, 32, 32)


@dataclass(repr=False)
class Segmentation(Volume):
    """A label image on the grid of an exam, and how well the model knows the exam."""

    fit: Fit = Fit(math.nan)

    def _facts(self) -> str:
        return f"{super()._facts()}, {self.fit!r}"


def segment(
    model: Engine, volume: Volume, template: Template, threshold: float | None = None
) -> Segmentation:
    """Carry a template's masks onto an exam (section 5.2.7).

    Args:
        model: a trained model.
        volume: the exam in Hounsfield units, in any orientation.
        template: a template made for this model.
        threshold: the mask value that counts for all structures, in (0, 1]; None takes the template's own
            ``thresholds``, which preserve volumes.

    Returns:
        A label image on the exam's own grid: uint8, or uint16 for ids above 255. 0 is the background. Its ``fit`` says
        how well the model knows the exam.

    Raises:
        DeepAtlasError: the template belongs to another model, or the threshold is out of range.
    """
    template.check_model(model.fingerprint)
    found = model.map_exam(volume)
    labels = segment_coordinates(found.coords, found.grid, volume.grid, template, threshold, found.body)
    return Segmentation(labels, volume.grid, volume.name, found.fit)


def segment_coordinates(
    coords: Tensor,
    model_grid: Grid,
    native_grid: Grid,
    template: Template,
    threshold: float | None = None,
    body: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8 | np.uint16]:
    """The labels of an exam whose coordinates are known (section 5.2.7).

    A voxel takes the structure whose mask is furthest above its threshold there, if any mask reaches its threshold. A
    voxel outside the body, or outside the field of view of the model grid, is background. The work goes slab by slab,
    so that the memory it needs does not grow with the number of slices.

    Args:
        coords: ``[1, 3, S, S, S]``, normalised coordinates on ``model_grid``.
        model_grid: the grid of ``coords``.
        native_grid: the grid of the result, in any orientation.
        template: the masks to carry over.
        threshold: as in :func:`segment`.
        body: ``[S, S, S]``, the foreground of the exam on ``model_grid``; None clips nothing. A voxel counts as outside
            where no voxel of the body is within a voxel of the model grid.

    Returns:
        Label ids ``[D, H, W]`` on ``native_grid``: uint8, or uint16 for ids above 255. 0 is the background.

    Raises:
        DeepAtlasError: the threshold is out of range, or ``coords`` do not have the shape of ``model_grid``.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {threshold}")
    thresholds = template.thresholds if threshold is None else (threshold,) * len(template.ids)
    masks = torch.from_numpy(template.masks).to(coords.device, coords.dtype)
    ids = torch.tensor((0, *template.ids), dtype=torch.int32, device=coords.device)
    levels = torch.tensor(thresholds, dtype=coords.dtype, device=coords.device)
    supports = torch.tensor(template.supports)
    last = torch.tensor(masks.shape[:0:-1], dtype=coords.dtype, device=coords.device) - 1
    out = np.zeros(native_grid.shape, dtype=np.uint8 if max(template.ids) < 256 else np.uint16)
    chunk = TILE[0] * native_grid.shape[1] * native_grid.shape[2]
    for z, fine in coordinate_slabs(coords, model_grid, native_grid, chunk):
        # Coordinates are clamped, which is border padding, and turned into template voxels: [3, d, H, W].
        index = fine[0].clamp_(-1, 1).add_(1).mul_((last / 2)[:, None, None, None])
        tiles = list(_tiles(index.shape[2:]))
        ends = torch.stack([torch.stack([index[t].amin((1, 2, 3)), index[t].amax((1, 2, 3))]) for t in tiles])
        ends = torch.stack([ends[:, 0].floor(), ends[:, 1].ceil()], dim=1).long().cpu()
        labels = torch.zeros(index.shape[1:], dtype=torch.int32, device=coords.device)
        for tile, (low, high) in zip(tiles, ends, strict=True):
            near = ((supports[:, 0] <= high) & (supports[:, 1] >= low)).all(dim=1).nonzero()[:, 0]
            if len(near):
                labels[tile[1:]] = _tile_labels(masks, near, index[tile], low, high, levels, ids)
        out[z] = labels.cpu().numpy()
    out[~inside(model_grid, native_grid)] = 0
    if body is not None:
        near_body = torch.from_numpy(body).to(coords)[None, None]
        for z, fine in sampled_slabs(near_body, model_grid, native_grid, chunk):
            # Linear interpolation is 0 only where all eight neighbours are outside.
            out[z][(fine[0, 0] <= 0).cpu().numpy()] = 0
    return out


def _tile_labels(
    masks: Tensor, near: Tensor, index: Tensor, low: Tensor, high: Tensor, levels: Tensor, ids: Tensor
) -> Tensor:
    """Label ids of one tile, from the structures ``near`` in the template's box from ``low`` to ``high``."""
    box = tuple(slice(a, b + 1) for a, b in zip(low.flip(0).tolist(), high.flip(0).tolist(), strict=True))
    near = near.to(masks.device)
    part = masks[(slice(None), *box)][near]
    span = (high - low).clamp_min(1).to(index)[:, None, None, None]
    local = (index - low.to(index)[:, None, None, None]) * (2 / span) - 1
    above = ops.resample(part[None], local[None])[0] - levels[near, None, None, None]
    best, row = above.max(dim=0)
    return torch.where(best >= 0, ids[1:][near][row], 0)


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut a slab ``[3, d, H, W]`` into tiles as deep as the slab; ``shape`` is ``(H, W)``."""
    for y in range(0, shape[0], TILE[1]):
        for x in range(0, shape[1], TILE[2]):
            yield slice(None), slice(None), slice(y, y + TILE[1]), slice(x, x + TILE[2])
