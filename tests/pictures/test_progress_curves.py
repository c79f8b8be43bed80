"""The curves of a run: labelled axes, named phases, and a gap between two phases."""

from __future__ import annotations

import numpy as np

from deepatlas.pictures.draw import BACKGROUND, HIDDEN, new_figure, png_bytes, show
from deepatlas.pictures.progress import progress_curves
from deepatlas.pictures.view import View

RECORDS = [
    *({"phase": "coarse", "step": s, "overall": s + 1, "coarse_error": 1 / (s + 1), "lr": 0.1} for s in range(20)),
    *({"phase": "blink", "step": 0, "overall": 21, "lr": 0.1} for _ in range(1)),
    *({"phase": "level-1", "step": s, "overall": s + 22, "total": 2.0 - s / 40, "lr": 0.05} for s in range(40)),
]  # fmt: skip


def test_axes_and_phases_are_labelled_and_share_the_steps():
    figure = progress_curves(RECORDS)
    assert [axes.get_title() for axes in figure.axes] == ["total loss", "coarse error", "learning rate"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "step of the run" and axes.get_ylabel()
        assert axes.get_xlim() == (0, 62)
        # The phase of one step has no room for its name.
        assert [t.get_text().strip() for t in axes.texts] == ["coarse", "level-1"]
    total, error, rate = (axes.lines[0].get_xydata() for axes in figure.axes)
    np.testing.assert_allclose(total[:, 0], np.arange(22, 62))
    np.testing.assert_allclose(error[:, 1], 1 / np.arange(1, 21))
    assert np.isnan(rate[:, 1]).sum() == 2
    assert png_bytes(figure)[1:4] == b"PNG"


def test_a_log_without_numbers_gives_no_figure():
    assert progress_curves([]) is None


def test_what_has_no_value_is_neither_air_nor_tissue():
    figure = new_figure(1, 1, background=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    show(axes, np.array([[0.0, np.nan], [1.0, 0.5]]), View("axial"), (1, 1, 1), letters=False)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    rows, columns = drawn.shape[:2]
    hidden = [int(HIDDEN[i : i + 2], 16) for i in (1, 3, 5)]
    assert drawn[rows // 4, columns // 4].tolist() == [0, 0, 0]
    assert drawn[rows // 4, 3 * columns // 4].tolist() == hidden
    assert drawn[3 * rows // 4, columns // 4].tolist() == [255, 255, 255]
