"""Rows of metrics for the tests of statistics and tables: one structure was missed once, and names hold a bar."""

from __future__ import annotations

import math

from deepatlas.evaluate.rows import Row

ROWS = [
    Row("a", "liver", 0.9, 2.0, 100, 110, 0.95, 0.5),
    Row("b", "liver", 0.7, 4.0, 90, 100, 0.85, 1.5),
    Row("a", "spleen|left", 0.2, 10.0, 5, 10, 0.4, 3.0),
    Row("b", "spleen|left", 0.0, math.inf, 0, 10, 0.0, math.inf),
    Row("c", "liver", 0.8, 3.0, 90, 100, 0.9, 1.0),
]
