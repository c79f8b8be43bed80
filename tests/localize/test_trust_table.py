"""The table of trust beside the masks: one row for every structure of every exam."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from deepatlas.errors import DataError
from deepatlas.localize import growing
from deepatlas.localize.measure_files import StatisticsFiles
from deepatlas.localize.trust.estimate import Trust
from deepatlas.localize.trust.table import TrustTable


def rows(path):
    with path.open(newline="") as file:
        return [
            (r["exam"], r["structure"], r["trust"], r["bound"], r["reason"]) for r in csv.DictReader(file)
        ]


def test_rows_of_other_exams_stay_and_those_of_the_exam_are_replaced(tmp_path):
    aorta = Trust(None, None, "not found, at all")
    with TrustTable(tmp_path) as table:
        table.add("a, 1", {"liver": Trust(0.8123, 0.7), "aorta": aorta})
        table.add("b", {"liver": Trust(0.5, 0.25)})
    with TrustTable(tmp_path) as table:
        table.add("a, 1", {"liver": Trust(0.9, 0.8), "aorta": aorta})
    assert rows(tmp_path / "trust.csv") == [
        ("a, 1", "liver", "0.900", "0.800", ""),
        ("a, 1", "aorta", "", "", "not found, at all"),
        ("b", "liver", "0.500", "0.250", ""),
    ]
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["trust.csv"]


def test_a_run_that_is_stopped_keeps_what_it_was_told(tmp_path):
    with pytest.raises(KeyboardInterrupt), TrustTable(tmp_path) as table:
        for exam in "abcdefgh":
            table.add(exam, {"liver": Trust(0.5, 0.25)})
        raise KeyboardInterrupt
    assert [row[0] for row in rows(tmp_path / "trust.csv")] == list("abcdefgh")


def _add(folder, names):
    with TrustTable(folder) as table, StatisticsFiles(folder) as statistics:
        for name in names:
            table.add(name, {"liver": Trust(0.5, 0.25)})
            statistics.add(name, [], {"fit": 0.9, "known": True})


def test_runs_that_share_a_table_lose_no_exam_of_each_other(tmp_path, monkeypatch):
    """Without a lock, about half of the exams are lost here."""
    # Every exam is written at once, as in the first seconds of a run.
    monkeypatch.setattr(growing, "_PATIENCE", 0.0)
    parts = [[f"{part}-{i:02}" for i in range(25)] for part in range(4)]
    # A lock of a file keeps threads apart as it does processes, since each opens it for itself.
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(partial(_add, tmp_path), parts))
    expected = sorted(sum(parts, []))
    assert sorted(row[0] for row in rows(tmp_path / "trust.csv")) == expected
    assert sorted(json.loads((tmp_path / "statistics.json").read_text())) == expected


def test_another_table_of_that_name_is_not_overwritten(tmp_path):
    (tmp_path / "trust.csv").write_text("patient,score\n1,2\n")
    with pytest.raises(DataError, match="trust.csv: is another table"):
        TrustTable(tmp_path)
    assert (tmp_path / "trust.csv").read_text() == "patient,score\n1,2\n"
