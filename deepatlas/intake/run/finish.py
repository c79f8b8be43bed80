"""The end of a run: manifest, training array, report and private tables are made of exam files and outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.exam_file import ExamRecord
from deepatlas.files import create_private, write_text
from deepatlas.intake.dataset.folder import exam_name, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest, RefusalLine
from deepatlas.intake.dataset.quality import write_quality_report
from deepatlas.intake.find.task import Plan
from deepatlas.intake.privacy.identity import Identity
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.io.dicom.found import Refusal, Subject

STATE = "state.json"
# Tables of the private folder.
KEYS, REFUSED, LEFT_OUT = "key.csv", "refused.csv", "left_out.csv"
_KEY_COLUMNS = ("id", "name", "patient", "key", "file")


@dataclass(slots=True)
class Entry:
    """What a run remembers of an exam; the rest of its plan is on the disk. ``table`` is its label table in JSON."""

    key: str
    digest: str
    name: str
    patient: str
    usable: bool
    structures: tuple[str, ...]
    table: str
    id: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, plan: Plan) -> Entry:
        drawn = plan.source is not None and bool(plan.source.labels)
        table = json.dumps(dict(plan.source_labels)) if drawn and plan.source_labels else ""
        return cls(
            plan.key, plan.digest, plan.name, plan.patient, plan.source is not None, plan.structures, table
        )


@dataclass
class Kept:
    """What a dataset goes on stating of exams, and of refusals, that are not of this run's source (``--add``).

    Attributes:
        outcomes: those of the exams that stay.
        keys: their rows of ``key.csv``.
        refused: the rows of ``refused.csv``: name, kind, reason.
        lines: the refusals of the manifest, without names.
        left_out: the rows of ``left_out.csv``.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    lines: list[RefusalLine] = field(default_factory=list)
    left_out: list[list[str]] = field(default_factory=list)


def write_keys(identity: Identity, entries: Iterable[Entry], others: Iterable[Sequence[str]] = ()) -> None:
    """Write ``key.csv``, which tells whose exam is which; ``others`` are rows of exams that are not in ``entries``."""
    rows = {row[0]: tuple(row) for row in others}
    rows |= {e.id: (e.id, e.name, e.patient, e.key, exam_name(e.id)) for e in entries}
    identity.write_csv(KEYS, _KEY_COLUMNS, [rows[i] for i in sorted(rows)])


def finish(
    dst: Path,
    scratch: Path,
    identity: Identity,
    entries: list[Entry],
    outcomes: Iterable[Outcome],
    refusals: list[Refusal],
    kept: Kept,
    *,
    state: str,
    bar: Callable[[Iterable[Any], int | None, str, str], Iterable[Any]],
) -> int:
    """Write everything that a dataset has besides its exam files, ``dataset.json`` last; returns the number of exams.

    ``refusals`` are those of files and of planning, ``kept`` what was there before and stays. Equal outcomes give equal
    bytes.
    """
    path = scratch / "manifest.sqlite"
    path.unlink(missing_ok=True)
    create_private(path)
    all_refusals = list(refusals)
    names = {row[0]: row[1] for row in kept.keys} | {e.id: e.name for e in entries}
    omitted = [tuple(row) for row in kept.left_out]
    count, first = 0, ""
    # The scratch file need not survive a power cut: the manifest of the dataset is written from it as a whole.
    with Manifest(path, durable=False) as manifest:
        for refusal in refusals:
            manifest.add_refusal(identity.alias(refusal.name), refusal.kind, refusal.public)
        for line in kept.lines:
            manifest.add_refusal(*line)
        for outcome in (*kept.outcomes, *outcomes):
            if outcome.status is Status.DONE and outcome.record is not None:
                record = as_record(outcome.record)
                source = identity.pseudonym("source", outcome.fingerprint)
                manifest.add_exam(record, source, outcome.series)
                count += 1
                omitted += [(outcome.id, names.get(outcome.id, ""), *pair) for pair in outcome.left_out]
            for refusal in outcome.refusals:
                is_exam = refusal.kind is Subject.EXAM
                alias = outcome.id if is_exam else identity.alias(refusal.name)
                manifest.add_refusal(alias, refusal.kind, refusal.public)
                first = first or refusal.public
            all_refusals += outcome.refusals
    rows = [(r.name, str(r.kind), r.reason) for r in all_refusals]
    identity.write_csv(REFUSED, ("name", "kind", "reason"), dict.fromkeys([*rows, *kept.refused]))
    write_keys(identity, entries, kept.keys)
    identity.write_csv(LEFT_OUT, ("id", "exam", "structure", "reason"), sorted(dict.fromkeys(omitted)))
    if not count:
        raise DataError(f"{dst}: none of the {len(entries)} exams can be used; the first: {first}")
    finish_dataset(
        dst,
        [path],
        report=write_quality_report,
        progress=lambda parts: bar(parts, count, "training array", "exam"),
    )
    write_text(identity.folder / STATE, json.dumps({"state": state}) + "\n", private=True)
    return count


def read_state(private: Path) -> str:
    """The state that the last finished run wrote, or the empty string."""
    try:
        return str(json.loads((private / STATE).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def as_record(record: Mapping[str, Any]) -> ExamRecord:
    """The entry of an exam from its form in JSON."""
    tuples = {name: tuple(record[name]) for name in ("shape", "spacing", "extent")}
    return ExamRecord(**{**record, **tuples})
