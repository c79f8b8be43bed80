"""The table of trust beside the masks: one row for every structure of every exam."""

from __future__ import annotations

import csv

import pytest

from deepatlas.errors import DataError
from deepatlas.localize.trust.estimate import Trust
from deepatlas.localize.trust.table import write_trust


def rows(path):
    with path.open(newline="") as file:
        return [
            (r["exam"], r["structure"], r["trust"], r["bound"], r["reason"]) for r in csv.DictReader(file)
        ]


def test_rows_of_other_exams_stay_and_those_of_the_exam_are_replaced(tmp_path):
    path = write_trust(
        tmp_path, "a, 1", {"liver": Trust(0.8123, 0.7), "aorta": Trust(None, None, "not found, at all")}
    )
    write_trust(tmp_path, "b", {"liver": Trust(0.5, 0.25)})
    write_trust(tmp_path, "a, 1", {"liver": Trust(0.9, 0.8), "aorta": Trust(None, None, "not found, at all")})
    assert rows(path) == [
        ("b", "liver", "0.500", "0.250", ""),
        ("a, 1", "liver", "0.900", "0.800", ""),
        ("a, 1", "aorta", "", "", "not found, at all"),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["trust.csv"]


def test_another_table_of_that_name_is_not_overwritten(tmp_path):
    (tmp_path / "trust.csv").write_text("patient,score\n1,2\n")
    with pytest.raises(DataError, match="trust.csv: is another table"):
        write_trust(tmp_path, "a", {"liver": Trust(0.9, 0.8)})
    assert (tmp_path / "trust.csv").read_text() == "patient,score\n1,2\n"
