"""The head of the phantom: skull, brain, face, mandible and teeth, in template mm."""

from __future__ import annotations

import numpy as np

from deepatlas.phantom.shapes import Array, Canvas, Shape, ellipsoid, halfspace, tube, union
from deepatlas.phantom.skeleton import BASE, BRAIN_CAVITY, CRANIUM, paint_bone


def paint_head(canvas: Canvas) -> None:
    """Paint the head: the face first, then the skull with the brain, and finally the jaw."""
    _paint_face(canvas)
    skull = (CRANIUM & BASE.grown(10)) - BRAIN_CAVITY
    canvas.paint(skull, "cortical", (2.6, "marrow"), label="skull")
    # The dense petrous bones with their air cells.
    for side in (1, -1):
        canvas.paint(ellipsoid((46 * side, -14, 172), (17, 14, 13), yaw=20 * side), "cortical", label="skull")
        canvas.paint(ellipsoid((54 * side, -24, 163), (9, 9, 9)), "marrow", (3, "gas"), label="skull")
    _paint_brain(canvas)
    _paint_jaw(canvas)


def _paint_brain(canvas: Canvas) -> None:
    canvas.paint(BRAIN_CAVITY, "csf", (2.5, "gray_matter"), label="brain")

    def folds(x: Array, y: Array, z: Array) -> Array:
        depth = BRAIN_CAVITY.distance(x, y, z)
        wave = (
            np.sin(x / 6.5 + 1.3 * np.sin(z / 11))
            + np.sin(y / 7 + 1.2 * np.sin(x / 13))
            + np.sin(z / 6.5 + y / 17)
        )
        return (depth + 9.5 + 3.6 * wave).astype(np.float32)

    canvas.paint(
        Shape(BRAIN_CAVITY.low, BRAIN_CAVITY.high, folds), "white_matter", keep_label=True, inside="brain"
    )
    fissure = ellipsoid((0, -8, 250), (1.8, 74, 46), power=4)
    canvas.paint(fissure, "csf", keep_label=True, inside="brain")
    horn = tube([(8, 30, 234), (12, 6, 243), (17, -30, 236), (30, -38, 216)], [6.5, 6, 6, 4.5])
    for part in (horn, horn.mirrored(), ellipsoid((0, -2, 222), (3, 16, 9))):
        canvas.paint(part, "csf", keep_label=True, inside="brain")
    for side in (1, -1):
        canvas.paint(
            ellipsoid((17 * side, 2, 224), (9, 18, 12)), "gray_matter", keep_label=True, inside="brain"
        )
    cerebellum = ellipsoid((0, -50, 184), (44, 28, 20))
    canvas.paint(
        cerebellum.grown(2.5),
        "csf",
        (2.5, "gray_matter"),
        (11, "white_matter"),
        keep_label=True,
        inside="brain",
    )
    stem = tube([(0, -8, 206), (0, -16, 188), (0, -34, 160)], [15, 15, 8])
    canvas.paint(stem.grown(2.5), "csf", (2.5, "white_matter"), keep_label=True, inside="brain")


def _paint_face(canvas: Canvas) -> None:
    maxilla = ellipsoid((0, 56, 158), (42, 28, 26), power=3)
    paint_bone(canvas, union(maxilla, ellipsoid((0, 30, 170), (34, 30, 20)), blend=10), "skull", cortex=2.2)
    for side in (1, -1):
        arch = tube([(40 * side, 60, 164), (60 * side, 42, 166), (67 * side, 10, 172)], [8, 6, 5.5])
        paint_bone(canvas, arch, "skull", cortex=2.4)
        rim = ellipsoid((30 * side, 62, 180), (24, 20, 20))
        orbit = tube([(30 * side, 76, 180), (14 * side, 28, 184)], [18.5, 5], steps=1)
        paint_bone(canvas, rim, "skull", cortex=2.4)
        canvas.paint(orbit, "fat")
        canvas.paint(tube([(29 * side, 66, 180), (13 * side, 30, 184)], [4, 3], steps=1), "muscle")
        canvas.paint(ellipsoid((30 * side, 70, 180), (12.5, 12.5, 12.5)), "soft", (1.6, "eye"))
        canvas.paint(ellipsoid((30 * side, 79, 180), (5, 2.4, 5)), "lens")
        canvas.paint(ellipsoid((25 * side, 54, 156), (12, 17, 14)), "gas")
    # The sphenoid sinus.
    canvas.paint(ellipsoid((0, 26, 172), (11, 13, 9)), "gas")
    nasal = ellipsoid((0, 56, 160), (10, 34, 19))
    canvas.paint(nasal, "gas")
    # The nasal septum and the turbinates.
    canvas.paint(ellipsoid((0, 56, 160), (1.6, 33, 20)), "soft")
    for side in (1, -1):
        canvas.paint(tube([(6 * side, 40, 156), (6 * side, 78, 154)], 2.8, steps=1), "soft")


def _paint_jaw(canvas: Canvas) -> None:
    tongue = ellipsoid((0, 48, 126), (27, 32, 15))
    canvas.paint(tongue, "muscle")
    course = [(54, 2, 168), (51, 2, 146), (47, 12, 126), (39, 44, 114), (23, 72, 108), (0, 83, 107)]
    lower = tube(
        [*course, *[(-x, y, z) for x, y, z in course[-2::-1]]],
        [9, 9, 11, 10, 10, 11, 10, 10, 11, 9, 9],
        steps=24,
    )
    rise = [(x, y, z + 9) for x, y, z in course[2:]]
    upper = tube([*rise, *[(-x, y, z) for x, y, z in rise[-2::-1]]], 8.5, steps=16)
    ramus = tube([(52, 14, 160), (47, 20, 134)], [7, 9], steps=1)
    jaw = union(lower, upper, ramus, ramus.mirrored(), blend=5)
    paint_bone(canvas, jaw, "mandible", cortex=3.4)
    for height, reach in ((127, 34), (137, 36)):
        row = tube([(reach, 42, height), (reach - 10, 66, height), (0, 80, height)], 5)
        for part in (row, row.mirrored()):
            canvas.paint(part, "soft", (1.2, "tooth"))
    canvas.paint(ellipsoid((0, 62, 132), (26, 20, 2)) & halfspace((0, -1, 0), -40), "gas")
