"""The figures of evaluation and training."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from deepatlas.pictures import figures
from deepatlas.pictures.draw import png_bytes

SHAPE = (6, 8, 10)


def test_panels_have_the_proportions_of_the_anatomy():
    """A sphere in anisotropic voxels is round in every plane."""
    shape, spacing = (20, 40, 50), (2.0, 2.5, 5.0)
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    r2 = ((x - 24.5) * 2) ** 2 + ((y - 19.5) * 2.5) ** 2 + ((z - 9.5) * 5) ** 2
    ball = (r2 < 35**2).astype(float)
    cuts = [ball[9], ball[:, 19], ball[:, :, 24]]
    figure = figures.overlay_figure(
        cuts, cuts, [c.astype(int) for c in cuts], None, {"ball": 1}, shape, spacing
    )
    assert len(figure.axes) == 9
    figure.canvas.draw()
    for axes in figure.axes:
        image = axes.get_images()[0]
        box = image.get_window_extent()
        rows, columns = np.nonzero(np.asarray(image.get_array()))
        height = (np.ptp(rows) + 1) / image.get_array().shape[0] * box.height
        width = (np.ptp(columns) + 1) / image.get_array().shape[1] * box.width
        # The slices are 5 mm thick, and the sphere has a diameter of 70 mm.
        assert height / width == pytest.approx(1, abs=0.12)


def test_progress_figure_has_a_column_for_each_picture():
    rng = np.random.default_rng(0)
    exam, coords = rng.random(SHAPE), rng.random((3, *SHAPE)) * 2 - 1
    labels = np.zeros(SHAPE, dtype=int)
    labels[3, 4, 5:7] = 1
    figure = figures.progress_figure(exam, coords, exam, (1, 1, 2), prediction=labels, reference=labels,
                                     names={"dot": 1}, title="step 5")  # fmt: skip
    assert len(figure.axes) == 12
    assert len(figures.progress_figure(exam, coords, exam).axes) == 9


def test_figures_do_not_use_pyplot(monkeypatch):
    # Importing a module that is None in sys.modules raises ImportError.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    exam = np.zeros((4, 5, 6))
    assert png_bytes(figures.progress_figure(exam, np.zeros((3, 4, 5, 6)), exam))
