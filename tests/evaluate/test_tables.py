"""Summaries and tables of metric rows."""

from __future__ import annotations

import math

import pytest

from deepatlas.evaluate.tables import Row, statistics, summarise, summary_table

ROWS = [
    Row("a", "liver", 0.9, 2.0, 100, 110),
    Row("b", "liver", 0.7, 4.0, 90, 100),
    Row("a", "spleen|left", 0.2, 10.0, 5, 10),
    Row("b", "spleen|left", 0.0, math.inf, 0, 10),
    Row("c", "liver", 0.8, 3.0, 90, 100),
]


def test_both_means_are_named_and_differ():
    o = summarise(ROWS)["overall"]
    assert o["dice_mean_of_structures"] == pytest.approx((0.8 + 0.1) / 2)
    assert o["dice_mean_of_rows"] == pytest.approx(2.6 / 5)
    assert o["hd95_mm_mean_of_structures"] == pytest.approx((3 + 10) / 2)
    assert o["hd95_mm_mean_of_rows"] == pytest.approx(19 / 4)
    assert (o["exams"], o["rows"], o["structures"], o["missed"]) == (3, 5, 2, 1)


def test_a_missed_structure_counts_in_dice_but_not_in_distance():
    spleen = summarise(ROWS)["structures"]["spleen|left"]
    assert spleen["dice"] == {"mean": 0.1, "median": 0.1, "std": pytest.approx(math.sqrt(0.02)), "n": 2}
    assert spleen["hd95_mm"] == {"mean": 10.0, "median": 10.0, "std": None, "n": 1}
    assert spleen["missed"] == 1


def test_a_structure_never_drawn_has_no_numbers():
    s = summarise(ROWS, ["liver", "heart"])
    assert s["structures"]["heart"]["dice"] == {"mean": None, "median": None, "std": None, "n": 0}
    assert s["overall"]["structures"] == 1
    assert statistics([])["mean"] is None
    assert "heart" in summary_table(s)


def test_text_table_is_aligned_and_markdown_is_escaped():
    text = summary_table(summarise(ROWS) | {"conventions": {"hd95": "as named"}})
    lines = text.splitlines()
    assert lines[0].split()[0] == "structure" and lines[-1] == "HD95: as named"
    assert "0.800" in lines[2] and "0.450" in text and "0.520" in text
    assert lines[2].index("0.800") == lines[3].index("0.100")
    table = summary_table(summarise(ROWS), markdown=True).splitlines()
    assert "spleen\\|left" in table[3]
    cells = [line.replace("\\|", "").count("|") for line in table]
    assert len(set(cells)) == 1 and cells[0] == 10


def test_csv_fields():
    assert Row.columns() == ["exam", "structure", "dice", "hd95_mm", "predicted_ml", "reference_ml"]
    assert ROWS[3].csv() == ["b", "spleen|left", "0", "inf", "0", "10"]
