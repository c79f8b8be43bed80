"""Means of what was drawn in several exams."""

from __future__ import annotations

import numpy as np
import pytest

from deepatlas.localize.average import mean_line
from deepatlas.space.markup import Polyline

SCALE = np.array([200.0, 150.0, 400.0])


def ring(count: int, start: float = 0.0, way: int = 1) -> Polyline:
    """An ellipse with half axes of 40 and 30 mm, whose points begin at an angle."""
    angle = start + way * 2 * np.pi * np.arange(count) / count
    mm = np.stack([40 * np.cos(angle), 30 * np.sin(angle), np.full(count, 8.0)], axis=1)
    return Polyline("ring", mm / SCALE, True)


@pytest.mark.parametrize("counts", [(36, 36, 36), (36, 90, 48)])
def test_a_closed_line_may_begin_anywhere_and_run_either_way(counts):
    """Averaged point by point as they were drawn, opposite beginnings would shrink it to its centre."""
    ways = zip(counts, (0.0, np.pi, 2.0), (1, 1, -1), strict=True)
    mean, spread = mean_line("ring", [ring(*way) for way in ways], SCALE)
    mm = mean.points * SCALE
    assert mean.closed and len(mm) == max(counts) and spread < 4
    np.testing.assert_allclose((mm[:, 0] / 40) ** 2 + (mm[:, 1] / 30) ** 2, 1, atol=0.08)
    np.testing.assert_allclose(mm[:, 2], 8)


def test_an_open_line_keeps_its_ends():
    line = np.stack([np.linspace(-0.5, 0.5, 9), np.zeros(9), np.linspace(0, 0.2, 9) ** 2], axis=1)
    drawn = [Polyline("spine", points) for points in (line, line[::-1], line)]
    mean, spread = mean_line("spine", drawn, SCALE)
    np.testing.assert_allclose(mean.points, line, atol=1e-12)
    assert spread < 1e-9
