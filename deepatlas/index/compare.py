"""Comparisons of exams at the same anatomy: which are similar to one, and where each departs from the cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, did_you_mean
from deepatlas.index.appearance import CELLS, unpacked
from deepatlas.index.file import IndexFile
from deepatlas.localize.template.file import Template

# Exams of the cohort that must show a cell before a departure from them means anything.
LEAST_EXAMS = 8
# Departures in standard deviations from which a cell is unusual. The deviation is at least that of noise and of the
# differences between scanners, in HU.
UNUSUAL = 4.0
_LEAST_SD = 20.0
# Cells of which fewer voxels than this share of an exam's cells are common to two exams cannot be compared.
_LEAST_COMMON = 0.2


@dataclass(frozen=True)
class Similar:
    """An exam that shows the same anatomy: the share of cells in common, and the mean difference there in HU."""

    id: str
    overlap: float
    difference: float

    @property
    def score(self) -> float:
        """From 0 to 1: the overlap, less what the difference in appearance takes from it."""
        return self.overlap * float(np.exp(-self.difference / 100))


@dataclass(frozen=True)
class Outlier:
    """How far an exam departs from the cohort at the same anatomy.

    Attributes:
        id: the exam.
        unusual: the share of its cells that depart by more than :data:`UNUSUAL` standard deviations.
        largest: the largest departure of a cell, in standard deviations.
        where: the structure in or nearest to which that cell lies.
    """

    id: str
    unusual: float
    largest: float
    where: str


def similar(index: IndexFile, exam: str) -> list[Similar]:
    """All exams that share anatomy with one, the most similar first.

    Raises:
        DataError: the index has no such exam, or the model did not know it.
    """
    own = _appearance(index, exam)
    mine = np.isfinite(own)
    found = []
    for other, data in index.appearances():
        if other == exam or not data:
            continue
        cells = unpacked(data)
        theirs = np.isfinite(cells)
        common = mine & theirs
        overlap = common.sum() / max(1, (mine | theirs).sum())
        if common.sum() < _LEAST_COMMON * mine.sum():
            continue
        found.append(Similar(other, float(overlap), float(np.abs(own - cells)[common].mean())))
    return sorted(found, key=lambda s: -s.score)


@dataclass(frozen=True)
class Usual:
    """What the cohort looks like in every cell of the atlas: its number of exams, mean and deviation, ``[CELLS^3]``."""

    exams: NDArray[np.int64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def departure(self, cells: NDArray[np.float32]) -> NDArray[np.float32]:
        """By how many standard deviations cells exceed the mean of the other exams; nan where nobody can tell.

        The exam itself is taken out of mean and deviation, so that it does not hide itself in a small cohort.
        """
        mine = np.isfinite(cells)
        n = self.exams - mine
        values = np.nan_to_num(cells.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(mine, (self.mean * self.exams - values) / n, self.mean)
            squares = (self.deviation**2 + self.mean**2) * self.exams - np.where(mine, values**2, 0)
            deviation = np.sqrt(np.maximum(squares / n - mean**2, 0))
            z = (values - mean) / np.maximum(deviation, _LEAST_SD)
        return np.where(mine & (n >= LEAST_EXAMS), z, np.nan).astype(np.float32)


def usual(index: IndexFile) -> Usual:
    """The cohort in every cell, over the exams that the model knows.

    Raises:
        DataError: the index has too few exams.
    """
    count, total, squares = (np.zeros(CELLS**3) for _ in range(3))
    exams = 0
    for _, data in index.appearances():
        if data:
            cells = unpacked(data).astype(np.float64)
            seen = np.isfinite(cells)
            values = np.where(seen, cells, 0)
            count, total, squares = count + seen, total + values, squares + values**2
            exams += 1
    if exams <= LEAST_EXAMS:
        raise DataError(
            f"{index.path}: holds {exams} exams that the model knows; it takes more than {LEAST_EXAMS} to tell what "
            "is unusual"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, 0)
        deviation = np.sqrt(np.maximum(np.where(count > 0, squares / count, 0) - mean**2, 0))
    return Usual(count.astype(np.int64), mean, deviation)


def outliers(index: IndexFile, template: Template | None = None) -> list[Outlier]:
    """All exams that the model knows, those that depart most from the cohort first.

    Args:
        index: the index.
        template: names the place of the largest departure; None leaves it empty.
    """
    cohort = usual(index)
    names = None if template is None else _structure_of_cells(template)
    found = []
    for exam, data in index.appearances():
        if not data:
            continue
        z = np.abs(cohort.departure(unpacked(data)))
        told = np.isfinite(z)
        if not told.any():
            continue
        worst = int(np.nanargmax(z))
        where = "" if names is None else names[worst]
        found.append(Outlier(exam, float((z[told] > UNUSUAL).mean()), float(z[worst]), where))
    return sorted(found, key=lambda o: (-o.unusual, -o.largest))


def departure_of(index: IndexFile, exam: str) -> NDArray[np.float32]:
    """The departure of one exam from the cohort in every cell, ``[CELLS^3]``."""
    return usual(index).departure(_appearance(index, exam))


def _appearance(index: IndexFile, exam: str) -> NDArray[np.float32]:
    data = index.appearance(exam)
    if data is None:
        raise DataError(f"{index.path}: no exam {exam!r}; {did_you_mean(exam, index.keys())}")
    if not data:
        raise DataError(
            f"{exam}: the model does not know such an exam, so that it cannot be compared with others"
        )
    return unpacked(data)


def _structure_of_cells(template: Template) -> Mapping[int, str]:
    """The nearest structure to every cell, by the centres of the masks' voxels."""
    from scipy.spatial import cKDTree

    points, owner = [], []
    last = np.array(template.masks.shape[:0:-1]) - 1
    for row, (mask, level) in enumerate(zip(template.masks, template.thresholds, strict=True)):
        z, y, x = np.nonzero(mask >= level)
        keep = slice(None, None, max(1, len(x) // 500))
        points.append(np.stack([x[keep], y[keep], z[keep]], axis=1) / last * 2 - 1)
        owner += [row] * len(points[-1])
    axis = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    distance, nearest = cKDTree(np.concatenate(points)).query(
        np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    )
    near = distance < 2 / CELLS
    return {
        i: template.names[owner[n]] if near[i] else f"near {template.names[owner[n]]}"
        for i, n in enumerate(nearest)
    }
