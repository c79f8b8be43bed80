"""What the parts of an intake hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.space.volume import Volume


@dataclass(frozen=True)
class Found:
    """One regular file below the source.

    ``path`` can be opened; ``name`` is what a person calls it: the path below the source, with
    ``archive.zip!inner/path`` for a member of an archive (``path`` then lies in a temporary
    folder, where it is as long as the archive is unpacked).
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Archive:
    """An archive below the source, and the folder that it is to be unpacked into."""

    found: Found
    folder: Path


@dataclass(frozen=True)
class Refusal:
    """Something that does not go in: ``name`` as in :class:`Found` (or an exam's), one line of reason and cure.

    ``reason`` holds no identifier: no patient name, id, date or path.
    """

    name: str
    reason: str
    kind: str = "file"  # "file", "series" (what belongs to one that was not taken) or "exam"
    passing: bool = False  # a disk or network failed, which may be well the next time


@dataclass(frozen=True)
class DicomSeries:
    """One image series, from headers alone, in the order that its slices are stacked.

    ``slices`` are the files of its image instances (one file for an enhanced multi-frame object). ``facts`` are what
    the choice looks at: modality, image_type, rows, columns, slice thickness and spacing in mm, orientation class
    ("axial", "coronal", "sagittal", "oblique"), convolution kernel, whether contrast was given, number of slices.
    """

    patient: str  # PatientID, or the PatientName where that is empty; never leaves the private folder
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID, with a suffix where one series was split (``#2``)
    frame: str  # FrameOfReferenceUID
    slices: tuple[Found, ...]
    sop_uids: tuple[str, ...]
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The series of an exam that is taken, and a line for every series why it was or was not."""

    taken: DicomSeries | None
    reasons: dict[
        str, str
    ]  # {series: reason}, series identified by its number and geometry, not by free text


@dataclass
class Reading:
    """A CT as it was read: Hounsfield units on its own grid, what was corrected, what is odd."""

    volume: Volume
    corrections: list[str] = field(default_factory=list)  # done, exactly: "2 duplicate slices left out"
    warnings: list[str] = field(default_factory=list)  # not done, usable: "slice spacing varies by 0.4 %"
    facts: dict = field(
        default_factory=dict
    )  # non-identifying provenance: kernel, kVp, thickness, transfer syntax


@dataclass
class Structures:
    """A label image on a CT's grid, and what became of every structure of the source."""

    labels: Volume  # integer, on the CT's grid
    present: list[str] = field(default_factory=list)  # names (as mapped) that have voxels
    warnings: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)  # {name in the source: why it was left out}
    refused: list[Refusal] = field(default_factory=list)  # files of which nothing went in


@dataclass(frozen=True)
class ExamSource:
    """One exam to prepare, before any pixel is read; small enough to travel to a worker process.

    ``key`` is what makes it the same exam on the next run: the StudyInstanceUID, or the path of its image below the
    source.
    """

    key: str
    name: str  # what a person calls it: folder or file name, PatientID for DICOM; not for the dataset
    image: Found | None = None  # a NIfTI, NRRD or MetaImage CT …
    series: DicomSeries | None = None  # … or the chosen DICOM series
    labels: tuple[Found, ...] = ()  # label images, RTSTRUCT or DICOM-SEG that belong to it
    reasons: dict[str, str] = field(default_factory=dict)  # of the series choice
    forced: bool = False  # somebody asked for this series
    elsewhere: tuple[Refusal, ...] = ()  # what was drawn on another series of the exam
