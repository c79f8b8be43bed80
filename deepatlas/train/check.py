"""What a run was asked for, held against its data before the run begins: names of exams and of structures.

A wrong name must not be noticed only when the score is made, after hours of training. No image is read here; what only
the prepared store can tell is checked in :mod:`deepatlas.train.split`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from deepatlas.config import PhantomConfig
from deepatlas.errors import DataError, did_you_mean
from deepatlas.evaluate.truth import cohort_of
from deepatlas.exams.cohort import Cohort, ExamFiles, find_exams
from deepatlas.exams.joined import find_cohort, roots_of, with_split
from deepatlas.exams.tree import refuse_trees
from deepatlas.names.meet import chosen, meeting
from deepatlas.store.store import Store, is_dataset, is_store
from deepatlas.train.request import Request


def check_request(request: Request, phantoms: PhantomConfig) -> None:
    """Raise :class:`~deepatlas.errors.DataError` for data that cannot be trained on and names that they lack.

    Args:
        request: what the run was asked for.
        phantoms: the cohort that is made where the request names no data.
    """
    if request.data is None:
        _check_phantoms(request, phantoms)
        return
    cohort = _cohort(roots_of(request.data))
    refuse_trees(cohort)
    for name in [*(request.template_exams or []), *([request.seed_exam] if request.seed_exam else [])]:
        cohort.exam(name)
    for name in request.template_exams or []:
        _insist_on_labels(cohort, name)
    wanted = list(cohort.labels)
    if request.structures:
        wanted = chosen(request.structures, cohort.labels, str(cohort.labels_path or cohort.root))
    if request.test:
        _check_tests(find_exams(request.test), request.test_exams, wanted)


def _check_tests(tests: Cohort, exams: list[str] | None, wanted: list[str]) -> None:
    for name in exams or []:
        _insist_on_labels(tests, name)
    if not any(exam.seg for exam in tests.exams):
        raise DataError(
            f"{tests.root}: none of its {len(tests)} exams has a seg, so nothing can be scored; leave out --test"
        )
    where = str(tests.labels_path)
    if wanted and not meeting(wanted, tests.labels, where):
        raise DataError(
            f"{where}: shares no structure with the training data ({', '.join(wanted)}), so nothing can be scored; "
            f"it has {', '.join(tests.labels)}"
        )


def _check_phantoms(request: Request, phantoms: PhantomConfig) -> None:
    cohort = cohort_of(phantoms)
    ids = [cohort.exam_id(index) for index in range(phantoms.train)]
    for name in [*(request.template_exams or []), *([request.seed_exam] if request.seed_exam else [])]:
        if name not in ids:
            raise DataError(f"the phantoms to train on: no exam {name!r}; {did_you_mean(name, ids)}")
    if request.structures:
        chosen(request.structures, cohort.names, "the phantoms")


def _insist_on_labels(cohort: Cohort, name: str) -> None:
    if cohort.exam(name).seg is None:
        raise DataError(f"{cohort.root}: exam {name} has no seg, so it has no structure; leave it out")


def with_parts(request: Request) -> Request:
    """The request with the parts that the split files of its data name, so that a run that is resumed has the same.

    Raises :class:`~deepatlas.errors.DataError` if the data or a split file cannot be used.
    """
    if request.data is None:
        if request.split:
            raise DataError(f"{request.split}: a split is one of data; give --data DIR too")
        return request
    parts = _cohort(roots_of(request.data), request.split).parts
    if parts is None:
        return request
    return replace(request, parts={**asdict(parts), "path": str(parts.path)})


def _cohort(roots: list[Path], split: str | None = None) -> Cohort:
    """The exams of data directories, datasets or a store."""
    path = roots[0]
    if len(roots) > 1 or is_dataset(path) or not is_store(path):
        return find_cohort(roots, split)
    with Store(path) as store:
        exams = [
            ExamFiles(exam, store.source(row), store.source(row) if store.has_label[row].any() else None)
            for row, exam in enumerate(store.ids)
        ]
        cohort = Cohort(path, exams, store.labels, path, store.skipped)
    return with_split(cohort, Path(split)) if split else cohort
