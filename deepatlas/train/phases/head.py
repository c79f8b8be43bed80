"""Phases ``head-L``: a new head learns to repeat the prediction of the coarser level (section 5.2.3)."""

from __future__ import annotations

import torch

import deepatlas_ops as ops
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import CoordinateNetwork
from deepatlas.train.feed.batches import Batches
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


def head_phase(session: Session, batches: Batches, level: int) -> Phase:
    """Minimise the squared difference to the upsampled prediction of ``level + 1``; only the new head learns."""
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
