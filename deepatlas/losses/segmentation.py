"""The supervised loss of sections 3.3.3 and 3.3.4: soft Dice and cross-entropy of the structures that were drawn.

"Not drawn" is not "absent": a structure that was not drawn in an exam has no loss there, neither as foreground nor as
background. Its logits are not even read, so that their gradient is exactly 0, whatever they are.

The paper names neither the loss nor its form. Every structure of an exam weighs the same, and so does every exam. The
Dice is that of one exam, so that the parts of a batch, and the processes of a run, add up to the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    rate = fraction.clamp_min(MIN_FRACTION).to(logits).reciprocal()
    # Sums over nothing, which give the logits a gradient of zeros also where no exam has a drawn structure: the
    # processes of a run sum the same tensors.
    dices, entropies = [logits[:0].sum()], [logits[:0].sum()]
    for exam in range(len(logits)):
        structures = np.flatnonzero(exams.drawn[exam]).tolist()
        if not structures:
            continue
        rows = exams.put(torch.as_tensor(structures))
        own = logits[exam].index_select(0, rows).flatten(1)
        truth = exams.masks([exam], structures)[0].flatten(1).to(own)
        weight = seen[exam, 0].flatten().to(own)
        share = 1 / (len(structures) * count)

        entropy = F.binary_cross_entropy_with_logits(own, truth, reduction="none") @ weight
        entropies.append(
            (entropy * rate.index_select(0, rows)).sum() * (share / weight.sum().clamp_min(1e-6))
        )

        found, size = torch.sigmoid(own), truth @ weight
        both = (found * truth) @ weight
        overlap = (2 * both + _SMOOTH) / (found @ weight + size + _SMOOTH)
        dices.append(torch.where(size >= MIN_VOXELS, 1 - overlap, 0.0).sum() * share)
    terms = torch.stack(dices).sum(), torch.stack(entropies).sum()
    total = dice * terms[0] + cross_entropy * terms[1]
    return SegmentationTerms(total, terms[0].detach(), terms[1].detach())
