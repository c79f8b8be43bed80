"""Small datasets for tests."""

from __future__ import annotations

from pathlib import Path

from small_exams import LABELS, body

from deepatlas.exams.exam_file import ExamRecord, write_exam
from deepatlas.intake.dataset.folder import Dataset, exam_path, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest, SeriesLine


def write_dataset(folder: Path, ids=("e1", "e2", "e3"), *, shards=1, crop=None) -> Dataset:
    """A dataset of small exams, of which the last has no labels."""
    paths = []
    for shard in range(shards):
        paths.append(folder.parent / f"{folder.name}.shards" / f"{shard}.sqlite")
        with Manifest(paths[-1]) as manifest:
            for i in range(shard, len(ids), shards):
                add_exam(folder, manifest, ids[i], i + 1, labelled=i < len(ids) - 1, crop=crop)
            manifest.add_refusal("5f3a.txt", "file", "not an image")
    return finish_dataset(folder, paths, report=write_report)


def add_exam(
    folder: Path, manifest: Manifest, exam: str, seed: int, *, labelled=True, crop=None
) -> ExamRecord:
    ct, seg = body(seed=seed)
    facts = {"kvp": 120, "kernel": "B30f", "PatientName": "Doe^Jane"}
    line = SeriesLine("series 2, 24 slices", True, "most slices")
    record = write_exam(
        exam_path(folder, exam), ct, seg if labelled else None, LABELS, facts, ["slices of 5 mm"], crop=crop
    )
    manifest.add_exam(record, f"source of {exam}", [line])
    return record


def write_report(folder: Path, manifest: Manifest) -> None:
    (folder / "report.html").write_text(f"<p>{len(manifest)} exams, and what was refused</p>\n" * 20)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
