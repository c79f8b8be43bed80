"""The labelled exams of a data directory that a command uses, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from deepatlas.errors import DataError
from deepatlas.exams.cohort import Cohort, ExamFiles
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume

Result = TypeVar("Result")


@dataclass
class Selection:
    """The labelled exams of a cohort. Exams that cannot be used are listed, or raised where ``strict`` is set.

    Attributes:
        cohort: the data directory.
        exams: the ids of the exams to use; None for every exam with a segmentation, or those ``among`` the given ones.
        strict: raise the error of the first exam that cannot be used.
        skipped: why exams could not be used, by id. It grows while :meth:`use` runs.
        unlabelled: the ids of the exams without a segmentation.

    Raises:
        DataError: an id is unknown or its exam has no segmentation, or no exam of the cohort has one.
    """

    cohort: Cohort
    exams: Sequence[str] | None = None
    strict: bool = False
    among: Sequence[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.exams is None:
            if self.strict and self.cohort.skipped:
                raise DataError(next(iter(self.cohort.skipped.values())))
            self.skipped.update(self.cohort.skipped)
            wanted = None if self.among is None else set(self.among)
            exams = [e for e in self.cohort.exams if wanted is None or e.id in wanted]
            self.files = [e for e in exams if e.seg]
            self.unlabelled = [e.id for e in exams if not e.seg]
            if not self.files and self.cohort.parts:
                raise DataError(
                    f"{self.cohort.parts.path}: none of the {len(exams)} exams of this part has a seg file; choose "
                    "others"
                )
            if not self.files:
                raise DataError(
                    f"{self.cohort.root}: none of its {len(self.cohort)} exams has a seg file; "
                    "add <exam>/seg.nii.gz and labels.json"
                )
            return
        self.files = [self.cohort.exam(name) for name in dict.fromkeys(self.exams)]
        for exam in self.files:
            if not exam.seg:
                folder = exam.ct if exam.ct.is_dir() else exam.ct.parent
                raise DataError(f"{folder}: exam {exam.id} has no seg file; add seg.nii.gz beside its CT")

    def __len__(self) -> int:
        return len(self.files)

    def use(
        self, action: Callable[[ExamFiles, Volume, Labels], Result]
    ) -> Iterator[tuple[ExamFiles, Result]]:
        """Yield ``(files, action(files, ct, seg))`` for every exam that can be used."""
        for exam in self.files:
            assert exam.seg is not None
            try:
                ct = read_volume(exam.ct, notes=[], kind=exam.kind)
                seg = read_labels_for(ct, exam.seg, self.cohort.labels, [])
                result = action(exam, ct, seg)
            except DataError as error:
                # The error belongs to this exam and not to the settings, so the other exams can go on.
                if self.strict:
                    raise
                self.skipped[exam.id] = str(error)
                continue
            yield exam, result
