"""What structures look like: which values of the image speak for a structure, and which against it.

Coordinates say where a structure may be, as exactly as the network knows and as exams agree: a mask, carried onto an
exam, is a prior probability. The image says the rest. By the rule of Bayes, the log odds of a voxel are those of the
prior, plus the logarithm of how much more often its value occurs inside the structure than around it. Both densities
are histograms of the labelled examples, one example being enough. This goes beyond the paper, whose masks are carried
over as they are (section 5.2.7).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from deepatlas.errors import DeepAtlasError
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume

# By how much coordinates err, in voxels of the network's input; 3.7 mm in one pass of the shipped model. Images are
# looked at in voxels of that size, so that the noise of thin slices does not decide.
ERROR_VOXELS = 0.65
# How far around a structure the values are counted that speak against it, in terms of that error, and at least in
# voxels of the exam.
AROUND, AROUND_VOXELS = 2.0, 1.5
# What is added to the densities: values that are rare inside and outside alike decide nothing.
_FLOOR = 0.002
# Lower edges of the bins: Hounsfield units, and the scale of other images (deepatlas.space.intensity).
_HU = np.concatenate([[-np.inf], np.arange(-250.0, 350.0, 25.0), np.arange(350.0, 701.0, 50.0)])
_SCALE = np.concatenate([[-np.inf], np.arange(-244.0, 256.0, 16.0)])


@dataclass(frozen=True, eq=False)
class Appearance:
    """By how much each value of the image speaks for each structure of a template.

    Attributes:
        edges: the lower edges of the bins of values, ascending, ``[H]``; the first is minus infinity.
        log_odds: float32 ``[K, H]``; 0 where the image says nothing.
        scale_mm: the size of the voxels in which images are looked at.

    Raises:
        DeepAtlasError: the shapes do not match, edges do not ascend, or values are not finite.
    """

    edges: NDArray[np.float64]
    log_odds: NDArray[np.float32]
    scale_mm: float

    def __post_init__(self) -> None:
        edges, odds = self.edges, self.log_odds
        if not 0 < self.scale_mm < math.inf:
            raise DeepAtlasError(f"Appearance: scale_mm must be a length, got {self.scale_mm}")
        if odds.ndim != 2 or edges.shape != odds.shape[1:] or not len(edges):
            raise DeepAtlasError(f"Appearance: {edges.shape} edges do not match log odds {odds.shape}")
        if edges[0] != -np.inf or not (np.diff(edges) > 0).all() or not np.isfinite(odds).all():
            raise DeepAtlasError("Appearance: edges must ascend from minus infinity, and log odds be finite")

    def rows(self, rows: Sequence[int]) -> Appearance:
        """That of some of the structures."""
        return Appearance(self.edges, self.log_odds[list(rows)], self.scale_mm)

    @classmethod
    def joined(cls, parts: Sequence[Appearance | None], counts: Sequence[int]) -> Appearance | None:
        """That of the structures of several templates, ``counts`` of each. None where none has any.

        Raises :class:`~deepatlas.errors.DeepAtlasError` where the bins differ.
        """
        some = [part for part in parts if part is not None]
        if not some:
            return None
        edges = some[0].edges
        if any(not np.array_equal(part.edges, edges) for part in some):
            raise DeepAtlasError("Appearance: counted in different bins; make the templates again, alike")
        silent = [np.zeros((count, len(edges)), dtype=np.float32) for count in counts]
        return cls(
            edges,
            np.concatenate([s if p is None else p.log_odds for p, s in zip(parts, silent, strict=True)]),
            float(np.mean([part.scale_mm for part in some])),
        )


@dataclass
class Counts:
    """The values inside and around structures, counted over examples.

    Attributes:
        intensity: the kind of values (``data.intensity``).
        size: voxels along each side of the network's input.
        inside: for every structure, how many voxels of it have a value in each bin.
        around: the same for the voxels near it.
        exams: how many examples showed each structure.
        scales: the error of the coordinates in each example, in millimetres.
    """

    intensity: str
    size: int
    inside: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    around: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    exams: dict[str, int] = field(default_factory=dict)
    scales: list[float] = field(default_factory=list)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The lower edges of the bins."""
        return _HU if self.intensity == "hu" else _SCALE

    @property
    def error(self) -> float:
        """The error of the coordinates, in their own units."""
        return ERROR_VOXELS * 2 / (self.size - 1)

    def add(self, image: Volume, labels: Labels, names: Mapping[str, int], mm_per_unit: ArrayLike) -> None:
        """Count one example.

        Args:
            image: the exam as :func:`~deepatlas.space.check_input.check_input` returns it.
            labels: what was drawn, on the same grid.
            names: ``{name: id}`` of the structures. One without a voxel counts as not drawn.
            mm_per_unit: the millimetres of a unit of the coordinates in this exam along x, y and z.
        """
        spacing = np.array(labels.grid.spacing[::-1])
        scale = self.error * float(np.mean(np.asarray(mm_per_unit, dtype=np.float64)))
        self.scales.append(scale)
        near = max(AROUND * scale, AROUND_VOXELS * float(spacing.max()))
        step = np.maximum(1, np.floor(scale / 2 / spacing)).astype(int)
        margin = np.ceil(near / spacing).astype(int) + 1
        for name, identity in names.items():
            mask = labels.mask(identity)
            found = ndimage.find_objects(mask.view(np.uint8))
            if not found or found[0] is None:
                continue
            box = tuple(
                slice(max(0, s.start - m), min(n, s.stop + m))
                for s, m, n in zip(found[0], margin, mask.shape, strict=True)
            )
            every = tuple(slice(None, None, s) for s in step)
            values = torch.from_numpy(np.ascontiguousarray(image.array[box]).astype(np.float32))
            seen = blurred(values, spacing.tolist(), scale)
            bins = np.digitize(seen.numpy()[every], self.edges[1:])
            drawn = mask[box][every]
            if not drawn.any():
                continue
            away = ndimage.distance_transform_edt(~drawn, sampling=spacing * step)
            for counts, where in ((self.inside, drawn), (self.around, (away > 0) & (away <= near))):
                one = np.bincount(bins[where], minlength=len(self.edges)).astype(np.float64)
                counts[name] = counts.get(name, 0) + one
            self.exams[name] = self.exams.get(name, 0) + 1

    @classmethod
    def total(cls, parts: Sequence[Counts]) -> Counts:
        """What was counted in several parts, of one kind of values, together."""
        out = cls(parts[0].intensity, parts[0].size)
        for part in parts:
            for mine, theirs in ((out.inside, part.inside), (out.around, part.around)):
                for name, values in theirs.items():
                    mine[name] = mine.get(name, 0) + values
            for name, exams in part.exams.items():
                out.exams[name] = out.exams.get(name, 0) + exams
            out.scales += part.scales
        return out

    def appearance(self, names: Iterable[str]) -> Appearance:
        """The logarithm of how much more often each value occurs inside a structure than around it.

        Counts are blurred over neighbouring bins. Where there are few voxels the ratio is drawn to 1. A structure that
        was never counted has 0 everywhere.
        """
        rows = []
        for name in names:
            densities = []
            for counts in (self.inside, self.around):
                count = counts.get(name, np.zeros(len(self.edges)))
                smooth = ndimage.gaussian_filter1d(count, 1.0, mode="nearest")
                densities.append((smooth / max(count.sum(), 1.0), _FLOOR + 1 / (count.sum() + 1)))
            floor = max(floor for _, floor in densities)
            inside, around = (density + floor for density, _ in densities)
            rows.append(np.log(inside / around))
        table = np.array(rows, dtype=np.float32).reshape(-1, len(self.edges))
        return Appearance(self.edges, table, float(np.median(self.scales)))


def blurred(values: Tensor, spacing: Sequence[float], scale_mm: float) -> Tensor:
    """An image ``[D, H, W]`` as voxels of ``scale_mm`` see it; coarser axes (z, y, x) are left as they are."""
    for axis, (size, mm) in enumerate(zip(values.shape, spacing, strict=True)):
        radius, weights = window(mm, scale_mm)
        if radius and size > 1:
            moved = values.movedim(axis, -1)
            flat = moved.reshape(-1, 1, size)
            kernel = torch.tensor(weights, dtype=values.dtype, device=values.device)[None, None]
            wide = F.conv1d(F.pad(flat, (radius, radius), mode="replicate"), kernel)
            values = wide.reshape(moved.shape).movedim(-1, axis)
    return values


def window(mm: float, scale_mm: float) -> tuple[int, list[float]]:
    """The radius and the weights of the Gaussian that makes voxels of ``mm`` see as those of ``scale_mm`` do.

    Its variance is the difference of those of the two voxels.
    """
    sigma = math.sqrt(max(0.0, scale_mm**2 - mm**2) / 12) / mm
    radius = math.ceil(2.5 * sigma) if sigma > 0.3 else 0
    weights = [math.exp(-0.5 * (n / max(sigma, 1e-9)) ** 2) for n in range(-radius, radius + 1)]
    return radius, [weight / sum(weights) for weight in weights]
