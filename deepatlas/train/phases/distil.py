"""Phases ``distil-N``: the network learns the registered coordinates of augmented training exams (not in the paper).

An augmented exam is a known map of an exam with known coordinates, so its coordinates are known too. The network
learns them directly, which costs a fraction of the registration losses. Where labels are used (``distil.labels``), the
masks of the atlas pulled to the exam are compared with the drawn ones besides (eq. 13).

Phase ``parent`` teaches the network of a region (section 5.2.4) in the same way where the levels above put its crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.losses import LabelTask, on_loss_grid
from deepatlas.losses.similarity import masked_mean
from deepatlas.train.feed.augment import Contrast
from deepatlas.train.feed.batches import Batches, Drawn
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


def distil_phase(session: Session, array: ExamArray, number: int, labels: LabelMaps | None = None) -> Phase:
    """Teach the network the registered coordinates of a round."""
    return teach(session, array, f"distil-{number}", session.config.distil.steps[number], labels)


def parent_phase(session: Session, array: ExamArray) -> Phase:
    """Teach the network of a region the coordinates of the levels above, from which the cohort starts."""
    return teach(session, array, "parent", session.config.region.steps)


def teach(
    session: Session, array: ExamArray, name: str, steps: int, labels: LabelMaps | None = None
) -> Phase:
    """Minimise a Huber loss between the network's coordinates and those of the cohort.

    The foreground has weight 1, the background ``distil.background``. The masks of the atlas stay as they are.
    """
    config = session.config
    settings = config.distil
    network, cohort = session.modules["network"], session.modules["cohort"]
    level, count = config.network.finest_level, settings.batch
    data = replace(config.data, elastic=settings.elastic)
    batches = Batches(array, array.ids, data, config.network.size, labels)

    def draw(generator: torch.Generator) -> tuple[Drawn, Contrast]:
        drawn = batches.draw(count, generator)
        return drawn, Contrast.draw(count, config.network.size, generator)

    def take(drawn: Drawn, contrast: Contrast, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, _, mask = batches.take(drawn, rows)
        x = contrast.rows(rows).apply(x, mask, settings.contrast)
        return x, mask, *coordinate_goal(cohort, drawn, rows, mask, settings.background)

    def step(_: int):
        drawn, contrast = draw(session.generator)
        for rows in session.parts(count):
            x, mask, goal, weight = take(drawn, contrast, rows)
            with session.autocast():
                predicted = network(x, level)
            predicted = ops.resize(predicted, goal.shape[2:])
            difference = F.huber_loss(predicted, goal, reduction="none", delta=settings.delta)
            total = 100 * masked_mean(difference, weight).sum() / count
            scalars = {
                "coordinate_error": masked_mean((predicted.detach() - goal).abs(), weight).sum() / count
            }
            if labels:
                task = LabelTask(batches.masks(drawn, rows), session.modules["labels"], learns=False)
                coords = ops.resize(predicted, (config.loss.size,) * 3)
                wrong = task.explicit(coords, on_loss_grid(x, mask, config.loss.size)[1], count)
                total = total + settings.labels * wrong
                scalars["explicit_labels"] = wrong.detach()
            yield total, lambda scalars=scalars: {name: value.item() for name, value in scalars.items()}

    def record(generator: torch.Generator) -> dict:
        drawn, contrast = draw(generator)
        x, _, goal, weight = take(drawn, contrast, range(count))
        return {
            "exams": [array.ids[i] for i in drawn.indices],
            "input": x,
            "coords": goal,
            "mask": weight,
            "theta": drawn.augmentation.theta,
            "control": drawn.augmentation.control,
        }

    return Phase(
        name=name,
        steps=steps,
        parameters=[(list(network.parameters()), 1.0)],
        schedule=Schedule(settings.lr, warmup=100, length=steps),
        step=step,
        batch=record,
        clip=config.train.clip,
        averaged=tuple(network.parameters()),
        average=settings.average,
    )


def coordinate_goal(
    cohort: nn.Module, drawn: Drawn, rows: Sequence[int], mask: Tensor, background: float
) -> tuple[Tensor, Tensor]:
    """The coordinates of the given augmented exams, ``[n, 3, m, m, m]``, and the weight of each voxel.

    ``mask [n, 1, S, S, S]`` is the foreground of the augmented exams; elsewhere the weight is ``background``, or 0
    beyond the original exam's grid.
    """
    size = cohort.coords.shape[-1]
    place = drawn.augmentation.rows(rows).coords(size, mask.device)
    goal = ops.resample(cohort.take([drawn.indices[r] for r in rows], mask.device), place, padding="border")
    # Beyond its grid the original exam has no coordinates.
    known = (place.abs().amax(1, keepdim=True) <= 1.02).to(mask.dtype)
    inside = F.adaptive_avg_pool3d(mask, (size,) * 3)
    return goal, inside + background * known * (1 - inside)
