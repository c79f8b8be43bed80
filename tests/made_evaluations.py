"""Evaluations that a test makes up: folders as ``deepatlas evaluate`` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepatlas.evaluate.rows import Row, metrics_csv
from deepatlas.evaluate.statistics import summarise

CONVENTIONS = {
    "hd95": "mean of the two directed 95th percentiles (eq. 16)",
    "hd95_name": "mean",
    "tolerance_mm": 3.0,
}


def row(exam: str, structure: str, dice: float, hd95: float, reference: float = 10.0) -> Row:
    """A row; an infinite ``hd95`` is a missed structure."""
    missed = np.isinf(hd95)
    found = 0.0 if missed else reference
    return Row(
        exam, structure, dice, hd95, found, reference, 0.0 if missed else min(1.0, dice + 0.1), hd95 / 3
    )


def write_evaluation(
    folder: Path,
    rows: Sequence[Row],
    data: str = "/data/test",
    conventions: Mapping[str, object] = CONVENTIONS,
) -> Path:
    """Write the folder of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(metrics_csv(rows), encoding="utf-8")
    summary = summarise(rows).as_dict() | {
        "data": data, "model": "abc", "refine": 0, "average": 1, "created": "2026-11-29 20:00 UTC", "skipped": {},
        "conventions": dict(conventions),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def many(
    root: Path,
    experiments: Sequence[str],
    structures: Sequence[str],
    exams: int,
    seed: int = 0,
    data: str = "/data/test",
) -> list[Path]:
    """Evaluations of which every next one is a little better, and in which small structures are missed at times."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.3, 0.95, len(structures))
    hard = rng.normal(0, 0.04, (exams, len(structures)))
    folders = []
    for number, name in enumerate(experiments):
        rows = []
        dice = np.clip(level + hard + 0.012 * number + rng.normal(0, 0.03, hard.shape), 0.01, 0.995)
        for e in range(exams):
            for s, structure in enumerate(structures):
                gone = level[s] < 0.4 and rng.random() < 0.15
                hd95 = np.inf if gone else 30 * (1 - dice[e, s]) * rng.uniform(0.7, 1.3)
                rows.append(row(f"pt_{e}", structure, 0.0 if gone else dice[e, s], hd95, 5.0 + s))
        folders.append(write_evaluation(root / name / "evaluation", rows, data))
    return folders
