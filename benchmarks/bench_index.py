"""Questions to an index of as many exams as the paper has: 51,167 made-up exams with 100 structures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from deepatlas.index.ask import ask, table2
from deepatlas.index.body_part import BODY_PARTS
from deepatlas.index.columns import KINDS, column
from deepatlas.index.file import About, Entry, IndexFile
from deepatlas.index.phase import PHASES

EXAMS, STRUCTURES = 51_167, 100
MOST_MS = 50.0
QUESTIONS = (
    "structure_7 >= 90 and phase = venous",
    "structure_7 >= 90 and structure_8 >= 90 and hu(structure_9) > 40 and not body_part = head",
    "(structure_1 >= 99 or structure_99 >= 99) and fit > .7 and slices > 100 and trust(structure_3) >= 80",
    "id = exam_51000",
    "",
)


def made_up(path: Path, exams: int, structures: int) -> IndexFile:
    """An index of random exams."""
    rng = np.random.default_rng(0)
    names = tuple(f"structure_{i}" for i in range(structures))
    index = IndexFile.create(path, About("model", "template", names, 20, True))
    for start in range(0, exams, 4096):
        count = min(4096, exams - start)
        table = rng.integers(0, 101, (count, structures, len(KINDS)))
        fits = rng.random(count).round(4)
        entries = []
        for i in range(count):
            values = {
                column(row, kind): int(table[i, row, k])
                for row in range(structures)
                for k, kind in enumerate(KINDS)
            }
            values |= {
                "fit": float(fits[i]), "known": 1, "quality": int(100 * fits[i]), "labelled": int(i % 9 == 0),
                "loss_percentile": 50, "slices": int(50 + table[i, 0, 0]), "axes": "RAS", "flip": None,
                "phase": str(rng.choice(PHASES)), "body_part": str(rng.choice(BODY_PARTS)),
            }  # fmt: skip
            entries.append(Entry(f"exam_{start + i}", f"/data/exam_{start + i}/ct.nii.gz", "key", values))
        index.put(entries)
    return index


def test_questions_to_a_large_index(request, tmp_path):
    measuring = request.config.getoption("--benchmark")
    began = time.process_time()
    exams, structures = (EXAMS, STRUCTURES) if measuring else (200, 100)
    with made_up(tmp_path / "index.sqlite", exams, structures) as index:
        size = index.path.stat().st_size / 1e6
        if measuring:
            seconds = time.process_time() - began
            print(f"\n{exams} exams, {structures} structures: {size:.0f} MB, made in {seconds:.0f} s")
        for question in (*QUESTIONS, None):
            times = []
            for _ in range(9 if measuring else 1):
                start = time.perf_counter()
                answer = table2(index) if question is None else ask(index, question)
                times.append(1e3 * (time.perf_counter() - start))
            assert len(answer.rows) <= 50
            if measuring:
                shown = "Table 2" if question is None else question or "(all)"
                print(f"{np.median(times):6.1f} ms, {answer.total} exams: {shown}")
                if np.median(times) > MOST_MS:
                    pytest.fail(f"{shown} took {np.median(times):.1f} ms, meant: {MOST_MS:g}")
