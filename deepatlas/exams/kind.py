"""What a path is, and what the exam at a path is called: asked here, once, and carried along from then on."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path, PurePath

from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.header import looks_like_dicom

# File names (without suffix) that say that the exam is called as its folder is: ``<exam>/ct.nii.gz``.
CT_NAMES = ("ct", "image", "volume")
EXAM_SUFFIX = ".h5"

# How many files of a folder are opened in search of DICOM: of an exam's folder, and of what may be a data directory.
_TRIED_IN_EXAM, _TRIED_AT_TOP = 50, 8


class Kind(Enum):
    """How the exam at a path is stored."""

    IMAGE = "image file"
    DICOM = "DICOM"
    EXAM_FILE = "exam file of a dataset"
    FOLDER = "folder of exams"


def kind_of(path: str | os.PathLike[str], *, is_exam: bool = False) -> Kind:
    """What a path is. A folder counts as DICOM where one of its first files begins as DICOM does.

    Args:
        path: a file or a folder; of files only the beginning is read, and of image files nothing.
        is_exam: the path is known to be one exam, so that DICOM files may also lie in folders below it. Otherwise
            such folders are exams themselves, and the path is a data directory.

    A file that is none of these counts as an image: reading it says what is wrong with it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return Kind.DICOM if _holds_dicom(path, below=is_exam) else Kind.FOLDER
        if path.suffix.lower() == EXAM_SUFFIX:
            return Kind.EXAM_FILE
        if not image_suffix(path) and path.is_file() and looks_like_dicom(path):
            return Kind.DICOM
    except OSError:
        # Reading it will say what the matter is.
        pass
    return Kind.IMAGE


def exam_name(path: str | os.PathLike[str]) -> str:
    """What an exam is called: its folder for ``<exam>/ct.nii.gz``, otherwise the file's name without its suffix."""
    path = PurePath(path)
    suffix = image_suffix(path) or (EXAM_SUFFIX if path.suffix.lower() == EXAM_SUFFIX else "")
    stem = path.name[: len(path.name) - len(suffix)]
    return path.parent.name if stem.lower() in CT_NAMES and path.parent.name else stem


def _holds_dicom(folder: Path, *, below: bool) -> bool:
    tried = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(place, name)
            if file.is_file() and looks_like_dicom(file):
                return True
            tried += 1
            if tried >= (_TRIED_IN_EXAM if below else _TRIED_AT_TOP):
                return False
        if not below:
            return False
    return False
