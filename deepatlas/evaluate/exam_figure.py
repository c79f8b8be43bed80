"""The picture of one exam in a report: the exam, the warped atlas, the prediction and the reference (Figs 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.errors import DataError
from deepatlas.evaluate.score import LabelIds
from deepatlas.model.field import CoordinateField, warped_atlas
from deepatlas.pictures import figures
from deepatlas.pictures.view import choose_slices
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.labels import Labels
from deepatlas.space.preprocess import foreground_box, normalize
from deepatlas.space.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class WarpedAtlas:
    """The atlas and the coordinates that warp it onto an exam.

    Attributes:
        atlas: ``[1, 1, N, N, N]``, the learned atlas.
        field: the coordinates of the exam.
    """

    atlas: Tensor
    field: CoordinateField


def exam_figure(
    title: str,
    ct: Volume,
    reference: Labels | None,
    prediction: Labels,
    structures: Mapping[str, LabelIds],
    convention: str,
    intensity: str = "hu",
    warped: WarpedAtlas | None = None,
) -> Figure:
    """The three planes of one exam side by side (see :func:`~deepatlas.pictures.figures.overlay_figure`).

    Args:
        title: the title of the figure.
        ct: the exam as :func:`~deepatlas.space.check_input.check_input` returns it.
        reference: what was drawn, on the grid of ``ct``; None where nothing was, and its column is left out.
        prediction: what was found, on the same grid.
        structures: the ids of every structure in ``reference`` and in ``prediction``.
        convention: ``"radiological"`` or ``"neurological"``, the way the pictures are turned.
        intensity: what the values of ``ct`` are (``data.intensity``).
        warped: the atlas on the exam; None for a model that has none.
    """
    image, found = ct.canonical(), prediction.canonical()
    truth = None if reference is None else reference.canonical()
    drawn = [ids.reference for ids in structures.values()]
    names = {name: ids.prediction for name, ids in structures.items()}
    kept = [] if truth is None else [np.where(np.isin(truth.array, drawn), truth.array, 0)]
    start, size = _visible_box(image, intensity, *kept, found.array)
    image, found = image.cropped(start, size), found.cropped(start, size)
    if truth is None:
        index = choose_slices(found.array, list(names.values()))
    else:
        truth = truth.cropped(start, size)
        index = choose_slices(truth.array, drawn)
    planes = [_plane(image.grid.shape, axis, at) for axis, at in enumerate(index)]

    def cut(labels: Labels, ids: Iterable[int]) -> list[NDArray[np.bool_]]:
        """The masks ``[K, rows, columns]`` of the structures on each plane."""
        ids = list(ids)
        parts = [(axis, labels.cropped(*plane)) for axis, plane in enumerate(planes)]
        return [np.stack([part.mask(i).squeeze(axis) for i in ids]) for axis, part in parts]

    slices = [
        normalize(torch.from_numpy(image.cropped(*plane).array.squeeze(axis)).float()).numpy()
        for axis, plane in enumerate(planes)
    ]
    atlas = None
    if warped:
        atlas = atlas_slices(warped.atlas, warped.field, image.grid, index)
    return figures.overlay_figure(
        slices, atlas, cut(found, names.values()), None if truth is None else cut(truth, drawn), names,
        image.grid.shape, image.grid.spacing, title=title, convention=convention,
    )  # fmt: skip


def atlas_slices(
    atlas: Tensor, field: CoordinateField, grid: Grid, index: tuple[int, int, int]
) -> list[NDArray[np.float32]]:
    """The atlas warped onto one slice of each plane of ``grid``. The whole volume is never made.

    Args:
        atlas: ``[1, 1, N, N, N]``.
        field: the coordinates of the exam.
        grid: the grid that is cut.
        index: the voxel (z, y, x) that the three slices pass through.

    Returns:
        The slices ``[H, W]``, ``[D, W]`` and ``[D, H]``; NaN where there is no atlas (see
        :func:`~deepatlas.model.field.warped_atlas`).
    """
    out = []
    for axis, at in enumerate(index):
        plane = grid.cropped(*_plane(grid.shape, axis, at))
        out.append(warped_atlas(atlas, field, plane).squeeze(axis))
    return out


def _plane(shape: Shape, axis: int, at: int) -> tuple[list[int], list[int]]:
    """Start and shape (z, y, x) of the plane ``at`` of an axis."""
    start, size = [0, 0, 0], list(shape)
    start[axis], size[axis] = at, 1
    return start, size


def _visible_box(image: Volume, intensity: str, *labels: NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Start and shape (z, y, x) of the smallest box that holds the patient and every label."""
    try:
        start, shape = foreground_box(image, intensity)
    except DataError:
        # There is no patient to be found in the image, so all of it is shown.
        return [0, 0, 0], list(image.grid.shape)
    low, high = list(start), [a + n for a, n in zip(start, shape, strict=True)]
    for array in labels:
        for axis in range(3):
            used = np.flatnonzero(array.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(used):
                low[axis], high[axis] = min(low[axis], int(used[0])), max(high[axis], int(used[-1]) + 1)
    return low, [b - a for a, b in zip(low, high, strict=True)]
