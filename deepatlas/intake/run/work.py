"""What a worker process does with one exam: read, check, write; and what it says about it."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.exam_file import VERSION as EXAM_VERSION
from deepatlas.exams.exam_file import write_exam
from deepatlas.exams.read import read_volume
from deepatlas.intake.find import discover
from deepatlas.intake.find.archives import Unopened, opened
from deepatlas.intake.find.catalogue import digest
from deepatlas.intake.find.discover import Plan, Task
from deepatlas.intake.privacy.identity import public_text
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.choose import TRIED
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.series import Archive, ExamSource, Found, Reading, Refusal
from deepatlas.store.rows import PART_VERSION

RECIPE = 2  # raise when the same exam would give other arrays
DONE, REFUSED, FAILED, FATAL = "done", "refused", "failed", "fatal"
_MANY_DIGITS = re.compile(r"\d{6,}")  # a SeriesNumber of that size may be the number of a record
_NUMBERED = re.compile(r"structure \d+( \(\d+\))?")  # what a name that was withheld became
_FORMATS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}


@dataclass(frozen=True)
class ExamJob:
    """One exam on its way to a worker. ``path`` is the file to write, ``attempts`` where a cluster counts trials,
    ``others`` where another series comes from if that of the plan cannot be used."""

    id: str
    fingerprint: str
    plan: Plan
    path: Path
    labels: Mapping[str, int]
    names: NameMap | None = None
    crop: str | None = None
    attempts: Path | None = None
    archives: tuple[Archive, ...] = ()  # to unpack while it is read
    others: Task | None = None


@dataclass
class Outcome:
    """What became of an exam.

    ``status``: "done"; "refused" for a reason that its files give; "failed" for one that may pass (it is tried again
    in the next run); "fatal" where the dataset cannot be written. ``refusals`` are as they were met, with true names;
    they and everything else but ``record`` and ``series`` stay in the private folder. ``seconds`` is the time taken.
    """

    id: str
    fingerprint: str
    status: str
    record: dict[str, Any] | None = None
    series: list[tuple[str, bool, str]] = field(
        default_factory=list
    )  # series, taken, reason: for the manifest
    refusals: list[Refusal] = field(default_factory=list)
    public: list[tuple[str, str, str]] = field(
        default_factory=list
    )  # name (true), kind, reason: for the manifest
    error: str = ""
    seconds: float = 0.0


def fingerprint(files: str, labels: Mapping[str, int], names: NameMap | None, crop: str | None) -> str:
    """The same for the same files (their digest), options and program: such an exam need not be made again."""
    return digest(RECIPE, EXAM_VERSION, PART_VERSION, files, dict(labels), names and names.entries, crop)


def prepare_exam(job: ExamJob) -> Outcome:
    """Read one exam and write its file, whole or not at all.

    Where the exam has several series and the one that was chosen turns out to be of no use, the next best is read.
    """
    began = time.monotonic()
    hidden = secrets_of(job.plan)
    if job.attempts is not None and not _try(job.attempts):
        out = Outcome(job.id, job.fingerprint, FAILED)
        _fail(out, DataError("its worker died twice while it was read; look at it by itself"), job)
    else:
        out = _of_any_series(job, hidden)
    out.public = [(r.name, r.kind, public_text(r.reason, hidden)) for r in out.refusals]
    if job.attempts is not None and out.status != FAILED:
        job.attempts.unlink(missing_ok=True)
    out.seconds = time.monotonic() - began
    return out


def _of_any_series(job: ExamJob, hidden: set[str]) -> Outcome:
    """The exam made of the first series that can be used; ``hidden`` gains the secrets of those that were tried."""
    try:
        with opened(job.archives):
            out = _of_series(job, job.plan, {}, hidden)
        if out.status == REFUSED and job.others is not None:
            with opened(job.others.archives):
                out = _of_others(job, job.others, out, hidden)
    except DataError as error:  # an archive
        out = Outcome(job.id, job.fingerprint, DONE)
        _fail(out, error, job)
    return out


def _of_others(job: ExamJob, others: Task, out: Outcome, hidden: set[str]) -> Outcome:
    """The exam made of another series than that of ``job.plan``, which gave ``out``."""
    plan, tried = job.plan, {}
    while out.status == REFUSED:
        assert plan.source is not None and plan.source.series is not None
        tried[plan.source.series.series] = out.refusals[-1].reason
        plan = discover.choose(replace(others, tried=tried))
        hidden |= secrets_of(plan)
        if any(r.passing for r in plan.refusals):
            out.status = FAILED  # what cannot be read now may be of the series to take
        elif plan.source is not None:
            out = _of_series(job, plan, tried, hidden)
        else:
            if len(tried) > 1:
                out.refusals[-1] = Refusal(job.plan.name, plan.refusals[-1].reason, "exam")
            break
    return out


def _of_series(job: ExamJob, plan: Plan, tried: Mapping[str, str], hidden: set[str]) -> Outcome:
    """The exam made of the series of ``plan``, after ``tried``."""
    out = Outcome(job.id, job.fingerprint, DONE)
    source = plan.source
    assert source is not None
    out.refusals += source.elsewhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reading = _read(source)
            lines = [
                f"{name}: {r.removeprefix('not taken: ')}"
                for name, r in source.reasons.items()
                if r.startswith(TRIED)
            ]
            lines += [*reading.corrections, *reading.warnings]
            structures = None
            if source.labels:
                structures = read_structures(
                    source.labels, reading.volume, job.labels, names=job.names, series=source.series,
                    source_labels=plan.source_labels,
                )  # fmt: skip
                lines += structures.warnings
                lines += _left_out(structures.ignored, job.labels, second=bool(tried))
                out.refusals += structures.refused
            facts = {**_formats(source), **reading.facts}
            drawn = structures.labels if structures is not None and structures.present else None
            reading.volume.name = job.id
            record = write_exam(
                job.path, reading.volume, drawn, dict(job.labels), facts,
                [public_text(line, hidden) for line in lines], crop=job.crop,
            )  # fmt: skip
        out.record = record.as_dict()
    except (DataError, OSError, MemoryError) as error:
        _fail(out, error, job)
    except (
        Exception
    ) as error:  # a library that meets what it did not expect: this exam's trouble, not the others'
        _fail(out, DataError(f"cannot be read ({type(error).__name__}: {error}); export it again"), job)
    out.series = [
        (_MANY_DIGITS.sub("…", name), r.startswith("taken"), public_text(r, hidden))
        for name, r in source.reasons.items()
    ]
    return out


def _fail(out: Outcome, error: Exception, job: ExamJob) -> None:
    cause: BaseException | None = error
    while isinstance(cause, DataError):
        cause = cause.__cause__
    if isinstance(cause, MemoryError):
        out.status = FAILED
        if error is cause:
            error = DataError("it does not fit into memory; use fewer --workers")
    elif isinstance(error, DataError) and ": cannot write: " in str(error) and isinstance(cause, OSError):
        out.status, out.error = FATAL, str(error)
    elif isinstance(error, Unopened):
        out.status = FAILED
    elif out.status == DONE:
        # A disk or network that failed may be well the next time; a file that is damaged stays so.
        out.status = FAILED if isinstance(cause, OSError) and not isinstance(cause, EOFError) else REFUSED
    out.refusals.append(Refusal(job.plan.name, str(error), "exam"))


def secrets_of(plan: Plan) -> set[str]:
    """Every text that belongs to the exam's source and must not stand in a message: names, paths and their parts."""
    hidden = {plan.key, plan.name, plan.patient, *plan.secrets}
    files: list[Found] = []
    if plan.source is not None:
        series = plan.source.series
        files = [*(series.slices if series else ()), *plan.source.labels]
        files += [plan.source.image] if plan.source.image else []
        if series:
            hidden |= {series.patient, series.study, series.series, series.frame}
    for found in files[:3] + files[-3:]:  # slices differ in their numbers
        for text in (str(found.path), found.name):
            hidden |= {text, *(part for part in PurePosixPath(text).parts if part != "/")}
            hidden |= {part.split(".")[0] for part in PurePosixPath(text).parts}
    return {text for text in hidden if text}


def _read(source: ExamSource) -> Reading:
    if source.series is not None:
        return read_series(source.series)
    assert source.image is not None
    notes: list[str] = []
    volume = read_volume(source.image.path, notes=notes)
    return Reading(volume, warnings=notes)


def _formats(source: ExamSource) -> dict[str, str]:
    if source.series is not None:
        return {"format": "dicom", "modality": "CT"}
    assert source.image is not None
    return {"format": _FORMATS[image_suffix(source.image.path)]}


def _left_out(ignored: Mapping[str, str], labels: Mapping[str, int], second: bool = False) -> list[str]:
    """What became of structures that did not go in. A name is said if the dataset has it; others may be anybody's.

    ``second``: another series was chosen first, and the label table was made for what is drawn on that.
    """
    lines = []
    for name, why in ignored.items():
        if "not in the name map" in why or why.startswith("empty"):
            continue  # nobody asked for it, or the table names what this exam does not have
        if "not in the label table" in why:
            why = "its name is not one of anatomy, so it may be somebody's; say in a name map what it is"
            if second:
                why = "drawn on a series that was not chosen first, and no other exam has its name; write a name map"
        known = name in labels or _NUMBERED.fullmatch(name)
        lines.append(f"{name if known else 'a structure'}: left out: {why}")
    return lines


def _try(marker: Path) -> bool:
    """Count a trial where the next worker sees it; False after two that nobody finished."""
    count = int(marker.read_text() or 0) if marker.exists() else 0
    if count >= 2:
        return False
    descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(str(count + 1))
    return True


def refused(plan: Plan) -> tuple[list[Refusal], list[tuple[str, str, str]]]:
    """The refusals of planning, as they are and as the manifest has them."""
    hidden = secrets_of(plan)
    lines: Sequence[Refusal] = plan.refusals
    return list(lines), [(r.name, r.kind, public_text(r.reason, hidden)) for r in lines]


def hide(refusal: Refusal) -> str:
    """The reason of a refusal as the manifest has it."""
    parts = {p for p in PurePosixPath(refusal.name).parts if p != "/"}
    return public_text(refusal.reason, {refusal.name, *parts, *(p.split(".")[0] for p in parts)} - {""})
