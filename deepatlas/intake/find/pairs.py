"""Plan the exams of image files: which of them are CTs, and which label images and label tables belong to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.cohort import read_labels
from deepatlas.exams.kind import CT_NAMES
from deepatlas.intake.digest import digest
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.naming import exam_name, folder_name, folder_of, parent_folder, stem_of
from deepatlas.intake.find.task import RECIPE, ExamSource, Plan, Task
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import structure_names
from deepatlas.io.dicom.found import Found, Refusal

# What a label image is called beside its CT: ``seg.nii.gz``, ``case_seg.nii.gz``, ``Segmentation.seg.nrrd`` …
_DRAWN = ("seg", "segmentation", "segmentations", "label", "labels", "mask", "masks")
# Folders that contain label images only.
_LABEL_FOLDERS = (*_DRAWN, "labelstr", "labelsts")
# The folders of label images that lie beside a folder of CTs.
_BESIDE = {"imagestr": ("labelstr",), "imagests": ("labelsts",), "images": ("labels", "masks")}


def opens_labels(task: Task) -> bool:
    """Whether planning has to open the label images of a task.

    A label table states the names of its structures itself, in its own spelling.
    """
    return bool(task.labels) and not (task.source_labels and task.names is None)


def plan_pair(task: Task) -> Plan:
    """Plan the exam of a CT image and list the structures of its label images, as far as headers tell."""
    source = ExamSource(task.key, task.name, image=task.image, labels=task.labels)
    structures: list[str] = []
    if opens_labels(task):
        structures = structure_names(task.labels, names=task.names, source_labels=task.source_labels)
    return Plan(task.key, task.name, "", source, tuple(structures), (), task.source_labels, task.digest)


def image_tasks(
    catalogue: Catalogue, src: Path, names: NameMap | None, refusals: list[Refusal]
) -> Iterator[Task]:
    """A task for every CT image, with the label images that belong to it. Others are appended to ``refusals``."""
    found = catalogue.tables()
    if "" not in found and (above := Path(os.path.abspath(src)).parent / "labels.json").is_file():
        # One table for several splits of a data set.
        found[""] = Found(above, "labels.json")
    tables = {folder: _table(file, refusals) for folder, file in found.items()}
    folders = dict(catalogue.images())
    used: set[str] = set()
    # The folders of label images, by the folder that contains them.
    below: dict[str, list[tuple[str, list[Found]]]] = {}
    for folder, files in folders.items():
        if folder_name(folder) in _LABEL_FOLDERS:
            below.setdefault(parent_folder(folder), []).append((folder_name(folder), files))
    for folder, files in folders.items():
        if folder_name(folder) in _LABEL_FOLDERS:
            continue
        cts, drawn = pair(files)
        for ct in cts:
            labels = [*drawn.get(ct.name, ()), *_elsewhere(ct, folder, below, alone=len(cts) == 1)]
            table = nearest_table(folder_of(labels[0].name) if labels else folder, tables)
            used.update(f.name for f in labels)
            stats = [(f.name, catalogue.stat(f.name)) for f in (ct, *labels)]
            made_of = digest(RECIPE, table, names and names.entries, stats)
            yield Task(
                ct.name,
                exam_name(ct),
                image=ct,
                labels=tuple(labels),
                names=names,
                source_labels=table,
                digest=made_of,
            )
    for files in folders.values():
        for file in files:
            if is_label_image(file) and file.name not in used:
                reason = "named as a label image, but no CT belongs to it; add ct.nii.gz beside it"
                refusals.append(Refusal(file.name, reason))


def pair(files: list[Found]) -> tuple[list[Found], dict[str, list[Found]]]:
    """Split the images of one folder into CTs and ``{name of a CT: [its label images]}``.

    ``seg`` belongs to ``ct``, or to the only CT of the folder. ``case_seg`` belongs to ``case``, or to the only CT if
    that is called ``ct``: a CT of another name may be that of another patient.
    """
    cts = [f for f in files if _base(stem_of(f)) is None]
    labels: dict[str, list[Found]] = {}
    for found in files:
        base = _base(stem_of(found))
        if base is None:
            continue
        fits = [c for c in cts if (stem_of(c).lower() == base if base else stem_of(c).lower() in CT_NAMES)]
        if not fits and len(cts) == 1 and (not base or stem_of(cts[0]).lower() in CT_NAMES):
            fits = cts
        if fits:
            labels.setdefault(fits[0].name, []).append(found)
    return cts, labels


def _elsewhere(
    ct: Found, folder: str, below: Mapping[str, list[tuple[str, list[Found]]]], alone: bool
) -> Iterator[Found]:
    """Label images in ``segmentations/`` beside the only CT of a folder, and in ``labelsTr/`` for ``imagesTr/``."""
    if alone and folder_name(folder) not in _BESIDE:
        for _, files in below.get(folder, ()):
            yield from files
    beside = _BESIDE.get(folder_name(folder), ())
    if beside:
        # nnU-Net appends the number of the channel to the name of an image.
        stem = stem_of(ct).removesuffix("_0000")
        for name, files in below.get(parent_folder(folder), ()):
            if name in beside:
                yield from (f for f in files if stem_of(f) == stem)


def is_label_image(found: Found) -> bool:
    """Whether an image is named like a label image, or lies in a folder of label images."""
    return folder_name(folder_of(found.name)) in _LABEL_FOLDERS or _base(stem_of(found)) is not None


def _base(stem: str) -> str | None:
    """The stem of the CT that a label image belongs to ("" for ``seg`` alone); None if it is not a label image."""
    lower = stem.lower()
    if lower in _DRAWN:
        return ""
    for mark in _DRAWN:
        for join in ("_", "-", "."):
            if lower.endswith(join + mark):
                return lower.removesuffix(join + mark)
    return None


def _table(found: Found, refusals: list[Refusal]) -> dict[str, int] | None:
    try:
        return read_labels(found.path)
    except DataError:
        reason = 'not a label table; write {"name": id, …} with whole ids from 1, each used once'
        refusals.append(Refusal(found.name, reason))
        return None


def nearest_table(folder: str, tables: Mapping[str, dict[str, int] | None]) -> dict[str, int] | None:
    """The ``labels.json`` of the folder or of the nearest one above it."""
    while True:
        if folder in tables:
            return tables[folder]
        if not folder:
            return None
        if "/" in folder.rpartition("!")[2]:
            folder = folder.rpartition("/")[0]
        elif folder.endswith("!"):
            # After the root of an archive comes the folder in which the archive lies.
            folder = folder_of(folder[:-1])
        elif "!" in folder:
            folder = folder.rpartition("!")[0] + "!"
        else:
            folder = ""
