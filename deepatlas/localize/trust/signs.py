"""The evidence about each structure of a template in one exam, as a row of numbers that a regression can use."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.localize.coverage import coverage
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.evidence import LEAST_MM, Evidence

# What the columns of :func:`signs` are; one that has no value, since the exam shows nothing of the structure, is nan.
SIGNS = (
    # The mean Dice of the soft masks of two views.
    "agreement",
    # The soft Dice of the final mask and the mask of the mean of the views.
    "refined",
    # In the mask, as a logarithm of mm: the deviation of the views, and how far refinement moved the coordinates.
    "spread",
    "shift",
    # The correlation with the warped atlas in the mask, and in the rim of two voxels around it.
    "match",
    "match_rim",
    # The mean and the standard deviation of the logarithm of the stretch in the mask, and the share that is folded.
    "stretch",
    "stretch_sd",
    "folds",
    # The logarithm of the volume in ml, and the share of the template's mask that the field of view shows.
    "volume",
    "in_view",
    # Hounsfield units over 100, clipped to ±1000: the mean and the standard deviation in the mask, and by how much the
    # mean exceeds that of the rim.
    "hu",
    "hu_sd",
    "contrast",
    # How well the model knows the exam, and the mean deviation and shift over the body, as logarithms of mm.
    "fit",
    "spread_body",
    "shift_body",
)
_RIM = 2
_HU_RANGE = 1000.0
# The logarithm of the stretch below which the map folds.
_FOLD = -6.0


def signs(evidence: Evidence, template: Template) -> NDArray[np.float64]:
    """The signs of every structure of a template, ``[K, len(SIGNS)]``."""
    found = evidence.found
    final = found.field.on(found.grid)
    views = ops.resize(evidence.views, final.shape[1:])
    mean = views.mean(0)
    maps = torch.stack([*views, mean, final]).clamp(-1, 1)
    hu = np.clip(np.asarray(found.hu.array, dtype=np.float64), -_HU_RANGE, _HU_RANGE) / 100
    voxels = {name: getattr(evidence, name) for name in ("spread", "shift", "match", "stretch")}
    body = found.body if found.body.any() else np.ones_like(found.body)
    whole = [
        found.fit.value,
        np.log(voxels["spread"][body].mean() + LEAST_MM),
        np.log(voxels["shift"][body].mean() + LEAST_MM),
    ]
    seen = coverage(found, template, found.grid)
    rows = [
        [*_of_structure(template, row, maps, voxels, hu, found.grid.voxel_volume, seen[row]), *whole]
        for row in range(len(template.names))
    ]
    return np.array(rows, dtype=np.float64)


def _of_structure(
    template: Template,
    row: int,
    maps: Tensor,
    voxels: dict[str, NDArray[np.float64]],
    hu: NDArray[np.float64],
    voxel_volume: float,
    seen: float,
) -> list[float]:
    """The signs of one structure; ``maps`` ``[V + 2, 3, D, H, W]`` are those of the views, their mean, the final."""
    low, high = template.supports[row]
    nothing = [np.nan] * 9 + [np.nan, seen] + [np.nan] * 3
    if low[0] > high[0]:
        return nothing
    last = np.array(template.masks.shape[:0:-1]) - 1
    ends = torch.tensor(np.stack([low - 1, high + 1]) / last * 2 - 1).to(maps)
    near = ((maps >= ends[0, :, None, None, None]) & (maps <= ends[1, :, None, None, None])).all(1).any(0)
    if not near.any():
        return nothing
    box = _box(near.cpu().numpy(), _RIM + 1)
    mask = torch.from_numpy(template.masks[row]).to(maps)[None, None]
    part = maps[(slice(None), slice(None), *box)]
    values = ops.resample(mask.expand(len(part), -1, -1, -1, -1), part)[:, 0].clamp(0, 1)
    soft = values.flatten(1).double().cpu().numpy()
    views, mean, final = soft[:-2], soft[-2], soft[-1]
    held = values[-1].cpu().numpy() >= template.thresholds[row]
    if not held.any():
        return nothing
    rim = ndimage.binary_dilation(held, iterations=_RIM) & ~held
    spread, shift, match, stretch = (voxels[name][box] for name in ("spread", "shift", "match", "stretch"))
    tissue = hu[box]
    return [
        _agreement(views),
        _dice(mean, final),
        np.log(spread[held].mean() + LEAST_MM),
        np.log(shift[held].mean() + LEAST_MM),
        match[held].mean(),
        match[rim].mean() if rim.any() else np.nan,
        stretch[held].mean(),
        stretch[held].std(),
        (stretch[held] < _FOLD).mean(),
        np.log(final.sum() * voxel_volume / 1000 + 1e-3),
        seen,
        tissue[held].mean(),
        tissue[held].std(),
        tissue[held].mean() - tissue[rim].mean() if rim.any() else np.nan,
    ]


def _agreement(views: NDArray[np.float64]) -> float:
    """The mean soft Dice of two of the views ``[V, N]``."""
    pairs = [_dice(a, b) for i, a in enumerate(views) for b in views[i + 1 :]]
    return float(np.mean(pairs)) if pairs else np.nan


def _dice(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    total = a.sum() + b.sum()
    return float(2 * np.minimum(a, b).sum() / total) if total else 0.0


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + 1 + margin))
    return tuple(box)
