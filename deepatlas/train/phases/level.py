"""Phases ``level-L``: both registration tasks train the network and the atlas at one level (5.2.3 and 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable

from deepatlas.losses import LabelTask, RegistrationLoss
from deepatlas.nn import Atlas, CoordinateNetwork, LabelAtlas
from deepatlas.train.feed.batches import Batches
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


def level_phase(
    session: Session,
    batches: Batches,
    loss: RegistrationLoss,
    level: int,
    ended: Callable[[], None] | None = None,
) -> Phase:
    """Minimise the registration losses of one level; each finer level starts with a lower learning rate.

    ``ended`` is called when the level has ended. Where ``batches`` have labels, the masks of the atlas are trained too.
    """
    config = session.config
    network: CoordinateNetwork = session.modules["network"]
    atlas: Atlas = session.modules["atlas"]
    masks: LabelAtlas | None = session.modules["labels"] if batches.labels else None
    order, count = network.levels - 1 - level, config.train.batch

    def step(_: int):
        drawn = batches.draw(count, session.generator)
        for rows in session.parts(count):
            # A part of the batch also computes the exam that its last exam is paired with, the first of the next part.
            complete = len(rows) == count
            taken = rows if complete else [*rows, rows.stop % count]
            x, image, mask = batches.take(drawn, taken)
            with session.autocast():
                coords = network(x, level)
            labels = LabelTask(batches.masks(drawn, taken), masks) if masks else None
            terms = loss(coords, image, mask, atlas, None if complete else count, labels)
            yield terms.total, terms.scalars

    return Phase(
        name=f"level-{level}",
        steps=config.train.steps[order],
        parameters=[
            (list(network.parameters()), 1.0),
            (list(atlas.parameters()) + (list(masks.parameters()) if masks else []), config.train.atlas_lr),
        ],
        schedule=Schedule(
            config.train.lr * config.train.level_decay**order,
            config.train.decay,
            config.train.warmup,
            config.train.warmup_from,
        ),
        step=step,
        batch=lambda generator: batches.record(count, generator),
        ended=ended,
        clip=config.train.clip,
        averaged=tuple(network.parameters()),
        average=config.train.average,
    )
