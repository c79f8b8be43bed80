"""The structures of an RTSTRUCT or a DICOM-SEG as labels of an exam, under the names that they have there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.kind import Kind, kind_of
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.magic import looks_like_dicom
from deepatlas.names.meet import compact
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels, stacked

if TYPE_CHECKING:
    from deepatlas.io.structures.contents import Structure


def label_object(path: Path) -> Path | None:
    """The DICOM file that ``path`` is, or that alone lies in the folder ``path``; None for anything else."""
    if path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and p.name[0] != "."]
        path = files[0] if len(files) == 1 else path
    return path if path.is_file() and not image_suffix(path) and looks_like_dicom(path) else None


def read_label_object(
    path: Path, grid: Grid, exam: Path | None, labels: Mapping[str, int] | None = None
) -> tuple[Labels, dict[str, int]]:
    """The structures of an RTSTRUCT or a DICOM-SEG, overlaps included, and their names.

    Args:
        path: the file.
        grid: the grid of the exam.
        exam: where the exam was read from. If it is a DICOM series, the file must have been drawn on it.
        labels: ``{name: id}``; case, spaces and punctuation do not count. None takes the names of the file, with the
            numbers that it gives its structures, or 1, 2, 3 … where these are no ids.

    Warns:
        DataWarning: a structure cannot be drawn, or is odd; or the exam is no DICOM series, so that nothing tells
            whether the file was drawn on it.

    Raises:
        DataError: the file is no such object, damaged, or drawn on another series; two structures have one name; or
            ``labels`` lack a structure.
    """
    # pydicom is slow to import.
    from deepatlas.io.dicom.read import find_series
    from deepatlas.io.structures.ignored import EmptyStructure
    from deepatlas.io.structures.label_object import open_label_object

    def note(text: str) -> None:
        warnings.warn(f"{path}: {text}", DataWarning, stacklevel=4)

    series = None
    if exam is not None and kind_of(exam, is_exam=True) is Kind.DICOM:
        series, _ = find_series(exam)
    else:
        note(
            "the exam is no DICOM series, so that nobody can tell whether this was drawn on it; check its place"
        )
    try:
        source = open_label_object(path, series)
        source.check(grid)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for text in source.notes:
        note(text)
    given = {compact(name): name for name in labels or ()}
    drawn: dict[str, BoxMask] = {}
    numbers: dict[str, int] = {}
    outlines: set[str] = set()
    for drawing in source.drawings:
        structure = drawing.structure
        name = _name(structure)
        if structure.ignored:
            note(f"{name}: {structure.ignored}; left out")
            continue
        odd: list[str] = []
        try:
            patch = drawing.draw(grid, odd)
        except EmptyStructure:
            continue
        except DataError as error:
            note(f"{name}: {error}; left out")
            continue
        if not patch.array.any():
            note(
                f"{name}: {'; '.join(['no centre of the voxels of the exam lies inside it', *odd])}; left out"
            )
            continue
        if labels is not None:
            if compact(name) not in given:
                raise DataError(
                    f"{path}: the table of labels does not name its structure {name!r}; add it there"
                )
            name = given[compact(name)]
        if name in drawn:
            raise DataError(f"{path}: two of its structures are called {name!r}; rename or join them")
        for text in odd:
            note(f"{name}: {text}")
        drawn[name], numbers[name] = BoxMask.of(patch.array, patch.start), structure.number
        if structure.outline:
            outlines.add(name)
    ids = {name: labels[name] for name in drawn} if labels is not None else _ids(numbers)
    order = stacked({name: mask.count() for name, mask in drawn.items()}, outlines)
    dtype = np.uint8 if max(ids.values(), default=0) < 256 else np.uint16
    return Labels.painted(((ids[name], drawn[name]) for name in order), grid, dtype, str(path)), ids


def structures_named(path: Path) -> list[str] | None:
    """The names of the structures of an RTSTRUCT or a DICOM-SEG; None of a file that cannot be used."""
    from deepatlas.io.structures.label_object import open_label_object

    try:
        return [_name(drawing.structure) for drawing in open_label_object(path).drawings]
    except DataError:
        return None


def _name(structure: Structure) -> str:
    return " ".join(structure.name.split()) or f"structure_{structure.number}"


def _ids(numbers: Mapping[str, int]) -> dict[str, int]:
    found = list(numbers.values())
    if len(set(found)) == len(found) and all(1 <= number <= MAX_LABEL for number in found):
        return dict(numbers)
    return {name: row for row, name in enumerate(numbers, 1)}
