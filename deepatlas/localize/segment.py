"""Segmentation: the masks of a template, carried onto an exam by its coordinates (section 5.2.7), or of a network."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataWarning, DeepAtlasError
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.labels import write_labels
from deepatlas.localize.coverage import coverage
from deepatlas.localize.emptied import warn_emptied
from deepatlas.localize.measure import StructureStatistics, statistics
from deepatlas.localize.paint import Canvas, Rivals
from deepatlas.localize.probabilities import label_probabilities
from deepatlas.localize.soft_masks import soft_masks
from deepatlas.localize.template.evidence import LEAST_PRIOR, Evidence
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.choose import NO_TRUST, check_least_trust, too_low
from deepatlas.localize.trust.estimate import Trust, exam_trust
from deepatlas.model.engine import Engine, ExamMap
from deepatlas.model.field import CoordinateField
from deepatlas.model.fit import Fit
from deepatlas.model.structures import ExamProbabilities, Structures
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume
from deepatlas.version import __version__

if TYPE_CHECKING:
    from deepatlas.io.dicom.series import DicomSeries

# Exams are processed in tiles of this shape (z, y, x). A tile maps to a small box of the template, and only the
# structures that reach into that box are sampled. The cost follows the anatomy, and not the number of structures times
# the number of voxels.
TILE = (16, 32, 32)
# The least and the largest size that the image may give a structure, in terms of what its mask alone gives it, and the
# voxels below which a structure is too small for that to be judged. In 45 exams of OpenKBP it was 0.71 to 1.31 times.
_ALIKE, _FEW = (0.6, 1.67), 20
# What DICOM objects say of structures in an exam that the model does not know.
NOT_TO_BE_BELIEVED = "EXAM NOT KNOWN TO THE MODEL"


@dataclass(repr=False)
class Segmentation(Labels):
    """The structures of an exam on its own grid, and how well the model knows the exam.

    ``array`` is a label image. ``mask(id)`` gives the whole mask of a structure, also where others lie on it.

    Attributes:
        fit: how well the model knows the exam.
        names: ``{name: id}`` of the structures that were looked for, without those that were left out.
        model: the fingerprint of the model.
        found: what the model says about the exam, and ``what`` the structures that were looked for; both None where
            the labels did not come from a model.
        trust: for every structure how good its mask probably is, where that was asked for.
        left_out: why masks were left out, by the names of their structures: their trust is too low, or unknown.
    """

    fit: Fit = Fit(math.nan)
    names: dict[str, int] = field(default_factory=dict)
    model: str = ""
    found: ExamMap | ExamProbabilities | None = None
    what: Template | Structures | None = None
    trust: dict[str, Trust] | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def _facts(self) -> str:
        return f"{super()._facts()}, {self.fit!r}"

    @property
    def algorithm(self) -> Algorithm:
        """What made the structures, as DICOM objects state it."""
        caution = NOT_TO_BE_BELIEVED if self.fit.known is False else ""
        return Algorithm("DeepATLAS", __version__, self.model, caution)

    @property
    def remarks(self) -> dict[str, str]:
        """What files that have a place for it say of every structure: its predicted Dice, where that was asked for."""
        return {name: one.text for name, one in (self.trust or {}).items() if name in self.names}

    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        *,
        source: DicomSeries | str | os.PathLike[str] | None = None,
        labelmap: bool = False,
    ) -> Path:
        """Write the structures as a label image, a segmentation of 3D Slicer, a DICOM-SEG or an RTSTRUCT.

        Args:
            path: the file: ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` for a label image, ``.seg.nrrd`` for a
                segmentation, ``.dcm`` for DICOM.
            format: ``"nifti"``, ``"nrrd"``, ``"seg-nrrd"``, ``"dicom-seg"`` or ``"rtstruct"``; None takes that of the
                suffix, which for ``.dcm`` is a DICOM-SEG. Label images show one structure a voxel, the others hold
                whole masks.
            source: for DICOM, the series that the exam was read from, or its path; None takes the path from which the
                exam was read.
            labelmap: for a DICOM-SEG, write the newer form, one value a voxel.

        Returns the path.

        Warns:
            DataWarning: a structure has no voxel, so that a DICOM object has no entry for it.

        Raises:
            DataError: the exam is no DICOM series, or one that cannot be referred to, or no structure has a voxel.
            DeepAtlasError: highdicom is not installed, which a DICOM-SEG needs.
            WriteError: the file cannot be written, or has the suffix of another format.
        """
        notes = write_labels(
            path,
            self,
            self.names,
            format,
            source=self.name if source is None else source,
            labelmap=labelmap,
            algorithm=self.algorithm,
            remarks=self.remarks,
        )
        for note in notes:
            warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
        return Path(path)

    def statistics(self, volume: Volume) -> list[StructureStatistics]:
        """Measure every structure on ``volume``, the exam: see :func:`deepatlas.statistics`.

        Structures whose masks were left out have no measures.

        With a template, each has the share of it that lies in the field of view of the exam.
        """
        shares = None
        if isinstance(self.found, ExamMap) and isinstance(self.what, Template):
            of_all = dict(zip(self.what.names, coverage(self.found, self.what, self.grid), strict=True))
            shares = {name: of_all[name] for name in self.names}
        return statistics(self, volume, self.names, shares)

    def soft_masks(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The soft mask of every structure: its name, and uint8 ``[D, H, W]`` with 255 for 1.

        See :func:`~deepatlas.localize.soft_masks.soft_masks`. Raises :class:`~deepatlas.errors.DeepAtlasError` for
        labels that did not come from a model.
        """
        if self.found is None or self.what is None:
            raise DeepAtlasError(
                f"{self.name or 'labels'}: have no soft masks, since no model made them; segment the exam"
            )
        kept = [name for name in self.what.names if name not in self.left_out]
        return soft_masks(self.found, self.what.select(kept), self.grid) if kept else iter(())


def segment(
    model: Engine,
    volume: Volume,
    template: Template | Structures | None = None,
    threshold: float | None = None,
    *,
    trust: bool = False,
    least_trust: float | None = None,
) -> Segmentation:
    """Carry a template's masks onto an exam (section 5.2.7), or take those of a model that was trained on labels.

    Args:
        model: a trained model.
        volume: the exam in Hounsfield units, in any orientation.
        template: a template made for a model of coordinates. A model that was trained on labels takes none, but some of
            its own structures (``model.structures.select(…)``); None takes all of them.
        threshold: the mask value that counts for all structures, in (0, 1]; None takes the template's own
            ``thresholds``, which preserve volumes, or a probability of 0.5.
        trust: also predict the Dice of every mask (:mod:`deepatlas.localize.trust`), by a few more passes.
        least_trust: leave out the masks whose predicted Dice is lower, and those whose Dice nobody can predict.

    Returns:
        A label image on the exam's own grid: uint8, or uint16 for ids above 255. 0 is the background. Its ``mask(id)``
        is the whole mask of a structure, and its ``fit`` says how well the model knows the exam.

    Raises:
        DeepAtlasError: the template belongs to another model, the model needs a template or takes none, the
            threshold is out of range, or ``least_trust`` is given where no mask can have a prediction.
    """
    what = what_to_find(model, template)
    if least_trust is not None:
        check_least_trust(what, threshold)
    found, labels, decided = find_structures(model, volume, what, threshold)
    believed = _trust(model, found, what, threshold) if trust or least_trust is not None else None
    left_out: dict[str, str] = {}
    if believed is not None and least_trust is not None:
        left_out = too_low(believed, least_trust)
        labels = _without(labels, what, left_out)
    return Segmentation(
        labels.array,
        volume.grid,
        volume.name,
        labels.hidden,
        found.fit,
        names={name: identity for name, identity in what.labels.items() if name not in left_out},
        model=model.fingerprint,
        found=found,
        what=decided,
        trust=believed,
        left_out=left_out,
    )


def _trust(
    model: Engine, found: ExamMap | ExamProbabilities, what: Template | Structures, threshold: float | None
) -> dict[str, Trust]:
    if isinstance(found, ExamMap) and isinstance(what, Template):
        return dict(exam_trust(model, found, what, threshold=threshold, places=False).structures)
    return {name: Trust(None, None, NO_TRUST) for name in what.names}


def _without(labels: Labels, what: Template | Structures, left_out: Mapping[str, str]) -> Labels:
    """The labels without the masks of some structures; what lies below them is seen again."""
    if not left_out:
        return labels
    kept = [row for row in what.stack if what.names[row] not in left_out]
    masks = [(what.ids[row], BoxMask.of(labels.mask(what.ids[row]))) for row in kept]
    return Labels.painted(masks, labels.grid, labels.array.dtype, labels.name)


def what_to_find(model: Engine, template: Template | Structures | None) -> Template | Structures:
    """The template, or the structures of a model that was trained on labels.

    Raises:
        DeepAtlasError: the template belongs to another model, or the model needs a template or takes none.
    """
    if model.structures is None:
        if not isinstance(template, Template):
            raise DeepAtlasError(
                f"{model.name}: gives coordinates, so it needs a template, got {template!r}; make one with `deepatlas "
                "template`, load it with deepatlas.Template.load(…)"
            )
        template.check_model(model.fingerprint)
        if not template.names:
            raise DeepAtlasError(
                f"{template!r}: holds no mask to segment; its points, lines and boxes are found by `deepatlas locate`"
            )
        return template
    if isinstance(template, Template):
        raise DeepAtlasError(
            f"{model.name}: was trained on labels and has its structures by itself; leave out the template"
        )
    return template or model.structures


def find_structures(
    model: Engine, volume: Volume, what: Template | Structures, threshold: float | None = None
) -> tuple[ExamMap | ExamProbabilities, Labels, Template | Structures]:
    """What the model says about an exam, the labels that follow, and what decided about them.

    ``what`` is from :func:`what_to_find`. It decides itself, unless structures look unlike its examples
    (:meth:`Template.silenced <deepatlas.localize.template.file.Template.silenced>`).
    """
    if isinstance(what, Structures):
        said = model.probabilities(volume)
        labels = label_probabilities(
            said.probabilities, said.grid, volume.grid, what, threshold, said.body, volume.name
        )
        return said, labels, what
    found = model.map_exam(volume)
    return found, *_decided(found.field, volume.grid, what, threshold, found.body, found.image)


def segment_coordinates(
    field: CoordinateField,
    native_grid: Grid,
    template: Template,
    threshold: float | None = None,
    body: NDArray[np.bool_] | None = None,
    image: Volume | None = None,
) -> Labels:
    """The structures of an exam whose coordinates are known (section 5.2.7).

    With a template that knows what its structures look like, and with ``image``, the masks are probabilities that the
    values of the image correct (:mod:`~deepatlas.localize.template.appearance`). A structure that this makes less than
    0.6 times or more than 1.67 times as large looks unlike its examples, and its mask alone decides.

    A voxel belongs to the structure whose mask is furthest above its threshold there, if any mask reaches its
    threshold. Structures that overlap in the template's exams (``template.overlapping``) do not compete: the voxel
    belongs to each of them, and the label image shows the one on top (``template.stack``). A voxel outside the body, or
    outside the field of view of the model grid, is background. The work goes slab by slab, so that the memory it needs
    does not grow with the number of slices.

    Args:
        field: the coordinates of the exam.
        native_grid: the grid of the result, in any orientation.
        template: the masks to carry over.
        threshold: as in :func:`segment`.
        body: ``[S, S, S]``, the foreground of the exam on ``field.grid``; None clips nothing. A voxel counts as outside
            where no voxel of the body is within a voxel of the model grid.
        image: the exam with values as the network takes them, on ``native_grid`` or another grid; None leaves it to the
            masks.

    Returns:
        Labels on ``native_grid``: a label image of uint8, or uint16 for ids above 255, and what it hides of structures
        that overlap. 0 is the background.

    Raises:
        DeepAtlasError: the threshold is out of range.

    Warns:
        DataWarning: a structure looks unlike its examples, or has no voxel for the threshold alone.
    """
    return _decided(field, native_grid, template, threshold, body, image)[0]


def _decided(
    field: CoordinateField,
    native_grid: Grid,
    template: Template,
    threshold: float | None,
    body: NDArray[np.bool_] | None,
    image: Volume | None,
) -> tuple[Labels, Template]:
    """As :func:`segment_coordinates`, and the template without a say of the image about what looks unlike it."""
    if threshold is not None and not 0 < threshold <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {threshold}")
    thresholds = template.thresholds if threshold is None else (threshold,) * len(template.ids)
    coords = field.coords
    evidence = Evidence.of(template, image, native_grid, coords.device)
    masks = _Masks.of(template, thresholds, coords)
    supports = torch.tensor(template.supports)
    last = torch.tensor(template.masks.shape[:0:-1], dtype=coords.dtype, device=coords.device) - 1
    canvas = Canvas(native_grid, template.ids, template.overlapping)
    highest = torch.zeros(len(template.ids), dtype=coords.dtype, device=coords.device)
    sizes = torch.zeros((2, len(template.ids)), dtype=torch.float64, device=coords.device)
    chunk = TILE[0] * native_grid.shape[1] * native_grid.shape[2]
    for z, fine in field.slabs(native_grid, chunk):
        # Coordinates are clamped, which is border padding, and turned into template voxels: [3, d, H, W].
        index = fine[0].clamp_(-1, 1).add_(1).mul_((last / 2)[:, None, None, None])
        tiles = list(_tiles(index.shape[1:]))
        ends = torch.stack([torch.stack([index[t].amin((1, 2, 3)), index[t].amax((1, 2, 3))]) for t in tiles])
        ends = torch.stack([ends[:, 0].floor(), ends[:, 1].ceil()], dim=1).long().cpu()
        labels = torch.zeros(index.shape[1:], dtype=torch.int32, device=coords.device)
        slabs = {
            row: torch.zeros(index.shape[1:], dtype=torch.bool, device=coords.device) for row in canvas.shared
        }
        for tile, (low, high) in zip(tiles, ends, strict=True):
            near = ((supports[:, 0] <= high) & (supports[:, 1] >= low)).all(dim=1).nonzero()[:, 0]
            if len(near):
                values = masks.values(near, index[tile], low, high)
                if evidence is not None:
                    block = (slice(z.start + tile[1].start, z.start + tile[1].stop), *tile[2:])
                    rows = near.to(values.device)
                    before, values = values, evidence.posterior(values, rows, block)
                    sizes[:, rows] += torch.stack([_size(before), _size(values)])
                highest[near] = torch.maximum(highest[near], values.amax((1, 2, 3)).to(highest))
                labels[tile[1:]], held = masks.decide(near, values)
                for row, own in held.items():
                    slabs[row][tile[1:]] = own
        canvas.put(z, labels, slabs)
    name = image.name if image else ""
    if unlike := _unlike(sizes):
        names, do = ", ".join(template.names[row] for row in unlike), "does" if len(unlike) == 1 else "do"
        warnings.warn(
            f"{name or 'exam'}: {names} {do} not look as in the examples of the template; drawn by the mask alone",
            DataWarning,
            stacklevel=4,
        )
        return _decided(field, native_grid, template.silenced(unlike), threshold, body, image)
    warn_emptied(name, template.names, highest, template.thresholds, threshold)
    return canvas.finish(field.grid, body, coords, chunk), template


def _size(values: Tensor) -> Tensor:
    """The sum of the probabilities of each structure, for those that count at all, in voxels."""
    return torch.where(values >= LEAST_PRIOR, values.clamp(max=1), 0).sum((1, 2, 3)).double()


def _unlike(sizes: Tensor) -> list[int]:
    """The structures that the image makes much smaller or larger than the masks alone; ``[2, K]`` before and after."""
    before, after = sizes
    low, high = _ALIKE
    return torch.nonzero((before > _FEW) & ((after < low * before) | (after > high * before)))[:, 0].tolist()


@dataclass(frozen=True)
class _Masks:
    """The masks of a template as tensors, and how its structures compete for a voxel."""

    masks: Tensor  # [K, D, H, W]
    levels: Tensor  # [K], the thresholds
    rivals: Rivals

    @classmethod
    def of(cls, template: Template, thresholds: Sequence[float], like: Tensor) -> _Masks:
        return cls(
            torch.from_numpy(template.masks).to(like.device, like.dtype),
            torch.tensor(thresholds, dtype=like.dtype, device=like.device),
            Rivals(
                torch.tensor(template.ids, dtype=torch.int32, device=like.device),
                template.overlapping,
                template.stack,
            ),
        )

    def values(self, near: Tensor, index: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The masks of some structures on the voxels of a tile: ``[len(near), d, h, w]``.

        Args:
            near: the rows of the structures that reach into the template's box from ``low`` to ``high``.
            index: ``[3, d, h, w]``, the template voxel of every voxel of the tile.
            low: the first template voxel (x, y, z) of the box.
            high: the last one.
        """
        box = tuple(slice(a, b + 1) for a, b in zip(low.flip(0).tolist(), high.flip(0).tolist(), strict=True))
        near = near.to(self.masks.device)
        part = self.masks[(slice(None), *box)][near]
        span = (high - low).clamp_min(1).to(index)[:, None, None, None]
        local = (index - low.to(index)[:, None, None, None]) * (2 / span) - 1
        return ops.resample(part[None], local[None])[0]

    def decide(self, near: Tensor, values: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The labels of a tile, and the whole masks there of structures that overlap others, from their values."""
        above = values - self.levels[near.to(values.device), None, None, None]
        return self.rivals.decide(near.tolist(), above)


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut a slab ``[3, d, H, W]`` into tiles as deep as the slab; ``shape`` is ``(d, H, W)``."""
    depth, height, width = shape
    for y in range(0, height, TILE[1]):
        for x in range(0, width, TILE[2]):
            yield (
                slice(None), slice(0, depth),
                slice(y, min(height, y + TILE[1])), slice(x, min(width, x + TILE[2])),
            )  # fmt: skip
