"""The start of a run from the weights of a trained model (``--init``), instead of from one exam."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.model.engine import Engine
from deepatlas.space.affine import affine_coords
from deepatlas.space.preprocess import foreground_mask
from deepatlas.train.loop import Facts, Session

# The settings of the network that its weights do not depend on.
_FREE = ("finest_level", "atlas_size")


def load_start(name: str, config: Config, option: str = "--init") -> Engine:
    """The model of coordinates that ``option`` names, on the CPU.

    Raises:
        DeepAtlasError: there is no such model, it was trained on labels, or its network is another one than that of the
            settings.
    """
    model = Engine.load(name, "cpu")
    if model.structures:
        raise DeepAtlasError(
            f"{option} {name}: was trained on labels and has no coordinates any more; give the model that it came from"
        )
    theirs, ours = asdict(model.config.network), asdict(config.network)
    differing = [key for key in theirs if key not in _FREE and theirs[key] != ours[key]]
    if differing:

        def given(network: dict) -> str:
            values = {k: list(v) if isinstance(v := network[k], tuple) else v for k in differing}
            return " ".join(f"network.{k}={str(v).replace(' ', '')}" for k, v in values.items())

        raise DeepAtlasError(
            f"{option} {name}: its network has {given(theirs)}, and this run {given(ours)}; give the same, or leave it "
            "(and --preset) out to have the settings of the model"
        )
    return model


@torch.no_grad()
def start_from(session: Session, model: Engine, name: str, seed_exam: str) -> Facts:
    """Fill the session's network and atlas with those of a model; returns the facts of a run that starts so.

    Coordinates mean nothing without their atlas, so an atlas of another size is resampled and not left out.

    Args:
        session: a run that has done no step.
        model: what :func:`load_start` returned.
        name: what the user calls the model.
        seed_exam: the exam that a run without a model would have started from.
    """
    session.modules["network"].load_state_dict(model.network.state_dict())
    atlas, values = session.modules["atlas"].values, model.atlas
    atlas.copy_(values if values.shape == atlas.shape else ops.resize(values, atlas.shape[2:]))
    size = model.atlas.shape[-1]
    what = (
        "atlas" if size == atlas.shape[-1] else f"atlas (resampled from {size} to {atlas.shape[-1]} voxels)"
    )
    theirs, ours = model.intensity, session.config.data.intensity
    if theirs != ours:
        session.log.say(f"{name} was trained with data.intensity={theirs}, and this run has {ours}")
    left_out = ", no pretraining" if session.config.coarse.steps == 0 else ""
    session.log.say(f"starts from {name} ({model.fingerprint}): its network and {what}{left_out}")
    # The inverse of normalize(): the foreground is defined in Hounsfield units, or on the scale of their window.
    inside = foreground_mask(atlas[0, 0].cpu().numpy() * 512 - 256, session.config.data.intensity)
    # Beyond the extent an atlas continues its border, and shows no anatomy.
    place = affine_coords(torch.eye(3, 4)[None], atlas.shape[2:])[0].abs().amax(0).numpy()
    mask = torch.from_numpy((inside & (place <= session.config.train.extent)).astype(np.float32))
    return Facts(seed_exam, mask[None, None], init={"model": name, "fingerprint": model.fingerprint})
