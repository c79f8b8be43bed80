"""The report of a calibration: predicted against true Dice, and whether the bound holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepatlas.evaluate.calibrate.run import Calibrated
from deepatlas.files import write_text
from deepatlas.pictures.draw import colour, data_uri, new_figure, save_figure
from deepatlas.pictures.page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("calibration.json", "calibration.png", "calibration.html")
_LEGEND = 16


def write_calibration(out: Path, found: Calibrated) -> Path:
    """Write ``calibration.json`` (figures and every row), ``.png`` and ``.html`` into a folder, and return the page.

    Raises :class:`~deepatlas.errors.DataError` where a file cannot be written.
    """
    table, cross = found.table, found.cross
    rows = [
        {
            "structure": table.names[table.structure[i]], "dice": round(float(table.dice[i]), 4),
            "trust": round(float(cross.value[i]), 4), "bound": round(float(cross.bound[i]), 4),
        }
        for i in range(len(table.dice))
    ]  # fmt: skip
    facts = found.figures | {"skipped": found.skipped, "values": rows}
    write_text(out / "calibration.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    png = save_figure(calibration_figure(found.figures), out / "calibration.png")
    page = out / "calibration.html"
    text = render(
        "deepatlas.evaluate.calibrate", "calibration.jinja", figures=found.figures, plot=data_uri(png),
        skipped=found.skipped, number=lambda v, d: "–" if v is None else f"{v:.{d}f}",
    )  # fmt: skip
    write_text(page, text)
    return page


def calibration_figure(figures: Mapping[str, Any]) -> Figure:
    """Predicted against true Dice with the bound, and the poor masks that are left as the worst are rejected.

    ``figures`` are those of :func:`~deepatlas.evaluate.calibrate.run.figures`, which lie in the template file as well.
    """
    names, values = list(figures["structures"]), figures["values"]
    structure = np.array(values["structure"])
    value, bound, dice = (np.array(values[key]) / 1000 for key in ("trust", "bound", "dice"))
    figure = new_figure(11, 5.2)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#888", linewidth=1)
    for row, name in enumerate(names):
        own = structure == row
        left.plot(value[own], dice[own], ".", color=colour(row + 1), label=name, markersize=6)
    left.plot(value, bound, ",", color="#c2410c")
    left.plot([], [], color="#c2410c", label="90 % bound")
    left.set(
        xlabel="predicted Dice (trust)", ylabel="Dice within the slices in common", xlim=(0, 1), ylim=(0, 1)
    )
    # Beyond some tens of structures a legend would hide the points.
    if len(names) <= _LEGEND:
        left.legend(fontsize=8, loc="upper left")
    order = np.argsort(value, kind="stable")
    shares = np.linspace(0, 0.6, 31)
    poor = [(dice[order[int(s * len(order)) :]] < 0.5).mean() for s in shares]
    right.plot(100 * shares, 100 * np.array(poor), color="#2563eb")
    right.set(
        xlabel="rejected, least trust first (%)", ylabel="masks left with a Dice under .5 (%)", ylim=(0, None)
    )
    return figure
