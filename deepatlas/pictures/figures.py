"""The figures of evaluation and training: an exam with its atlas and outlines, and the Dice of all exams.

Arrays are in canonical (closest RAS) order, as :mod:`deepatlas.pictures.view` describes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepatlas.pictures.draw import (
    BACKGROUND,
    COLOURS,
    INK,
    coordinate_colours,
    draw_contours,
    legend,
    new_figure,
    panel_grid,
    show,
)
from deepatlas.pictures.view import FIXED_AXIS, PLANES, View, choose_slices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_ATLAS = "blue-grey: beyond the model's field of view or the atlas"


def overlay_figure(
    exam: Sequence[np.ndarray],
    atlas: Sequence[np.ndarray] | None,
    prediction: Sequence[np.ndarray],
    reference: Sequence[np.ndarray] | None,
    names: Mapping[str, int],
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    title: str = "",
    convention: str = "radiological",
    scale: str = "window -256 to 256 HU",
) -> Figure:
    """Tri-planar comparison of one exam, as in Figs 4 and 5 of the paper.

    The columns are the exam, the atlas warped onto it with the predicted outlines, the exam with the predicted
    outlines, and the exam with the reference outlines.

    Args:
        exam: one slice for each plane (axial, coronal, sagittal) in array order, with values in [0, 1].
        atlas: the same slices of the warped atlas, NaN where it has no value; or None to omit that column.
        prediction: the label ids on these slices, numbered as in ``names``; or, as structures may overlap, their masks
            ``[K, rows, columns]`` in the order of ``names``.
        reference: the same for the reference, or None to omit that column.
        names: ``{name: id}`` of the structures.
        shape: shape (z, y, x) of the canonical volume.
        spacing: voxel size (x, y, z) in mm.
        title: a line at the top.
        convention: one of :data:`~deepatlas.pictures.view.CONVENTIONS`.
        scale: which values are black and white, for the line at the bottom.
    """
    panels: list[tuple[str, Sequence[np.ndarray], Sequence[np.ndarray] | None]] = [("exam", exam, None)]
    if atlas is not None:
        panels.append(("atlas warped onto the exam", atlas, prediction))
    panels.append(("prediction", exam, prediction))
    if reference is not None:
        panels.append(("reference", exam, reference))
    figure, axes = panel_grid(shape, spacing, len(panels), len(names), title)
    for row, plane in enumerate(PLANES):
        view = View(plane, convention)
        for column, (label, images, contours) in enumerate(panels):
            ax = axes[row][column]
            show(ax, view.orient(images[row]), view, spacing, title=label if row == 0 else "")
            if contours is not None:
                draw_contours(ax, view.orient(contours[row]), list(names.values()))
    sides = "patient's right on the left" if convention == "radiological" else "patient's left on the left"
    note = "; ".join(
        part
        for part in (f"{convention} convention ({sides})", scale, _NO_ATLAS if atlas is not None else "")
        if part
    )
    legend(figure, names, note)
    return figure


def progress_figure(
    exam: np.ndarray,
    coords: np.ndarray,
    warped: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    prediction: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    names: Mapping[str, int] | None = None,
    title: str = "",
    convention: str = "radiological",
) -> Figure:
    """The state of a model during training: the exam, its coordinates as RGB, the warped atlas, and contours.

    All arrays are on one canonical grid. The column of contours, which is omitted without label images, shows the
    prediction with solid and the reference with dotted lines.

    Args:
        exam: the exam ``[D, H, W]`` in [0, 1].
        coords: its coordinates ``[3, D, H, W]`` in [-1, 1].
        warped: the atlas warped onto the exam, ``[D, H, W]`` in [0, 1]; NaN where it has no value.
        spacing: voxel size (x, y, z) in mm.
        prediction: a label image ``[D, H, W]`` with the ids of ``names``.
        reference: the same for the reference.
        names: ``{name: id}`` of the structures.
        title: a line at the top.
        convention: one of :data:`~deepatlas.pictures.view.CONVENTIONS`.
    """
    names = dict(names or {})
    drawn = [v for v in (reference, prediction) if v is not None]
    index = choose_slices(
        drawn[0] if drawn else np.zeros(exam.shape, dtype=np.uint8), list(names.values()) or None
    )
    figure, axes = panel_grid(exam.shape, spacing, 4 if drawn else 3, len(names), title)
    for row, plane in enumerate(PLANES):
        view, top = View(plane, convention), row == 0
        at = index[FIXED_AXIS[plane]]
        image = view.slice(exam, at)
        show(axes[row][0], image, view, spacing, title="exam" if top else "")
        rgb = coordinate_colours(view.slice(coords, at))
        show(axes[row][1], rgb, view, spacing, title="coordinates (red x, green y, blue z)" if top else "")
        show(axes[row][2], view.slice(warped, at), view, spacing, title="atlas warped onto it" if top else "")
        if drawn:
            both = "prediction (solid), reference (dotted)" if len(drawn) == 2 else "contours"
            show(axes[row][3], image, view, spacing, title=both if top else "")
            for labels, style in ((reference, "dotted"), (prediction, "solid")):
                if labels is not None:
                    draw_contours(axes[row][3], view.slice(labels, at), list(names.values()), style)
    legend(figure, names, f"{convention} convention; {_NO_ATLAS}")
    return figure


def dice_figure(rows: Sequence, structures: Sequence[str], width: float = 9.0) -> Figure:
    """The Dice of every exam: one line of dots for each structure, with a bar at the mean.

    ``rows`` are objects with the attributes ``structure`` and ``dice``.
    """
    height = 0.9 + 0.32 * max(1, len(structures))
    figure = new_figure(width, height, background=BACKGROUND)
    axes = figure.add_axes((0.2, 0.55 / height, 0.77, 1 - 0.65 / height))
    axes.set_facecolor(BACKGROUND)
    for i, name in enumerate(structures):
        values = np.array([r.dice for r in rows if r.structure == name])
        if len(values):
            axes.plot(values, np.full(len(values), i), "o", color=COLOURS[1], alpha=0.7, ms=5, mec="none")
            axes.plot([values.mean()] * 2, [i - 0.32, i + 0.32], color=COLOURS[0], lw=2.5)
    axes.set_yticks(range(len(structures)), structures, color=INK, fontsize=9)
    axes.set_ylim(len(structures) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("Dice (dot: exam, bar: mean)", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="x", color="#33333c", lw=0.7)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
