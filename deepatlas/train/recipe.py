"""The recipe of a run: which modules it trains, and its phases in order.

A new phase is one file in :mod:`deepatlas.train.phases` and one line in :func:`recipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from deepatlas.config import Config
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.losses.similarity import freeze
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.phases.autoencoder import autoencoder_phase
from deepatlas.train.phases.coarse import TemplateCrops, coarse_phase
from deepatlas.train.phases.distil import distil_phase
from deepatlas.train.phases.head import head_phase
from deepatlas.train.phases.level import level_phase
from deepatlas.train.phases.register import CohortCoordinates, predict_sweep, register_sweep


def recipe(
    session: Session, array: ExamArray, picture: Callable[[int], None] | None = None
) -> Iterator[Phase | Sweep]:
    """The phases of a run over the exams of ``array``, each made when the ones before it have ended.

    The session's atlas has been seeded. ``picture(level)`` is called when a level has ended.
    """
    config, network = session.config, session.modules["network"]
    batches = Batches(array, array.ids, config.data, config.loss.size)

    if config.loss.similarity == "features":
        yield autoencoder_phase(session, batches)
    autoencoder = freeze(session.modules["autoencoder"])

    yield coarse_phase(session, _crops(session))

    similarity = FeatureSimilarity(autoencoder, config.loss.similarity, config.loss.window)
    loss = RegistrationLoss(config.loss, similarity, config.network.size)
    coarsest = network.levels - 1
    for level in range(coarsest, config.network.finest_level - 1, -1):
        if level < coarsest and config.train.head_steps:
            yield head_phase(session, batches, level)
        yield level_phase(session, batches, loss, level, partial(picture, level) if picture else None)

    for number in range(len(config.distil.steps)):
        yield predict_sweep(session, array, number)
        yield register_sweep(session, array, number)
        yield distil_phase(session, array, number)


def make_modules(config: Config, exams: int) -> dict[str, Any]:
    """The modules that the recipe trains on a number of exams, newly initialised, on the CPU."""
    net = config.network
    modules: dict[str, Any] = {
        "network": CoordinateNetwork(net),
        "atlas": Atlas(net.atlas_size),
        "autoencoder": Autoencoder(config.autoencoder.channels, net.groups),
    }
    if config.distil.steps:
        finest = modules["network"].level_size(net.finest_level)
        modules["cohort"] = CohortCoordinates(exams, max(finest, config.refine.control), net.atlas_size)
    return modules


def _crops(session: Session) -> TemplateCrops:
    config, facts = session.config, session.facts
    assert facts is not None
    return TemplateCrops(
        session.modules["atlas"],
        facts.seed_mask,
        config.network.size,
        config.train.extent,
        config.coarse,
        config.data,
    )
