"""The table of metrics."""

from __future__ import annotations

from dataclasses import fields

from deepatlas.evaluate.metrics import METRICS
from deepatlas.evaluate.rows import Row


def test_every_metric_is_a_column_of_the_rows():
    assert ["exam", "structure", *METRICS] == [f.name for f in fields(Row)] == Row.columns()
