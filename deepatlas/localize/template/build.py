"""From a data directory and a model to a template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError
from deepatlas.exams.cohort import ExamFiles, find_exams
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.selection import Selection
from deepatlas.model.engine import Engine
from deepatlas.space.volume import Volume


def build_template(
    model: Engine,
    data_dir: str | Path,
    exams: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
    size: int | None = None,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
    **solver: float,
) -> Template:
    """Template (eq. 14) of the labelled ``exams`` of a data directory (None: all of them).

    ``names`` restricts it to some structures; ``size`` is 128, or the atlas's if larger. A bad exam is
    skipped and listed in ``meta["skipped"]`` unless ``strict``; ``progress`` receives lines of text;
    ``solver`` goes to :func:`~deepatlas.localize.template.estimate.estimate_template`. Raises DataError where no
    exam is left or a name is unknown.
    """
    selection = Selection(find_exams(data_dir), exams, strict)
    labels = dict(selection.cohort.labels)
    unknown = [s for s in names or () if s not in labels]
    if unknown:
        raise DataError(
            f"{selection.cohort.labels_path}: names no {', '.join(unknown)}; it has {', '.join(labels)}"
        )
    if names:
        labels = {s: labels[s] for s in names}

    def labelled(files: ExamFiles, ct: Volume, seg: Volume) -> LabelledExam:
        coords, grid, _ = model.coordinates_on_model_grid(ct)
        present = set(np.unique(seg.array).tolist())
        drawn = frozenset(n for n, i in labels.items() if i in present)  # a missing label means not drawn
        return LabelledExam(coords.cpu(), grid, Volume(seg.array, seg.grid, files.id), drawn)

    items = []
    for count, (files, item) in enumerate(selection.use(labelled), 1):
        items.append(item)
        if progress is not None:
            progress(f"coordinates {count}/{len(selection)} {files.id}")
    if not items:
        raise DataError(
            f"{data_dir}: no labelled exam could be read ({next(iter(selection.skipped.values()))})"
        )
    meta = {
        "model": model.fingerprint,
        "refine": model.refine,
        "average": model.average,
        "exams": [i.labels.name for i in items],
        "skipped": selection.skipped,
        "unlabelled": selection.unlabelled,
    }
    size = size or max(128, model.atlas.shape[-1])
    return estimate_template(items, labels, size, meta=meta, progress=progress, **solver)
