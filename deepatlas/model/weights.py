"""The file of a model: its weights, its atlas or its structures, its settings and its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.model.structures import Structures
from deepatlas.nn import Atlas, CoordinateNetwork, SegmentationNetwork

# The kinds of model files, as their entry "kind" tells them.
COORDINATES, MASKS = "model", "segmentation model"


@dataclass(frozen=True)
class ModelParts:
    """What the file of a model holds.

    Attributes:
        config: the settings of the run that trained it.
        network: the network.
        atlas: the atlas; None in a model that was trained on labels.
        structures: the structures of a model that was trained on labels; None in others.
        card: facts about the model.
    """

    config: Config
    network: nn.Module
    atlas: Atlas | None
    structures: Structures | None
    card: Mapping[str, Any]


def read_model(path: Path) -> ModelParts:
    """Read the file of a model, onto the CPU and as float32.

    Raises:
        DeepAtlasError: the file is missing, damaged, no model, or of another version of the network.
    """
    state = checkpoint.load(path, "model")
    if state.get("kind") not in (COORDINATES, MASKS):
        raise DeepAtlasError(f"{path}: a checkpoint of a run, not a model; load the run's model.pt")
    config = Config.from_dict(state["config"])
    network: nn.Module
    if state["kind"] == MASKS:
        structures = Structures.from_dict(state["structures"])
        network, atlas = SegmentationNetwork(config.network, len(structures.names)), None
    else:
        structures = None
        network, atlas = CoordinateNetwork(config.network), Atlas(config.network.atlas_size).float()
    try:
        network.float().load_state_dict(state["network"])
        if atlas is not None:
            atlas.load_state_dict(state["atlas"])
    except RuntimeError as error:
        # The message of PyTorch lists every tensor.
        what = str(error).splitlines()[-1].strip()[:120]
        raise DeepAtlasError(
            f"{path}: its weights are not those of this version's network ({what}); use the version of deepatlas that "
            "wrote it, or train again"
        ) from None
    return ModelParts(config, network, atlas, structures, state["card"])


def write_model(path: Path, parts: ModelParts, half: bool = False) -> None:
    """Write a file that :func:`read_model` reads. The file is complete or absent.

    ``half`` rounds the weights to float16. Raises :class:`~deepatlas.errors.DataError` if it cannot be written.
    """
    number = torch.float16 if half else torch.float32

    def rounded(module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: values.to(number) for name, values in module.state_dict().items()}

    state: dict[str, Any] = {
        "kind": MASKS if parts.structures else COORDINATES,
        "config": parts.config.to_dict(),
        "network": rounded(parts.network),
    }
    if parts.structures:
        state["structures"] = parts.structures.to_dict()
    elif parts.atlas is not None:
        state["atlas"] = rounded(parts.atlas)
    state["card"] = dict(parts.card)
    checkpoint.save(path, state)
