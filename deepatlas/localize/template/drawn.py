"""What was drawn in an exam, from a file or from an image of another library: its structures, with names and ids."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError
from deepatlas.exams.cohort import read_labels
from deepatlas.exams.label_object import label_object, read_label_object, structures_named
from deepatlas.exams.mask_files import masks_in
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.io.segments import read_segments
from deepatlas.io.values import as_labels
from deepatlas.model.engine import Exam, read_exam
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels


def read_drawn(
    masks: Exam,
    grid: Grid,
    exam: str,
    labels: Mapping[str, int] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
) -> tuple[Labels, dict[str, int]]:
    """The structures of an exam and their names.

    Args:
        masks: a label image, a ``.seg.nrrd`` of 3D Slicer, a DICOM-SEG or RTSTRUCT that was drawn on the exam, or a
            folder with one mask for each structure; or an image of another library (see
            :func:`~deepatlas.exams.in_memory.as_volume`).
        grid: the exam's own grid, on which the masks must be.
        exam: what messages call the exam.
        labels: ``{name: id}``; None takes a ``labels.json`` beside the file or in the folder above, the names of the
            segments or of the files, and otherwise ``structure_<id>``.
        source: where the exam was read from, if it is a path; DICOM objects must refer to its series.

    Returns:
        The labels, and the names and ids of the structures that have at least one voxel.

    Raises:
        DataError: the masks cannot be read, are on another grid, or hold no voxel or an id without a name.
    """
    # Nothing but the geometry of the exam is compared.
    ct = Volume(np.broadcast_to(np.float32(0), grid.shape), grid, exam)
    if isinstance(masks, str | os.PathLike):
        path = Path(masks)
        file = label_object(path)
        table = dict(labels) if labels else None if file else _names_beside(path)
        if file is not None:
            seg, table = read_label_object(file, grid, None if source is None else Path(source), table)
        elif table is not None:
            seg = read_labels_for(ct, path, table)
        else:
            seg = read_volume(path, labels=True)
            table = _numbered(seg)
            check_labels(ct, seg, table)
        name = str(path)
    else:
        image = masks if isinstance(masks, Labels) else read_exam(masks)
        name = image.name or f"masks of {exam}"
        array = as_labels(np.asarray(image.array), Path(name))
        hidden = image.hidden if isinstance(image, Labels) else {}
        seg = Labels(array, image.grid, name, hidden)
        table = dict(labels) if labels else _numbered(seg)
        check_labels(ct, seg, table)
    present = seg.ids()
    if not present:
        raise DataError(f"{name}: no voxel of it is labelled; draw a structure, or leave it out")
    if max(present) > MAX_LABEL:
        raise DataError(
            f"{name}: holds the label {max(present)}, larger than {MAX_LABEL}; renumber the labels"
        )
    return seg, {n: i for n, i in table.items() if i in present}


def names_of(masks: Exam, labels: Mapping[str, int] | None = None) -> list[str] | None:
    """The names that structures may have, as far as tables and headers tell; None where only the voxels do.

    ``masks`` and ``labels`` are as for :func:`read_drawn`, which raises the errors of files that cannot be read.
    """
    if labels:
        return list(labels)
    if not isinstance(masks, str | os.PathLike):
        return None
    if (file := label_object(Path(masks))) is not None:
        return structures_named(file)
    table = _names_beside(Path(masks))
    return None if table is None else list(table)


def renumbered(seg: Labels, ids: Mapping[int, int]) -> Labels:
    """The same structures with other ids, ``{old: new}``."""
    if all(old == new for old, new in ids.items()):
        return seg
    size = max(int(seg.array.max()), *ids) + 1
    table = np.zeros(size, dtype=np.uint16)
    for old, new in ids.items():
        table[old] = new
    hidden = {ids[i]: mask for i, mask in seg.hidden.items() if i in ids}
    return Labels(table[seg.array], seg.grid, seg.name, hidden)


def _names_beside(path: Path) -> dict[str, int] | None:
    if path.is_dir():
        return {name: i for i, name in enumerate(masks_in(path), 1)}
    if path.is_file() and (segments := read_segments(path)):
        return {s.name: i for s, i in zip(segments.segments, segments.numbers, strict=True)}
    parent = path.absolute().parent
    table = next((p for p in (parent / "labels.json", parent.parent / "labels.json") if p.is_file()), None)
    return read_labels(table) if table else None


def _numbered(seg: Labels) -> dict[str, int]:
    return {f"structure_{i}": i for i in sorted(seg.ids())}
