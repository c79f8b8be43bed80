"""From how far each structure is above its threshold to a label image, whether a template or a network says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.model.native import CHUNK_VOXELS, sampled_slabs
from deepatlas.space.grid import Grid
from deepatlas.space.inside import inside
from deepatlas.space.labels import BoxMask, Labels


@dataclass(frozen=True)
class Rivals:
    """Which structures compete for a voxel.

    Attributes:
        ids: int32 ``[K]``.
        overlapping: bool ``[K, K]``: which may have a voxel in common.
        stack: their rows, the lowest first.
    """

    ids: Tensor
    overlapping: NDArray[np.bool_]
    stack: tuple[int, ...]

    def decide(self, rows: Sequence[int], above: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The labels of some voxels, and the whole masks there of structures that overlap others.

        A voxel belongs to the structure that is furthest above its threshold there, if any reaches it. Structures that
        overlap do not compete: the voxel belongs to each of them, and the label is that of the one on top.

        Args:
            rows: the structures, at least one.
            above: ``[len(rows), ...]``, by how much each of them exceeds its threshold.
        """
        ids = self.ids[torch.as_tensor(rows, device=self.ids.device)]
        best, first = above.max(dim=0)
        labels = torch.where(best >= 0, ids[first], 0)
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


@dataclass
class Canvas:
    """The label image of an exam in the making, slab by slab, and the whole masks of structures that overlap others."""

    grid: Grid
    ids: Sequence[int]
    overlapping: NDArray[np.bool_]
    array: NDArray[np.unsignedinteger] = field(init=False)
    # One bit a voxel along x.
    _whole: dict[int, NDArray[np.uint8]] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.grid.shape
        self.array = np.zeros(shape, dtype=np.uint8 if max(self.ids) < 256 else np.uint16)
        self._whole = {row: np.zeros((*shape[:2], -(-shape[2] // 8)), dtype=np.uint8) for row in self.shared}

    @property
    def shared(self) -> list[int]:
        """The rows of the structures that overlap others."""
        return np.flatnonzero(self.overlapping.any(axis=1)).tolist()

    def put(self, z: slice, labels: Tensor, whole: dict[int, Tensor]) -> None:
        """Set a slab: its labels ``[d, H, W]``, and the whole mask of every structure that overlaps others."""
        self.array[z] = labels.cpu().numpy()
        for row, mask in whole.items():
            self._whole[row][z] = np.packbits(mask.cpu().numpy(), axis=2)

    def finish(
        self, model_grid: Grid, body: NDArray[np.bool_] | None, like: Tensor, chunk: int = CHUNK_VOXELS
    ) -> Labels:
        """The labels, without those where no structure can be (see :func:`kept_voxels`)."""
        kept = kept_voxels(model_grid, self.grid, body, like, chunk)
        self.array[~kept] = 0
        hidden = {}
        for row, bits in self._whole.items():
            mask = np.unpackbits(bits, axis=2, count=self.grid.shape[2]).view(bool)
            lost = mask & kept & (self.array != self.ids[row])
            if lost.any():
                hidden[self.ids[row]] = BoxMask.of(lost)
        return Labels(self.array, self.grid, hidden=hidden)


def kept_voxels(
    model_grid: Grid, grid: Grid, body: NDArray[np.bool_] | None, like: Tensor, chunk: int = CHUNK_VOXELS
) -> NDArray[np.bool_]:
    """Bool ``[D, H, W]``: which voxels of ``grid`` can belong to a structure.

    They lie in the field of view of the network and in the body.

    Args:
        model_grid: the grid of the network's input.
        grid: the exam's own grid.
        body: the foreground of the exam on ``model_grid``; None clips nothing. A voxel counts as outside where no voxel
            of the body is within a voxel of that grid.
        like: gives the device and the dtype of the work.
        chunk: the number of voxels that are processed at once.
    """
    kept = inside(model_grid, grid)
    if body is not None:
        near_body = torch.from_numpy(body).to(like)[None, None]
        for z, fine in sampled_slabs(near_body, model_grid, grid, chunk):
            # Linear interpolation is 0 only where all eight neighbours are outside.
            kept[z] &= (fine[0, 0] > 0).cpu().numpy()
    return kept
