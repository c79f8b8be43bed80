"""What a path holds, and what the exam at a path is called.

This is decided once, here, and the answer is passed along with the path.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path, PurePath

from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.magic import looks_like_dicom

# The names of files (without suffix) whose exam has the name of their folder, as in ``<exam>/ct.nii.gz``. The first two
# say what the image is.
MODALITY_NAMES = ("ct", "mr")
IMAGE_NAMES = (*MODALITY_NAMES, "image", "volume")
EXAM_SUFFIX = ".h5"

# How many files are opened in search of DICOM, in the folder of an exam and in a folder that may be a data directory.
_TRIED_IN_EXAM, _TRIED_AT_TOP = 50, 8


class Kind(Enum):
    """How the exam at a path is stored."""

    IMAGE = "image file"
    DICOM = "DICOM"
    EXAM_FILE = "exam file of a dataset"
    FOLDER = "folder of exams"


def kind_of(path: str | os.PathLike[str], *, is_exam: bool = False) -> Kind:
    """What a path holds. A folder counts as DICOM if one of its first files begins as DICOM files do.

    A file that is nothing else counts as an image; reading it reports what is wrong with it.

    Args:
        path: a file or a folder. Only the beginning of a file is read, and nothing of an image file.
        is_exam: the path is known to be one exam, so that its DICOM files may lie in folders below it. Otherwise each
            of those folders is an exam, and the path is a data directory.
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
        # Reading the path will report the problem.
        pass
    return Kind.IMAGE


def exam_name(path: str | os.PathLike[str]) -> str:
    """The name of an exam: that of its folder for ``<exam>/ct.nii.gz``, otherwise its file name without suffix."""
    path = PurePath(path)
    stem = exam_stem(path)
    return path.parent.name if stem.lower() in IMAGE_NAMES and path.parent.name else stem


def exam_stem(path: str | os.PathLike[str]) -> str:
    """The name of a file without the suffix of an image or an exam file."""
    path = PurePath(path)
    suffix = image_suffix(path) or (EXAM_SUFFIX if path.suffix.lower() == EXAM_SUFFIX else "")
    return path.name[: len(path.name) - len(suffix)]


def _holds_dicom(folder: Path, *, below: bool) -> bool:
    """Whether one of the first files is DICOM; ``below`` also looks into the folders below ``folder``."""
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
