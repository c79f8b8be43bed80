"""The image of an exam against the masks of a template: by the rule of Bayes, the probability of every voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepatlas.localize.template.appearance import Appearance, blurred, window
from deepatlas.localize.template.file import Template
from deepatlas.space.grid import Grid
from deepatlas.space.resample_to import resample_to
from deepatlas.space.volume import Volume

# Values of neighbouring voxels are no independent evidence, so that they count less. Chosen by cross-validation over 40
# `train` exams of OpenKBP: 0.5 to 1 are alike with refined coordinates, and 1 is the best without.
WEIGHT = 0.75
# Below this prior probability nothing in the image makes a voxel part of a structure.
LEAST_PRIOR = 0.1
# A prior is never more certain than this, so that the image may always object.
_CERTAIN = 1e-3


class Evidence:
    """What the image of an exam says of the structures of a template, block by block."""

    def __init__(self, appearance: Appearance, image: Volume, device: torch.device):
        self._image = image.array
        self._spacing = image.grid.spacing[::-1]
        self._scale = appearance.scale_mm
        self._radius = [window(mm, self._scale)[0] for mm in self._spacing]
        self._edges = torch.tensor(appearance.edges[1:], dtype=torch.float32, device=device)
        self._log_odds = torch.from_numpy(appearance.log_odds).to(device)

    @classmethod
    def of(
        cls, template: Template, image: Volume | None, grid: Grid, device: torch.device
    ) -> Evidence | None:
        """What ``image`` says on a grid; None where the template does not know what to look for, or there is no image.

        Args:
            template: the structures.
            image: the exam with values as the network takes them, on any grid.
            grid: the grid of the result.
            device: where the work is done.
        """
        if template.appearance is None or image is None:
            return None
        return cls(template.appearance, image if image.grid == grid else resample_to(image, grid), device)

    def posterior(self, prior: Tensor, rows: Tensor, block: Sequence[slice]) -> Tensor:
        """The probabilities of some structures in a block of the image.

        Args:
            prior: ``[R, d, h, w]``, the values of the masks there.
            rows: int64 ``[R]``, the structures.
            block: where the block lies in the image (z, y, x).
        """
        wide, inner = [], []
        for part, radius, n in zip(block, self._radius, self._image.shape, strict=True):
            start, stop = max(0, part.start - radius), min(n, part.stop + radius)
            wide.append(slice(start, stop))
            inner.append(slice(part.start - start, min(n, part.stop) - start))
        values = torch.from_numpy(np.ascontiguousarray(self._image[tuple(wide)]).astype(np.float32))
        seen = blurred(values.to(self._edges.device), self._spacing, self._scale)[tuple(inner)]
        bins = torch.bucketize(seen.contiguous(), self._edges, right=True)
        return posterior(prior, self._log_odds[rows][:, bins])


def posterior(prior: Tensor, log_odds: Tensor) -> Tensor:
    """The probability of voxels from that of the mask and the log odds of the image, of one shape."""
    sure = prior.clamp(_CERTAIN, 1 - _CERTAIN)
    found = torch.sigmoid(torch.logit(sure) + WEIGHT * log_odds.to(prior))
    return torch.where(prior >= LEAST_PRIOR, found, 0)
