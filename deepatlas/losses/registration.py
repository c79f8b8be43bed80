"""The two registration tasks of section 2.3: atlas to exam (explicit) and exam to exam (implicit)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import LossConfig
from deepatlas.losses.labels import LabelTask
from deepatlas.losses.similarity import FeatureSimilarity
from deepatlas.nn import Atlas
from deepatlas.space.affine import affine_coords


def on_loss_grid(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Network input and foreground mask ``[B, 1, S, S, S]``, averaged in blocks to ``[B, 1, size, size, size]``.

    The mask comes back as 0 and 1 in the image's dtype: 1 where more than half of the block is foreground.
    """
    factor = image.shape[-1] // size
    if factor > 1:
        image, mask = F.avg_pool3d(image, factor), F.avg_pool3d(mask.to(image.dtype), factor)
    return image, (mask > 0.5).to(image.dtype)


@dataclass
class LossTerms:
    """The objective and its terms, each a mean over the batch (0-d tensors).

    Computed on a part of a batch, every number is that part's share of the mean, so that the parts add up to it.
    """

    total: Tensor
    explicit_similarity: Tensor
    explicit_smoothness: Tensor
    explicit_edges: Tensor
    implicit_similarity: Tensor
    implicit_smoothness: Tensor
    implicit_edges: Tensor
    # Fraction of the fixed exam's foreground that a pair shares.
    overlap: Tensor
    # Fraction of an exam's foreground where its coordinate map folds.
    folds: Tensor
    # Errors of the masks in both tasks; None where labels are not used.
    explicit_labels: Tensor | None = None
    implicit_labels: Tensor | None = None

    def scalars(self) -> dict[str, float]:
        """All terms as Python floats, read from the device in one transfer."""
        names = [n for n in self.__dataclass_fields__ if getattr(self, n) is not None]
        values = torch.stack([getattr(self, n).detach().float() for n in names]).tolist()
        return dict(zip(names, values, strict=True))


class _Terms(NamedTuple):
    """The terms of one task: ``[B]`` for single exams or pairs, or 0-d for their share of the batch's mean."""

    similarity: Tensor
    smoothness: Tensor
    edges: Tensor

    def share(self, count: int) -> _Terms:
        """The sum over the exams, divided by the ``count`` exams of the full batch."""
        return _Terms(*(term.sum() / count for term in self))


class RegistrationLoss:
    """The losses of eqs 2 and 3 on one batch: similarity, smoothness and edges of both warps in the foreground (5.1.6).

    Args:
        config: weights and forms of the terms.
        similarity: what images are compared by.
        input_size: side of the network's input in voxels; coordinate maps share its corners. On a smaller loss grid,
            images are averages of blocks of the input, so that their corner voxels lie further in. None means that
            the input is as large as the loss grid.
    """

    def __init__(self, config: LossConfig, similarity: FeatureSimilarity, input_size: int | None = None):
        self.config, self.similarity = config, similarity
        size = input_size or config.size
        self._extent = 1 - (size // config.size - 1) / max(1, size - 1)

    def __call__(
        self,
        coords: Tensor,
        image: Tensor,
        mask: Tensor,
        atlas: Atlas,
        count: int | None = None,
        labels: LabelTask | None = None,
    ) -> LossTerms:
        """The losses of a batch; exam i is moved onto exam i + 1, and the last one onto the first.

        Args:
            coords: ``[B, 3, s, s, s]``, predicted coordinates at any resolution.
            image, mask: ``[B, 1, n, n, n]``, on the loss grid.
            atlas: the atlas of the explicit task.
            count: if given, the exams are consecutive exams of a larger batch of ``count`` exams. The last one then
                only serves as the target of the one before it, and its own terms belong to the next part.
            labels: the masks of these exams and of the atlas; not used where ``loss.labels`` is 0.
        """
        cfg = self.config
        if not cfg.labels:
            labels = None
        coords = self._on_loss_grid(coords, image.shape[2:])
        complete = count is None
        pairs = bool(cfg.implicit) and len(coords) > 1
        count = len(coords) if count is None else count
        with torch.no_grad():
            images = (image, mask, *self.similarity.encode(image))
            exams = _Images(*(_and_next(x, complete)[0] for x in images))
        moving, fixed = _AndNext.apply(coords, complete) if pairs else _and_next(coords, complete)
        folds = ops.folds(moving.detach(), exams.mask).sum() / count

        zero = coords.new_zeros(())
        explicit = implicit = _Terms(zero, zero, zero)
        overlap = zero
        masks = None if labels is None else [zero, zero]
        if cfg.explicit:
            explicit = self._explicit(moving, exams, atlas, count)
            if labels is not None and masks is not None:
                masks[0] = labels.explicit(moving, exams.mask, count)
        if pairs:
            following = _Images(*(_and_next(x, complete)[1] for x in images))
            implicit, overlap, warp, shared = self._implicit(moving, fixed, exams, following, count)
            if labels is not None and masks is not None:
                masks[1] = labels.implicit(warp, shared, count)
        total = cfg.explicit * self._weighted(explicit) + cfg.implicit * self._weighted(implicit)
        if masks is None:
            return LossTerms(total, *explicit, *implicit, overlap, folds)
        total = total + cfg.labels * (cfg.explicit * masks[0] + cfg.implicit * masks[1])
        return LossTerms(total, *explicit, *implicit, overlap, folds, *masks)

    def _on_loss_grid(self, coords: Tensor, size: torch.Size) -> Tensor:
        """Coordinates resampled to the voxel centres of the loss grid."""
        if self._extent == 1:
            return ops.resize(coords, size)
        theta = self._extent * torch.eye(3, 4, dtype=coords.dtype, device=coords.device)
        return ops.affine_resample(coords, theta.expand(len(coords), 3, 4), size, padding="border")

    def _explicit(self, coords: Tensor, exams: _Images, atlas: Atlas, count: int) -> _Terms:
        """The terms of the atlas-to-exam task."""
        warped = atlas(coords)
        terms = _Terms(
            self.similarity(warped, exams.features, exams.mask),
            ops.smoothness_loss(coords, exams.mask, orthonormality=self.config.orthonormality),
            self._edges(warped, exams.image, exams.mask),
        )
        return terms.share(count)

    def _implicit(
        self, moving: Tensor, fixed: Tensor, exams: _Images, following: _Images, count: int
    ) -> tuple[_Terms, Tensor, Tensor, Tensor]:
        """The terms of the exam-to-exam task, the overlap, the warps of all pairs, and where each pair is compared.

        Pairs below ``min_overlap`` are compared nowhere and contribute zero.
        """
        cfg = self.config
        warp = ops.implicit_warp(
            moving,
            fixed,
            iterations=cfg.iterations,
            tolerance=cfg.tolerance,
            step=cfg.step,
            gradient=cfg.gradient,
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
        terms = _Terms(similarity, smoothness * use, edges).share(count)
        return terms, overlap.sum() / count, displacement, shared

    def _weighted(self, terms: _Terms) -> Tensor:
        return (
            terms.similarity + self.config.smoothness * terms.smoothness + self.config.prewitt * terms.edges
        )

    def _edges(self, moving: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
        return ops.edge_difference(moving, fixed, mask) if self.config.prewitt else moving.new_zeros(1)


class _Images:
    """Images ``[B, 1, n, n, n]`` with their foreground masks and the maps they are compared by."""

    def __init__(self, image: Tensor, mask: Tensor, *features: Tensor):
        self.image, self.mask, self.features = image, mask, list(features)


def _and_next(x: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
    """The moving exams and the fixed exams of all pairs: see :meth:`RegistrationLoss.__call__`.

    In a complete batch the last exam is paired with the first; in a part of a batch it is only a target.
    """
    return (x, x.roll(-1, 0)) if complete else (x[:-1], x[1:])


class _AndNext(torch.autograd.Function):
    """:func:`_and_next` with a gradient of its own: autograd would pad the gradient of each slice with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
        ctx.complete = complete
        return _and_next(x, complete)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_next: Tensor) -> tuple[Tensor, None]:
        if ctx.complete:
            return grad_next.roll(1, 0).add_(grad), None
        total = torch.cat([grad, torch.zeros_like(grad[:1])])
        total[1:] += grad_next
        return total, None
