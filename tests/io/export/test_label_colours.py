"""Names and colours for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

import re

from deepatlas.io.export.label_tables import write_itk_snap, write_slicer
from deepatlas.pictures.draw import colour

NAMES = {'left "big" kidney': 300, "liver": 1}


def rgb(identity: int) -> list[int]:
    return [int(colour(identity)[i : i + 2], 16) for i in (1, 3, 5)]


def test_itk_snap_gets_ids_colours_and_names(tmp_path):
    lines = write_itk_snap(tmp_path / "a.label", NAMES).read_text().splitlines()
    rows = [re.fullmatch(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([01])\s+([01])\s+([01])\s+"([^"]*)"', r) for r in lines
            if not r.startswith("#")]  # fmt: skip
    assert all(rows)
    assert rows[0].groups() == ("0", "0", "0", "0", "0", "0", "0", "Clear Label")
    assert [int(v) for v in rows[1].groups()[:7]] == [1, *rgb(1), 1, 1, 1] and rows[1][8] == "liver"
    assert int(rows[2][1]) == 300 and rows[2][8] == "left 'big' kidney"


def test_slicer_gets_a_colour_table(tmp_path):
    lines = write_slicer(tmp_path / "a.ctbl", NAMES).read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert rows[0] == ["0", "Background", "0", "0", "0", "0"]
    assert rows[1] == ["1", "liver", *map(str, rgb(1)), "255"]
    assert rows[2][:2] == ["300", 'left_"big"_kidney'] and all(len(row) == 6 for row in rows)
