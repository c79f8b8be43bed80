"""Phase ``autoencoder``: the feature autoencoder learns to reconstruct images (section 5.3.2)."""

from __future__ import annotations

from deepatlas.nn import Autoencoder
from deepatlas.train.feed.batches import Batches
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


def autoencoder_phase(session: Session, batches: Batches) -> Phase:
    """Minimise the reconstruction error of augmented images on the loss grid."""
    config = session.config.autoencoder
    model: Autoencoder = session.modules["autoencoder"]

    def step(_: int):
        drawn = batches.draw(config.batch, session.generator)
        for rows in session.parts(config.batch):
            _x, image, _mask = batches.take(drawn, rows)
            with session.autocast():
                loss = model.loss(image) * (len(rows) / config.batch)
            yield loss, lambda loss=loss: {"reconstruction_mse": loss.item()}

    return Phase(
        name="autoencoder",
        steps=config.steps,
        parameters=[(list(model.parameters()), 1.0)],
        schedule=Schedule(config.lr, config.decay),
        step=step,
        batch=lambda generator: batches.record(config.batch, generator),
        clip=session.config.train.clip,
    )
