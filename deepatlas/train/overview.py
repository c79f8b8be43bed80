"""One picture of what a run has learned: an unseen exam, its coordinates, the atlas warped onto it, the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.exams.cohort import Cohort
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.pictures.draw import save_figure
from deepatlas.pictures.figures import progress_figure
from deepatlas.space.preprocess import foreground_box, normalize
from deepatlas.space.volume import Volume


def save_overview(path: Path, model: Engine, template: Template, cohort: Cohort, exam: str) -> None:
    """Write the tri-planar picture of one labelled exam of ``cohort`` as a PNG."""
    files = cohort.exam(exam)
    ct = read_volume(files.ct, kind=files.kind)
    seg = read_labels_for(ct, files.seg, cohort.labels, [])
    coords = model.coordinates(ct)
    warped = ops.resample(model.atlas, coords[None].clamp(-1, 1))[0, 0]
    image = ct.canonical()
    box = foreground_box(image)  # pictures without the room around the patient

    def shown(array: np.ndarray) -> np.ndarray:
        return Volume(array, ct.grid).canonical().cropped(*box).array

    truth = shown(seg.array)
    figure = progress_figure(
        normalize(torch.as_tensor(shown(ct.array), dtype=torch.float32)).numpy(),
        np.stack([shown(c) for c in coords.cpu().numpy()]),
        shown(warped.cpu().numpy()),
        image.grid.spacing,
        prediction=shown(segment(model, ct, template).array),
        reference=np.where(np.isin(truth, template.ids), truth, 0),
        names=template.labels,
        title=exam,
    )
    save_figure(figure, path)
