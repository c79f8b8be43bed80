"""The small structures of the phantom in their details, in template mm: eyes, ears, glands, pancreas, adrenals.

They are painted after everything else, and only where they are asked for. Gallbladder and psoas are those of the body
without them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from deepatlas.phantom.organs import airway
from deepatlas.phantom.shapes import Canvas, Shape, ellipsoid, halfspace, tube, union
from deepatlas.phantom.skeleton import BRAIN_CAVITY
from deepatlas.phantom.structures import SMALL_STRUCTURES

BONE = ("cortical", "marrow")
FLESH = ("muscle", "fat", "soft")
# What pancreas and adrenals may take the place of: they share their room with the bowel.
ROOM = ("visceral_fat", "bowel_wall", "bowel_content", "gas", "stool", "muscle", "pancreas")


def paint_small(canvas: Canvas) -> None:
    """Paint the small structures into a body that is otherwise complete."""
    for side in ("right", "left"):
        paint = _Side(canvas, side)
        _paint_eye(paint)
        _paint_ear(paint)
        _paint_glands(paint)
    _paint_thyroid(canvas)
    _paint_pancreas(canvas)
    _paint_adrenals(canvas)
    _keep_largest(canvas)


class _Side:
    """Paints shapes of the right side on one side of the body; a label gets the name of the side."""

    def __init__(self, canvas: Canvas, side: str) -> None:
        self.canvas, self.side = canvas, side

    def __call__(
        self, shape: Shape, *layers: str | tuple[float, str], label: str | None = None, **where: Any
    ) -> None:
        shape = shape if self.side == "right" else shape.mirrored()
        name = label and f"{label}_{self.side}"
        self.canvas.paint(shape, *layers, label=name, **where)


def _paint_eye(paint: _Side) -> None:
    """The orbital fat with the eyeball, the straight muscles, the lacrimal gland, and the optic nerve."""
    cone = tube([(29, 74, 180), (13, 28, 180)], [18.5, 3.5], steps=1)
    # The floor of the orbit, above the sinus of the maxilla.
    paint(cone.grown(1.6), "cortical", over=("gas",))
    # The roof is the floor of the skull.
    paint(cone - BRAIN_CAVITY.grown(2.6), "fat", over=("fat", "muscle", "soft", "eye", "lens", *BONE))
    apex, globe = (13.5, 31, 180), (28, 64, 180)
    for belly, end in (
        ((14, 48, 180), (16.6, 64, 180)),
        ((27.5, 46, 180), (39.4, 64, 180)),
        ((20.5, 47, 187.5), (28, 64, 191.4)),
        ((20.5, 47, 172.5), (28, 64, 168.6)),
    ):
        paint(tube([apex, belly, end], [1, 2.3, 1]), "muscle", over=("fat",))
    gland = ellipsoid((37.5, 65, 190.5), (4.2, 7.5, 6), roll=35)
    paint(gland, "gland", label="lacrimal_gland", over=("fat", "muscle", "soft", *BONE))
    paint(ellipsoid(globe, (12, 12, 12)), "soft", (1.2, "eye"), label="orbit")
    paint(ellipsoid((28, 71.2, 180), (4.6, 2.1, 4.6)), "crystalline_lens", label="lens")
    course = [(26.4, 52.4, 180), (22, 44, 181), (14.2, 31, 180), (8.5, 22, 184.5), (2.6, 12, 187.5)]
    nerve = tube(course, 1.9)
    paint(nerve.grown(0.8), "csf", over=BONE, keep_label=True)
    paint(ellipsoid((0, 10.5, 188), (5.5, 4, 2.2)), "optic_nerve", keep_label=True)
    paint(nerve - ellipsoid(globe, (11.5, 11.5, 11.5)), "optic_nerve", label="optic_nerve")


def _paint_ear(paint: _Side) -> None:
    """The inner ear in the petrous bone: the cochlea, the vestibule, and the canal of the nerve to the brain."""
    canal = tube([(38, -8.5, 169), (31, -13, 171.5), (26, -17, 176)], 1.8)
    paint(canal, "csf", over=BONE, keep_label=True)
    paint(ellipsoid((46, -16, 169), (2.2, 2.8, 2.2)), "labyrinth", over=BONE, keep_label=True)
    # The air of the middle ear.
    paint(ellipsoid((50, -9, 168), (1.8, 4, 5)), "gas", over=BONE, keep_label=True)
    paint(ellipsoid((40, -8, 168.5), (3.3, 2.8, 2.8), yaw=35), "labyrinth", label="cochlea")


def _paint_glands(paint: _Side) -> None:
    """The submandibular gland below the mandible, and the parotid gland behind it, each in its fat."""
    parotid = union(ellipsoid((47, -12, 143), (9.5, 12, 19)), ellipsoid((54, 0, 146), (4, 13, 13)), blend=4)
    submandibular = ellipsoid((28, 26, 112), (8.5, 13.5, 11.5), pitch=15)
    for name, shape in (("submandibular_gland", submandibular), ("parotid_gland", parotid)):
        paint(shape.grown(1.8), "fat", over=FLESH, free=True)
        paint(shape, "gland", over=FLESH, free=True, label=name)


def _erase(canvas: Canvas, tissue: str, by: str, label: str) -> None:
    """Put tissue ``by`` where the plain body has ``tissue``."""
    canvas.tissue[canvas.tissue == canvas.tissue_ids[tissue]] = canvas.tissue_ids[by]
    canvas.label[canvas.label == canvas.structures[label]] = 0


def _paint_thyroid(canvas: Canvas) -> None:
    """Two lobes beside the trachea, and the isthmus in front of it."""
    _erase(canvas, "thyroid", "muscle", "thyroid")
    lobe = ellipsoid((18, 18, 85), (8.5, 10, 15.5), roll=6)
    isthmus = tube([(-15, 22, 80), (-9, 28, 79), (0, 30.5, 78), (9, 28, 79), (15, 22, 80)], 3.4)
    shape = union(lobe, lobe.mirrored(), isthmus, blend=2) - airway().grown(2.4)
    over = (*FLESH, "visceral_fat")
    canvas.paint(shape.grown(1.2), "fat", over=over, free=True)
    canvas.paint(shape, "thyroid", label="thyroid", over=over, free=True)


def _paint_pancreas(canvas: Canvas) -> None:
    """Head in the curve of the duodenum, body over the spine, and tail behind the stomach, towards the spleen."""
    _erase(canvas, "pancreas", "visceral_fat", "pancreas")
    head = ellipsoid((25, 24, -147), (12, 10.5, 17))
    course = [
        (24, 24, -140),
        (6, 25, -130),
        (-14, 20, -121),
        (-34, 7, -115),
        (-50, -3, -110),
        (-63, -9, -104),
    ]
    body = tube(course, [10, 9, 9, 9, 7.5, 6])
    shape = union(head, body, blend=6)
    # The stomach lies on the tail and gives way.
    canvas.paint(
        shape.grown(6), "stomach_wall", inside="stomach", over=("stomach_fluid", "gas"), keep_label=True
    )
    bed = shape & halfspace((1, 0, 0), -18)
    stomach = ("stomach_wall", "stomach_fluid")
    canvas.paint(bed.grown(1.5), "visceral_fat", over=(*ROOM, *stomach), inside="stomach")
    canvas.paint(shape.grown(1.5), "visceral_fat", over=ROOM, free=True)
    canvas.paint(shape, "pancreas", label="pancreas", over=ROOM, free=True)


def _paint_adrenals(canvas: Canvas) -> None:
    """Two limbs that meet in front, above each kidney: right behind the vena cava, left beside the aorta."""
    for name, (x, y, z), spread, turn in (
        ("adrenal_right", (33, -14, -96), 16, -8),
        ("adrenal_left", (-33, -21.5, -93), 18, 8),
    ):
        limbs = [
            ellipsoid((x + 3.4 * sign, y - 6.5, z), (2.2, 9, 13), yaw=turn + sign * spread, pitch=-10)
            for sign in (1, -1)
        ]
        gland = union(*limbs, ellipsoid((x, y + 1, z - 2), (3.2, 3.5, 10)), blend=1.5)
        over = (*ROOM, "liver", "hepatic_vein")
        canvas.paint(gland.grown(2.2), "visceral_fat", over=over)
        canvas.paint(gland, "adrenal", label=name, over=over)


def _keep_largest(canvas: Canvas) -> None:
    """Take the label from crumbs: what later shapes have cut off from a small structure."""
    boxes = ndimage.find_objects(canvas.label)
    for name in SMALL_STRUCTURES:
        number = canvas.structures[name]
        box = boxes[number - 1]
        parts, count = ndimage.label(canvas.label[box] == number)
        if count > 1:
            largest = 1 + np.argmax(np.bincount(parts.ravel())[1:])
            canvas.label[box][(parts > 0) & (parts != largest)] = 0
