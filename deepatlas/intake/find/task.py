"""The exams of a source on their way from files to a plan: what is to be planned, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deepatlas.intake.find.archives import Archive
from deepatlas.intake.privacy.redact import path_parts
from deepatlas.intake.structures.label_images import Naming
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.dicom.series import DicomSeries, Verdict

# Raise this number when the same files are to make other exams.
RECIPE = 3


@dataclass(frozen=True)
class ExamSource:
    """What one exam is made of, before any pixel is read; small enough to be sent to a worker process.

    The CT is either an ``image`` (NIfTI, NRRD or MetaImage) or the chosen DICOM ``series``. ``name`` is what a person
    calls the exam (folder, file name or PatientID) and must not get into the dataset. ``labels`` are the label
    images, RTSTRUCT or DICOM-SEG files that belong to the CT.
    """

    # What identifies the exam from run to run: the StudyInstanceUID, or the path of its image below the source.
    key: str
    name: str
    image: Found | None = None
    series: DicomSeries | None = None
    labels: tuple[Found, ...] = ()
    # How the label images are named, by the names of the files.
    naming: Mapping[str, Naming] = field(default_factory=dict)
    # The verdict on every series of the study.
    reasons: dict[str, Verdict] = field(default_factory=dict)
    # The user asked for this series.
    forced: bool = False
    # What was drawn on another series of the study.
    elsewhere: tuple[Refusal, ...] = ()

    @property
    def files(self) -> tuple[Found, ...]:
        """Every file that the exam is made of."""
        slices = self.series.slices if self.series is not None else ()
        return (*slices, *((self.image,) if self.image is not None else ()), *self.labels)


@dataclass(frozen=True)
class Task:
    """An exam to be planned by a worker.

    It is either the DICOM ``files`` of a study with their packed ``headers``, or a CT ``image`` with its label images
    ``labels``. ``archives`` are unpacked while the exam is planned.
    """

    key: str
    name: str
    files: tuple[Found, ...] = ()
    headers: tuple[bytes, ...] = ()
    image: Found | None = None
    labels: tuple[Found, ...] = ()
    naming: Mapping[str, Naming] = field(default_factory=dict)
    # The series that the user asked for.
    override: str | None = None
    names: NameMap | None = None
    source_labels: Mapping[str, int] | None = None
    # Of the files and the options: a plan with the same digest need not be made again.
    digest: str = ""
    # Series that could not be used, and why, in the order in which they were tried.
    tried: Mapping[str, str] = field(default_factory=dict)
    archives: tuple[Archive, ...] = ()

    @property
    def everything(self) -> tuple[Found, ...]:
        """Every file of the task."""
        return (*self.files, *((self.image,) if self.image is not None else ()), *self.labels)


@dataclass(frozen=True)
class Plan:
    """What an exam will be made of. Without ``source`` it is refused, and ``refusals`` tells why."""

    key: str
    name: str
    patient: str
    source: ExamSource | None
    # The dataset's names of what was drawn, as far as headers tell.
    structures: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    source_labels: Mapping[str, int] | None = None
    digest: str = ""
    # Values of headers that no message in the dataset may contain.
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def hidden(self) -> set[str]:
        """Every text of the exam's source that no message in the dataset may contain: names, UIDs, paths."""
        hidden = {self.key, self.name, self.patient, *self.secrets}
        files: list[Found] = []
        if self.source is not None:
            series = self.source.series
            files = [*(series.slices if series else ()), *self.source.labels]
            files += [self.source.image] if self.source.image else []
            if series:
                hidden |= {series.patient, series.study, series.series, series.frame}
        # The names of slices differ in their numbers only, so that a few of them suffice.
        for found in files[:3] + files[-3:]:
            for text in (str(found.path), found.name):
                hidden |= {text, *path_parts(text)}
        return {text for text in hidden if text}
