"""Pictures of a run: what a level has learned on training exams, and what the model finds in an unseen exam."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import deepatlas_ops as ops
from deepatlas.evaluate.cascade_figure import cascade_figure
from deepatlas.exams.cohort import Cohort
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import warped_atlas
from deepatlas.names.meet import meeting
from deepatlas.nn import Atlas, CoordinateNetwork, LabelAtlas
from deepatlas.pictures.draw import coordinate_colours, draw_contours, new_figure, save_figure, show
from deepatlas.pictures.figures import progress_figure
from deepatlas.pictures.view import View
from deepatlas.space.affine import affine_coords
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_box, normalize
from deepatlas.space.volume import Volume
from deepatlas.train.feed.resident import ExamArray

_BACKGROUND = "#101014"
# Columns of a picture for TensorBoard.
_WIDTH = 256


@torch.no_grad()
def save_panel(
    path: Path,
    network: CoordinateNetwork,
    atlas: Atlas,
    array: ExamArray,
    grids: Sequence[Grid],
    level: int,
    labels: LabelAtlas | None = None,
) -> None:
    """Write a PNG of the middle coronal slices of the first exams of ``array``, without augmentation.

    Each exam is a column: from top to bottom the exam, its coordinates of ``level`` (red x, green y, blue z) and the
    atlas seen through them. The first column is the atlas itself. ``grids`` are the exams' grids, one for each exam to
    show; they give the proportions of the voxels. The masks of ``labels``, if there are any, are outlined on the atlas
    and on what is seen of it.
    """
    x, mask = array.take(range(len(grids)))
    coords = ops.resize(network(x, level), x.shape[2:])
    outside = mask == 0
    warped = atlas(coords)
    identity = affine_coords(torch.eye(3, 4, device=x.device)[None], x.shape[2:])
    columns = [("atlas", atlas(identity)[0, 0], identity[0], None, (1.0, 1.0, 1.0))]
    for row, grid in enumerate(grids):
        shown = coords[row].masked_fill(outside[row], -1)
        columns.append((array.ids[row], x[row, 0], shown, warped[row, 0], grid.spacing))

    view, middle = View("coronal"), x.shape[3] // 2
    tallest = max(view.aspect(spacing) for *_, spacing in columns)
    figure = new_figure(2.2 * len(columns), 3 * 2.2 * tallest + 0.5, background=_BACKGROUND)
    rows = figure.subplots(3, len(columns), squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94, 0.03, 0.03)
    for axes in rows.flat:
        axes.set_axis_off()
    title = f"level {level}: exams, their coordinates (red x, green y, blue z), the atlas seen through them"
    figure.suptitle(title, color="0.9", fontsize=9)
    for column, (title, image, field, seen, spacing) in enumerate(columns):
        outlined = rows[0 if seen is None else 2, column]
        for axes, values, name in zip(rows[:, column], (image, field, seen), (title, "", ""), strict=True):
            if values is None:
                continue
            plane = view.slice(values.float().cpu().numpy(), middle)
            plane = coordinate_colours(plane) if plane.ndim == 3 else np.clip(plane, 0, 1)
            show(axes, plane, view, spacing, title=name)
        if labels is not None:
            place = identity if seen is None else coords[column - 1 : column]
            masks = view.slice(labels(place)[0].float().cpu().numpy() > 0.5, middle)
            draw_contours(outlined, masks, range(1, len(masks) + 1), width=0.8)
    save_figure(figure, path)


@torch.no_grad()
def slices(
    network: CoordinateNetwork, atlas: Atlas, array: ExamArray, grid: Grid, level: int
) -> dict[str, NDArray[np.float32]]:
    """Middle coronal slices of the atlas, of the first exam of ``array``, and of the atlas warped onto it by ``level``.

    Returns:
        Grey pictures ``[rows, columns]`` in [0, 1], in the proportions of the body and the radiological convention.
    """
    x, _ = array.take([0])
    training = network.training
    warped = atlas(ops.resize(network.eval()(x, level), x.shape[2:]))
    network.train(training)
    identity = affine_coords(torch.eye(3, 4, device=x.device)[None], x.shape[2:])
    view, middle = View("coronal"), x.shape[3] // 2
    isotropic = (1.0, 1.0, 1.0)
    pictures = {}
    for name, volume, spacing in (
        ("atlas", atlas(identity), isotropic),
        ("exam", x, grid.spacing),
        ("atlas warped onto the exam", warped, grid.spacing),
    ):
        plane = view.slice(volume[0, 0].float().cpu().numpy(), middle).clip(0, 1)
        height = max(1, round(_WIDTH * plane.shape[0] / plane.shape[1] * view.aspect(spacing)))
        large = F.interpolate(torch.from_numpy(plane.copy())[None, None], (height, _WIDTH), mode="nearest")
        pictures[f"slices/{name}"] = large[0, 0].numpy()
    return pictures


def save_overview(path: Path, model: Engine, template: Template, cohort: Cohort, exam: str) -> None:
    """Write a PNG of one labelled exam of ``cohort`` in three planes.

    It shows the exam, its coordinates, the atlas warped onto it, and the segmentation by ``template`` with the truth.
    """
    files = cohort.exam(exam)
    ct = read_volume(files.ct, kind=files.kind)
    seg = read_labels_for(ct, files.seg, cohort.labels, [])
    labels = segment(model, ct, template)
    found = labels.found
    assert isinstance(found, ExamMap) and found.image is not None
    coords = found.field.on(ct.grid)
    warped = warped_atlas(model.atlas, found.field, ct.grid)
    image = found.image.canonical()
    # Leave out the air around the patient.
    box = foreground_box(image, model.intensity)

    def shown(array: np.ndarray) -> np.ndarray:
        return Volume(array, ct.grid).canonical().cropped(*box).array

    truth = shown(seg.array)
    reference = np.zeros_like(truth, dtype=np.uint16)
    for ours, theirs in meeting(template.names, cohort.labels, str(cohort.labels_path)).items():
        reference[truth == cohort.labels[theirs]] = template.labels[ours]
    figure = progress_figure(
        normalize(torch.as_tensor(shown(found.image.array), dtype=torch.float32)).numpy(),
        np.stack([shown(c) for c in coords.cpu().numpy()]),
        shown(warped),
        image.grid.spacing,
        prediction=shown(labels.array),
        reference=reference,
        names=template.labels,
        title=exam,
    )
    save_figure(figure, path)


def save_cascade(path: Path, model: Engine, cohort: Cohort, exam: str) -> None:
    """Write a PNG of what the network of every level sees of one exam of ``cohort`` (Fig. 6)."""
    files = cohort.exam(exam)
    found = model.map_exam(read_volume(files.ct, kind=files.kind))
    assert found.image is not None
    save_figure(cascade_figure(model, found.field, found.image, exam), path)
