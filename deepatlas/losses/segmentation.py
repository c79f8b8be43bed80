"""The supervised loss of sections 3.3.3 and 3.3.4: soft Dice and cross-entropy of the structures that were drawn.

"Not drawn" is not "absent": a structure that was not drawn in an exam has no loss there, neither as foreground nor as
background. Its logits are not even read, so that their gradient is exactly 0, whatever they are.

The paper names neither the loss nor its form. Every structure of an exam weighs the same, and so does every exam. The
Dice is that of one exam, so that the parts of a batch, and the processes of a run, add up to the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepatlas.losses.labels import MIN_FRACTION, ExamMasks

# A structure of which less than this number of voxels is in view has cross-entropy alone: the Dice of nothing means
# nothing.
MIN_VOXELS = 1.0
# Added to both sides of the Dice, in voxels, so that it is smooth where a structure is a voxel large.
_SMOOTH = 1.0


@dataclass(frozen=True)
class SegmentationTerms:
    """The loss of a part of a batch, as its share of the mean over the batch, and its two terms (not weighted)."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor

    def scalars(self) -> dict[str, float]:
        """The terms for the log."""
        return {"dice_loss": self.dice.item(), "cross_entropy": self.cross_entropy.item()}


def segmentation_loss(
    logits: Tensor,
    exams: ExamMasks,
    seen: Tensor,
    fraction: Tensor,
    count: int,
    *,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
) -> SegmentationTerms:
    """Soft Dice loss and binary cross-entropy over the drawn structures of each exam.

    The cross-entropy of a structure is its mean over the field of view, divided by the part of it that the structure
    fills in the cohort (at least 1e-4), so that a lens counts as much as a lung.

    Args:
        logits: ``[n, K, s, s, s]``.
        exams: which structures were drawn in the n exams, and their masks on the same grid.
        seen: ``[n, 1, s, s, s]``, the weight of each voxel: 0 outside the field of view of the exam.
        fraction: ``[K]``, the part of the voxels that each structure fills on average.
        count: number of exams of the full batch.
        dice: weight of the Dice loss.
        cross_entropy: weight of the cross-entropy.
    """
    terms = logits.new_zeros(2)
    total = _Summed.apply(logits, exams, seen, fraction, count, dice, cross_entropy, terms)
    return SegmentationTerms(total, *terms)


class _Summed(torch.autograd.Function):
    """The loss, and its gradient along with it: the formulas are short, and autograd would store ten times as much.

    ``terms [2]`` receives both terms. The gradient is exactly 0 for structures that were not drawn, and it exists also
    where nothing was, because the processes of a run must sum the same tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        exams: ExamMasks,
        seen: Tensor,
        fraction: Tensor,
        count: int,
        dice: float,
        cross_entropy: float,
        terms: Tensor,
    ) -> Tensor:
        rate = fraction.clamp_min(MIN_FRACTION).to(logits).reciprocal()
        ctx.grad = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for exam in range(len(logits)):
            structures = np.flatnonzero(exams.drawn[exam]).tolist()
            if not structures:
                continue
            rows = exams.put(torch.as_tensor(structures))
            own = logits[exam].index_select(0, rows).flatten(1)
            truth = exams.masks([exam], structures)[0].flatten(1).to(own)
            weight = seen[exam, 0].flatten().to(own)
            share = 1 / (len(structures) * count)

            # Cross-entropy is log(1 + exp(x)) - t x, and its derivative p - t.
            scale = rate.index_select(0, rows) * (share / weight.sum().clamp_min(1e-6))
            entropy = F.softplus(own) @ weight - (own * truth) @ weight
            terms[1] += (entropy * scale).sum()

            found, size = torch.sigmoid(own), truth @ weight
            sides = found @ weight + size + _SMOOTH
            overlap = (2 * ((found * truth) @ weight) + _SMOOTH) / sides
            counts = (size >= MIN_VOXELS).to(own)
            terms[0] += ((1 - overlap) * counts).sum() * share

            # The derivative of the Dice by p is (2 t - Dice) / (both sides), and that of p by x is p (1 - p).
            by_dice = (truth * 2).sub_(overlap[:, None]).mul_(found).mul_(1 - found)
            grad = found.sub_(truth).mul_(cross_entropy * scale[:, None])
            grad.sub_(by_dice.mul_((dice * share * counts / sides)[:, None])).mul_(weight)
            ctx.grad[exam].index_copy_(0, rows, grad.view(len(structures), *logits.shape[2:]))
        return dice * terms[0] + cross_entropy * terms[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.grad * grad, None, None, None, None, None, None, None
