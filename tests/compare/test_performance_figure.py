"""Fig. 3: every mean is drawn, and no text lies on another."""

from __future__ import annotations

from itertools import combinations
from math import inf

import numpy as np
import pytest
from made_evaluations import many, row, write_evaluation

from deepatlas.compare.align import align
from deepatlas.compare.comparison import compare
from deepatlas.compare.experiments import read_experiments
from deepatlas.compare.figure import PRINT, SCREEN, performance_figure
from deepatlas.compare.paired import Bootstrap


def figure_of(folders, names, look=SCREEN):
    experiments = read_experiments(list(zip(names, folders, strict=True)))
    comparison = compare(align(experiments), bootstrap=Bootstrap(5))
    figure = performance_figure(comparison, comparison.aligned.measures[:2], look)
    figure.canvas.draw()
    return figure, comparison


def in_view(axes):
    """The labels of the ticks that are drawn."""
    low, high = axes.get_ylim()
    return [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]


@pytest.mark.slow(1)
@pytest.mark.parametrize(("experiments", "structures"), [(10, 30), (2, 1)])
def test_no_text_lies_on_another_or_leaves_the_page(tmp_path, experiments, structures):
    names = [f"experiment number {i}" for i in range(experiments)]
    organs = [f"submandibular gland {i}, left" for i in range(structures)]
    figure, _ = figure_of(many(tmp_path, names, organs, 2), names)
    texts = [t for axes in figure.axes for t in (*axes.get_xticklabels(), *in_view(axes), axes.yaxis.label)]
    texts += figure.legends[0].get_texts()
    boxes = [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]
    assert len(boxes) >= experiments + structures
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    page = figure.bbox
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= page.width and b.y1 <= page.height for b in boxes)
    labels = figure.axes[1].get_xticklabels()
    assert [t.get_text() for t in labels] == organs and figure.axes[0].get_xticklabels() == []


def test_marks_of_a_structure_stand_side_by_side_at_the_means(tmp_path):
    names = [f"e{i}" for i in range(10)]
    figure, comparison = figure_of(many(tmp_path, names, ["liver", "spleen"], 3), names)
    for axes, column in zip(figure.axes, ("dice", "hd95_mm"), strict=True):
        marks = [
            line
            for line in axes.lines
            if len(line.get_xdata()) == 2 and line.get_marker() not in ("x", "None")
        ]
        np.testing.assert_array_equal([m.get_ydata() for m in marks], comparison.found[column].structures)
        x = axes.transData.transform([(m.get_xdata()[0], 0) for m in marks])[:, 0]
        assert (np.diff(x) >= 5 / 72 * figure.dpi * 0.75).all()
    styles = {(m.get_marker(), m.get_color()) for m in marks}
    assert len(styles) == 10


@pytest.mark.parametrize("look", [SCREEN, PRINT])
def test_the_experiments_of_a_large_plan_look_different(tmp_path, look):
    names = [f"e{i}" for i in range(24)]
    figure, _ = figure_of(many(tmp_path, names, ["liver"], 2), names, look)
    handles = figure.legends[0].legend_handles
    assert len({(h.get_marker(), h.get_color()) for h in handles}) == len(handles) == 24
    # Those that share a colour are of other shapes, also where the shapes are similar (a circle and an octagon).
    first, later = {h.get_color() for h in handles[:15]}, [h.get_color() for h in handles[:16]]
    assert len(first) == 15 and len(set(later)) == 16


def test_a_structure_that_was_never_found_is_marked_in_the_panel_of_distances(tmp_path):
    folders = [
        write_evaluation(tmp_path / "a", [row("e", "lens", 0.5, 2), row("e", "liver", 0.5, 2)]),
        write_evaluation(tmp_path / "b", [row("e", "lens", 0.0, inf), row("e", "liver", 0.5, 2)]),
    ]
    figure, _ = figure_of(folders, ["a", "b"], PRINT)
    crosses = [[len(ln.get_xdata()) for ln in axes.lines if ln.get_marker() == "x"] for axes in figure.axes]
    assert crosses == [[0, 0], [0, 1]]
