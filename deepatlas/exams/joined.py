"""The cohort of a command: the exams of one data directory or of several, with the split that applies to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.cohort import Cohort, find_exams, names_of_masks
from deepatlas.exams.parts import SPLITS, Parts, read_parts

# What commands call data: one data directory or several.
Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def roots_of(data: Data) -> list[Path]:
    """The data directories as a list. Raises :class:`~deepatlas.errors.DataError` where one is given twice."""
    roots = [Path(data)] if isinstance(data, str | os.PathLike) else [Path(root) for root in data]
    for place, root in enumerate(roots):
        if any(root.resolve() == other.resolve() for other in roots[:place]):
            raise DataError(f"{root}: is given twice as --data; give it once")
    return roots


def find_cohort(data: Data, split: str | os.PathLike[str] | None = None, *, drawn: bool = True) -> Cohort:
    """The exams of data directories and datasets (see :func:`~deepatlas.exams.cohort.find_exams`), and their split.

    Args:
        data: one directory or several, whose exams have different ids, and whose structures have the same ids where
            they have the same names.
        split: a split file (:mod:`deepatlas.exams.parts`) for all exams. Without it, the file ``splits.json`` in a
            directory is that of its exams; those of a directory without one are training exams.
        drawn: whether what was drawn is looked at, so that it needs names.

    Raises:
        DataError: a directory cannot be used, ids clash, tables of labels contradict each other, or a split file is
            wrong or names an exam that is not there.
    """
    roots = roots_of(data)
    if len(roots) > 1:
        # One folder that they have in common is above all of them.
        roots = [root.resolve() for root in roots]
    cohorts = [find_exams(root, drawn=drawn) for root in roots]
    if split is None:
        cohorts = [
            with_split(cohort, path) if (path := cohort.root / SPLITS).is_file() else cohort
            for cohort in cohorts
        ]
    cohort = cohorts[0] if len(cohorts) == 1 else _joined(cohorts)
    if split is None:
        return cohort
    return with_split(cohort, Path(split))


def with_split(cohort: Cohort, path: Path) -> Cohort:
    """A cohort with the parts of a split file. Raises :class:`~deepatlas.errors.DataError` if they do not fit it."""
    parts = read_parts(path)
    parts.check([exam.id for exam in cohort.exams], cohort.skipped)
    for exam in cohort.exams:
        if exam.seg is None and exam.id in (parts.labelled or ()):
            raise DataError(
                f"{path}: labelled names exam {exam.id}, which has no seg; leave it out, or add its labels"
            )
    return replace(cohort, parts=parts)


def _joined(cohorts: Sequence[Cohort]) -> Cohort:
    owner: dict[str, Path] = {}
    for cohort in cohorts:
        for name in [*(exam.id for exam in cohort.exams), *cohort.skipped]:
            if name in owner:
                raise DataError(
                    f"{cohort.root}: has an exam {name!r}, as {owner[name]} has; "
                    "rename one of them, or give one directory alone"
                )
            owner[name] = cohort.root
    exams = [exam for cohort in cohorts for exam in cohort.exams]
    skipped = {name: why for cohort in cohorts for name, why in cohort.skipped.items()}
    labels, path = _labels(cohorts)
    root = Path(os.path.commonpath([cohort.root for cohort in cohorts]))
    return Cohort(root, exams, labels, path, skipped, _parts(cohorts), tuple(c.root for c in cohorts))


def _labels(cohorts: Sequence[Cohort]) -> tuple[dict[str, int], Path | None]:
    """The structures of all tables, and of masks that no table names; with the first table's file."""
    labels: dict[str, int] = {}
    first: Path | None = None
    for cohort in (c for c in cohorts if c.labels_path):
        names = {identity: name for name, identity in labels.items()}
        for name, identity in cohort.labels.items():
            if labels.get(name, identity) != identity or names.get(identity, name) != name:
                theirs = (
                    f"{name!r} = {labels[name]}" if name in labels else f"{names[identity]!r} = {identity}"
                )
                raise DataError(
                    f"{cohort.labels_path}: says {name!r} = {identity}, where {first} says {theirs}; give every "
                    "structure one id in all data directories"
                )
        labels |= cohort.labels
        first = first or cohort.labels_path
    for name in names_of_masks([exam for c in cohorts if not c.labels_path for exam in c.exams]):
        labels.setdefault(name, max(labels.values(), default=0) + 1)
    return labels, first


def _parts(cohorts: Sequence[Cohort]) -> Parts | None:
    """The parts of all directories. Where none has a file there are none."""
    given = [cohort.parts for cohort in cohorts if cohort.parts]
    if not given:
        return None
    train: list[str] = []
    for cohort in cohorts:
        ids = [exam.id for exam in cohort.exams]
        train += cohort.parts.training(ids) if cohort.parts else ids
    joined = {
        key: sum((getattr(parts, key) or () for parts in given), ()) or None
        for key in ("validation", "test", "labelled")
    }
    return Parts(given[0].path, tuple(train), **joined)
