"""What one exam shows about how far its coordinates can be believed, voxel by voxel.

None of it needs a label: how much the coordinates differ between slightly moved views of the exam, how far refinement
moved them, how well the warped atlas agrees with the exam around each voxel, and how the map stretches space there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.localize.coverage import mean_scale
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import normalize

# The views of an exam, the exam itself among them; each takes one pass of the network.
VIEWS = 6
# The grid on which the coordinates of views are compared; the networks give them on 16³ or 32³ points.
VIEW_SIZE = 32
# The side in voxels of the windows in which the warped atlas is compared with the exam.
WINDOW = 7
# Millimetres below which a deviation means nothing; added before a logarithm is taken.
LEAST_MM = 0.05
# The variance, on the scale of the network, up to which a region counts as even: noise of a few HU is no disagreement.
NOISE = 1e-4
# The least ratio of volumes; the map folds where it is not reached.
FOLDED = 1e-3


@dataclass(frozen=True)
class Evidence:
    """The evidence of one exam on the grid of the network's input, ``[S, S, S]``.

    Attributes:
        found: the coordinates of the exam.
        views: ``[V, 3, s, s, s]``, the coordinates of its views after one pass of the network each.
        scale: ``[3, 3]``, from differences of coordinates to millimetres of this exam, on average over the body.
        spread: in mm, the root mean square deviation of the views from their mean.
        shift: in mm, how far the final coordinates are from the mean of the views.
        match: the correlation of the warped atlas with the exam in the window around each voxel, in [-1, 1].
        stretch: the logarithm of the volume of the atlas that a voxel takes, relative to that on average over the body;
            below -6 where the map folds.
    """

    found: ExamMap
    views: Tensor
    scale: NDArray[np.float64]
    spread: NDArray[np.float64]
    shift: NDArray[np.float64]
    match: NDArray[np.float64]
    stretch: NDArray[np.float64]


@torch.inference_mode(False)
@torch.no_grad()
def gather(model: Engine, found: ExamMap, views: int = VIEWS) -> Evidence:
    """The evidence of an exam whose coordinates are known, by ``views`` passes of the network."""
    return weigh(found, model.views(found, views, VIEW_SIZE), model.atlas)


@torch.no_grad()
def weigh(found: ExamMap, views: Tensor, atlas: Tensor) -> Evidence:
    """The evidence from coordinates of views ``[V, 3, s, s, s]`` that are there already."""
    coords = found.field.on(found.grid)[None].float()
    size = coords.shape[2:]
    scale = mean_scale(coords[0].double().cpu().numpy(), found.body, found.grid)
    to_mm = torch.from_numpy(scale).to(coords)
    mean = views.mean(0, keepdim=True)
    spread = _length(to_mm, views - mean).square().mean(0, keepdim=True).sqrt()
    shift = _length(to_mm, coords - ops.resize(mean, size))
    image = normalize(torch.from_numpy(np.ascontiguousarray(found.hu.array))).double().numpy()
    warped = ops.resample(atlas.to(coords), coords.clamp(-1, 1))[0, 0].double().cpu().numpy()
    return Evidence(
        found,
        views,
        scale,
        ops.resize(spread, size)[0, 0].double().cpu().numpy(),
        shift[0, 0].double().cpu().numpy(),
        _local_correlation(warped, image, found.body),
        _stretch(coords[0].double().cpu().numpy(), found.grid, scale),
    )


def _length(to_mm: Tensor, difference: Tensor) -> Tensor:
    """The length in mm ``[B, 1, D, H, W]`` of differences of coordinates ``[B, 3, D, H, W]``."""
    return torch.einsum("ab,nb...->na...", to_mm, difference).norm(dim=1, keepdim=True)


def _local_correlation(
    a: NDArray[np.float64], b: NDArray[np.float64], body: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The correlation of two images in the window around each voxel, of which only the voxels of the body count."""

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = ndimage.uniform_filter(x * body, WINDOW, mode="constant")
        return result

    share = np.maximum(mean(np.ones_like(a)), 1e-6)
    mean_a, mean_b = mean(a) / share, mean(b) / share
    var_a = np.maximum(mean(a * a) / share - mean_a**2, 0)
    var_b = np.maximum(mean(b * b) / share - mean_b**2, 0)
    covariance = mean(a * b) / share - mean_a * mean_b
    result: NDArray[np.float64] = covariance / np.sqrt((var_a + NOISE) * (var_b + NOISE)) * body
    return result


def _stretch(coords: NDArray[np.float64], grid: Grid, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the determinant of the map at each voxel, relative to that of its best affine map."""
    # d coords / d voxel along x, y and z, [3, D, H, W] each.
    x, y, z = np.gradient(coords, axis=(3, 2, 1))
    det = (x * np.cross(y, z, axis=0)).sum(axis=0)
    affine = np.linalg.det(scale)
    ratio = det * affine / grid.voxel_volume
    result: NDArray[np.float64] = np.log(np.maximum(ratio, FOLDED))
    return result
