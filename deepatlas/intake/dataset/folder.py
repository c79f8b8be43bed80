"""A dataset, the folder that ``deepatlas prepare`` writes. docs/dataset.md describes its layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.checksums import file_sha256
from deepatlas.exams.cohort import natural_order
from deepatlas.exams.exam_file import ExamFile, ExamRecord, write_exam
from deepatlas.files import atomic_h5, write_text
from deepatlas.intake.dataset.manifest import Manifest, merge_manifests
from deepatlas.store.rows import Row, assemble, read_part, read_row
from deepatlas.store.store import DATASET, PACKED, Store
from deepatlas.version import __version__

__all__ = [
    "MANIFEST", "REPORT", "Dataset", "ExamFile", "ExamRecord", "assemble_packed", "exam_name", "exam_path",
    "finish_dataset", "read_dataset_json", "write_exam",
]  # fmt: skip

FORMAT = "deepatlas-dataset"
VERSION = 1
MANIFEST, REPORT, EXAMS = "manifest.sqlite", "report.html", "exams"


def exam_name(exam_id: str) -> str:
    """The path of an exam's file in the dataset. The exams are spread over 256 folders to keep listings short."""
    return f"{EXAMS}/{hashlib.sha256(exam_id.encode()).hexdigest()[:2]}/{exam_id}.h5"


def exam_path(folder: str | os.PathLike[str], exam_id: str) -> Path:
    """The path of an exam's file, which need not exist."""
    return Path(folder) / exam_name(exam_id)


class Dataset:
    """A finished dataset, for reading.

    ``len``, iteration and :meth:`exam` give its exams as :class:`~deepatlas.exams.exam_file.ExamFile`.

    Attributes: ``folder``; ``ids`` (in the order of the training array); ``labels`` (``{name: id}``); ``crop``;
    ``store`` (the training array, a :class:`~deepatlas.store.store.Store`).

    Raises :class:`~deepatlas.errors.DataError` for a folder that is not a dataset, unfinished, damaged, or of another
    version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.about = read_dataset_json(self.folder)
        self.labels: dict[str, int] = self.about["labels"]
        self.crop: str | None = self.about["crop"]

    @cached_property
    def store(self) -> Store:
        return Store(self.folder)

    @property
    def ids(self) -> list[str]:
        return self.store.ids

    def __len__(self) -> int:
        return int(self.about["exams"])

    def __iter__(self) -> Iterator[ExamFile]:
        return (self.exam(exam_id) for exam_id in self.ids)

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}, {len(self)} exams, {len(self.labels)} structures)"

    def exam(self, exam_id: str) -> ExamFile:
        """One exam at native resolution; :class:`~deepatlas.errors.DataError` if the dataset does not have it."""
        self.store.index(exam_id)
        return ExamFile(exam_path(self.folder, exam_id))

    def manifest(self) -> Manifest:
        """The manifest, opened for reading. The caller closes it."""
        return Manifest(self.folder / MANIFEST, read_only=True)


def read_dataset_json(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of ``dataset.json``: format, version, crop, labels, number of exams, checksums of the other files.

    Raises :class:`~deepatlas.errors.DataError` if it is missing, damaged or of another version.
    """
    path = Path(folder) / DATASET
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = (
            "prepare has not finished here; run it again" if (path.parent / EXAMS).is_dir() else "no dataset"
        )
        raise DataError(f"{path}: missing; {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read ({error}); prepare the dataset again") from error
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise DataError(f"{path}: not of a dataset of deepatlas; check the path")
        if about["version"] != VERSION:
            raise DataError(
                f"{path}: dataset format {about['version']}, this program reads {VERSION}; "
                "install the version that wrote it, or prepare the dataset again"
            )
        whole = text == canonical_text(about)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare the dataset again") from error
    if not whole:
        raise DataError(f"{path}: damaged or edited (its checksum does not fit); prepare the dataset again")
    return about


def assemble_packed(
    folder: str | os.PathLike[str],
    exams: Sequence[ExamRecord],
    *,
    progress: Callable[[Iterable[Row]], Iterable[Row]] | None = None,
) -> list[str]:
    """Write ``packed.h5``, completely or not at all, from the rows in the exam files; returns its ids in order.

    One row is in memory at a time, and no CT is read. Rows that have not changed since the dataset was last finished
    are copied from the existing packed file, so that a few new exams do not require opening all old ones. The same
    exams give the same bytes, whatever the order in which they were prepared.

    Raises:
        DataError: there is no exam, the exams have different crops or different ids for one structure, an exam file is
            damaged, or the disk fails.
    """
    folder = Path(folder)
    if not exams:
        raise DataError(f"{folder}: no exam to make a dataset of; see the refusals")
    exams = sorted(exams, key=lambda exam: natural_order(exam.id))
    crop = exams[0].crop
    if other := next((e for e in exams if e.crop != crop), None):
        raise DataError(
            f"{folder}: exam {other.id} was cropped with {other.crop}, {exams[0].id} with {crop}; "
            "prepare all of them with the same --crop"
        )
    labels = label_table(exams)
    sources = {
        exam.id: {
            "ct": exam_name(exam.id),
            "seg": exam_name(exam.id) if exam.present else None,
            "content": exam.content,
        }
        for exam in exams
    }
    meta: dict[str, Any] = {
        "labels": labels,
        "crop": crop,
        "root": ".",
        "sources": sources,
        "fingerprint": hashlib.sha256(json.dumps([labels, crop, sources]).encode()).hexdigest()[:32],
        "skipped": {},
        "notes": {},
    }
    with atomic_h5(folder / PACKED) as file:
        rows = _rows(folder, exams)
        assemble(file, len(exams), rows if progress is None else progress(rows), meta)
    return [exam.id for exam in exams]


def label_table(exams: Iterable[ExamRecord]) -> dict[str, int]:
    """``{name: id}`` of all structures, ordered by id; :class:`~deepatlas.errors.DataError` if exams disagree."""
    table: dict[str, int] = {}
    owner: dict[int, str] = {}
    # The exams share a few tables.
    seen: set[int] = set()
    for exam in exams:
        if id(exam.labels) in seen:
            continue
        seen.add(id(exam.labels))
        for name, value in exam.labels.items():
            if table.setdefault(name, value) != value or owner.setdefault(value, name) != name:
                raise DataError(
                    f"exam {exam.id}: structure {name!r} has id {value}, elsewhere it is "
                    f"{table[name] if table[name] != value else repr(owner[value])}; "
                    "prepare all exams with one label table"
                )
    return dict(sorted(table.items(), key=lambda item: item[1]))


def finish_dataset(
    folder: str | os.PathLike[str],
    manifests: Sequence[str | os.PathLike[str]],
    *,
    report: Callable[[Path, Manifest], None] | None = None,
    progress: Callable[[Iterable[Row]], Iterable[Row]] | None = None,
) -> Dataset:
    """Make a dataset of the exam files in ``folder``: manifest, training array, report, and ``dataset.json`` last.

    It may be killed at any moment and run again: every file is replaced as a whole, and until the last one is written
    the dataset is the old one, or unfinished.

    Args:
        folder: the folder of the dataset.
        manifests: those of the shards, which are merged into ``manifest.sqlite``; that one may be among them.
        report: writes ``report.html``; called with the folder and the merged manifest.
        progress: wraps the rows of the training array in a progress bar.
    """
    folder = Path(folder)
    merge_manifests(folder / MANIFEST, manifests)
    with Manifest(folder / MANIFEST) as manifest:
        exams = list(manifest.exams())
        ids = assemble_packed(folder, exams, progress=progress)
        manifest.set_rows(ids)
        if report is not None:
            report(folder, manifest)
    files = [name for name in (MANIFEST, PACKED, REPORT) if (folder / name).is_file()]
    about = {
        "format": FORMAT,
        "version": VERSION,
        "program": __version__,
        "exams": len(exams),
        "crop": exams[0].crop,
        "labels": label_table(exams),
        "files": {
            n: {"bytes": (folder / n).stat().st_size, "sha256": file_sha256(folder / n)} for n in files
        },
    }
    write_text(folder / DATASET, canonical_text(about))
    return Dataset(folder)


def canonical_text(about: dict[str, Any]) -> str:
    """The text of ``dataset.json`` with these values, followed by its own checksum."""
    values = {key: value for key, value in about.items() if key != "sha256"}
    values["sha256"] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _rows(folder: Path, exams: Sequence[ExamRecord]) -> Iterator[Row]:
    store = _whole_store(folder)
    there = {} if store is None else {exam: store.sources[exam].get("content") for exam in store.ids}
    for exam in exams:
        if store is not None and there.get(exam.id) == exam.content:
            yield Row(exam.id, *read_row(store, store.index(exam.id)))
            continue
        path = exam_path(folder, exam.id)
        if ExamFile(path).content != exam.content:
            raise DataError(f"{path}: not the exam that the manifest lists; delete it and run prepare again")
        yield Row(exam.id, *read_part(path, "row"))


def _whole_store(folder: Path) -> Store | None:
    """The existing training array, or None unless its checksum is the known one."""
    try:
        known = read_dataset_json(folder)["files"][PACKED]
        return Store(folder) if known["sha256"] == file_sha256(folder / PACKED) else None
    except (DataError, OSError, KeyError):
        return None
