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
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork, LabelAtlas
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.phases.autoencoder import autoencoder_phase
from deepatlas.train.phases.coarse import TemplateCrops, coarse_phase
from deepatlas.train.phases.distil import distil_phase, parent_phase
from deepatlas.train.phases.head import head_phase
from deepatlas.train.phases.labels import level_labels, round_labels
from deepatlas.train.phases.level import level_phase
from deepatlas.train.phases.register import (
    CohortCoordinates,
    parent_sweep,
    predict_sweep,
    register_sweep,
)


def recipe(
    session: Session,
    array: ExamArray,
    picture: Callable[[int], None] | None = None,
    labels: LabelMaps | None = None,
    *,
    region: bool = False,
) -> Iterator[Phase | Sweep]:
    """The phases of a run over the exams of ``array``, each made when the ones before it have ended.

    The session's atlas has been seeded. ``picture(level)`` is called when a level has ended. ``labels`` are those of
    the exams of ``array`` where the settings use them (``loss.labels``). ``region`` is whether the run is one on crops,
    whose cohort starts with the coordinates of the levels above (section 5.2.4).
    """
    config, network = session.config, session.modules["network"]
    batches = Batches(array, array.ids, config.data, config.loss.size)
    with_labels = Batches(array, array.ids, config.data, config.loss.size, labels) if labels else batches

    if config.loss.similarity == "features":
        yield autoencoder_phase(session, batches)
    autoencoder = freeze(session.modules["autoencoder"])

    if not region:
        yield coarse_phase(session, _crops(session))
    else:
        yield parent_phase(session, array)

    similarity = FeatureSimilarity(autoencoder, config.loss.similarity, config.loss.window)
    loss = RegistrationLoss(config.loss, similarity, config.network.size)
    coarsest = network.levels - 1
    for level in range(coarsest, config.network.finest_level - 1, -1):
        if level < coarsest and config.train.head_steps:
            yield head_phase(session, batches, level)
        if labels:
            yield level_labels(session, array, labels, level)
        yield level_phase(session, with_labels, loss, level, partial(picture, level) if picture else None)

    for number in range(len(config.distil.steps)):
        if region and number == 0 and not any(config.train.steps):
            # Nothing has learned beyond the levels above, whose own coordinates are better than what the network has
            # kept of them.
            yield parent_sweep(session, array)
        else:
            yield predict_sweep(session, array, number)
        if labels:
            yield round_labels(session, array, labels, number)
        yield register_sweep(session, array, number, labels)
        taught = labels if config.distil.labels else None
        if taught:
            yield round_labels(session, array, taught, number, "taught")
        yield distil_phase(session, array, number, taught)


def make_modules(config: Config, exams: int, structures: int = 0, *, region: bool = False) -> dict[str, Any]:
    """The modules that the recipe trains on a number of exams, newly initialised, on the CPU.

    ``structures`` is the number of those that were drawn in the exams; 0 where labels are not used. ``region`` as in
    :func:`recipe`.
    """
    net = config.network
    modules: dict[str, Any] = {
        "network": CoordinateNetwork(net),
        "atlas": Atlas(net.atlas_size),
        "autoencoder": Autoencoder(config.autoencoder.channels, net.groups),
    }
    if config.distil.steps or region:
        finest = modules["network"].level_size(net.finest_level)
        modules["cohort"] = CohortCoordinates(exams, max(finest, config.refine.control), net.atlas_size)
    if structures:
        # Twice the resolution at which masks are compared, as that of the atlas; but no more than exams have.
        size = min(net.atlas_size, net.size, 2 * config.loss.size)
        modules["labels"] = LabelAtlas(structures, size)
    return modules


def _crops(session: Session) -> TemplateCrops:
    config, facts = session.config, session.facts
    assert facts is not None and facts.seed_mask is not None
    return TemplateCrops(
        session.modules["atlas"],
        facts.seed_mask,
        config.network.size,
        config.train.extent,
        config.coarse,
        config.data,
    )
