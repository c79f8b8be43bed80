"""Fig. 3 of the paper: the means of all structures and experiments, with a panel for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepatlas.compare.comparison import Comparison
from deepatlas.compare.measures import Measure
from deepatlas.pictures.draw import BACKGROUND, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Experiments differ in colour and in shape, so that a print without colours can be read.
_MARKERS = "os^DvP*XpH<>dh8"
# A diamond looks larger than a circle of its width, and a star smaller.
_SIZES = {"D": 3.9, "*": 6.2, "o": 4.8}
_NAME, _TICK = 8.5, 8.0  # points
# Inches: between structures at least, for each experiment at a structure, and of what surrounds the panels.
_STEP, _DODGE = 0.3, 0.055
_LEFT, _RIGHT, _PANEL, _GAP = 0.75, 0.2, 2.9, 0.3
_LEGEND_LINE = 0.24


@dataclass(frozen=True)
class Look:
    """The colours of a figure: of the page, of the text, of the grid, and of every second structure."""

    background: str
    ink: str
    grid: str
    band: str
    colours: Sequence[str]


# The palettes of Okabe and Ito, without black, and of Tol (bright), with brown, teal and grey: more muted than the
# colours of structures on CT. As many as share no divisor with the marks, so that no two experiments look alike.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#4477EE", "#EE6677", "#66CCEE",
    "#AA3377", "#CCBB44", "#88DD88", "#FF99CC", "#9988FF", "#B08060", "#44AA99", "#AAAAAA",
)  # fmt: skip
SCREEN = Look(BACKGROUND, INK, "#33333c", "#1b1b22", COLOURS)
# Yellow cannot be seen on paper.
PRINT = Look("white", "#111111", "#cccccc", "#f1f1f4", [c for c in COLOURS if c != "#F0E442"])


def performance_figure(comparison: Comparison, measures: Sequence[Measure], look: Look = SCREEN) -> Figure:
    """The mean over exams of every structure in every experiment.

    Structures stand side by side, by cohort, and the experiments of one structure in a row within its strip, so that
    no mark hides another. A cross on the lower edge marks a structure that an experiment never found.

    Args:
        comparison: what was found.
        measures: a panel for each, from the top.
        look: the colours.
    """
    from matplotlib.lines import Line2D

    names, structures = comparison.aligned.names, comparison.structures
    step = max(_STEP, _DODGE * (len(names) + 1.5))
    # Wide enough for the legend of a few structures.
    wide = max(step * len(structures), 4.5)
    width = _LEFT + wide + _RIGHT
    columns = _legend_columns(names, width)
    cohorts = [c for c in comparison.cohorts if c]
    top = 0.15 + _LEGEND_LINE * -(-len(names) // columns) + (0.25 if cohorts else 0.1)
    bottom = 0.2 + max(_inches(_short(structure), _TICK) for _, structure in structures)
    height = top + len(measures) * _PANEL + (len(measures) - 1) * _GAP + bottom
    figure = new_figure(width, height, background=look.background)
    styles: list[dict[str, Any]] = [
        {
            "color": look.colours[i % len(look.colours)],
            "marker": (m := _MARKERS[i % len(_MARKERS)]),
            "ms": _SIZES.get(m, 4.6),
        }
        for i in range(len(names))
    ]
    for number, measure in enumerate(measures):
        above = top + number * (_PANEL + _GAP)
        axes = figure.add_axes((_LEFT / width, 1 - (above + _PANEL) / height, wide / width, _PANEL / height))
        _panel(axes, comparison, measure, styles, look)
        last = number == len(measures) - 1
        labels = [_short(structure) for _, structure in structures] if last else []
        axes.set_xticks(
            range(len(structures)) if last else [], labels, rotation=90, color=look.ink, fontsize=_TICK
        )
        if number == 0:
            _cohort_names(axes, comparison, look)
    handles = [
        Line2D([], [], ls="", label=_short(name), **style) for name, style in zip(names, styles, strict=True)
    ]
    figure.legend(
        handles=handles, loc="upper center", ncols=columns, frameon=False, fontsize=_NAME, labelcolor=look.ink,
        bbox_to_anchor=(0.5, 1 - 0.02 / height), handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _panel(
    axes: Axes, comparison: Comparison, measure: Measure, styles: Sequence[dict[str, Any]], look: Look
) -> None:
    means = comparison.found[measure.column].structures
    count, structures = means.shape
    axes.set_facecolor(look.background)
    at = np.arange(structures)
    # A strip holds the experiments of a structure with some room on both sides.
    offsets = (np.arange(count) - (count - 1) / 2) / (count + 1.5)
    for s in range(0, structures, 2):
        axes.axvspan(s - 0.5, s + 0.5, color=look.band, lw=0, zorder=0)
    for row, offset, style in zip(means, offsets, styles, strict=True):
        axes.plot(at + offset, row, ls="", mec="none", zorder=3, **style)
        never = ~np.isfinite(row)
        axes.plot(
            (at + offset)[never], np.full(never.sum(), 0.025), ls="", marker="x", ms=4.5, color=style["color"],
            transform=axes.get_xaxis_transform(), zorder=3,
        )  # fmt: skip
    axes.set_xlim(-0.5, structures - 0.5)
    if measure.higher_is_better:
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(measure.heading, color=look.ink, fontsize=9)
    axes.tick_params(colors=look.ink, labelsize=8, length=0)
    axes.grid(axis="y", color=look.grid, lw=0.7, zorder=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for chosen in list(comparison.cohorts.values())[1:]:
        axes.axvline(chosen[0] - 0.5, color=look.ink, lw=0.8, zorder=2)


def _cohort_names(axes: Axes, comparison: Comparison, look: Look) -> None:
    for cohort, chosen in comparison.cohorts.items():
        if cohort:
            axes.annotate(
                _short(cohort), ((chosen[0] + chosen[-1]) / 2, 1), (0, 4), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", color=look.ink, fontsize=9,
            )  # fmt: skip


def _legend_columns(names: Sequence[str], width: float) -> int:
    """How many names stand side by side in a legend of ``width`` inches, each with its mark."""
    longest = max(_inches(_short(name), _NAME) for name in names) + 0.45
    most = max(1, int((width - 0.3) / longest))
    # Lines of the same length look better than a full one and a rest.
    return -(-len(names) // -(-len(names) // most))


def _inches(text: str, size: float) -> float:
    """How long a text in a font of ``size`` points is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    # Bytes of a name that are not UTF-8 are drawn by their numbers.
    shown = text.encode(errors="backslashreplace").decode()
    return text_to_path.get_text_width_height_descent(shown, FontProperties(size=size), False)[0] / 72


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
