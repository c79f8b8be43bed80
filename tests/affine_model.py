"""A model with known coordinates and exams with known anatomy: exact oracles for everything that uses coordinates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.model.look import Look
from deepatlas.model.regions import Region
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.markup import Markups
from deepatlas.space.preprocess import foreground_mask, to_model_grid
from deepatlas.space.volume import Volume

# The structures are ellipsoids: name -> (id, centre in mm, radii in mm). The ids are neither dense nor in order.
ANATOMY = {
    "liver": (5, (22.0, 4.0, -8.0), (22.0, 17.0, 19.0)),
    "spleen": (2, (-28.0, -10.0, 6.0), (11.0, 14.0, 16.0)),
    "heart": (9, (-6.0, 14.0, 30.0), (15.0, 13.0, 11.0)),
}
LABELS = {name: identity for name, (identity, _, _) in ANATOMY.items()}
BODY = (58.0, 46.0, 62.0)
# Millimetres per unit of normalised coordinate.
SCALE = 80.0


def grid_of(
    spacing=(2.0, 2.0, 2.0), degrees=(0.0, 0.0, 0.0), flips=(), order=(0, 1, 2), half_mm=(70.0, 58.0, 72.0)
) -> Grid:
    """A grid over the anatomy, rotated by ``degrees`` about x, y and z, with mirrored and permuted voxel axes."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    columns = rotation[:, list(order)] * np.array(spacing)
    size = [int(2 * half_mm[o] / s) + 1 for o, s in zip(order, spacing, strict=True)]
    for axis in flips:
        columns[:, axis] *= -1
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = -columns @ ((np.array(size) - 1) / 2)
    return Grid(tuple(size[::-1]), affine)


GRIDS = {
    "plain": grid_of(),
    "coarse": grid_of(spacing=(3.0, 3.0, 3.0)),
    "oblique": grid_of(degrees=(14.0, -9.0, 20.0)),
    "anisotropic": grid_of(spacing=(1.3, 1.7, 4.0)),
    "flipped": grid_of(flips=(0, 2)),
    "sagittal": grid_of(spacing=(1.6, 2.1, 3.0), order=(1, 2, 0), flips=(1,), degrees=(0.0, 7.0, 0.0)),
}


def world(grid: Grid) -> np.ndarray:
    """The place of every voxel in mm: ``[D, H, W, 3]`` in RAS."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.voxel_to_world(np.stack([x, y, z], axis=-1))


def exam(grid: Grid, name: str = "exam", to_anatomy: Callable | None = None) -> tuple[Volume, Volume]:
    """CT in Hounsfield units and label image of the anatomy on ``grid``.

    ``to_anatomy`` maps the places of this exam to places of the anatomy; None is the identity.
    """
    place = world(grid)
    place = place if to_anatomy is None else to_anatomy(place)
    hu = np.where(((place / BODY) ** 2).sum(-1) < 1, 20.0, -1000.0).astype(np.float32)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for identity, centre, radii in ANATOMY.values():
        inside = (((place - centre) / radii) ** 2).sum(-1) < 1
        labels[inside], hu[inside] = identity, 60.0 + 10 * identity
    return Volume(hu, grid, name), Volume(labels, grid, name)


def anatomy_template(size: int = 64, marks: Markups | None = None) -> Template:
    """The true template of the anatomy for :class:`AffineModel`, with these points, lines and boxes."""
    grid = Grid.from_spacing((size,) * 3, 2 * SCALE / (size - 1), (-SCALE,) * 3)
    labels = exam(grid)[1].array
    masks = np.stack([labels == identity for identity in LABELS.values()]).astype(np.float32)
    return Template(masks, tuple(LABELS), tuple(LABELS.values()), {}, marks or Markups())


class AffineModel:
    """A stand-in for the engine that knows the anatomical place of every voxel: coords = place / SCALE.

    ``maps`` holds the ``to_anatomy`` of exams by their names. Every exam has fit 1, so that with a ``fit_threshold``
    above it no exam is known.
    """

    fit_threshold: float | None = None

    fingerprint = "affine-model"
    refine, average = 0, 1
    device = torch.device("cpu")
    card: dict = {}
    structures = None
    regions: tuple = ()
    depth: int | None = None

    intensity = "hu"

    def __init__(self, size: int = 32, crop: str | None = None, maps: dict[str, Callable] | None = None):
        self.size, self.crop, self.maps = size, crop, maps or {}
        self.network = torch.nn.Identity()
        axis = np.linspace(-1, 1, 64) * SCALE
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        inside = ((np.stack([x, y, z], axis=-1) / BODY) ** 2).sum(-1) < 1
        self.atlas = torch.from_numpy(np.where(inside, 0.54, 0.0)).float()[None, None]

    def map_exam(self, volume: Volume):
        hu = to_model_grid(volume, self.size, crop=self.crop)
        place = world(hu.grid)
        if volume.name in self.maps:
            place = self.maps[volume.name](place)
        coords = torch.from_numpy(np.moveaxis(place / SCALE, -1, 0).copy()).float()[None]
        return ExamMap(
            coords, hu.grid, hu, foreground_mask(hu.array), Fit(1.0, self.fit_threshold), image=volume
        )

    def views(self, found: ExamMap, count: int, size: int) -> torch.Tensor:
        """Views that differ by a millimetre."""
        steps = torch.arange(count).reshape(count, 1, 1, 1, 1) / SCALE
        return ops.resize(found.coords, (size,) * 3) + steps.float()


# A box of the anatomy that lies to no side of it.
MIDDLE = Box.between("middle", (-0.4, -0.3, -0.35), (0.45, 0.4, 0.5))


class KnownRegion:
    """The network of a region that knows where it is, up to ``shift`` half-edges along x."""

    size, intensity, device = 32, "hu", torch.device("cpu")
    fingerprint = "known-region"

    def __init__(self, name: str, box: Box = MIDDLE, within: str | None = None, shift: float = 0.0):
        self.region, self.shift, self.looks = Region(name, box, within), shift, []

    def answer(self, look: Look) -> Tensor:
        self.looks.append(look)
        own = self.region.box.own(world(look.hu.grid) / SCALE)
        own[..., 0] += self.shift
        return torch.from_numpy(np.moveaxis(own, -1, 0).copy()).float()[None]
