"""Staged optimisation, coarsest head first (sections 5.2.3 and 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deepatlas_ops as ops
from deepatlas.losses import RegistrationLoss
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.train.feed.batches import Batches
from deepatlas.train.loop import Phase, Schedule, Session


def stage_phases(
    session: Session, batches: Batches, loss: RegistrationLoss, picture: Callable[[int], None] | None = None
) -> Iterator[Phase]:
    """Phases of every level down to the finest, each after the warm start of its head.

    ``picture(level)`` is called when a level has ended.
    """
    config = session.config
    network: CoordinateNetwork = session.modules["network"]
    atlas: Atlas = session.modules["atlas"]
    coarsest = network.levels - 1
    for order, steps in enumerate(config.train.steps):
        level = coarsest - order
        if order and config.train.head_steps:
            yield _head_phase(session, batches, level)
        yield Phase(
            name=f"level-{level}",
            steps=steps,
            parameters=[
                (list(network.parameters()), 1.0),
                (list(atlas.parameters()), config.train.atlas_lr),
            ],
            schedule=Schedule(
                config.train.lr * config.train.level_decay**order,
                config.train.decay,
                config.train.warmup,
                config.train.warmup_from,
            ),
            step=_registration_step(session, batches, loss, level),
            batch=lambda generator: batches.record(config.train.batch, generator),
            ended=None if picture is None else partial(picture, level),
            clip=config.train.clip,
            averaged=tuple(network.parameters()),
            average=config.train.average,
        )


def _registration_step(session: Session, batches: Batches, loss: RegistrationLoss, level: int):
    network, atlas = session.modules["network"], session.modules["atlas"]
    count = session.config.train.batch

    def step(_: int):
        drawn = batches.draw(count, session.generator)
        for rows in session.parts(count):
            # A part of the batch also computes the exam that its last one is paired with: that of the next part.
            whole = len(rows) == count
            x, image, mask = batches.take(drawn, rows if whole else [*rows, rows.stop % count])
            with session.autocast():
                coords = network(x, level)
            terms = loss(coords, image, mask, atlas, None if whole else count)
            yield terms.total, terms.scalars

    return step


def _head_phase(session: Session, batches: Batches, level: int) -> Phase:
    """A new head learns to repeat the upsampled prediction of the level below; all else is frozen."""
    config = session.config
    network: CoordinateNetwork = session.modules["network"]

    count = config.train.batch

    def step(_: int):
        drawn = batches.draw(count, session.generator)
        for rows in session.parts(count):
            x, _image, _mask = batches.take(drawn, rows)
            with session.autocast():
                with torch.no_grad():
                    below = network(x, level + 1)
                predicted = network(x, level)
            difference = (predicted - ops.resize(below, predicted.shape[2:])).square()
            loss = masked_mean(difference, torch.ones_like(difference[:, :1])).sum() / count
            yield 100 * loss, lambda loss=loss: {"head_mse": loss.item()}

    return Phase(
        name=f"head-{level}",
        steps=config.train.head_steps,
        parameters=[(network.head_parameters(level), 1.0)],
        schedule=Schedule(config.train.lr, config.train.decay, config.train.warmup, config.train.warmup_from),
        step=step,
        batch=lambda generator: batches.record(count, generator),
        clip=config.train.clip,
    )
