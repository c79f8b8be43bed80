"""Check a dataset: every byte of every file is compared with a checksum, and foreign files are listed.

``dataset.json`` contains its own checksum and those of the manifest, the training array and the report; the manifest
contains those of the exam files. A file with a wrong checksum is not opened, since HDF5 is not made for damaged files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from deepatlas.errors import DataError
from deepatlas.exams.checksums import file_sha256
from deepatlas.exams.exam_file import ExamFile, ExamRecord
from deepatlas.intake.dataset.folder import EXAMS, MANIFEST, REPORT, exam_name, label_table, read_dataset_json
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.progress import bar
from deepatlas.sqlite import INDEX_FILES
from deepatlas.store.store import DATASET, PACKED, Store

_AGAIN = "prepare the dataset again"
_EXAM_AGAIN = "delete it and run prepare again"


class Damage(NamedTuple):
    """What is wrong with a file; ``path`` is relative to the folder of the dataset."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Expected(NamedTuple):
    """A file with its known size and checksum, and the cure if it is damaged."""

    name: str
    size: int
    sha256: str
    cure: str


def check_dataset(
    folder: str | os.PathLike[str], progress: bool = False, workers: int | None = None
) -> list[Damage]:
    """Read every byte of a dataset and list what is damaged, truncated, missing, foreign or contradictory.

    Args:
        folder: the dataset.
        progress: show a bar on stderr.
        workers: number of threads that compute checksums (default: the number of processors, at most 8).

    Returns:
        The damages, sorted by path; an empty list for a dataset without damage.

    Raises :class:`~deepatlas.errors.DataError` if the folder is not a dataset at all.
    """
    folder = Path(folder)
    found, damages = _files(folder)
    if not found.keys() & {DATASET, MANIFEST, PACKED} and not any(n.startswith(f"{EXAMS}/") for n in found):
        raise DataError(f"{folder}: no dataset in this folder; give the one that prepare wrote")
    about = _about(folder, damages)
    exams = _exams(folder, damages)
    expected = [
        _Expected(name, known["bytes"], known["sha256"], _AGAIN)
        for name, known in ({} if about is None else about["files"]).items()
    ]
    expected += [_Expected(exam_name(e.id), e.bytes, e.sha256, _EXAM_AGAIN) for e in exams or ()]
    compared = _side_by_side(folder, expected, workers or min(8, os.cpu_count() or 1))
    for name, reason in bar(compared, len(expected), "checking", "file", show=progress):
        if reason:
            damages.append(Damage(name, reason))
    # An index may lie beside the dataset, of which it is no part.
    known = {DATASET, *INDEX_FILES, *(item.name for item in expected)}
    if about is None:
        known |= {MANIFEST, PACKED, REPORT}
    damages += [Damage(name, _stranger(folder / name, name, exams)) for name in found if name not in known]
    if about is None and PACKED in found:
        damages += _store_by_itself(folder)
    if about is not None and exams is not None and not {d.path for d in damages} & {MANIFEST, PACKED}:
        damages += _disagreements(folder, about, exams)
    # A file with several damages, such as a manifest that cannot be read, is listed once.
    first = {damage.path: damage for damage in reversed(damages)}
    return sorted(first.values())


# -- what is there ----------------------------------------------------------------------------------


def _files(folder: Path) -> tuple[dict[str, None], list[Damage]]:
    """The names of all files below the folder, including links, and the folders that cannot be listed."""
    damages: list[Damage] = []

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder:
            raise DataError(f"{folder}: cannot read: {error.strerror}; check the path and its permissions")
        damages.append(Damage(path.relative_to(folder).as_posix(), f"cannot read: {error.strerror}"))

    found: dict[str, None] = {}
    for place, folders, names in os.walk(folder, onerror=unreadable):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *links]):
            found[Path(place, name).relative_to(folder).as_posix()] = None
    return found, damages


def _about(folder: Path, damages: list[Damage]) -> dict[str, Any] | None:
    try:
        return read_dataset_json(folder)
    except DataError as error:
        damages.append(Damage(DATASET, _reason(error, folder / DATASET)))
        return None


def _exams(folder: Path, damages: list[Damage]) -> list[ExamRecord] | None:
    try:
        with Manifest(folder / MANIFEST, read_only=True) as manifest:
            exams = list(manifest.exams())
        if all(
            isinstance(e.bytes, int) and isinstance(e.id, str) and isinstance(e.sha256, str) for e in exams
        ):
            return exams
        raise DataError("values of another type than were written; prepare the dataset again")
    except (DataError, ValueError, TypeError) as error:
        damages.append(Damage(MANIFEST, _reason(error, folder / MANIFEST)))
        return None


def _stranger(path: Path, name: str, exams: list[ExamRecord] | None) -> str:
    """Why a file does not belong to the dataset."""
    if path.is_symlink():
        return "a link, which prepare does not make; move it elsewhere"
    if path.name.startswith(".") or path.name.endswith("-journal"):
        return "left over from an interrupted run, or still being written; run prepare again, or delete it"
    parts = name.split("/")
    if parts[0] == EXAMS and path.suffix == ".h5":
        try:
            with ExamFile(path) as exam:
                exam.verify()
                if exams is None and name == exam_name(exam.id):
                    return "whole, but the manifest that should list it cannot be read"
        except DataError as error:
            return f"not in the manifest; {_reason(error, path)}"
        return "an exam that is not in the manifest; run prepare again, or delete it"
    return "does not belong to the dataset; move it elsewhere"


# -- bytes ------------------------------------------------------------------------------------------


def _side_by_side(folder: Path, expected: list[_Expected], workers: int) -> Iterator[tuple[str, str]]:
    """:func:`_differs` of every file, in order, computed by threads a few files ahead."""
    with ThreadPoolExecutor(workers) as pool:
        queue = iter(expected)
        waiting = [(e.name, pool.submit(_differs, folder / e.name, e)) for e in islice(queue, 4 * workers)]
        while waiting:
            name, future = waiting.pop(0)
            yield name, future.result()
            waiting += [(e.name, pool.submit(_differs, folder / e.name, e)) for e in islice(queue, 1)]


def _differs(path: Path, expected: _Expected) -> str:
    """Why a file is not the one that was written, or the empty string."""
    try:
        if path.is_symlink() or not path.is_file():
            return f"missing; {_AGAIN}" if not path.is_symlink() else f"a link instead of the file; {_AGAIN}"
        size = path.stat().st_size
        if size < expected.size:
            return f"truncated, {size} of {expected.size} bytes are there; {expected.cure}"
        if size > expected.size:
            return (
                f"{size} bytes instead of {expected.size}, so not the file that was written; {expected.cure}"
            )
        if file_sha256(path) != expected.sha256:
            return f"damaged or replaced (its checksum does not fit); {expected.cure}"
    except OSError as error:
        return f"cannot read: {error.strerror or error}; check the disk and the file's permissions"
    return ""


def _store_by_itself(folder: Path) -> list[Damage]:
    """Check a training array whose file checksum is unknown: reading all of it verifies the checksums inside."""
    try:
        with Store(folder) as store:
            for row in range(len(store)):
                for array in (store.hu, store.mask, store.labels_64, store.labels_128):
                    array[row]
                store.hidden_64(row)
                store.hidden_128(row)
    except DataError as error:
        return [Damage(PACKED, _reason(error, folder / PACKED))]
    return []


# -- agreement --------------------------------------------------------------------------------------


def _disagreements(folder: Path, about: dict[str, Any], exams: list[ExamRecord]) -> list[Damage]:
    """Contradictions between files that are each undamaged."""
    damages = []
    try:
        with Manifest(folder / MANIFEST, read_only=True) as manifest:
            rows = manifest.rows()
        labels = label_table(exams)
    except DataError as error:
        return [Damage(MANIFEST, _reason(error, folder / MANIFEST))]
    try:
        store = Store(folder)
    except DataError as error:
        return [Damage(PACKED, _reason(error, folder / PACKED))]
    if about["exams"] != len(exams):
        damages.append(Damage(MANIFEST, f"{len(exams)} exams, {DATASET} says {about['exams']}; {_AGAIN}"))
    if about["labels"] != labels:
        damages.append(Damage(MANIFEST, f"its structures are not those of {DATASET}; {_AGAIN}"))
    contents = {exam: source.get("content") for exam, source in store.sources.items()}
    if {e.id: e.content for e in exams} != contents or rows != {e: r for r, e in enumerate(store.ids)}:
        damages.append(Damage(PACKED, f"its exams are not those of the manifest; {_AGAIN}"))
    elif store.labels != about["labels"] or store.crop != about["crop"]:
        damages.append(Damage(PACKED, f"its labels or crop are not those of {DATASET}; {_AGAIN}"))
    return damages


def _reason(error: Exception, path: Path) -> str:
    return " ".join(str(error).split()).removeprefix(f"{path}: ")
