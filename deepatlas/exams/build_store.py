"""Build a store from a data directory, or reuse the store that is there.

Finished exams are kept in a hidden folder beside the store until the store is complete, so that an interrupted build
continues where it stopped. The store appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from deepatlas.errors import DataError, KindError, PassingError
from deepatlas.exams.checksums import image_files
from deepatlas.exams.cohort import Cohort, ExamFiles
from deepatlas.exams.joined import Data, find_cohort, roots_of
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.files import atomic_h5, private_folder, write_error, write_text
from deepatlas.progress import bar
from deepatlas.space.preprocess import CROPS
from deepatlas.store.fit import ExamError, PreparedExam, fit_exam
from deepatlas.store.rows import PART_VERSION, Row, assemble, read_part, write_part
from deepatlas.store.store import VERSION, Store, StoreVersionError, is_store

try:
    import fcntl
except ImportError:
    # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

Result = TypeVar("Result")

# In the folder of finished exams: the data directory that they are of.
ABOUT = "about.json"

# To be raised whenever the same files would give other arrays, so that older stores are built again.
_RECIPE = 5


class NoExamError(DataError):
    """No exam of a cohort can be used; ``reasons`` tell why, one for each exam that was tried."""

    def __init__(self, message: object, reasons: Sequence[ExamError] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class Preparation:
    """How the exams of a cohort become the rows of a store.

    Attributes:
        prepare: reads an exam and makes its row, given the table of labels; raises
            :class:`~deepatlas.store.fit.ExamError` for an exam that cannot be used.
        key: what the rows depend on besides files and labels, as JSON values.
        meta: entries of the store's ``meta``, ``crop`` and ``intensity`` among them.
        open: opens a pool of a number of workers. Those of another process get ``prepare`` by pickling.
        tolerated: the errors of exams that are left out also where the first bad exam is to stop the build.
    """

    prepare: Callable[[ExamFiles, dict[str, int]], PreparedExam]
    key: Sequence[Any]
    meta: dict[str, Any] = field(default_factory=dict)
    open: Callable[[int], Executor] = ThreadPoolExecutor
    tolerated: tuple[type[ExamError], ...] = ()


def prepare_cohort(
    data: Data,
    store_path: str | os.PathLike[str],
    *,
    crop: str | None = None,
    intensity: str = "hu",
    strict: bool = False,
    progress: bool = True,
    workers: int = 2,
) -> Store:
    """Prepare the exams of data directories for training, or reuse the store if nothing has changed.

    Args:
        data: data directories (see :func:`~deepatlas.exams.joined.find_cohort`), or a store, which is opened as it is.
        store_path: the HDF5 file to write (mode 0600, as it holds CTs). A store that is there already is reused if the
            files (path, size and modification time), the labels and the options are the same, and replaced otherwise.
            A file that is no store is an error and stays as it is.
        crop: ``"foreground"`` crops exams to the patient; ``"midline"`` also crops them to the middle 240 mm from left
            to right; None keeps the full field of view.
        intensity: what the values of the exams are (``data.intensity``).
        strict: stop at the first exam that cannot be used. Otherwise such an exam is skipped, and listed in
            ``store.skipped`` with the reason.
        progress: show a progress bar on stderr.
        workers: the number of threads.

    Raises:
        ValueError: ``crop`` is unknown.
        DataError: the data directory or the store cannot be used, the disk cannot be written, no exam can be used, or
            (with ``strict``) one exam cannot be used.
    """
    if crop not in CROPS:
        raise ValueError(f"prepare_cohort: crop must be one of {CROPS}, got {crop!r}")
    roots, store_path = roots_of(data), Path(store_path)
    if len(roots) == 1 and is_store(roots[0]):
        return _open_as_is(roots[0], crop, intensity)
    preparation = Preparation(
        lambda exam, labels: prepare_exam(exam, labels, crop, intensity),
        (crop, intensity),
        {"crop": crop, "intensity": intensity},
    )
    return prepare_by(
        preparation, find_cohort(roots), roots, store_path, strict=strict, progress=progress, workers=workers
    )


def prepare_by(
    preparation: Preparation,
    cohort: Cohort,
    roots: Sequence[Path],
    store_path: Path,
    *,
    strict: bool = False,
    progress: bool = True,
    workers: int = 2,
) -> Store:
    """Make a store of a cohort, or reuse the one that is there, as :func:`prepare_cohort` does.

    Args:
        preparation: how exams become rows.
        cohort: the exams.
        roots: the data directories that they are of.
        store_path, strict, progress: as in :func:`prepare_cohort`.
        workers: the number of workers of the pool; with fewer than 2 of threads, the calling thread does all.

    Raises:
        NoExamError: no exam can be used.
        DataError: as :func:`prepare_cohort`.
    """
    if strict and cohort.skipped:
        raise DataError(next(iter(cohort.skipped.values())))
    sources, keys = _sources(cohort), {}
    for exam in cohort.exams:
        source = (*preparation.key, str(exam.ct.resolve()), sources[exam.id], cohort.labels)
        keys[exam.id] = _digest(VERSION, _RECIPE, PART_VERSION, *source)
    places = [str(root.resolve()) for root in roots]
    fingerprint = _digest(
        VERSION, _RECIPE, *preparation.key, places, sources, cohort.labels, sorted(cohort.skipped)
    )
    meta: dict[str, Any] = {
        "labels": cohort.labels,
        **preparation.meta,
        "root": str(cohort.root.resolve()),
        "roots": places,
        "sources": sources,
        "fingerprint": fingerprint,
        "skipped": dict(cohort.skipped),
        "tolerated": [],
        "notes": {},
    }
    with building(store_path):
        store = _reusable(store_path, fingerprint)
        if store is None:
            _build(store_path, cohort, keys, meta, preparation, strict, progress, workers)
            store = Store(store_path)
    bad = [reason for exam, reason in store.skipped.items() if exam not in store.tolerated]
    if strict and bad:
        store.close()
        raise DataError(bad[0])
    return store


def prepare_exam(
    exam: ExamFiles, labels: dict[str, int], crop: str | None = None, intensity: str = "hu"
) -> PreparedExam:
    """Read, check and resample one exam.

    Args:
        exam: its files.
        labels: ``{name: id}`` of the structures.
        crop: as in :func:`prepare_cohort`.
        intensity: as in :func:`prepare_cohort`.

    Raises:
        ExamError: the exam cannot be used.
    """
    notes: list[str] = []
    try:
        ct = read_volume(exam.ct, notes=notes, kind=exam.kind)
        seg = read_labels_for(ct, exam.seg, labels, notes) if exam.seg else None
    except DataError as error:
        raise ExamError(error) from error
    return fit_exam(ct, seg, labels, crop, notes, intensity)


def _build(
    store_path: Path,
    cohort: Cohort,
    keys: dict[str, str],
    meta: dict[str, Any],
    preparation: Preparation,
    strict: bool,
    progress: bool,
    workers: int,
) -> None:
    """Write the store from the parts of its exams, and write those parts that are missing."""
    # The name of the store may be as long as names can be.
    name = store_path.name if len(os.fsencode(store_path.name)) < 200 else _digest(store_path.name)
    parts = store_path.with_name(f".{name}.parts")
    private_folder(parts)
    reasons: list[ExamError] = []

    def part_of(exam: ExamFiles) -> Path:
        return parts / f"{keys[exam.id]}.h5"

    # Only the calling thread uses HDF5.
    jobs = _in_order(
        partial(_row, preparation.prepare, cohort.labels),
        [exam for exam in cohort.exams if not part_of(exam).is_file()],
        workers,
        preparation.open,
    )
    try:
        write_text(parts / ABOUT, json.dumps({"root": meta["root"]}), private=True)
        done = len(cohort) - sum(not part_of(exam).is_file() for exam in cohort.exams)
        for exam, result in bar(jobs, len(cohort), "preparing", show=progress, done=done):
            try:
                prepared = result()
            except ExamError as error:
                tolerated = isinstance(error, preparation.tolerated)
                if strict and not tolerated:
                    raise DataError(error) from error
                meta["skipped"][exam.id] = str(error)
                meta["tolerated"] += [exam.id] if tolerated else []
                reasons.append(error)
                continue
            except BrokenExecutor as error:
                raise PassingError(
                    f"{exam.ct}: a process that prepared exams was ended, perhaps for lack of memory; start again, "
                    "which goes on from the exams that are done"
                ) from error
            with atomic_h5(part_of(exam), private=True) as file:
                write_part(file, prepared, cohort.labels)
        ready = [(exam.id, part_of(exam)) for exam in cohort.exams if part_of(exam).is_file()]
        if not ready:
            first = next(iter(meta["skipped"].values()))
            kinds = sum(isinstance(reason.__cause__, KindError) for reason in reasons)
            raise NoExamError(
                f"{cohort.root}: none of its {len(meta['skipped'])} exams can be used"
                f"{' (for MR: --preset mr)' if kinds == len(cohort) else ''}; the first: {first}",
                reasons,
            )
        with atomic_h5(store_path, private=True) as file:
            assemble(file, len(ready), (Row(name, *read_part(part)) for name, part in ready), meta)
    except PassingError:
        raise
    except DataError:
        # After bad data, or with a full disk, there is nothing that the next call could continue from.
        shutil.rmtree(parts, ignore_errors=True)
        raise
    shutil.rmtree(parts, ignore_errors=True)


# -- sources and reuse ------------------------------------------------------------------------------


def _sources(cohort: Cohort) -> dict[str, dict[str, Any]]:
    """The files of every exam with their sizes and times, as the store records them."""
    return {
        exam.id: {
            "ct": exam.ct.relative_to(cohort.root).as_posix(),
            "seg": exam.seg.relative_to(cohort.root).as_posix() if exam.seg else None,
            "stat": [_stat(path) for path in (exam.ct, exam.seg) if path],
        }
        for exam in cohort.exams
    }


def _stat(path: Path) -> list[int]:
    """Sizes and times of the files of an image; of a folder the number of its files, their size and the latest time."""
    try:
        found = [p.stat() for p in image_files(path)]
    except OSError:
        # The file has vanished since it was listed. Reading it will report that.
        return []
    if not path.is_dir():
        return [number for status in found for number in (status.st_size, status.st_mtime_ns)]
    if not found:
        return []
    return [len(found), sum(s.st_size for s in found), max(s.st_mtime_ns for s in found)]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _reusable(path: Path, fingerprint: str) -> Store | None:
    """The store at ``path`` if it is up to date, or None if it is to be built. A file of another kind is an error."""
    if not path.exists():
        return None
    try:
        store = Store(path)
    except StoreVersionError:
        return None
    if store.fingerprint == fingerprint:
        return store
    store.close()
    return None


def _open_as_is(path: Path, crop: str | None, intensity: str) -> Store:
    """The store at ``path``, which must have been prepared with ``crop`` and ``intensity``."""
    store = Store(path)
    if store.crop != crop:
        store.close()
        raise DataError(
            f"{path}: prepared with crop={store.crop}, not crop={crop}; choose that, or prepare it again"
        )
    if store.intensity != intensity:
        store.close()
        raise DataError(
            f"{path}: prepared with data.intensity={store.intensity}, not {intensity}; choose that, or prepare it again"
        )
    return store


@contextmanager
def building(store_path: Path, busy: str | None = None) -> Iterator[bool]:
    """Keep other processes from building in the folder of a store. Once they may go on, they find the finished store.

    Yields whether there is a lock: some file systems have none. Where another process has it, this one waits, or
    raises :class:`~deepatlas.errors.DataError` with ``busy`` if that is given.
    """
    try:
        store_path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(store_path.parent, os.O_RDONLY)
    except OSError as error:
        raise write_error(store_path, error) from error
    alone = False
    try:
        if fcntl is not None:
            # Some file systems have no locks.
            with suppress(OSError):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if busy is not None:
                        raise DataError(f"{store_path.parent}: {busy}") from None
                    print(
                        f"waiting for another process that prepares in {store_path.parent}", file=sys.stderr
                    )
                    fcntl.flock(folder, fcntl.LOCK_EX)
                alone = True
        yield alone
    finally:
        os.close(folder)


def _row(
    prepare: Callable[[ExamFiles, dict[str, int]], PreparedExam], labels: dict[str, int], exam: ExamFiles
) -> PreparedExam:
    # A function that other processes can be sent.
    return prepare(exam, labels)


# -- work -------------------------------------------------------------------------------------------


def _in_order(
    job: Callable[[ExamFiles], Result],
    exams: Sequence[ExamFiles],
    workers: int,
    open_pool: Callable[[int], Executor],
) -> Iterator[tuple[ExamFiles, Callable[[], Result]]]:
    """Yield each exam with a function that returns or raises the result of its job. Workers run a few exams ahead."""
    if workers < 1 or (workers < 2 and open_pool is ThreadPoolExecutor):
        for exam in exams:
            yield exam, partial(job, exam)
        return
    queue = iter(exams)
    pool = open_pool(workers)
    try:
        waiting = deque((exam, pool.submit(job, exam)) for exam in islice(queue, 2 * workers))
        while waiting:
            exam, future = waiting.popleft()
            yield exam, future.result
            waiting.extend((following, pool.submit(job, following)) for following in islice(queue, 1))
    finally:
        # After an interrupt, the exams that were begun are finished, and no others are begun.
        pool.shutdown(wait=True, cancel_futures=True)
