"""Training phase of the feature autoencoder (section 5.3.2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deepatlas.nn import Autoencoder
from deepatlas.train.loop import Phase, Schedule, Session


def autoencoder_phase(session: Session, batch: Callable[[int], tuple[Tensor, Tensor]]) -> Phase:
    """``batch(n)`` draws augmented images and masks on the loss grid, ``[n, 1, D, H, W]``."""
    config = session.config.autoencoder
    model: Autoencoder = session.modules["autoencoder"]

    def step(_: int):
        image, _mask = batch(config.batch)
        loss = model.loss(image)
        return loss, lambda: {"reconstruction_mse": loss.item()}

    return Phase(
        name="autoencoder",
        steps=config.steps,
        parameters=[(list(model.parameters()), 1.0)],
        schedule=Schedule(config.lr, config.decay),
        step=step,
        clip=session.config.train.clip,
    )
