"""What a worker process does with one exam: read it, check it, write its file, and report the outcome."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deepatlas.errors import DataError, PassingError, WriteError
from deepatlas.exams.exam_file import VERSION as EXAM_VERSION
from deepatlas.exams.exam_file import ExamFile, holds_ct, write_exam
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.manifest import SeriesLine
from deepatlas.intake.digest import digest
from deepatlas.intake.find.archives import Archive, opened
from deepatlas.intake.find.studies import plan_study
from deepatlas.intake.find.task import ExamSource, Plan, Task
from deepatlas.intake.privacy.redact import public_text, redacted
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.intake.structures.anatomy import is_anatomical
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.found import Refusal, Subject
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.series import Reading
from deepatlas.io.structures.ignored import Ignored, Why
from deepatlas.names.meet import compact
from deepatlas.space.volume import Volume
from deepatlas.store.rows import PART_VERSION

# Raise this number when the same exam is to give other arrays.
RECIPE = 3
# A SeriesNumber with so many digits may be the number of a patient's record.
_MANY_DIGITS = re.compile(r"\d{6,}")
# What the name of a structure that was withheld becomes.
_NUMBERED = re.compile(r"structure \d+( \(\d+\))?")
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
    """One exam for a worker to prepare.

    ``path`` is the file to write, ``labels`` the label table of the dataset. ``archives`` are unpacked while the exam
    is read. ``others`` is the task of choosing another series if that of the plan cannot be used. ``attempts`` is a
    file that counts attempts, for a cluster that runs a job again if its worker dies. With ``stays`` an exam that is
    there already, and shows another CT, is not replaced.
    """

    id: str
    fingerprint: str
    plan: Plan
    path: Path
    labels: Mapping[str, int]
    names: NameMap | None = None
    crop: str | None = None
    attempts: Path | None = None
    archives: tuple[Archive, ...] = ()
    others: Task | None = None
    stays: bool = False


class Clash(DataError):
    """The exam would take the place of another one."""


def fingerprint(files: str, labels: Mapping[str, int], names: NameMap | None, crop: str | None) -> str:
    """Equal for equal files (their digest), options and versions: such an exam need not be prepared again."""
    return digest(RECIPE, EXAM_VERSION, PART_VERSION, files, dict(labels), names and names.entries, crop)


def prepare_exam(job: ExamJob) -> Outcome:
    """Read one exam and write its file, completely or not at all.

    If the exam has several series and the one that was chosen cannot be used, the next best one is read.
    """
    began = time.monotonic()
    hidden = job.plan.hidden()
    if job.attempts is not None and not count_attempt(job.attempts):
        out = Outcome(job.id, job.fingerprint, Status.FAILED)
        _fail(out, DataError("its worker died twice while it was read; look at it by itself"), job)
    else:
        out = _of_any_series(job, hidden)
    out.refusals = [redacted(refusal, hidden) for refusal in out.refusals]
    if job.attempts is not None and out.status is not Status.FAILED:
        job.attempts.unlink(missing_ok=True)
    out.seconds = time.monotonic() - began
    return out


def _of_any_series(job: ExamJob, hidden: set[str]) -> Outcome:
    """Make the exam of the first series that can be used. The secrets of every series tried are added to ``hidden``."""
    try:
        with opened(job.archives):
            out = _of_series(job, job.plan, {}, hidden)
        if out.status is Status.REFUSED and job.others is not None:
            with opened(job.others.archives):
                out = _of_others(job, job.others, out, hidden)
    except DataError as error:
        # An archive cannot be unpacked, or another exam has this place.
        out = Outcome(job.id, job.fingerprint, Status.DONE)
        _fail(out, error, job)
        if isinstance(error, Clash):
            out.against = job.id
    return out


def _of_others(job: ExamJob, others: Task, out: Outcome, hidden: set[str]) -> Outcome:
    """Make the exam of another series than that of ``job.plan``, whose outcome was ``out``."""
    plan, tried = job.plan, {}
    while out.status is Status.REFUSED:
        assert plan.source is not None and plan.source.series is not None
        tried[plan.source.series.series] = out.refusals[-1].reason
        plan = plan_study(replace(others, tried=tried))
        hidden |= plan.hidden()
        if plan.source is not None:
            out = _of_series(job, plan, tried, hidden)
            continue
        if len(tried) > 1:
            out.refusals[-1] = Refusal(job.plan.name, plan.refusals[-1].reason, Subject.EXAM)
        break
    return out


def _of_series(job: ExamJob, plan: Plan, tried: Mapping[str, str], hidden: set[str]) -> Outcome:
    """Make the exam of the series of ``plan``, after the series in ``tried``."""
    out = Outcome(job.id, job.fingerprint, Status.DONE)
    source = plan.source
    assert source is not None
    out.refusals += source.elsewhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reading = _read(source)
            lines = [f"{name}: {verdict.why}" for name, verdict in source.reasons.items() if verdict.tried]
            lines += [*reading.corrections, *reading.warnings]
            structures = None
            if source.labels:
                structures = read_structures(
                    source.labels,
                    reading.volume,
                    job.labels,
                    names=job.names,
                    series=source.series,
                    source_labels=plan.source_labels,
                    naming=source.naming,
                )
                lines += structures.warnings
                omitted = left_out(structures.ignored, structures.true_names, job.labels, second=bool(tried))
                lines += [line for line, _, _ in omitted]
                out.left_out = [(name, reason) for _, name, reason in omitted]
                out.refusals += structures.refused
            drawn = structures.labels if structures is not None and structures.present else None
            if job.stays:
                brought = set() if structures is None else set(structures.present)
                _refuse_clash(job.path, reading.volume, brought)
            reading.volume.name = job.id
            record = write_exam(
                job.path,
                reading.volume,
                drawn,
                dict(job.labels),
                {**_formats(source), **reading.facts},
                [public_text(line, hidden) for line in lines],
                crop=job.crop,
            )
        out.record = record.as_dict()
    except Clash:
        raise
    except (DataError, OSError, MemoryError) as error:
        _fail(out, error, job)
    except Exception as error:
        # A library met what it did not expect. This must not stop the other exams.
        _fail(out, DataError(f"cannot be read ({type(error).__name__}: {error}); export it again"), job)
    out.series = [
        SeriesLine(_MANY_DIGITS.sub("…", name), verdict.taken, public_text(str(verdict), hidden))
        for name, verdict in source.reasons.items()
    ]
    return out


def _refuse_clash(path: Path, ct: Volume, brought: set[str]) -> None:
    """Raise :class:`Clash` if the exam file ``path`` shows another CT, or holds structures that are not ``brought``."""
    if not path.exists():
        return
    try:
        with ExamFile(path) as there:
            same, lost = holds_ct(there, ct), sorted(set(there.present) - brought)
    except DataError:
        # It is damaged, and is replaced.
        return
    if not same:
        raise Clash(
            "the dataset has an exam of this id with another CT, which stays as it is; rename this one in the source, "
            "or prepare all exams from one source without --add"
        )
    if lost:
        # A name that the dataset has identifies nobody.
        some = ", ".join(lost[:8]) + (" …" if len(lost) > 8 else "")
        raise Clash(
            f"the dataset has this exam with structures that the source lacks ({some}), and it stays as it is; put "
            "them into the source, or prepare all exams from one source without --add"
        )


def _fail(out: Outcome, error: Exception, job: ExamJob) -> None:
    """Set the status that follows from an error, and add the refusal of the exam."""
    causes: list[BaseException] = [error]
    while isinstance(causes[-1], DataError) and causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if isinstance(causes[-1], MemoryError):
        out.status = Status.FAILED
        if error is causes[-1]:
            error = DataError("it does not fit into memory; use fewer --workers")
    elif any(isinstance(cause, WriteError) for cause in causes):
        out.status, out.error = Status.FATAL, str(error)
    elif any(isinstance(cause, PassingError) for cause in causes):
        out.status = Status.FAILED
    elif out.status is Status.DONE:
        # A disk or a network that failed may work in the next run. A damaged file stays damaged.
        out.status = Status.FAILED if isinstance(causes[-1], OSError) else Status.REFUSED
    out.refusals.append(Refusal(job.plan.name, str(error), Subject.EXAM))


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


def left_out(
    ignored: Mapping[str, Ignored],
    true_names: Mapping[str, str],
    labels: Mapping[str, int],
    *,
    second: bool = False,
) -> list[tuple[str, str, str]]:
    """For each structure that was left out, a warning that identifies nobody; its name in the source; and the reason.

    The warning states the name if the dataset has it, or if it consists of words of anatomy. Any other name may be
    somebody's, and is for the private folder alone.

    ``second``: another series was chosen first, and the label table was made for what is drawn on that one.
    """
    spelled = {compact(name): name for name in labels}
    found: list[tuple[str, str, str]] = []
    unnamed = 0
    for name, reason in ignored.items():
        if reason.why in (Why.NOT_IN_MAP, Why.EMPTY):
            # Nobody asked for the structure, or the table names a structure that this exam does not have.
            continue
        text: str = reason
        if reason.why is Why.NOT_IN_TABLE:
            text = "its name is not one of anatomy, so it may be somebody's; say in a name map what it is"
            if second:
                text = "drawn on a series that was not chosen first, and no other exam has its name; write a name map"
        numbered = _NUMBERED.fullmatch(name)
        shown = spelled.get(compact(name)) or (name if numbered or is_anatomical(name) else "")
        where = ""
        if numbered or not shown:
            unnamed += 1
            shown = shown or f"unnamed structure {unnamed}"
            where = "; left_out.csv in the private folder has its name"
        found.append((f"{shown}: left out: {text}{where}", true_names.get(name, name), text))
    return found


def count_attempt(marker: Path) -> bool:
    """Count an attempt in a file that the next worker sees; False after two attempts that did not end."""
    count = int(marker.read_text(encoding="utf-8") or 0) if marker.exists() else 0
    if count >= 2:
        return False
    descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(str(count + 1))
    return True
