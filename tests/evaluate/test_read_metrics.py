"""Reading metrics.csv and summary.json back."""

from __future__ import annotations

import math

import pytest
from metric_rows import ROWS

from deepatlas.errors import DataError
from deepatlas.evaluate.read import read_rows, read_summary
from deepatlas.evaluate.rows import metrics_csv

HEADER = "exam,structure,dice,hd95_mm,predicted_ml,reference_ml\n"


def refused(path, text, words):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_rows_come_back_as_they_were_written(tmp_path):
    (tmp_path / "metrics.csv").write_text(metrics_csv(ROWS))
    assert read_rows(tmp_path / "metrics.csv") == ROWS


def test_a_file_of_a_version_without_surface_dice_is_read(tmp_path):
    (tmp_path / "m.csv").write_text(HEADER + "a,liver,0.9,2,100,110\n")
    (row,) = read_rows(tmp_path / "m.csv")
    assert row.hd95_mm == 2 and math.isnan(row.surface_dice) and math.isnan(row.asd_mm)


def test_what_is_no_table_of_metrics_is_refused_with_its_line(tmp_path):
    path = tmp_path / "metrics.csv"
    refused(path, "", "no column exam.*has no line")
    refused(path, HEADER, "has no row")
    refused(path, "exam,structure,dice,hd95_cm\na,liver,1,0.2\n", "no column hd95_mm.*hd95_cm")
    refused(path, HEADER + "a,liver,0.9,2\n", "line 2 has 4 cells and the header 6")
    refused(path, HEADER + "a,liver,0.9,2,1,1\na,liver,0.9,2,1,1\n", "line 3: liver of exam a has two rows")
    refused(path, HEADER + 'a,"liver', "line 2: not a CSV file")
    refused(path, HEADER.encode() + b"a,\xff\xfe,0,0,0,0\n", "not UTF-8")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("87,2,1,1", "dice must be a number from 0 to 1, got '87'"),
        ("nan,2,1,1", "dice must be"),
        (",2,1,1", "dice must be"),
        ("0.8,-2,1,1", "hd95_mm must be a number, 0 or more"),
        ("0.8,nan,1,1", "hd95_mm must be"),
        ("0.8,2,inf,1", "predicted_ml must be"),
        ("0.8,2,1,many", "reference_ml must be"),
    ],
)
def test_a_value_that_no_metric_gives_is_refused(tmp_path, cells, words):
    refused(tmp_path / "m.csv", HEADER + "b,heart,1,0,1,1\n" + f"a,liver,{cells}\n", f"line 3: {words}")


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_summary_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json: not (JSON|the summary)"):
        read_summary(tmp_path / "summary.json")
