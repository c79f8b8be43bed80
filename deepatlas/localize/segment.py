"""One-shot segmentation: template masks carried onto an exam by its coordinates (paper 5.2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.data.grid import Grid
from deepatlas.data.volume import Volume
from deepatlas.errors import DeepAtlasError
from deepatlas.localize.native import coordinate_slabs, inside, native_coordinates
from deepatlas.localize.template import Template

if TYPE_CHECKING:
    from deepatlas.model import Model

__all__ = ["native_coordinates", "segment", "segment_coordinates"]

# Bounds the working memory of a slab: 2^24 mask values are 64 MiB.
CHUNK_VALUES = 1 << 24


def segment_coordinates(
    coords: Tensor, model_grid: Grid, native_grid: Grid, template: Template, threshold: float = 0.5
) -> np.ndarray:
    """Label ids ``[D, H, W]`` (uint8, or uint16 for ids above 255) on ``native_grid``; 0 is background.

    ``coords`` ``[1, 3, s, s, s]`` lives on ``model_grid``. A voxel takes the structure whose mask is
    highest there, if that is at least ``threshold``; a voxel outside the model grid's field of view is
    background. The work goes slab by slab, so memory does not grow with the number of slices.
    """
    if not 0 < threshold <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {threshold}")
    masks = torch.from_numpy(template.masks).to(coords.device, coords.dtype)[None]
    ids = torch.tensor((0, *template.ids), device=coords.device)
    out = np.zeros(native_grid.shape, dtype=np.uint8 if max(template.ids) < 256 else np.uint16)
    chunk = CHUNK_VALUES // max(3, len(template.names))
    for z, fine in coordinate_slabs(coords, model_grid, native_grid, chunk):
        best, row = ops.resample(masks, fine.clamp_(-1, 1)).max(dim=1)
        row = torch.where(best >= threshold, row + 1, 0)
        out[z] = ids[row[0]].cpu().numpy()
    out[~inside(model_grid, native_grid)] = 0
    return out


def segment(model: Model, volume: Volume, template: Template, threshold: float = 0.5) -> Volume:
    """Label image of ``volume`` on its own grid, whatever its orientation; see segment_coordinates.

    Raises DeepAtlasError where the template belongs to another model.
    """
    template.check_model(model.fingerprint)
    coords, grid, _ = model.coordinates_on_model_grid(volume)
    return Volume(
        segment_coordinates(coords, grid, volume.grid, template, threshold), volume.grid, volume.name
    )
