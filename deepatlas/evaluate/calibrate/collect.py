"""The labelled exams of a calibration: what is kept of each, and the templates that were made without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.errors import DataError, DataWarning
from deepatlas.evaluate.calibrate.regression import Table
from deepatlas.evaluate.calibrate.truth import in_common_slices
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.read import read_volume
from deepatlas.exams.selection import Selection
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.appearance import Counts
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.soften import seen, with_appearance
from deepatlas.localize.trust.evidence import VIEW_SIZE, weigh
from deepatlas.localize.trust.signs import signs
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.project_box import mm_per_unit
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume


@dataclass(frozen=True)
class Collected:
    """One labelled exam: its coordinates, those of its views in half precision, and what was drawn in it.

    ``counts`` are the values inside and around its structures, where the template knows what they look like.
    """

    id: str
    files: ExamFiles
    found: ExamMap
    views: Tensor
    labels: Labels
    fold: int
    apart: bool  # whether the template was made without this exam
    counts: Counts | None = None


def collect(
    model: Engine,
    selection: Selection,
    template: Template,
    views: int,
    folds: int,
    drawn: Mapping[str, int],
    progress: Callable[[str], None] | None = None,
) -> list[Collected]:
    """Map every labelled exam that the model knows, once; ``drawn`` as in :func:`tabulate`."""
    made_from = set(template.meta.get("exams") or ())

    def read(files: ExamFiles, ct: Volume, seg: Labels) -> Collected:
        found = model.map_exam(ct)
        if found.fit.known is False:
            raise DataError(
                f"{files.id}: the model does not know such an exam; it cannot tell how good masks are"
            )
        # What is kept of many exams must be small, and lie where its parts can be blended.
        kept = replace(found, coords=found.coords.half().cpu(), pieces=found.field.cpu().pieces, image=None)
        moved = model.views(found, views, VIEW_SIZE).half().cpu()
        counts = None
        if template.appearance is not None and found.image is not None:
            counts = Counts(model.intensity, model.size)
            counts.add(found.image, seg, drawn, mm_per_unit(found.field, found.body))
        return Collected(files.id, files, kept, moved, seg, -1, files.id not in made_from, counts)

    exams = []
    for count, (files, one) in enumerate(selection.use(read), 1):
        # In turn, so that folds are of one size; the order of the exams has no meaning.
        exams.append(replace(one, fold=len(exams) % folds))
        if progress is not None:
            progress(f"calibrate {count}/{len(selection)} {files.id}")
    return exams


def tabulate(
    model: Engine,
    template: Template,
    exams: Sequence[Collected],
    drawn: Mapping[str, int],
    progress: Callable[[str], None] | None = None,
) -> Table:
    """The signs of every drawn structure of every exam, and how good its mask is.

    An exam that the template was made from is judged with a template that was made without its fold.

    Args:
        model: the model.
        template: the template that is calibrated.
        exams: the exams, from :func:`collect`.
        drawn: the ids of the template's structures in the labels, by their names in the template.
        progress: receives a line per fold.
    """
    rows: list[tuple[int, int, int, NDArray[np.float64], float, float]] = []
    for fold in sorted({e.fold for e in exams}):
        inside = [e for e in exams if e.fold == fold and not e.apart]
        of_fold = _without(template, [e for e in exams if e.fold != fold], drawn) if inside else None
        for number, exam in enumerate(exams):
            if exam.fold != fold:
                continue
            used = template if exam.apart else of_fold
            if used is not None:
                rows += _rows(model, template, used, exam, number, drawn)
        if progress is not None:
            progress(f"calibrate fold {fold + 1}: {len(rows)} structures so far")
    if not rows:
        raise DataError(
            "calibrate: no labelled exam is left that the template was not made from alone; give --data with other "
            "labelled exams"
        )
    structure, exam_of, fold_of, table, dice, mm = zip(*rows, strict=True)
    return Table(
        list(template.names), np.array(structure), np.array(exam_of), np.array(fold_of), np.stack(table),
        np.array(dice), np.array(mm),
    )  # fmt: skip


def _without(template: Template, others: list[Collected], drawn: Mapping[str, int]) -> Template | None:
    """A template like the given one, from the exams of other folds that it was made from.

    It is made from all of them and from whole labels, as the given one was: a template of fewer exams, or of coarser
    labels, has worse masks, and what is calibrated on these would say too little of all masks.
    """
    labels = {name: drawn[name] for name in template.names if name in drawn}
    items = []
    for exam in others:
        if not exam.apart:
            present = exam.labels.ids()
            named = frozenset(n for n, i in labels.items() if i in present)
            items.append(LabelledExam(_float(exam.found).field, exam.labels, named))
    if not items:
        return None
    with warnings.catch_warnings():
        # Whoever made the template was told already which structures it explains badly.
        warnings.simplefilter("ignore", DataWarning)
        made = estimate_template(items, labels, template.masks.shape[-1])
    if counts := [exam.counts for exam in others if not exam.apart and exam.counts is not None]:
        made = with_appearance(made, Counts.total(counts))
    # In label images its structures have the ids of the labels.
    return made


def _rows(
    model: Engine, template: Template, used: Template, exam: Collected, number: int, drawn: Mapping[str, int]
) -> list[tuple[int, int, int, NDArray[np.float64], float, float]]:
    found = _float(exam.found)
    evidence = weigh(found, exam.views.float(), model.atlas)
    table = signs(evidence, used)
    seg = exam.labels
    image = None
    if used.appearance is not None:
        # Images are too large to be kept for many exams.
        image = seen(read_volume(exam.files.ct, kind=exam.files.kind), model.intensity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        labels = segment_coordinates(found.field, seg.grid, used, None, found.body, image)
    rows = []
    for name, row, identity in zip(used.names, table, used.ids, strict=True):
        if name not in drawn or not np.isfinite(row[0]):
            continue
        reference = seg.mask(drawn[name])
        if reference.any():
            dice, mm = in_common_slices(reference, labels.mask(identity), seg.grid)
            rows.append((template.names.index(name), number, exam.fold, row, dice, mm))
    return rows


def _float(found: ExamMap) -> ExamMap:
    return replace(found, coords=found.coords.to(torch.float32))
