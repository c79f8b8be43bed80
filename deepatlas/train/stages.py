"""Staged optimisation, coarsest head first (sections 5.2.3 and 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.losses import RegistrationLoss
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.train.loop import Phase, Schedule, Session

Batch = Callable[[int], tuple[Tensor, Tensor, Tensor]]


def stage_phases(session: Session, batch: Batch, loss: RegistrationLoss) -> Iterator[Phase]:
    """Phases of every level down to the finest, each after the warm start of its head.

    ``batch(n)`` draws augmented network input ``[n, 1, S, S, S]`` and, on the loss grid, image and mask.
    """
    config = session.config
    network: CoordinateNetwork = session.modules["network"]
    atlas: Atlas = session.modules["atlas"]
    coarsest = network.levels - 1
    for order, steps in enumerate(config.train.steps):
        level = coarsest - order
        if order and config.train.head_steps:
            yield _head_phase(session, batch, level)
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
            step=_registration_step(network, atlas, level, config.train.batch, batch, loss),
            clip=config.train.clip,
            averaged=tuple(network.parameters()),
            average=config.train.average,
        )


def _registration_step(network, atlas, level, count, batch, loss):
    def step(_: int):
        network_input, image, mask = batch(count)
        terms = loss(network(network_input, level), image, mask, atlas)
        return terms.total, terms.scalars

    return step


def _head_phase(session: Session, batch: Batch, level: int) -> Phase:
    """A new head learns to repeat the upsampled prediction of the level below; all else is frozen."""
    config = session.config
    network: CoordinateNetwork = session.modules["network"]

    def step(_: int):
        network_input, _image, _mask = batch(config.train.batch)
        with torch.no_grad():
            below = network(network_input, level + 1)
        predicted = network(network_input, level)
        difference = (predicted - ops.resize(below, predicted.shape[2:])).square()
        loss = masked_mean(difference, torch.ones_like(difference[:, :1])).mean()
        return 100 * loss, lambda: {"head_difference": loss.item() ** 0.5}

    return Phase(
        name=f"head-{level}",
        steps=config.train.head_steps,
        parameters=[(network.head_parameters(level), 1.0)],
        schedule=Schedule(config.train.lr, config.train.decay, config.train.warmup, config.train.warmup_from),
        step=step,
        clip=config.train.clip,
    )
