"""Template masks from labelled exams: eq. 14, solved for every structure on the part of the space that it fills."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.leastsquares import LAPLACIAN, TIKHONOV, Problem, conjugate_gradients
from deepatlas.model.field import CoordinateField
from deepatlas.space.labels import Labels
from deepatlas.space.stack import overlapping_pairs
from deepatlas.space.volume import Volume

# A label image with more voxels than this along an axis is subsampled, because the template resolves no more.
MAX_LABEL_SIZE = 192
# The template voxels that are solved for around the outermost labelled samples of a structure. Beyond them the mask is
# exactly 0.
MARGIN = 4
# The misfit of a structure is the objective of eq. 14 as a share of that of an empty mask. Above BAD_MISFIT a mask does
# not explain the labels of the one exam that it was made from. With the shipped model of head and neck the misfit is
# .02 to .07 for each structure of 19 exams, and .14 to .78 for 20 of 22 structures of a thorax (.04 and .07 for humerus
# and C6, which are at its upper end).
BAD_MISFIT = 0.12
# Of n exams it is 1 - 1/n where no two of them overlap in the template, and (1 - D)(1 - 1/n) where their masks overlap
# by a Dice of D there, so this is a Dice of .3. The same model has .18 to .32 for 7 exams, and .29 to .49 for 24.
BAD_DISAGREEMENT = 0.7


@dataclass
class LabelledExam:
    """What eq. 14 needs to know about one exam.

    Attributes:
        field: the coordinates of the exam.
        labels: what was drawn, on the exam's own grid, in any orientation and resolution; overlaps count where it is
            :class:`~deepatlas.space.labels.Labels`. A large image is subsampled.
        drawn: the names of the structures that were labelled in this exam; None for those with at least one voxel.
        weights: ``[D, H, W]`` on the grid of the labels; None for equal weights.

    Raises:
        DeepAtlasError: the weights do not have the shape of the labels.
    """

    field: CoordinateField
    labels: Volume
    drawn: frozenset[str] | None = None
    weights: NDArray | None = None

    def __post_init__(self) -> None:
        shape = self.labels.grid.shape
        if self.weights is not None and self.weights.shape != shape:
            raise DeepAtlasError(
                f"{self.labels.name}: weights must have the labels' shape {shape}, got {self.weights.shape}"
            )
        step = [-(-n // MAX_LABEL_SIZE) for n in shape]
        self.thinned = max(step) > 1
        if self.thinned:
            box = tuple(slice(None, None, s) for s in step)
            self.labels = Labels.of(self.labels).subsampled(step)
            self.weights = None if self.weights is None else self.weights[box]

    def has(self, name: str, identity: int) -> bool:
        """Whether the structure ``name``, with the id ``identity``, was labelled in this exam."""
        if self.drawn is not None:
            return name in self.drawn
        return bool(self.mask(identity).any())

    def mask(self, identity: int) -> NDArray[np.bool_]:
        """The whole mask of a structure, ``[D, H, W]`` on the grid of the labels."""
        return Labels.of(self.labels).mask(identity)

    def template_index(self, size: int) -> Tensor:
        """The fractional template voxel (x, y, z) of every label voxel: ``[3, voxels]``."""
        fine = self.field.on(self.labels.grid)
        # Clamping is border padding, by which masks and the atlas are also read at their edges.
        return fine.clamp_(-1, 1).flatten(1).add_(1).mul_((size - 1) / 2)

    def usable(self, device: torch.device) -> Tensor:
        """Bool ``[voxels]``: which label voxels have a coordinate. A cropped model grid leaves some without."""
        return torch.from_numpy(self.field.inside(self.labels.grid)).to(device).flatten()


@dataclass
class _Samples:
    """The samples of one structure: one entry per exam in every list."""

    points: list[Tensor] = field(default_factory=list)  # [3, n], normalised to the box of the structure
    values: list[Tensor] = field(default_factory=list)  # [n], 1 inside the structure and 0 outside it
    weights: list[Tensor] = field(default_factory=list)  # [n]; no entries where all weights are equal
    exams: list[str] = field(default_factory=list)


def estimate_template(
    exams: Iterable[LabelledExam],
    labels: Mapping[str, int],
    size: int = 128,
    *,
    iterations: int = 60,
    tolerance: float = 1e-3,
    tikhonov: float = TIKHONOV,
    laplacian: float = LAPLACIAN,
    meta: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Template:
    """The masks M that minimise sum_n |M o c_n - m_n|^2 over the labelled exams (eq. 14).

    For every structure, only the exams in which it was drawn are used, and a structure that was drawn in none of them
    is left out of the template. The unknowns are the template voxels of a box around the labelled samples; M is 0
    outside the box. A small regulariser (see :mod:`~deepatlas.localize.template.leastsquares`) determines the voxels
    that no sample reaches.

    Args:
        exams: the labelled exams with their coordinates.
        labels: ``{name: id}`` of the label images.
        size: voxels of the template along each axis.
        iterations: the largest number of conjugate-gradient iterations per structure.
        tolerance: the relative residual of the normal equations at which a solve ends.
        tikhonov: weight of the Tikhonov term.
        laplacian: weight of the Laplacian term.
        meta: entries of the template's ``meta``. How every solve ended is added as ``meta["structures"]``, with the
            ``misfit`` of the structure (see :data:`BAD_MISFIT`), and the settings of the solver as ``meta["solver"]``.
        progress: receives one line of text per structure.

    Warns:
        DataWarning: the mask of a structure does not explain its labels.

    Raises:
        DataError: no exam holds a label of any of the structures.
    """
    exams = list(exams)
    boxes = _boxes(exams, labels, size)
    if not boxes:
        raise DataError(
            f"no exam holds a label of {', '.join(labels) or 'any structure'}; give exams with a seg file"
        )
    gathered = _gather(exams, labels, boxes, size)
    names = [n for n in labels if n in boxes]
    masks = np.zeros((len(names), size, size, size), dtype=np.float32)
    outcome = {}
    for row, name in enumerate(names):
        samples, (low, high) = gathered.pop(name), boxes[name]
        depth, height, width = (high - low + 1).flip(0).tolist()
        problem = Problem(
            torch.cat(samples.points, dim=1)[None],
            torch.cat(samples.values).reshape(1, 1, -1),
            (depth, height, width),
            torch.cat(samples.weights).reshape(1, 1, -1) if samples.weights else None,
            tikhonov,
            laplacian,
        )
        solution = conjugate_gradients(problem, iterations, tolerance)
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low.flip(0), high.flip(0), strict=True))
        masks[row][box] = solution.volume[0, 0].cpu().numpy()
        outcome[name] = {
            "exams": samples.exams,
            "iterations": solution.iterations,
            "residual": round(solution.residual, 8),
            "converged": solution.converged,
            "misfit": round(solution.objective[-1], 6),
        }
        _warn_of_misfit(name, len(samples.exams), solution.objective[-1])
        if progress is not None:
            state = "converged" if solution.converged else f"stopped at residual {solution.residual:.1e}"
            progress(
                f"template {row + 1}/{len(names)} {name}: {len(samples.exams)} exam(s), "
                f"{solution.iterations} iterations, {state}, misfit {100 * solution.objective[-1]:.1f}%"
            )
    settings = {"size": size, "iterations": iterations, "tolerance": tolerance}
    solver = settings | {"tikhonov": tikhonov, "laplacian": laplacian}
    all_meta = {**(meta or {}), "solver": solver, "structures": outcome}
    drawn = (Labels.of(exam.labels) for exam in exams)
    if overlaps := overlapping_pairs(drawn, {name: labels[name] for name in names}):
        all_meta["overlaps"] = overlaps
    return Template(masks, tuple(names), tuple(labels[n] for n in names), all_meta)


def _warn_of_misfit(name: str, exams: int, misfit: float) -> None:
    bad = max(BAD_MISFIT, BAD_DISAGREEMENT * (1 - 1 / exams))
    if misfit <= bad:
        return
    why = (
        "the model does not tell this anatomy apart, or it is finer than the voxels of the template"
        if exams == 1
        else "the exams put it at different coordinates, or it was drawn differently"
    )
    warnings.warn(
        f"template: the mask of {name} leaves {100 * misfit:.0f} % of its labels in {exams} exam(s) unexplained (good "
        f"ones at most {100 * bad:.0f} %): {why}",
        DataWarning,
        stacklevel=3,
    )


def _boxes(
    exams: list[LabelledExam], labels: Mapping[str, int], size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The first and the last template voxel (x, y, z) of every structure over all exams, with a margin."""
    boxes: dict[str, tuple[Tensor, Tensor]] = {}
    for exam in exams:
        index = exam.template_index(size)
        usable = exam.usable(index.device)
        for name, identity in labels.items():
            if not exam.has(name, identity):
                continue
            own = torch.from_numpy(exam.mask(identity)).flatten().to(index.device).logical_and_(usable)
            if not own.any():
                continue
            found = index[:, own]
            low = (found.amin(1).floor().long() - MARGIN).clamp_(0, size - 2).cpu()
            high = (found.amax(1).ceil().long() + MARGIN).clamp_(1, size - 1).cpu()
            if name in boxes:
                low, high = torch.minimum(low, boxes[name][0]), torch.maximum(high, boxes[name][1])
            boxes[name] = low, high
    return boxes


def _gather(
    exams: list[LabelledExam], labels: Mapping[str, int], boxes: dict[str, tuple[Tensor, Tensor]], size: int
) -> dict[str, _Samples]:
    """The samples of every structure from all exams: those that read its box, in coordinates of the box."""
    gathered = {name: _Samples() for name in boxes}
    weighted = any(e.weights is not None for e in exams)
    for exam in exams:
        index = exam.template_index(size)
        usable = exam.usable(index.device)
        for name, (low, high) in boxes.items():
            if not exam.has(name, labels[name]):
                continue
            own = torch.from_numpy(exam.mask(labels[name])).flatten().to(index.device)
            # A structure that subsampling has lost is not absent.
            if exam.thinned and not own.any():
                continue
            near = usable.clone()
            # A sample more than one voxel away from the box reads no voxel of it.
            for axis in range(3):
                near &= (index[axis] > float(low[axis]) - 1) & (index[axis] < float(high[axis]) + 1)
            first, span = low[:, None].to(index), (high - low)[:, None].to(index)
            samples = gathered[name]
            samples.points.append((index[:, near] - first) * (2 / span) - 1)
            samples.values.append(own[near].to(index.dtype))
            if weighted:
                weights = np.ones(exam.labels.grid.shape) if exam.weights is None else exam.weights
                samples.weights.append(
                    torch.from_numpy(np.asarray(weights, np.float32)).to(index).flatten()[near]
                )
            samples.exams.append(exam.labels.name)
    return gathered
