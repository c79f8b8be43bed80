"""The coordinates of one exam as one map that can be sampled anywhere, whichever networks gave them (section 5.2.4).

The network of the whole exam answers everywhere. Networks of regions, which see a part of the exam at a higher
resolution, answer inside their part. All of them give coordinates of one space, so that the answers are blended: inside
its part that of a region counts, and towards the rim it passes over smoothly into the answer of the level above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.model.native import (
    CHUNK_VOXELS,
    coordinate_slabs,
    extrapolate,
    extrapolated_grid,
    sampled_slabs,
)
from deepatlas.space.at_points import at_points
from deepatlas.space.grid import Grid
from deepatlas.space.inside import inside


@dataclass(frozen=True)
class Piece:
    """What the network of a region says.

    Attributes:
        name: the region.
        coords: ``[1, 3, S, S, S]``, in the coordinates of the whole atlas.
        grid: the grid of these S^3 voxels, which is turned to the axes of the region.
        weight: ``[1, 1, S, S, S]`` in [0, 1], by how much this answer counts against that of the levels above; 0 on all
            six sides, so that the blend is continuous.
    """

    name: str
    coords: Tensor
    grid: Grid
    weight: Tensor


@dataclass(frozen=True)
class CoordinateField:
    """The anatomical coordinate of every place of an exam.

    Attributes:
        coords: ``[1, 3, S, S, S]``, what the network of the whole exam says, in [-1, 1].
        grid: the grid of these voxels.
        pieces: what the networks of regions say; later ones lie above earlier ones.

    Raises:
        DeepAtlasError: ``coords`` do not have the shape of ``grid``.
    """

    coords: Tensor
    grid: Grid
    pieces: tuple[Piece, ...] = ()

    def __post_init__(self) -> None:
        if self.coords.ndim != 5 or tuple(self.coords.shape) != (1, 3, *self.grid.shape):
            raise DeepAtlasError(
                f"CoordinateField: coords must be [1, 3, {', '.join(map(str, self.grid.shape))}] to match the grid, "
                f"got {list(self.coords.shape)}"
            )

    def cpu(self) -> CoordinateField:
        """The same field in the memory of the CPU."""
        pieces = (Piece(p.name, p.coords.cpu(), p.grid, p.weight.cpu()) for p in self.pieces)
        return CoordinateField(self.coords.cpu(), self.grid, tuple(pieces))

    @property
    def spacing(self) -> float:
        """The largest voxel edge in mm of the finest grid that the field has."""
        return min(max(grid.spacing) for grid in (self.grid, *(p.grid for p in self.pieces)))

    def slabs(self, grid: Grid, chunk: int = CHUNK_VOXELS) -> Iterator[tuple[slice, Tensor]]:
        """Sample the field on a grid, slab by slab: yield ``(z slice, coords [1, 3, d, H, W])``.

        Beyond the field of view of the network the map is continued linearly for one of its voxels, and is constant
        further out (:meth:`inside` tells where). Values may exceed [-1, 1] there.

        Args:
            grid: any grid of the same exam, in any orientation.
            chunk: the number of voxels that are processed at once.
        """
        pieces = [p for p in self.pieces if _meet(p.grid, grid)]
        maps = [(p, extrapolate(p.coords), extrapolated_grid(p.grid), _padded(p.weight)) for p in pieces]
        _, height, width = grid.shape
        for z, fine in coordinate_slabs(self.coords, self.grid, grid, chunk):
            part = grid.cropped((z.start, 0, 0), (z.stop - z.start, height, width))
            for piece, coords, wide, weight in maps:
                if not _meet(piece.grid, part):
                    continue
                whole = part.shape[0] * height * width
                ((_, own),) = sampled_slabs(coords, wide, part, whole)
                ((_, share),) = sampled_slabs(weight, wide, part, whole)
                fine = torch.lerp(fine, own, share)
            yield z, fine

    def on(self, grid: Grid, chunk: int = CHUNK_VOXELS) -> Tensor:
        """The field on a grid, ``[3, D, H, W]``; see :meth:`slabs`."""
        out = self.coords.new_empty((3, *grid.shape))
        for z, part in self.slabs(grid, chunk):
            out[:, z] = part[0]
        return out

    def at(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """The coordinates ``[N, 3]`` of places ``[N, 3]`` in RAS millimetres, by linear interpolation."""
        points = np.asarray(points_mm, dtype=np.float64)
        found = sample_at(extrapolate(self.coords), extrapolated_grid(self.grid), points)
        for piece in self.pieces:
            wide = extrapolated_grid(piece.grid)
            own = sample_at(extrapolate(piece.coords), wide, points)
            share = sample_at(_padded(piece.weight), wide, points)
            found = found + share * (own - found)
        return found

    def inside(self, grid: Grid, margin: float = 0.5) -> NDArray[np.bool_]:
        """Bool ``[D, H, W]``: which voxels of a grid lie in the field of view of the network of the whole exam.

        It ends ``margin`` of its voxels beyond the outermost centres; 0.5 is the outer face of the voxels.
        """
        return inside(self.grid, grid, margin)


def warped_atlas(atlas: Tensor, field: CoordinateField, grid: Grid) -> NDArray[np.float32]:
    """The atlas warped onto an exam, for pictures: ``[D, H, W]`` on ``grid``.

    It is NaN where there is nothing to warp: beyond the field of view of the network, and where the coordinates leave
    the atlas. Its border, continued there, would look like anatomy.

    Args:
        atlas: ``[1, 1, N, N, N]``.
        field: the coordinates of the exam.
        grid: the grid of the result.
    """
    fine = field.on(grid)[None]
    warped: NDArray[np.float32] = ops.resample(atlas.to(fine), fine.clamp(-1, 1))[0, 0].cpu().numpy()
    beyond = (fine[0].abs() > 1).any(0).cpu().numpy() | ~field.inside(grid)
    warped[beyond] = np.nan
    return warped


def sample_at(volume: Tensor, grid: Grid, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values ``[N, C]`` of ``volume [1, C, D, H, W]`` on ``grid`` at RAS millimetres ``[N, 3]``, linearly.

    Beyond its outermost centres the volume is constant.
    """
    if len(points_mm) == 0:
        return np.zeros((0, volume.shape[1]))
    place = torch.from_numpy(np.ascontiguousarray(grid.world_to_normalized(points_mm).T))
    return at_points(volume, place.to(volume)[None])[0].T.double().cpu().numpy()


def _padded(weight: Tensor) -> Tensor:
    """A weight on the grid of :func:`extrapolate`: it is 0 beyond the grid of its region."""
    return torch.nn.functional.pad(weight, (1,) * 6)


def _meet(a: Grid, b: Grid) -> bool:
    """Whether the voxels of two grids may lie in each other; False only where an axis of one keeps them apart."""

    def apart(one: Grid, other: Grid) -> bool:
        corners = other.corners()
        index = one.world_to_voxel(corners)
        last = np.array(one.shape[::-1]) - 1
        return bool(((index.max(axis=0) < -1) | (index.min(axis=0) > last + 1)).any())

    return not (apart(a, b) or apart(b, a))


def rim(size: Sequence[int], width: int, like: Tensor) -> Tensor:
    """A weight ``[1, 1, D, H, W]`` that is 0 on the six sides of a grid and 1 from ``width`` voxels inwards.

    The passage is a cosine, whose slope is 0 at both ends.
    """
    axes = []
    for n in size:
        from_side = torch.minimum(torch.arange(n), torch.arange(n - 1, -1, -1)).to(like)
        axes.append(0.5 - 0.5 * torch.cos((from_side / width).clamp(max=1) * torch.pi))
    z, y, x = axes
    return (z[:, None, None] * y[:, None] * x)[None, None]
