"""Image similarity: correlation in feature space (eq. 9), and the image errors of the ablation (section 5.4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.nn import Autoencoder
from deepatlas.nn.autoencoder import histogram_map


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x [B, C, D, H, W]`` weighted by ``mask [B, 1, D, H, W]``: ``[B]``; 0 where the mask is empty."""
    weight = mask.flatten(1).sum(1) * x.shape[1]
    return (x * mask).flatten(1).sum(1) / weight.clamp_min(1e-6)


class FeatureSimilarity:
    """Dissimilarity of two images over a mask.

    Args:
        autoencoder: the frozen network of ``kind="features"``; not used by the other kinds.
        kind: what images are compared by. ``"features"``: 1 - NCC of autoencoder features, averaged over channels and
            feature levels (eq. 9). ``"intensity"``: 1 - NCC of the images themselves. ``"histogram"``: 1 - NCC of the
            images after the contrast curve of section 5.3.1, which spreads soft tissue. ``"mae"`` and ``"mse"``: mean
            absolute and mean squared error of the images, the ablations of section 5.4.3.
        window: side of the NCC window in voxels of the finest feature level, halved (and kept odd) at each further
            level; None is the global form.

    Raises:
        ValueError: ``kind="features"`` without an autoencoder.
    """

    def __init__(self, autoencoder: Autoencoder | None, kind: str = "features", window: int | None = None):
        if kind == "features" and autoencoder is None:
            raise ValueError("FeatureSimilarity: kind 'features' needs an autoencoder")
        self.autoencoder, self.kind, self.window = autoencoder, kind, window

    def encode(self, image: Tensor) -> list[Tensor]:
        """The maps by which images ``[B, 1, D, H, W]`` in [0, 1] are compared, finest level first."""
        if self.kind == "features":
            assert self.autoencoder is not None
            return self.autoencoder.features(image)
        return [histogram_map(image) if self.kind == "histogram" else image]

    def __call__(self, moving: Tensor, fixed_features: list[Tensor], mask: Tensor) -> Tensor:
        """Dissimilarity ``[B]`` of images ``[B, 1, D, H, W]`` to fixed images that :meth:`encode` has encoded."""
        total = moving.new_zeros(moving.shape[0])
        for level, (m, f) in enumerate(zip(self.encode(moving), fixed_features, strict=True)):
            weight = mask if m.shape[2:] == mask.shape[2:] else ops.resize(mask, m.shape[2:])
            if self.kind == "mse":
                total = total + masked_mean((m - f).square(), weight)
            elif self.kind == "mae":
                total = total + masked_mean((m - f).abs(), weight)
            else:
                window = None if self.window is None else max(3, (self.window >> level) | 1)
                total = total + 1 - ops.ncc(m, f, weight, window=window).mean(1)
        return total / len(fixed_features)


@torch.no_grad()
def freeze(module: torch.nn.Module) -> torch.nn.Module:
    """Exclude a module from training, in place, and return it; gradients still pass through it to its input."""
    return module.eval().requires_grad_(False)
