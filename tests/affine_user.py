"""The model with known coordinates as the object that users hold, with all of its methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from affine_model import AffineModel

from deepatlas.api import Model
from deepatlas.model.map_cache import MapCache


class AffineUser(AffineModel, Model):
    """:class:`AffineModel` with the methods of :class:`~deepatlas.api.Model`."""

    # Set in place of the properties of the engine.
    size: int = 32
    crop: str | None = None
    atlas: torch.Tensor = torch.zeros(1, 1, 64, 64, 64)
    network: torch.nn.Module = torch.nn.Identity()
    cache: MapCache | None = None
    name = "affine"

    def __init__(self, size: int = 32, maps: dict[str, Callable] | None = None):
        AffineModel.__init__(self, size, maps=maps)
        self.passes = 0

    def map_exam(self, volume):
        self.passes += 1
        return AffineModel.map_exam(self, volume)
