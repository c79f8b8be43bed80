"""One-shot segmentation: template masks carried onto an exam by its coordinates (paper 5.2.7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.native import coordinate_slabs, inside
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# A tile of the exam sees a small box of the template, and only the structures that reach into it are sampled:
# the cost follows the anatomy, not the number of structures times the number of voxels.
TILE = (16, 32, 32)


def segment_coordinates(
    coords: Tensor, model_grid: Grid, native_grid: Grid, template: Template, threshold: float | None = None
) -> np.ndarray:
    """Label ids ``[D, H, W]`` (uint8, or uint16 for ids above 255) on ``native_grid``; 0 is background.

    ``coords`` ``[1, 3, s, s, s]`` lives on ``model_grid``. A voxel takes the structure whose mask is furthest
    above ``threshold`` there (None: above the template's own ``thresholds``, which keep volumes), if one reaches it;
    a voxel outside the model grid's field of view is background. Memory does not grow with the number of slices: the
    work goes slab by slab.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {threshold}")
    levels = template.thresholds if threshold is None else (threshold,) * len(template.ids)
    masks = torch.from_numpy(template.masks).to(coords.device, coords.dtype)
    ids = torch.tensor((0, *template.ids), dtype=torch.int32, device=coords.device)
    levels = torch.tensor(levels, dtype=coords.dtype, device=coords.device)
    supports = torch.tensor(template.supports)
    last = torch.tensor(masks.shape[:0:-1], dtype=coords.dtype, device=coords.device) - 1
    out = np.zeros(native_grid.shape, dtype=np.uint8 if max(template.ids) < 256 else np.uint16)
    chunk = TILE[0] * native_grid.shape[1] * native_grid.shape[2]
    for z, fine in coordinate_slabs(coords, model_grid, native_grid, chunk):
        # Clamped as border padding does, then in template voxels: [3, d, H, W].
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
    return out


def _tile_labels(
    masks: Tensor, near: Tensor, index: Tensor, low: Tensor, high: Tensor, levels: Tensor, ids: Tensor
) -> Tensor:
    """Label ids of one tile: the structures ``near``, read from the template's box ``low`` .. ``high``."""
    box = tuple(slice(a, b + 1) for a, b in zip(low.flip(0).tolist(), high.flip(0).tolist(), strict=True))
    near = near.to(masks.device)
    part = masks[(slice(None), *box)][near]
    span = (high - low).clamp_min(1).to(index)[:, None, None, None]
    local = (index - low.to(index)[:, None, None, None]) * (2 / span) - 1
    above = ops.resample(part[None], local[None])[0] - levels[near, None, None, None]
    best, row = above.max(dim=0)
    return torch.where(best >= 0, ids[1:][near][row], 0)


def _tiles(shape: tuple[int, int]) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut ``[3, d, H, W]`` into tiles of the slab's depth."""
    for y in range(0, shape[0], TILE[1]):
        for x in range(0, shape[1], TILE[2]):
            yield slice(None), slice(None), slice(y, y + TILE[1]), slice(x, x + TILE[2])


def segment(model: Engine, volume: Volume, template: Template, threshold: float | None = None) -> Volume:
    """Label image of ``volume`` on its own grid, whatever its orientation; see segment_coordinates.

    Raises DeepAtlasError where the template belongs to another model.
    """
    template.check_model(model.fingerprint)
    coords, grid, _ = model.coordinates_on_model_grid(volume)
    return Volume(
        segment_coordinates(coords, grid, volume.grid, template, threshold), volume.grid, volume.name
    )
