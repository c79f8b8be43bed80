"""What the index holds about one exam."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.index.body_part import body_part
from deepatlas.index.columns import column, rounded_down
from deepatlas.index.flip import flip_alarm
from deepatlas.index.inner import inner_values
from deepatlas.index.measured import measured
from deepatlas.index.phase import contrast_phase, tells_phase
from deepatlas.localize.coverage import coverage
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import exam_trust
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.project_box import carry_box
from deepatlas.space.volume import Volume

# A structure of which less is in view has no meaningful mean.
_LEAST_VIEW = 0.25


def facts(
    model: Engine,
    template: Template,
    volume: Volume,
    found: ExamMap,
    shown: NDArray[np.bool_],
    *,
    trust: bool = False,
    sides: bool = True,
) -> dict[str, Any]:
    """The columns of an exam, whose coordinates are known; ``id``, ``path`` and ``key`` excepted.

    An exam that the model does not know has neither structures nor a body part, since its coordinates mean nothing.

    Args:
        model: the model.
        template: the structures and boxes.
        volume: the exam.
        found: its coordinates.
        shown: ``[S, S, S]``, the voxels that count, from :func:`~deepatlas.index.in_view.in_view`.
        trust: whether to ask for the trust of every mask, which costs passes of the network.
        sides: whether a mirrored exam can be told (see :func:`~deepatlas.index.flip.shows_sides`).
    """
    fit = found.fit
    x, y, z = volume.grid.canonical()[0].spacing
    extent = volume.grid.canonical()[0].extent
    values: dict[str, Any] = {
        "fit": _finite(fit.value),
        "known": None if fit.known is None else int(fit.known),
        "loss_percentile": loss_percentile(model, fit.value),
        "flip": flip_alarm(model, found, sides),
        "axes": volume.grid.axes,
        "slices": volume.grid.canonical()[0].shape[0],
        "slice_mm": round(z, 3),
        "pixel_mm": round(max(x, y), 3),
        "height_mm": round(extent[2], 1),
    }
    # One scale in the whole index: with trust, an exam without it has no quality, and comes last.
    values["quality"] = None if trust else rounded_down(values["fit"])
    if fit.known is False:
        return values
    shares = coverage(found, template, volume.grid)
    seen: dict[str, float] = {}
    for row, mask in enumerate(measured(found, template, volume)):
        percent = rounded_down(float(shares[row]))
        values[column(row, "coverage")] = percent
        seen[mask.name] = float(percent or 0)
        if shares[row] >= _LEAST_VIEW and mask.voxels:
            values[column(row, "hu")] = round(mask.mean)
            values[column(row, "ml")] = round(mask.ml, 1)
    for row, box in enumerate(template.marks.boxes, len(template.names)):
        carried = carry_box(found.field, box, volume.grid, found.body)
        values[column(row, "coverage")] = 0 if carried is None else rounded_down(carried.coverage)
    values["body_part"] = body_part(seen, extent)
    if model.intensity == "hu":
        told = [row for row, name in enumerate(template.names) if tells_phase(name)]
        inner = inner_values(found, template, told, shown)
        values["phase"] = contrast_phase(
            {template.names[row]: inner[row] for row in told if row in inner and shares[row] >= _LEAST_VIEW}
        )
    if trust:
        said = exam_trust(model, found, template)
        believed = []
        for row, name in enumerate(template.names):
            one = said.structures[name]
            values[column(row, "trust")] = rounded_down(one.value)
            values[column(row, "bound")] = rounded_down(one.bound)
            if one.value is not None and shares[row] >= _LEAST_VIEW:
                believed.append(one.value)
        if believed:
            values["quality"] = rounded_down(float(np.mean(believed)))
    return values


def described(template: Template) -> tuple[str, ...]:
    """The names in the index of what a template holds: its structures, and then its boxes.

    A box that is called as a structure is ``"box NAME"``.
    """
    boxes = (f"box {b.name}" if b.name in template.names else b.name for b in template.marks.boxes)
    return (*template.names, *boxes)


def loss_percentile(model: Engine, fit: float) -> int | None:
    """How many percent of the training exams had a smaller loss, that is a better fit; None where nobody knows."""
    quartiles = model.card.get("fit", {}).get("quartiles")
    if not quartiles or not math.isfinite(fit):
        return None
    below = np.interp(fit, quartiles, [0, 25, 50, 75, 100])
    return int(100 - below)


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
