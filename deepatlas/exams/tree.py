"""Trees of DICOM folders that stand where the folder of one exam is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.cohort import Cohort, prepare_first
from deepatlas.exams.kind import Kind
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.header import Header, read_header
from deepatlas.io.dicom.magic import looks_like_dicom


def refuse_trees(cohort: Cohort) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if an exam of a data directory holds DICOM files of several studies.

    One series is read of every exam, so that one patient would stand for all. The study of each folder is read from the
    header of its first file.
    """
    for exam in cohort.exams:
        if exam.kind is not Kind.DICOM:
            continue
        studies = set()
        for header in _first_headers(exam.ct):
            studies.add((header.patient, header.study))
            if len(studies) > 1:
                raise DataError(
                    f"{exam.ct}: holds DICOM files of several studies, and not one exam; "
                    f"{prepare_first(cohort.root)}"
                )


def _first_headers(folder: Path) -> Iterator[Header]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() and looks_like_dicom(path):
                header = read_header(Found(path, str(path)))
                if isinstance(header, Header):
                    yield header
                break
