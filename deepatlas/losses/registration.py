"""The two registration tasks of section 2.3: atlas to exam (explicit) and exam to exam (implicit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import LossConfig
from deepatlas.data.augment import affine_coords
from deepatlas.losses.similarity import FeatureSimilarity, edge_difference
from deepatlas.nn import Atlas


def on_loss_grid(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Network input and foreground ``[B, 1, S, S, S]`` as block means of side ``size``; the mask by majority."""
    factor = image.shape[-1] // size
    if factor > 1:
        image, mask = F.avg_pool3d(image, factor), F.avg_pool3d(mask.to(image.dtype), factor)
    return image, (mask > 0.5).to(image.dtype)


@dataclass
class LossTerms:
    """The objective and its parts, each a mean over the batch (0-d tensors).

    A part of a batch holds its share of the means, so that those of all parts add up.
    """

    total: Tensor
    explicit_similarity: Tensor
    explicit_smoothness: Tensor
    explicit_edges: Tensor
    implicit_similarity: Tensor
    implicit_smoothness: Tensor
    implicit_edges: Tensor
    overlap: Tensor  # fraction of the fixed foreground that a pair shares
    folds: Tensor  # fraction of an exam's foreground where its coordinate map folds

    def scalars(self) -> dict[str, float]:
        names = list(self.__dataclass_fields__)
        values = torch.stack([getattr(self, n).detach().float() for n in names]).tolist()
        return dict(zip(names, values, strict=True))


class RegistrationLoss:
    """Eqs 2 and 3 on one batch: similarity, smoothness and edges of both warps, masked to the foreground (5.1.6).

    ``input_size`` is the side of the network's input, whose corners coordinate maps share. Images on a smaller
    loss grid are averages of blocks of the input, whose corner voxels lie further in.
    """

    def __init__(self, config: LossConfig, similarity: FeatureSimilarity, input_size: int | None = None):
        self.config, self.similarity = config, similarity
        size = input_size or config.size
        self._extent = 1 - (size // config.size - 1) / max(1, size - 1)

    def __call__(
        self, coords: Tensor, image: Tensor, mask: Tensor, atlas: Atlas, count: int | None = None
    ) -> LossTerms:
        """``coords [B, 3, s, s, s]`` of any resolution; ``image``, ``mask`` ``[B, 1, n, n, n]`` on the loss grid.

        Exam i is moved onto exam i + 1, the last one onto the first. ``count`` tells that these are consecutive exams
        of a larger batch of ``count``: the last one is then there for the pair before it alone.
        """
        cfg = self.config
        coords = self._on_loss_grid(coords, image.shape[2:])
        own = len(coords) if count is None else len(coords) - 1
        count = count or own
        with torch.no_grad():
            features = self.similarity.encode(image)
            folds = ops.folds(coords[:own], mask[:own]).sum() / count

        explicit = self._explicit(
            coords[:own], image[:own], [f[:own] for f in features], mask[:own], atlas, count
        )
        implicit, overlap = self._implicit(coords, image, features, mask, own, count)
        zero = coords.new_zeros(())
        explicit = explicit or (zero,) * 3
        implicit = implicit or (zero,) * 3
        weights = torch.tensor([1.0, cfg.smoothness, cfg.prewitt], device=coords.device)
        total = cfg.explicit * (torch.stack(explicit) * weights).sum()
        total = total + cfg.implicit * (torch.stack(implicit) * weights).sum()
        return LossTerms(total, *explicit, *implicit, overlap, folds)

    def _on_loss_grid(self, coords: Tensor, size: torch.Size) -> Tensor:
        if self._extent == 1:
            return ops.resize(coords, size)
        theta = self._extent * torch.eye(3, 4, dtype=coords.dtype, device=coords.device)
        return ops.affine_resample(coords, theta.expand(len(coords), 3, 4), size, padding="border")

    def _explicit(self, coords, image, features, mask, atlas, count):
        if not self.config.explicit:
            return None
        warped = atlas(coords)
        terms = (
            self.similarity(warped, features, mask),
            ops.smoothness_loss(coords, mask, orthonormality=self.config.orthonormality),
            self._edges(warped, image, mask),
        )
        return tuple(term.sum() / count for term in terms)

    def _implicit(self, coords, image, features, mask, own, count):
        """A pair that does not share enough to be compared counts as none, and adds nothing."""
        cfg = self.config
        zero = coords.new_zeros(())
        if not cfg.implicit or coords.shape[0] < 2:
            return None, zero
        fixed = (torch.arange(own, device=coords.device) + 1) % coords.shape[0]
        warp = ops.implicit_warp(
            coords[:own],
            coords[fixed],
            iterations=cfg.iterations,
            tolerance=cfg.tolerance,
            step=cfg.step,
            mask=mask[:own],
        )
        displacement = warp.displacement
        both = torch.cat([image[:own], mask[:own]], 1)
        warped, moved_mask = ops.warp(both, displacement, padding="zeros").split(1, 1)
        with torch.no_grad():
            shared = mask[fixed] * (moved_mask > 0.5) * warp.valid
            overlap = shared.flatten(1).sum(1) / mask[fixed].flatten(1).sum(1).clamp_min(1)
            use = (overlap >= cfg.min_overlap).to(shared.dtype)
            shared = shared * use[:, None, None, None, None]
        similarity = self.similarity(warped, [f[fixed] for f in features], shared) * use
        absolute = displacement + affine_coords(
            torch.eye(3, 4).to(displacement)[None], displacement.shape[2:]
        )
        smoothness = ops.smoothness_loss(absolute, shared, orthonormality=cfg.orthonormality) * use
        edges = self._edges(warped, image[fixed], shared) * use
        return tuple(term.sum() / count for term in (similarity, smoothness, edges)), overlap.sum() / count

    def _edges(self, moving, fixed, mask):
        return edge_difference(moving, fixed, mask) if self.config.prewitt else moving.new_zeros(1)
