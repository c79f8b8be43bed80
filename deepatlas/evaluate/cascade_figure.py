"""The picture of the cascade in one exam: what the network of every level sees, and the atlas there (Fig. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.model.engine import Engine
from deepatlas.model.field import CoordinateField
from deepatlas.pictures.draw import BACKGROUND, INK, colour, draw_contours, legend, new_figure, show
from deepatlas.pictures.view import FIXED_AXIS, View
from deepatlas.space.box import Box
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.inside import inside
from deepatlas.space.preprocess import normalize
from deepatlas.space.resample_to import resample_to
from deepatlas.space.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLANES = ("coronal", "sagittal")
_INCHES = 2.9
_WHOLE = "whole exam"


def cascade_figure(
    model: Engine, field: CoordinateField, volume: Volume, title: str = "", convention: str = "radiological"
) -> Figure:
    """What the network of the whole exam and those of its regions see of an exam, and the same part of the atlas.

    Each row is one network, on the voxels of its input. The boxes of the other regions that answered for the exam are
    outlined where they cross the slices, each in the colour of its name.

    Args:
        model: the model.
        field: the coordinates of the exam, with a piece for every region that answered.
        volume: the exam as :func:`~deepatlas.space.check_input.check_input` returns it.
        title: a line at the top.
        convention: one of :data:`~deepatlas.pictures.view.CONVENTIONS`.
    """
    boxes = {network.region.name: network.region.box for network in model.regions}
    rows: list[tuple[str, Grid, Box | None]] = [(_WHOLE, field.grid, None)]
    rows += [(piece.name, piece.grid, boxes[piece.name]) for piece in field.pieces]
    names = {piece.name: number for number, piece in enumerate(field.pieces, 1)}
    views = [View(plane, convention) for plane in _PLANES]
    outside = AIR if model.intensity == "hu" else float(np.asarray(volume.array).min())

    # The proportions of the rows, which show boxes of different shapes.
    heights = [max(view.aspect(grid.spacing) for view in views) for _, grid, _ in rows]
    top, bottom = 0.75, 0.5
    width, height = 4 * _INCHES, sum(heights) * _INCHES + top + bottom
    figure = new_figure(width, height, background=BACKGROUND)
    cells = figure.add_gridspec(
        len(rows), 4, height_ratios=heights, left=0.03, right=0.995, wspace=0.03, hspace=0.04,
        top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    figure.text(0.5, 1 - 0.08 / height, title, color=INK, fontsize=11, ha="center", va="top")
    for number, (name, grid, box) in enumerate(rows):
        seen = normalize(
            torch.as_tensor(resample_to(volume, grid, outside=outside).array, dtype=torch.float32)
        ).numpy()
        atlas = _atlas_in(model.atlas, box, grid.shape)
        others = [piece.grid for piece in field.pieces]
        held = np.stack([inside(other, grid) for other in others]) if others else None
        middle = _middle(held, grid)
        for column, view in enumerate(views):
            index = middle[FIXED_AXIS[view.plane]]
            spacing = grid.spacing
            for place, values, what in ((column, seen, "exam"), (column + 2, atlas, "atlas")):
                axes = figure.add_subplot(cells[number, place], anchor="N")
                heading = f"{what}, {view.plane}" if number == 0 else ""
                show(axes, view.slice(values, index).clip(0, 1), view, spacing, title=heading)
                if what == "exam" and held is not None:
                    boxes_there = view.slice(held, index)
                    # A box that holds all of the picture, as that of this network does, has no outline in it.
                    shown = [i for i, there in enumerate(boxes_there) if not there.all()]
                    draw_contours(axes, boxes_there[shown], [i + 1 for i in shown])
                if place == 0:
                    mm = " × ".join(f"{s:.1f}" for s in spacing)
                    axes.text(
                        -0.02, 0.5, f"{name}, voxels of {mm} mm", transform=axes.transAxes, rotation=90,
                        color=colour(names[name]) if name in names else INK, fontsize=9, ha="right", va="center",
                    )  # fmt: skip
    legend(figure, names, "every row: the input of one network, and the part of the atlas that it answers in")
    return figure


def _atlas_in(atlas: Tensor, box: Box | None, shape: Shape) -> NDArray[np.float32]:
    """The atlas on ``shape`` voxels, or a box of it on as many along the axes of the box."""
    if box is None:
        found: NDArray[np.float32] = ops.resize(atlas, shape)[0, 0].cpu().numpy()
        return found
    places = np.moveaxis(box.grid(shape).places(), -1, 0)
    coords = torch.from_numpy(places.reshape(1, 3, *shape)).to(atlas).clamp(-1, 1)
    inside_box: NDArray[np.float32] = ops.resample(atlas, coords)[0, 0].cpu().numpy()
    return inside_box


def _middle(held: NDArray[np.bool_] | None, grid: Grid) -> tuple[int, ...]:
    """The voxel (z, y, x) in the middle of what regions hold of a grid, or of the grid where they hold nothing."""
    if held is None or not held.any():
        return tuple(n // 2 for n in grid.shape)
    return tuple(int(round(float(np.mean(where)))) for where in np.nonzero(held.any(axis=0)))
