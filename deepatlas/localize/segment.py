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
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume

# Exams are processed in tiles of this shape (z, y, x). A tile maps to a small box of the template, and only the
# structures that reach into that box are sampled. The cost follows the anatomy, and not the number of structures times
# the number of voxels.
TILE = (16, 32, 32)


@dataclass(repr=False)
class Segmentation(Labels):
    """The structures of an exam on its own grid, and how well the model knows the exam.

    ``array`` is a label image. ``mask(id)`` gives the whole mask of a structure, also where others lie on it.
    """

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
        A label image on the exam's own grid: uint8, or uint16 for ids above 255. 0 is the background. Its ``mask(id)``
        is the whole mask of a structure, and its ``fit`` says how well the model knows the exam.

    Raises:
        DeepAtlasError: the template belongs to another model, or the threshold is out of range.
    """
    template.check_model(model.fingerprint)
    found = model.map_exam(volume)
    labels = segment_coordinates(found.coords, found.grid, volume.grid, template, threshold, found.body)
    return Segmentation(labels.array, volume.grid, volume.name, labels.hidden, found.fit)


def segment_coordinates(
    coords: Tensor,
    model_grid: Grid,
    native_grid: Grid,
    template: Template,
    threshold: float | None = None,
    body: NDArray[np.bool_] | None = None,
) -> Labels:
    """The structures of an exam whose coordinates are known (section 5.2.7).

    A voxel belongs to the structure whose mask is furthest above its threshold there, if any mask reaches its
    threshold. Structures that overlap in the template's exams (``template.overlapping``) do not compete: the voxel
    belongs to each of them, and the label image shows the one on top (``template.stack``). A voxel outside the body, or
    outside the field of view of the model grid, is background. The work goes slab by slab, so that the memory it needs
    does not grow with the number of slices.

    Args:
        coords: ``[1, 3, S, S, S]``, normalised coordinates on ``model_grid``.
        model_grid: the grid of ``coords``.
        native_grid: the grid of the result, in any orientation.
        template: the masks to carry over.
        threshold: as in :func:`segment`.
        body: ``[S, S, S]``, the foreground of the exam on ``model_grid``; None clips nothing. A voxel counts as outside
            where no voxel of the body is within a voxel of the model grid.

    Returns:
        Labels on ``native_grid``: a label image of uint8, or uint16 for ids above 255, and what it hides of structures
        that overlap. 0 is the background.

    Raises:
        DeepAtlasError: the threshold is out of range, or ``coords`` do not have the shape of ``model_grid``.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {threshold}")
    thresholds = template.thresholds if threshold is None else (threshold,) * len(template.ids)
    masks = _Masks.of(template, thresholds, coords)
    supports = torch.tensor(template.supports)
    last = torch.tensor(template.masks.shape[:0:-1], dtype=coords.dtype, device=coords.device) - 1
    out = np.zeros(native_grid.shape, dtype=np.uint8 if max(template.ids) < 256 else np.uint16)
    # The whole masks of the structures that overlap others, one bit a voxel along x.
    whole = {
        row: np.zeros((*native_grid.shape[:2], -(-native_grid.shape[2] // 8)), dtype=np.uint8)
        for row in np.flatnonzero(template.overlapping.any(axis=1)).tolist()
    }
    chunk = TILE[0] * native_grid.shape[1] * native_grid.shape[2]
    for z, fine in coordinate_slabs(coords, model_grid, native_grid, chunk):
        # Coordinates are clamped, which is border padding, and turned into template voxels: [3, d, H, W].
        index = fine[0].clamp_(-1, 1).add_(1).mul_((last / 2)[:, None, None, None])
        tiles = list(_tiles(index.shape[2:]))
        ends = torch.stack([torch.stack([index[t].amin((1, 2, 3)), index[t].amax((1, 2, 3))]) for t in tiles])
        ends = torch.stack([ends[:, 0].floor(), ends[:, 1].ceil()], dim=1).long().cpu()
        labels = torch.zeros(index.shape[1:], dtype=torch.int32, device=coords.device)
        slabs = {row: torch.zeros(index.shape[1:], dtype=torch.bool, device=coords.device) for row in whole}
        for tile, (low, high) in zip(tiles, ends, strict=True):
            near = ((supports[:, 0] <= high) & (supports[:, 1] >= low)).all(dim=1).nonzero()[:, 0]
            if len(near):
                labels[tile[1:]], held = masks.tile(near, index[tile], low, high)
                for row, own in held.items():
                    slabs[row][tile[1:]] = own
        out[z] = labels.cpu().numpy()
        for row, slab in slabs.items():
            whole[row][z] = np.packbits(slab.cpu().numpy(), axis=2)
    kept = inside(model_grid, native_grid)
    if body is not None:
        near_body = torch.from_numpy(body).to(coords)[None, None]
        for z, fine in sampled_slabs(near_body, model_grid, native_grid, chunk):
            # Linear interpolation is 0 only where all eight neighbours are outside.
            kept[z] &= (fine[0, 0] > 0).cpu().numpy()
    out[~kept] = 0
    hidden = {}
    for row, bits in whole.items():
        mask = np.unpackbits(bits, axis=2, count=native_grid.shape[2]).view(bool)
        lost = mask & kept & (out != template.ids[row])
        if lost.any():
            hidden[template.ids[row]] = BoxMask.of(lost)
    return Labels(out, native_grid, hidden=hidden)


@dataclass(frozen=True)
class _Masks:
    """The masks of a template as tensors, and which of its structures compete for a voxel."""

    masks: Tensor  # [K, D, H, W]
    levels: Tensor  # [K], the thresholds
    ids: Tensor  # [K]
    overlapping: NDArray[np.bool_]  # [K, K]
    stack: tuple[int, ...]  # rows, the lowest first

    @classmethod
    def of(cls, template: Template, thresholds: Sequence[float], like: Tensor) -> _Masks:
        return cls(
            torch.from_numpy(template.masks).to(like.device, like.dtype),
            torch.tensor(thresholds, dtype=like.dtype, device=like.device),
            torch.tensor(template.ids, dtype=torch.int32, device=like.device),
            template.overlapping,
            template.stack,
        )

    def tile(
        self, near: Tensor, index: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The labels of a tile, and the whole masks there of structures that overlap others.

        Args:
            near: the rows of the structures that reach into the template's box from ``low`` to ``high``.
            index: ``[3, d, h, w]``, the template voxel of every voxel of the tile.
            low: the first template voxel (x, y, z) of the box.
            high: the last one.
        """
        box = tuple(slice(a, b + 1) for a, b in zip(low.flip(0).tolist(), high.flip(0).tolist(), strict=True))
        rows = near.tolist()
        near = near.to(self.masks.device)
        part = self.masks[(slice(None), *box)][near]
        span = (high - low).clamp_min(1).to(index)[:, None, None, None]
        local = (index - low.to(index)[:, None, None, None]) * (2 / span) - 1
        above = ops.resample(part[None], local[None])[0] - self.levels[near, None, None, None]
        best, first = above.max(dim=0)
        labels = torch.where(best >= 0, self.ids[near][first], 0)
        shared = self.overlapping[np.ix_(rows, rows)]
        if not shared.any():
            return labels, {row: labels == self.ids[row] for row in rows if self.overlapping[row].any()}
        held = {}
        for place, row in enumerate(rows):
            rivals = np.flatnonzero(~shared[place]).tolist()
            held[row] = (above[place] >= 0) & (above[place] >= above[rivals].amax(dim=0))
        labels = torch.zeros_like(labels)
        for row in (row for row in self.stack if row in held):
            labels[held[row]] = self.ids[row]
        return labels, {row: own for row, own in held.items() if self.overlapping[row].any()}


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut a slab ``[3, d, H, W]`` into tiles as deep as the slab; ``shape`` is ``(H, W)``."""
    for y in range(0, shape[0], TILE[1]):
        for x in range(0, shape[1], TILE[2]):
            yield slice(None), slice(None), slice(y, y + TILE[1]), slice(x, x + TILE[2])
