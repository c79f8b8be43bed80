"""The auxiliary label loss of section 5.1.5: squared error of masks in both registration tasks (eqs 12 and 13).

Only structures that were drawn in an exam are compared there: "not drawn" is not "absent". Undrawn structures are not
even computed, so that they have no gradient. The error of a structure is its mean over the loss mask, divided by the
part of the foreground that the structure fills, so that an optic nerve counts as much as a lung.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.nn.atlas import sample_shared
from deepatlas.nn.label_atlas import LabelAtlas

# Structures that fill less of the foreground than this count as if they filled so much: a tenth of a voxel on a loss
# grid of 16^3, and 10 voxels or so on one of 64^3. Otherwise the noise of their borders would dominate.
MIN_FRACTION = 1e-4
# Number of mask voxels that are compared at once: 64 MB in float32.
VALUES = 1 << 24


class ExamMasks(Protocol):
    """The drawn structures of the exams of a batch, on the loss grid."""

    # Bool [n, K], on the host: which structures were drawn in which exam.
    drawn: NDArray[np.bool_]

    def masks(self, exams: list[int], structures: list[int]) -> Tensor:
        """The masks ``[len(exams), len(structures), s, s, s]``, from 0 to 1, without a gradient."""

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device of the masks, without waiting for the device."""


@dataclass(frozen=True)
class LabelTask:
    """What labels add to the registration tasks of a batch: the masks of its exams and those of the atlas."""

    exams: ExamMasks
    atlas: LabelAtlas
    # Whether the masks of the atlas learn; where exams are registered to them they stay as they are.
    learns: bool = True

    def explicit(self, coords: Tensor, mask: Tensor, count: int) -> Tensor:
        """The error of the atlas' masks pulled to the exams (eq. 13), as a share of the mean over ``count`` exams.

        Args:
            coords: ``[n, 3, s, s, s]``, the coordinates of the first n exams on the loss grid.
            mask: ``[n, 1, s, s, s]``, where the error counts.
            count: number of exams of the full batch. Exams without labels add 0 to the mean.
        """
        drawn = self.exams.drawn[: len(coords)]

        def pulled(group: _Group, part: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
            assert values is not None
            return sample_shared(values, part), self.exams.masks(group.exams, group.structures)

        values = self.atlas.values if self.learns else self.atlas.values.detach()
        return self._error(coords, values, mask, drawn, count, pulled)

    def implicit(self, displacement: Tensor, shared: Tensor, count: int) -> Tensor:
        """The error of each exam's masks moved onto the next exam (eq. 12), as a share of the mean over ``count``.

        Only structures that were drawn in both exams of a pair are compared.

        Args:
            displacement: ``[n, 3, s, s, s]``, the implicit warps of exams 0 .. n - 1 onto those that follow them; exam
                0 follows the last one.
            shared: ``[n, 1, s, s, s]``, where the pairs overlap.
            count: number of exams of the full batch.
        """
        total = len(self.exams.drawn)
        following = [(exam + 1) % total for exam in range(len(displacement))]
        drawn = self.exams.drawn[: len(displacement)] & self.exams.drawn[following]

        def moved(group: _Group, part: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
            moving = self.exams.masks(group.exams, group.structures).to(part)
            fixed = self.exams.masks([following[exam] for exam in group.exams], group.structures)
            return ops.warp(moving, part, padding="zeros"), fixed

        return self._error(displacement, None, shared, drawn, count, moved)

    def _error(
        self,
        field: Tensor,
        values: Tensor | None,
        mask: Tensor,
        drawn: NDArray[np.bool_],
        count: int,
        compare: Callable[[_Group, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    ) -> Tensor:
        # Every structure of an exam weighs the same, and so does every exam that has any.
        share = torch.from_numpy(1.0 / (np.maximum(drawn.sum(1), 1) * count))
        weight = self.atlas.fraction.clamp_min(MIN_FRACTION).reciprocal()
        # The mean is over the mask.
        area = mask.flatten(1).sum(1).clamp_min(1e-6)

        def factor(group: _Group, rows: Tensor, columns: Tensor) -> Tensor:
            of_exams = self.exams.put(share[group.exams]).to(area) / area.index_select(0, rows)
            return of_exams[:, None] * weight.index_select(0, columns).to(area)

        groups = list(_groups(drawn, field[0, 0].numel()))
        return _Summed.apply(field, values, mask, groups, compare, factor, self.exams.put)


@dataclass(frozen=True)
class _Group:
    """Exams of a batch, and structures that were drawn in all of them."""

    exams: list[int]
    structures: list[int]


def _groups(drawn: NDArray[np.bool_], voxels: int) -> Iterator[_Group]:
    """Groups that hold every exam and structure with ``drawn [n, K]`` once, and no others."""
    together: dict[bytes, list[int]] = {}
    for structure in np.flatnonzero(drawn.any(axis=0)).tolist():
        together.setdefault(drawn[:, structure].tobytes(), []).append(structure)
    for structures in together.values():
        exams = np.flatnonzero(drawn[:, structures[0]]).tolist()
        step = max(1, VALUES // (len(exams) * voxels))
        for start in range(0, len(structures), step):
            yield _Group(exams, structures[start : start + step])


class _Summed(torch.autograd.Function):
    """The weighted squared error of all groups; gradients are computed along with it, so memory holds one group.

    ``field [n, 3, ...]`` is cut into the exams of a group, and ``values [1, K, ...]``, which may be None, into its
    structures. ``compare`` makes the two masks ``[exams, structures, ...]`` of these, and ``factor`` gives the weight
    of each, by which the sum of its squares within ``mask [n, 1, ...]`` counts. All of ``field``, and of ``values`` if
    they learn, has a gradient, which is exactly 0 where no group reaches; it exists also without any group, because the
    processes of a run must sum the same tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        field: Tensor,
        values: Tensor | None,
        mask: Tensor,
        groups: list[_Group],
        compare: Callable[[_Group, Tensor, Tensor | None], tuple[Tensor, Tensor]],
        factor: Callable[[_Group, Tensor, Tensor], Tensor],
        put: Callable[[Tensor], Tensor],
    ) -> Tensor:
        total = field.new_zeros(())
        ctx.field = torch.zeros_like(field)
        learns = values is not None and ctx.needs_input_grad[1]
        ctx.values = torch.zeros_like(values) if learns else None
        for group in groups:
            rows, columns = (put(torch.as_tensor(numbers)) for numbers in (group.exams, group.structures))
            part = field.detach().index_select(0, rows).requires_grad_()
            own = None if values is None else values.detach().index_select(1, columns).requires_grad_(learns)
            with torch.enable_grad():
                moving, fixed = compare(group, part, own)
            weight = factor(group, rows, columns)
            # The gradient of a square is known, so that autograd needs to keep none of its parts.
            difference = moving.detach() - fixed.to(moving)
            inside = difference * mask.index_select(0, rows).to(moving)
            total += (torch.linalg.vecdot(difference.flatten(2), inside.flatten(2)) * weight).sum()
            inside.mul_(2 * weight[..., None, None, None])
            found = torch.autograd.grad(moving, [part, own] if learns else [part], inside)
            ctx.field.index_add_(0, rows, found[0])
            if ctx.values is not None:
                ctx.values.index_add_(1, columns, found[1])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values = None if ctx.values is None else ctx.values * grad
        return ctx.field * grad, values, None, None, None, None, None
