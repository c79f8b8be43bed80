"""Tables of metrics."""

from __future__ import annotations

from metric_rows import ROWS

from deepatlas.evaluate.metrics import METRICS
from deepatlas.evaluate.rows import Row, metrics_csv
from deepatlas.evaluate.statistics import summarise
from deepatlas.evaluate.tables import summary_table


def test_a_text_table_is_aligned_and_ends_with_the_convention():
    text = summary_table(summarise(ROWS).as_dict() | {"conventions": {"hd95": "as named"}})
    lines = text.splitlines()
    assert lines[0].split()[0] == "structure" and lines[-1] == "HD95: as named"
    assert "0.800" in lines[2] and "0.450" in text and "0.520" in text
    assert lines[2].index("0.800") == lines[3].index("0.100")


def test_a_markdown_table_escapes_bars_in_names():
    table = summary_table(summarise(ROWS).as_dict(), markdown=True).splitlines()
    assert "spleen\\|left" in table[3]
    cells = [line.replace("\\|", "").count("|") for line in table]
    assert len(set(cells)) == 1 and cells[0] == 12


def test_a_structure_without_numbers_is_in_the_table():
    assert "heart" in summary_table(summarise(ROWS, ["liver", "heart"]).as_dict())


def test_metrics_csv_names_its_columns_and_writes_infinite_distances():
    assert Row.columns() == ["exam", "structure", *METRICS]
    lines = metrics_csv(ROWS).splitlines()
    assert lines[0] == ",".join(Row.columns()) and lines[4] == "b,spleen|left,0,inf,0,10,0,inf"
