"""Sweeps ``labels-L``, ``labels-round-N`` and ``labels-taught-N``: the masks of the atlas, X', become those of eq. 14.

Each level, and each round of registration (section 5.1.5), starts from the masks that explain the labelled exams best
by the coordinates that there are. From there the registration losses of a level train them together with the atlas.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataWarning
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.model.field import CoordinateField
from deepatlas.nn import LabelAtlas
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Sweep

# Eq. 14 takes this many labelled exams of each structure, if there are so many. More hardly change a blurred mean.
EXAMS = 8
# The solver of eq. 14 ends earlier than for a template, because training continues from its result.
SOLVER = {"iterations": 15, "tolerance": 1e-2}


def label_sweep(
    session: Session,
    array: ExamArray,
    labels: LabelMaps,
    name: str,
    coordinates: Callable[[Tensor, list[int]], Tensor],
) -> Sweep:
    """Fill the session's label atlas from labelled exams, with the coordinates ``coordinates(image, positions)``.

    The result is that of the first process, also where the others would round differently.
    """
    atlas: LabelAtlas = session.modules["labels"]

    @torch.no_grad()
    def step(_: int) -> dict[str, float]:
        misfit = 0.0
        if session.world.main:
            template, fraction = _estimate(session, array, labels, coordinates)
            misfit = float(np.mean([s["misfit"] for s in template.meta["structures"].values()]))
            rows = [labels.names.index(structure) for structure in template.names]
            atlas.values[0, rows] = torch.from_numpy(template.masks).to(atlas.values)
            atlas.fraction.copy_(fraction)
            atlas.overlaps.zero_()
            for lower, upper in template.meta.get("overlaps", []):
                atlas.overlaps[labels.names.index(lower), labels.names.index(upper)] = 1
        else:
            for tensor in (atlas.values, atlas.fraction, atlas.overlaps):
                tensor.zero_()
        session.world.sum_tensors(atlas.values, atlas.fraction, atlas.overlaps)
        return {"label_misfit": misfit}

    return Sweep(name, 1, step, lambda: None)


def level_labels(session: Session, array: ExamArray, labels: LabelMaps, level: int) -> Sweep:
    """The masks of the atlas by the coordinates of the network, before ``level`` is trained.

    The head of a level that has not been trained repeats the level below it, which therefore serves as well.
    """
    network = session.modules["network"]

    def coordinates(x: Tensor, positions: list[int]) -> Tensor:
        with session.autocast():
            return network(x, level).float()

    return label_sweep(session, array, labels, f"labels-{level}", coordinates)


def round_labels(
    session: Session, array: ExamArray, labels: LabelMaps, number: int, name: str = "round"
) -> Sweep:
    """The masks of the atlas by the coordinates of a round: ``name`` tells whether predicted or registered ones.

    Sweep ``labels-round-N`` comes before the exams are registered to these masks, and ``labels-taught-N`` before the
    network learns from them.
    """
    cohort = session.modules["cohort"]

    def coordinates(x: Tensor, positions: list[int]) -> Tensor:
        return cohort.take(positions, x.device)

    return label_sweep(session, array, labels, f"labels-{name}-{number}", coordinates)


def chosen_exams(labels: LabelMaps) -> list[int]:
    """Positions of labelled exams: each structure was drawn in :data:`EXAMS` of them where that is possible."""
    wanted = np.full(len(labels), EXAMS)
    chosen = []
    for position in labels.labelled:
        if not wanted.any():
            break
        drawn = labels.drawn(position)
        if (drawn & (wanted > 0)).any():
            chosen.append(position)
            wanted -= np.minimum(drawn, wanted)
    return chosen


def learned_template(
    atlas: LabelAtlas, labels: LabelMaps, fingerprint: str, intensity: str = "hu"
) -> Template:
    """The masks that the atlas has learned, as a template of the model with this fingerprint and ``data.intensity``."""
    overlaps = [[labels.names[a], labels.names[b]] for a, b in atlas.overlaps.nonzero().tolist()]
    meta = {"model": fingerprint, "intensity": intensity, "learned": True, "refine": 0, "average": 1}
    masks = atlas.values[0].detach().float().cpu().numpy()
    return Template(
        masks, tuple(labels.names), tuple(labels.ids), meta | ({"overlaps": overlaps} if overlaps else {})
    )


def _estimate(
    session: Session, array: ExamArray, labels: LabelMaps, coordinates: Callable[[Tensor, list[int]], Tensor]
) -> tuple[Template, Tensor]:
    """The template of the chosen exams, and the part of the foreground that each structure fills in them."""
    size = session.modules["labels"].values.shape[-1]
    # The unknowns are not finer than half the voxels of the labels.
    step = (max(1, MODEL_SIZE // (2 * size)),) * 3
    exams: list[LabelledExam] = []
    filled, seen = np.zeros(len(labels)), np.zeros(len(labels))
    for position in chosen_exams(labels):
        x, _ = array.take([position])
        coords = ops.resize(coordinates(x, [position]), x.shape[2:])
        own, present = labels.labels(position), labels.drawn(position)
        body = float(labels.store.mask[labels.rows[position]].sum())
        for channel in np.flatnonzero(present):
            filled[channel] += own.mask(labels.ids[channel]).sum() / body
        seen += present
        grid = labels.store.fine_grid(labels.rows[position]).pooled(FINE_SIZE // array.size)
        names = frozenset(np.array(labels.names)[present].tolist())
        exams.append(LabelledExam(CoordinateField(coords.cpu(), grid), own.subsampled(step), names))
    table = dict(zip(labels.names, labels.ids, strict=True))
    with warnings.catch_warnings():
        # Coordinates that have not been learned yet explain no labels.
        warnings.simplefilter("ignore", DataWarning)
        with torch.enable_grad():
            template = estimate_template(exams, table, size, **SOLVER)
    fraction = np.where(seen > 0, filled / np.maximum(seen, 1), 1.0)
    return template, torch.from_numpy(fraction).to(session.modules["labels"].fraction)
