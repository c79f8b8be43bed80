"""The template of the phantom: one body, painted once at 2 mm, of which every exam is a deformed copy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.phantom.head import paint_head
from deepatlas.phantom.organs import paint_abdomen, paint_airway, paint_heart, paint_lungs, paint_neck
from deepatlas.phantom.shapes import Canvas, Shape
from deepatlas.phantom.small import paint_small
from deepatlas.phantom.skeleton import body, cavity, paint_skeleton
from deepatlas.phantom.structures import ALL_STRUCTURES, STRUCTURES
from deepatlas.phantom.tissue import TISSUE_NAMES
from deepatlas.space.grid import Grid

# The voxel spacing of the template, and its first and last voxel (x, y, z), in mm.
SPACING = 2.0
LOW, HIGH = np.array([-192.0, -120.0, -396.0]), np.array([192.0, 120.0, 324.0])
# z in mm of the top of the head, and of the lower end of a whole-body exam, in the thighs.
VERTEX, THIGH = 306.0, -338.0


@dataclass(frozen=True)
class Template:
    """Tissue ids, structure ids and the mask of the body, all ``[D, H, W]`` on ``grid`` (RAS, template mm)."""

    grid: Grid
    tissue: NDArray[np.uint8]
    label: NDArray[np.uint8]
    body: NDArray[np.bool_]


def _distance(canvas: Canvas, shape: Shape, step: int) -> NDArray[np.float32]:
    """Distances of a smooth shape on the whole canvas, interpolated linearly between every ``step``-th voxel."""
    axes = canvas.axes(tuple(slice(0, n) for n in canvas.grid.shape))  # type: ignore[arg-type]
    coarse = shape.distance(axes[0][:, :, ::step], axes[1][:, ::step], axes[2][::step]).astype(np.float32)
    for axis, n in enumerate(canvas.grid.shape):
        at = np.arange(n) / step
        low = np.minimum(at.astype(int), coarse.shape[axis] - 2)
        weight = np.expand_dims((at - low).astype(np.float32), tuple(a for a in range(3) if a != axis))
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    return coarse


@lru_cache(maxsize=2)
def build_template(small: bool = False, spacing: float = SPACING) -> Template:
    """Paint the template body, once per process; the arrays are read-only.

    At 2 mm this takes three seconds, and at 1 mm half a minute and 1.3 GB.

    Args:
        small: paint the small structures in their details, and label them.
        spacing: voxel spacing in mm.
    """
    shape = tuple(int(n) for n in np.round((HIGH - LOW) / spacing).astype(int)[::-1] + 1)
    grid = Grid.from_spacing(shape, spacing, LOW)  # type: ignore[arg-type]
    canvas = Canvas(grid, TISSUE_NAMES, ALL_STRUCTURES if small else STRUCTURES)
    generator = np.random.default_rng(20)
    step = round(2 * SPACING / spacing)
    skin, inner = _distance(canvas, body(), step), _distance(canvas, cavity(), step)
    z = canvas.axes(tuple(slice(0, n) for n in shape))[2]  # type: ignore[arg-type]
    fat = np.interp(z, [-400, -260, -210, -120, 20, 70, 110, 160, 220], [13, 17, 15, 12, 8, 9, 6, 4, 2.5])
    fat = fat.astype(np.float32)
    inside = skin < 0
    ids = canvas.tissue_ids
    canvas.tissue[inside] = ids["skin"]
    canvas.tissue[skin < -2.4] = ids["fat"]
    muscle = (skin < -2.4 - fat) | ((inner < 9) & (skin < -4))
    canvas.tissue[muscle] = ids["muscle"]
    # The fascia between the superficial and the deep muscles of trunk and thighs.
    sheet = muscle & (np.abs(skin + fat + 16) < 1.3) & (inner > 10) & (z < 120)
    canvas.tissue[sheet] = ids["fat"]
    canvas.tissue[inner < 0] = ids["visceral_fat"]
    paint_neck(canvas)
    paint_abdomen(canvas, cavity())
    paint_lungs(canvas, cavity(), generator)
    paint_skeleton(canvas, cavity())
    paint_heart(canvas)
    paint_head(canvas)
    paint_airway(canvas)
    if small:
        paint_small(canvas)
    outside = ~inside
    canvas.tissue[outside], canvas.label[outside] = ids["air"], 0
    mask = ndimage.binary_fill_holes(inside)
    for array in (canvas.tissue, canvas.label, mask):
        array.setflags(write=False)
    return Template(grid, canvas.tissue, canvas.label, mask)
