"""What is known of a DICOM series: its headers, whether it was taken and why, and the CT that was read from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.header import Header
from deepatlas.space.volume import Volume


@dataclass(frozen=True)
class DicomSeries:
    """One image series that was grouped from headers, in the order in which its slices are stacked.

    ``slices``, ``headers`` and ``sop_uids`` have one entry for each image file (a multi-frame object is one file).
    The headers travel with the series so that reading its pixels does not read them again. ``facts`` holds what the
    choice of a series depends on; :func:`deepatlas.io.dicom.scan.scan_dicom` lists its keys.
    """

    # PatientID, or PatientName if that is empty. It never leaves the private folder.
    patient: str
    # StudyInstanceUID.
    study: str
    # SeriesInstanceUID, with a suffix ("#2") for the further parts of a series that had to be split.
    series: str
    # FrameOfReferenceUID.
    frame: str
    slices: tuple[Found, ...]
    sop_uids: tuple[str, ...]
    facts: dict = field(default_factory=dict)
    headers: tuple[Header, ...] = ()

    @property
    def uids(self) -> frozenset[str]:
        """The SeriesInstanceUIDs of its images: one, unless every image had its own."""
        return frozenset({self.series.partition("#")[0], *(header.series for header in self.headers)})


@dataclass(frozen=True)
class Verdict:
    """Whether a series was taken, and why; ``str(verdict)`` is the line that the manifest stores.

    ``tried`` marks a series that was chosen earlier and whose pixels could not be used.
    """

    taken: bool
    why: str
    tried: bool = False

    def __str__(self) -> str:
        return f"{'taken' if self.taken else 'not taken'}: {self.why}"


@dataclass(frozen=True)
class Choice:
    """The series of an exam that is taken, if any, and a verdict on every series of the exam.

    The keys of ``reasons`` describe a series by its number and geometry, without any free text of its headers.
    """

    taken: DicomSeries | None
    reasons: dict[str, Verdict]


@dataclass
class Reading:
    """A CT as it was read: Hounsfield units on its own grid.

    ``corrections`` lists what was changed ("2 duplicate slices with equal pixels left out"), ``warnings`` what was
    left as it is although it looks odd, and ``facts`` the provenance that identifies nobody (kernel, kVp, slice
    thickness, transfer syntax). ``series`` is what it was read from, where that is DICOM.
    """

    volume: Volume
    corrections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    series: DicomSeries | None = None
