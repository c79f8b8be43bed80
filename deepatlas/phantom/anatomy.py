"""The template of the phantom: one body, painted at 2 or 1 mm, of which every exam is a deformed copy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.phantom.head import paint_head
from deepatlas.phantom.organs import paint_abdomen, paint_airway, paint_heart, paint_lungs, paint_neck
from deepatlas.phantom.shapes import Canvas, Shape
from deepatlas.phantom.skeleton import body, cavity, paint_skeleton
from deepatlas.phantom.small import paint_small
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


class _Smooth:
    """Distances of a smooth shape on a canvas, interpolated linearly between every ``step``-th voxel."""

    def __init__(self, canvas: Canvas, shape: Shape, step: int) -> None:
        x, y, z = canvas.axes(tuple(slice(0, n) for n in canvas.grid.shape))  # type: ignore[arg-type]
        self._coarse = shape.distance(x[:, :, ::step], y[:, ::step], z[::step]).astype(np.float32)
        self._shape, self._step = canvas.grid.shape, step

    def at(self, rows: slice) -> NDArray[np.float32]:
        """The distances in the slices ``rows``."""
        values = self._coarse
        for axis, n in enumerate(self._shape):
            at = np.arange(n)[rows if axis == 0 else slice(None)] / self._step
            low = np.minimum(at.astype(int), values.shape[axis] - 2)
            weight = np.expand_dims((at - low).astype(np.float32), tuple(a for a in range(3) if a != axis))
            values = values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
        return values


def _paint_outline(canvas: Canvas, step: int) -> NDArray[np.bool_]:
    """Paint skin, fat, muscle and the fat of the cavity; returns the mask of the body."""
    inside = np.empty(canvas.grid.shape, np.bool_)
    outline, hollow = _Smooth(canvas, body(), step), _Smooth(canvas, cavity(), step)
    heights = canvas.axes(tuple(slice(0, n) for n in canvas.grid.shape))[2]  # type: ignore[arg-type]
    ids = canvas.tissue_ids
    # In slabs, because the distances at 1 mm would take a gigabyte.
    for start in range(0, len(heights), 64):
        rows = slice(start, start + 64)
        z, tissue = heights[rows], canvas.tissue[rows]
        skin, inner = outline.at(rows), hollow.at(rows)
        fat = np.interp(z, [-400, -260, -210, -120, 20, 70, 110, 160, 220], [13, 17, 15, 12, 8, 9, 6, 4, 2.5])
        fat = fat.astype(np.float32)
        inside[rows] = skin < 0
        tissue[skin < 0] = ids["skin"]
        tissue[skin < -2.4] = ids["fat"]
        muscle = (skin < -2.4 - fat) | ((inner < 9) & (skin < -4))
        tissue[muscle] = ids["muscle"]
        # The fascia between the superficial and the deep muscles of trunk and thighs.
        sheet = muscle & (np.abs(skin + fat + 16) < 1.3) & (inner > 10) & (z < 120)
        tissue[sheet] = ids["fat"]
        tissue[inner < 0] = ids["visceral_fat"]
    return inside


def build_template(small: bool = False, spacing: float = SPACING) -> Template:
    """Paint the template body, once per process; the arrays are read-only.

    At 2 mm this takes three seconds, and at 1 mm 18 seconds and 0.6 GB.

    Args:
        small: paint the small structures in their details, and label them.
        spacing: voxel spacing in mm.
    """
    # The cache tells defaults that are given from defaults that are not.
    return _painted(bool(small), float(spacing))


@lru_cache(maxsize=2)
def _painted(small: bool, spacing: float) -> Template:
    shape = tuple(int(n) for n in np.round((HIGH - LOW) / spacing).astype(int)[::-1] + 1)
    grid = Grid.from_spacing(shape, spacing, LOW)  # type: ignore[arg-type]
    canvas = Canvas(grid, TISSUE_NAMES, ALL_STRUCTURES if small else STRUCTURES)
    generator = np.random.default_rng(20)
    inside = _paint_outline(canvas, round(2 * SPACING / spacing))
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
    canvas.tissue[outside], canvas.label[outside] = canvas.tissue_ids["air"], 0
    mask = ndimage.binary_fill_holes(inside)
    for array in (canvas.tissue, canvas.label, mask):
        array.setflags(write=False)
    return Template(grid, canvas.tissue, canvas.label, mask)


def inner_points(template: Template, names: dict[str, int]) -> dict[str, NDArray[np.float64]]:
    """For each structure the point (x, y, z in mm) that lies deepest in it."""
    found = {}
    boxes = ndimage.find_objects(template.label)
    for name, number in names.items():
        box = boxes[number - 1]
        depth = ndimage.distance_transform_edt(np.pad(template.label[box] == number, 1))
        index = np.unravel_index(depth.argmax(), depth.shape)
        voxel = [i - 1 + s.start for i, s in zip(index, box, strict=True)]
        found[name] = template.grid.voxel_to_world(np.array(voxel[::-1]))
    return found
