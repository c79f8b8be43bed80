"""The two registration tasks of section 2.3: atlas to exam (explicit) and exam to exam (implicit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import LossConfig
from deepatlas.losses.similarity import FeatureSimilarity
from deepatlas.nn import Atlas
from deepatlas.space.affine import affine_coords


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
        whole = count is None
        pairs = bool(cfg.implicit) and len(coords) > 1
        count = len(coords) if whole else count
        with torch.no_grad():
            images = (image, mask, *self.similarity.encode(image))
            exams = _Images(*(_and_next(x, whole)[0] for x in images))
        moving, fixed = _AndNext.apply(coords, whole) if pairs else _and_next(coords, whole)
        folds = ops.folds(moving.detach(), exams.mask).sum() / count

        explicit = self._explicit(moving, exams, atlas, count) if cfg.explicit else None
        implicit, overlap = None, coords.new_zeros(())
        if pairs:
            following = _Images(*(_and_next(x, whole)[1] for x in images))
            implicit, overlap = self._implicit(moving, fixed, exams, following, count)
        zero = coords.new_zeros(())
        explicit = explicit or (zero,) * 3
        implicit = implicit or (zero,) * 3
        total = cfg.explicit * self._weighted(*explicit) + cfg.implicit * self._weighted(*implicit)
        return LossTerms(total, *explicit, *implicit, overlap, folds)

    def _on_loss_grid(self, coords: Tensor, size: torch.Size) -> Tensor:
        if self._extent == 1:
            return ops.resize(coords, size)
        theta = self._extent * torch.eye(3, 4, dtype=coords.dtype, device=coords.device)
        return ops.affine_resample(coords, theta.expand(len(coords), 3, 4), size, padding="border")

    def _explicit(self, coords, exams, atlas, count):
        warped = atlas(coords)
        terms = (
            self.similarity(warped, exams.features, exams.mask),
            ops.smoothness_loss(coords, exams.mask, orthonormality=self.config.orthonormality),
            self._edges(warped, exams.image, exams.mask),
        )
        return tuple(term.sum() / count for term in terms)

    def _implicit(self, moving, fixed, exams, following, count):
        """A pair that does not share enough to be compared counts as none, and adds nothing."""
        cfg = self.config
        warp = ops.implicit_warp(
            moving,
            fixed,
            iterations=cfg.iterations,
            tolerance=cfg.tolerance,
            step=cfg.step,
            mask=exams.mask,
        )
        displacement = warp.displacement
        warped = ops.warp(exams.image, displacement, padding="zeros")
        with torch.no_grad():
            moved_mask = ops.warp(exams.mask, displacement, padding="zeros")
            shared = ((moved_mask > 0.5) & warp.valid) * following.mask
            overlap = shared.flatten(1).sum(1) / following.mask.flatten(1).sum(1).clamp_min(1)
            use = (overlap >= cfg.min_overlap).to(shared.dtype)
            shared = shared * use[:, None, None, None, None]
        similarity = self.similarity(warped, following.features, shared) * use
        identity = torch.eye(3, 4, dtype=displacement.dtype, device=displacement.device)[None]
        identity = affine_coords(identity, displacement.shape[2:])
        smoothness = ops.smoothness_loss(displacement + identity, shared, orthonormality=cfg.orthonormality)
        edges = self._edges(warped, following.image, shared) * use
        terms = (similarity, smoothness * use, edges)
        return tuple(term.sum() / count for term in terms), overlap.sum() / count

    def _weighted(self, similarity, smoothness, edges):
        return similarity + self.config.smoothness * smoothness + self.config.prewitt * edges

    def _edges(self, moving, fixed, mask):
        return ops.edge_difference(moving, fixed, mask) if self.config.prewitt else moving.new_zeros(1)


class _Images:
    """What exams are compared by."""

    def __init__(self, image: Tensor, mask: Tensor, *features: Tensor):
        self.image, self.mask, self.features = image, mask, list(features)


def _and_next(x: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """The exams that are moved, and those they are moved onto: see :meth:`RegistrationLoss.__call__`."""
    return (x, x.roll(-1, 0)) if whole else (x[:-1], x[1:])


class _AndNext(torch.autograd.Function):
    """``_and_next``, with a gradient put together once: that of a slice would be padded with zeros each time."""

    @staticmethod
    def forward(ctx, x, whole):
        ctx.whole = whole
        return _and_next(x, whole)

    @staticmethod
    def backward(ctx, grad, grad_next):
        if ctx.whole:
            return grad_next.roll(1, 0).add_(grad), None
        total = torch.cat([grad, torch.zeros_like(grad[:1])])
        total[1:] += grad_next
        return total, None
