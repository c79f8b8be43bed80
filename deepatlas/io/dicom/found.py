"""A file that was found below a source, and the refusal of a file, series or exam that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """One regular file below the source.

    ``path`` is what to open. ``name`` is what a person calls the file: its path below the source, or
    ``archive.zip!inner/path`` for a member of an archive, whose ``path`` lies in a temporary folder and is valid only
    while the archive is unpacked.
    """

    path: Path
    name: str


class Subject(StrEnum):
    """What a refusal is about. The values are stored in manifests and journals."""

    FILE = "file"
    # Something that belongs to a series that was not taken.
    SERIES = "series"
    EXAM = "exam"


@dataclass(frozen=True)
class Refusal:
    """A file, series or exam that is left out of the dataset.

    ``name`` is the name of a :class:`Found` or of an exam. ``reason`` is one line that gives the reason and the cure.
    ``public`` is the same line without anything that could identify a person, as the dataset states it; it is empty
    until :func:`deepatlas.intake.privacy.redact.redacted` has filled it.
    """

    name: str
    reason: str
    kind: Subject = Subject.FILE
    # The next run may succeed, because a disk or a network failed in this one.
    passing: bool = False
    # The file is DICOM, but its header is damaged.
    damaged: bool = False
    # The file is DICOM compressed with gzip.
    zipped: bool = False
    public: str = ""
