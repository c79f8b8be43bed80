"""What the name of a found file tells: its folder, its stem, and what is to be done with the file."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath

from deepatlas.exams.kind import IMAGE_NAMES, exam_stem
from deepatlas.intake.structures.tables import is_table
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.found import Found


class FileKind(StrEnum):
    """What is to be done with a file. The values are stored in the catalogue."""

    # A NIfTI, NRRD or MetaImage file: a CT or a label image.
    IMAGE = "image"
    # A table that names the ids of label images, such as ``labels.json``.
    TABLE = "table"
    # Any other file; its first bytes tell whether it is DICOM.
    OTHER = "other"


def file_kind(name: str) -> FileKind:
    """What is to be done with a file of this name (see :class:`~deepatlas.io.dicom.found.Found`)."""
    if image_suffix(name):
        return FileKind.IMAGE
    return FileKind.TABLE if is_table(inner_path(name).name) else FileKind.OTHER


def inner_path(name: str) -> PurePosixPath:
    """The path of a file in its archive, or below the source if it is in none."""
    return PurePosixPath(name.rpartition("!")[2])


def folder_of(name: str) -> str:
    """The folder of a file ("" for the source itself). An archive counts as a folder ("a.zip!")."""
    head, mark, _ = name.rpartition("!")
    parent = str(inner_path(name).parent)
    parent = "" if parent == "." else parent
    return f"{head}!{parent}" if mark else parent


def parent_folder(folder: str) -> str:
    """The folder above a folder. The root of an archive keeps its mark."""
    head = re.match(r"(.*)([/!])", folder)
    return "" if head is None else head[1] + "!" * (head[2] == "!")


def folder_name(folder: str) -> str:
    """The last part of a folder, in lower case."""
    return re.split("[/!]", folder)[-1].lower()


def stem_of(found: Found) -> str:
    """The name of an image file without its suffix."""
    return exam_stem(inner_path(found.name))


def exam_name(ct: Found) -> str:
    """What a person calls the exam of an image: its folder for ``<exam>/ct.nii.gz``, otherwise its path's stem.

    :func:`deepatlas.exams.kind.exam_name` gives the last part of it; below a source the folders above tell apart
    exams of one name.
    """
    stem, folder = stem_of(ct), folder_of(ct.name)
    if stem.lower() in IMAGE_NAMES and folder:
        return folder
    return f"{folder}/{stem}" if folder else stem
