"""The end of a run: from exam files and outcomes to manifest, training array, report and the private tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.exam_file import ExamRecord
from deepatlas.files import write_text
from deepatlas.intake.dataset.folder import exam_name, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest, SeriesLine
from deepatlas.intake.dataset.quality import write_quality_report
from deepatlas.intake.find.discover import Plan
from deepatlas.intake.privacy.identity import Identity
from deepatlas.intake.run.work import DONE, Outcome

STATE = "state.json"


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


def finish(
    dst: Path,
    scratch: Path,
    identity: Identity,
    entries: list[Entry],
    outcomes: Iterable[Outcome],
    refusals: list[tuple[str, str, str, str]],
    *,
    state: str,
    bar: Callable[[Iterable[Any], int | None, str, str], Iterable[Any]],
) -> int:
    """Write everything that a dataset has besides its exam files, ``dataset.json`` last; returns how many exams it has.

    ``refusals`` are those of the files and of planning: name, kind, reason, and the reason without names. The same
    outcomes give the same bytes.
    """
    path = scratch / "manifest.sqlite"
    path.unlink(missing_ok=True)
    names = {entry.id: entry for entry in entries}
    kept: list[tuple[str, str, str]] = [(name, kind, reason) for name, kind, reason, _ in refusals]
    count, first = 0, ""
    with Manifest(path) as manifest:
        manifest._db.execute(
            "PRAGMA synchronous = OFF"
        )  # a scratch file: what counts is written whole from it
        for name, kind, _, hidden in refusals:
            manifest.add_refusal(identity.alias(name), kind, hidden)
        for outcome in outcomes:
            if outcome.status == DONE and outcome.record is not None:
                record = ExamRecord(**{**outcome.record, **_tuples(outcome.record)})
                series = [SeriesLine(*line) for line in outcome.series]
                manifest.add_exam(record, identity.pseudonym("source", outcome.fingerprint), series)
                count += 1
            for name, kind, hidden in outcome.public:
                alias = outcome.id if kind == "exam" else identity.alias(name)
                manifest.add_refusal(alias, kind, hidden)
                first = first or hidden
            kept += [(r.name, r.kind, r.reason) for r in outcome.refusals]
    identity.write_csv("refused.csv", ("name", "kind", "reason"), kept)
    rows = [
        (e.id, e.name, e.patient, e.key, exam_name(e.id)) for e in sorted(names.values(), key=lambda e: e.id)
    ]
    identity.write_csv("key.csv", ("id", "name", "patient", "key", "file"), rows)
    if not count:
        raise DataError(f"{dst}: none of the {len(entries)} exams can be used; the first: {first}")
    finish_dataset(
        dst, [path], report=lambda folder, manifest: write_quality_report(folder, manifest),
        progress=lambda parts: bar(parts, count, "training array", "exam"),
    )  # fmt: skip
    write_text(identity.folder / STATE, json.dumps({"state": state}) + "\n")
    return count


def read_state(private: Path) -> str:
    """What the last finished run was about, or the empty string."""
    try:
        return str(json.loads((private / STATE).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tuples(record: Mapping[str, Any]) -> dict[str, tuple]:
    return {name: tuple(record[name]) for name in ("shape", "spacing", "extent")}
