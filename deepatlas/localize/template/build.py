"""A template from the labelled exams of a data directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepatlas.errors import DataError
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.joined import Data, find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.localize.template.appearance import Counts
from deepatlas.localize.template.edit import Around, check_names, with_boxes
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import SIZE, Template
from deepatlas.localize.template.soften import seen, with_appearance
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam
from deepatlas.model.project_box import mm_per_unit
from deepatlas.names.meet import chosen
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume


# The solver needs gradients, which inference mode does not allow.
@torch.inference_mode(False)
def build_template(
    model: Engine,
    data_dir: Data,
    exams: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
    boxes: Sequence[Around] = (),
    appearance: bool = True,
    size: int | None = None,
    strict: bool = False,
    split: str | Path | None = None,
    know: Callable[[ExamFiles, Volume], KnownExam] | None = None,
    progress: Callable[[str], None] | None = None,
    **solver: Any,
) -> Template:
    """Solve for the template of one or more labelled exams (eq. 14).

    Args:
        model: a trained model.
        data_dir: a data directory or dataset with labelled exams (see :func:`deepatlas.find_exams`), or several.
        exams: the ids of the exams to use; None takes every labelled exam, of those whose labels training may use where
            a split file says it.
        names: the structures to include; None takes all that ``labels.json`` names. They may be spelled otherwise than
            there, or be synonyms (:mod:`deepatlas.names.meet`).
        boxes: boxes to be put around the structures, in the directions of the atlas.
        appearance: also learn what the structures look like, so that the image of an exam has a say where their borders
            are (:mod:`~deepatlas.localize.template.appearance`). Masks of few examples are blurred by the error of the
            coordinates then.
        size: voxels of the template along each axis; None takes 128, or the size of the atlas if that is larger.
        strict: stop at the first exam that cannot be used, or that the model does not know. Otherwise the former is
            skipped and listed in ``meta["skipped"]``, and the latter is used.
        split: a split file; None takes the ``splits.json`` of the data, if there is one.
        know: gives the coordinates of an exam, for example those that are kept (:class:`deepatlas.MapCache`); None
            passes it through the network.
        progress: receives one line of text per exam and per structure.
        **solver: ``iterations``, ``tolerance``, ``tikhonov`` and ``laplacian`` of
            :func:`~deepatlas.localize.template.estimate.estimate_template`.

    Returns:
        The template, whose ``meta`` holds the model's fingerprint, the exams and how well the model knows them, what
        was skipped, and how every solve ended.

    Raises:
        DataError: no labelled exam can be read, an exam or structure is unknown, or nothing is labelled.
    """
    cohort = find_cohort(data_dir, split)
    among = cohort.parts.learnable([exam.id for exam in cohort.exams]) if cohort.parts else None
    selection = Selection(cohort, exams, strict, among=among)
    labels = dict(selection.cohort.labels)
    if names:
        labels = {s: labels[s] for s in chosen(names, labels, str(selection.cohort.labels_path))}

    check_names(boxes, labels)
    fits: dict[str, Fit] = {}
    scales = []
    counts = Counts(model.intensity, model.size)

    def labelled(files: ExamFiles, ct: Volume, seg: Labels) -> LabelledExam:
        if know is None:
            found = KnownExam.of(model.map_exam(ct), ct.grid, files.id, keep_image=True)
        else:
            found = know(files, ct)
        found.fit.warning(files.id, strict)
        fits[files.id] = found.fit
        scales.append(mm_per_unit(found.field, found.body))
        # A structure without a voxel counts as not drawn, and not as absent.
        present = seg.ids()
        drawn = frozenset(n for n, i in labels.items() if i in present)
        if appearance:
            image = seen(ct, model.intensity) if found.image is None else found.image
            counts.add(image, seg, {n: labels[n] for n in sorted(drawn)}, scales[-1])
        return LabelledExam(found.field.cpu(), replace(seg, name=files.id), drawn)

    items = []
    for count, (files, item) in enumerate(selection.use(labelled), 1):
        items.append(item)
        if progress is not None:
            progress(f"coordinates {count}/{len(selection)} {files.id}")
    if not items:
        raise DataError(
            f"{cohort.root}: no labelled exam could be read ({next(iter(selection.skipped.values()))})"
        )
    meta = {
        "model": model.fingerprint,
        "intensity": model.intensity,
        "refine": model.refine,
        "average": model.average,
        "regions": answering(model.regions, model.depth),
        "exams": [i.labels.name for i in items],
        "skipped": selection.skipped,
        "unlabelled": selection.unlabelled,
        "fit": {name: fits[name].to_dict() for name in (i.labels.name for i in items)},
        "mm_per_unit": [round(float(s), 3) for s in np.median(scales, axis=0)],
    }
    size = size or max(SIZE, model.atlas.shape[-1])
    made = estimate_template(items, labels, size, meta=meta, progress=progress, **solver)
    made = with_appearance(made, counts) if appearance else made
    return with_boxes(made, boxes) if boxes else made
