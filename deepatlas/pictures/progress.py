"""The curves of a training run: every logged number over the steps of all phases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepatlas.pictures.draw import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
# What the vertical axis of a number shows, by the name of the number or by its ending.
_UNITS = {
    "lr": "step size of Adam",
    "steps_per_second": "steps per second",
    "folds": "share of the voxels",
    "overlap": "share of the foreground",
    "coarse_error": "normalised coordinates",
    "coordinate_error": "normalised coordinates",
    "_mse": "squared difference",
    "_edges": "loss (edges)",
    "_smoothness": "loss (smoothness)",
}
_TITLES = {"lr": "learning rate", "steps_per_second": "speed", "total": "total loss"}
# The total comes first, and what is no result of the training last.
_ORDER = {"total": 0, "lr": 2, "steps_per_second": 3}


def progress_curves(records: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A panel for every number of a log, over the steps of the run, with the phases named and shaded.

    Args:
        records: the lines of ``log.jsonl``, in order: ``phase``, ``step`` (within the phase), ``overall`` (of the run),
            and any numbers.

    Returns:
        The figure, or None if there is no number to draw.
    """
    series, phases = _series(records)
    if not series:
        return None
    rows = -(-len(series) // _COLUMNS)
    width, height = _COLUMNS * 4.4, rows * 2.9 + 0.2
    figure = new_figure(width, height)
    # Margins in inches. Letting matplotlib find them would draw everything twice.
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.15 / width, bottom=0.5 / height, top=1 - 0.35 / height, wspace=0.3, hspace=0.5,
    )  # fmt: skip
    last = max(record["overall"] for record in records)
    ends = [*list(phases.values())[1:], last + 1]
    for index, key in enumerate(sorted(series, key=lambda k: (_ORDER.get(k, 1), k))):
        axes = figure.add_subplot(rows, _COLUMNS, index + 1)
        for number, ((phase, start), end) in enumerate(zip(phases.items(), ends, strict=True)):
            if number % 2:
                axes.axvspan(start, end, color="0.93", linewidth=0, zorder=0)
            # A name needs some room, and the shading shows where a shorter phase lies.
            if end - start > 0.035 * last:
                axes.text(
                    start, 0.98, f" {phase}", transform=axes.get_xaxis_transform(), rotation=90, fontsize=6,
                    color="0.45", va="top", ha="left", clip_on=True,
                )  # fmt: skip
        # The names of the phases stand above the curve.
        axes.margins(y=0.05)
        axes.plot(*series[key], linewidth=1.0, color="#1f5f99", marker=".", markersize=2)
        axes.set_xlim(0, last + 1)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.3 * (high - low))
        axes.set_title(_TITLES.get(key, key.replace("_", " ")), fontsize=9)
        axes.set_xlabel("step of the run", fontsize=7)
        axes.set_ylabel(_unit(key), fontsize=7)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
    return figure


def _series(
    records: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, int]]:
    """The points of every number, and the step of the run at which each phase begins."""
    series: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    phases: dict[str, int] = {}
    latest: dict[str, str] = {}
    for record in records:
        phase, overall = record["phase"], record["overall"]
        phases.setdefault(phase, overall)
        for key, value in record.items():
            if key in ("phase", "step", "overall"):
                continue
            x, y = series[key]
            if latest.setdefault(key, phase) != phase:
                # NaN interrupts the curve between two phases.
                x.append(overall)
                y.append(math.nan)
                latest[key] = phase
            x.append(overall)
            y.append(value)
    return series, phases


def _unit(key: str) -> str:
    for ending, unit in _UNITS.items():
        if key == ending or (ending[0] == "_" and key.endswith(ending)):
            return unit
    return "loss"
