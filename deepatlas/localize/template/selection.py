"""Which exams of a data directory are used: labelled ones, read one by one, the bad ones listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from deepatlas.errors import DataError
from deepatlas.exams.cohort import Cohort, ExamFiles
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.space.volume import Volume


@dataclass
class Selection:
    """Labelled exams of a cohort, read one by one; what cannot be used is listed, or raised if ``strict``.

    ``exams`` are ids to keep, None for all. Exams without a seg file are ``unlabelled``; a named one is an
    error.
    """

    cohort: Cohort
    exams: Sequence[str] | None = None
    strict: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.exams is None:
            if self.strict and self.cohort.skipped:
                raise DataError(next(iter(self.cohort.skipped.values())))
            self.skipped.update(self.cohort.skipped)
            self.files = [e for e in self.cohort.exams if e.seg]
            self.unlabelled = [e.id for e in self.cohort.exams if not e.seg]
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
        self, action: Callable[[ExamFiles, Volume, Volume], object]
    ) -> Iterator[tuple[ExamFiles, object]]:
        """Yield ``(files, action(files, ct, seg))`` of every exam that can be used."""
        for exam in self.files:
            try:
                ct = read_volume(exam.ct, notes=[], kind=exam.kind)
                seg = read_labels_for(ct, exam.seg, self.cohort.labels, [])
                result = action(exam, ct, seg)
            except DataError as error:  # a bad exam, not a bad setting: the others can go on
                if self.strict:
                    raise
                self.skipped[exam.id] = str(error)
                continue
            yield exam, result
