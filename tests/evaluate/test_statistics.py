"""Statistics of rows of metrics."""

from __future__ import annotations

import json
import math

import pytest
from metric_rows import ROWS

from deepatlas.evaluate.statistics import Statistics, Summary, statistics, summarise


def test_both_means_are_named_and_differ():
    o = summarise(ROWS).overall
    assert o.dice_mean_of_structures == pytest.approx((0.8 + 0.1) / 2)
    assert o.dice_mean_of_rows == pytest.approx(2.6 / 5)
    assert o.hd95_mm_mean_of_structures == pytest.approx((3 + 10) / 2)
    assert o.hd95_mm_mean_of_rows == pytest.approx(19 / 4)
    assert (o.exams, o.rows, o.structures, o.missed) == (3, 5, 2, 1)


def test_a_missed_structure_counts_in_dice_but_not_in_distance():
    spleen = summarise(ROWS).structures["spleen|left"]
    assert spleen.dice == Statistics(0.1, 0.1, pytest.approx(math.sqrt(0.02)), 2)
    assert spleen.hd95_mm == Statistics(10.0, 10.0, None, 1)
    assert spleen.missed == 1


def test_a_structure_that_was_never_drawn_has_no_numbers():
    summary = summarise(ROWS, ["liver", "heart"])
    assert summary.structures["heart"].dice == Statistics(None, None, None, 0) == statistics([])
    assert summary.overall.structures == 1


def test_a_summary_survives_json():
    summary = summarise(ROWS)
    assert Summary.from_dict(json.loads(json.dumps(summary.as_dict()))) == summary


def test_a_summary_of_a_version_without_surface_dice_is_read():
    old = summarise(ROWS).as_dict()
    for part in (*old["structures"].values(), old["overall"]):
        for key in [k for k in part if k.startswith(("surface_dice", "asd"))]:
            del part[key]
    summary = Summary.from_dict(old)
    assert summary.structures["liver"].asd_mm == statistics([])
    assert summary.overall.asd_mm_mean_of_rows is None and summary.overall.dice_mean_of_rows == pytest.approx(
        2.6 / 5
    )
