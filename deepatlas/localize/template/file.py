"""Masks, points, lines and boxes in the learned coordinate space (section 5.2.7), and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.files import atomic_h5, refuse_pointer
from deepatlas.localize.template.appearance import Appearance
from deepatlas.localize.template.marks import (
    check_marks,
    marks_from_json,
    marks_to_json,
    names_of_marks,
    some_marks,
)
from deepatlas.names.meet import chosen
from deepatlas.pretrained import TEMPLATE, resolve
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.markup import Markups
from deepatlas.space.stack import overlap_matrix, rows_of, stack_order

FORMAT = "deepatlas-template"
# A file that holds points, lines or boxes has version 2, so that earlier versions of this package, which would lose
# them, refuse it. One with masks alone has version 1, and they read it.
# Version 3 also holds what structures look like, without which its masks are drawn otherwise.
VERSION, VERSION_OF_MARKS, VERSION_OF_MASKS = 3, 2, 1
# The key of ``meta`` that says why a calibration was left out.
NO_TRUST = "no_trust"
# The voxels of a template along each axis, unless the atlas of the model has more.
SIZE = 128
# The range of thresholds. Masks that keep their volume only beyond it resemble no exam, and must not decide more.
_BOUNDS = 0.25, 0.75


@dataclass(repr=False)
class Template:
    """What is defined once in the coordinate space, to be found in any exam. A template must not be changed once made.

    It holds one mask per structure (section 5.2.7), points, lines and oriented boxes; structures may overlap.

    Attributes:
        masks: float32 ``[K, D, H, W]``, where K may be 0, on the corner-aligned grid of [-1, 1]^3, so that
            ``ops.resample(masks[None], coords)`` carries them onto an exam. They are the least-squares solutions of
            eq. 14, and therefore exceed [0, 1] a little at sharp borders.
        names: the names of the K structures; distinct.
        ids: their ids in the label images that segmentation writes; distinct, from 1 to 65535.
        meta: JSON values: ``model`` (fingerprint of the model whose coordinates these are), ``refine`` and
            ``average`` (refinement steps and views of the exams), ``exams``, the settings and outcome of the solver,
            ``overlaps``: the pairs of structures that were drawn over each other, ``[lower, upper]``; and
            ``mm_per_unit``: the millimetres that a unit of the coordinates has in those exams, ``[x, y, z]``.
        marks: points, lines and boxes. Their positions are coordinates of the atlas, and no millimetres; their names
            are distinct in each kind.
        appearance: what the structures look like (:mod:`~deepatlas.localize.template.appearance`); None where the masks
            alone decide.

    Raises:
        DeepAtlasError: the shapes do not match, names or ids are not distinct or out of range, or a mask holds values
            that are not finite.
    """

    masks: NDArray[np.float32]
    names: tuple[str, ...]
    ids: tuple[int, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    marks: Markups = Markups()
    appearance: Appearance | None = None

    def __post_init__(self) -> None:
        self.masks = np.ascontiguousarray(self.masks, dtype=np.float32)
        self.names = tuple(str(n) for n in self.names)
        self.ids = tuple(int(i) for i in self.ids)
        k = len(self.names)
        if self.masks.ndim != 4 or len(self.masks) != k or len(self.ids) != k:
            raise DeepAtlasError(
                f"Template: masks must be [K, D, H, W] with K names and K ids, got masks "
                f"{self.masks.shape}, {k} names, {len(self.ids)} ids"
            )
        if k == 0 and not len(self.marks):
            raise DeepAtlasError("Template: holds nothing; give a mask, a point, a line or a box")
        check_marks(self.marks)
        if (
            len(set(self.names)) != k
            or len(set(self.ids)) != k
            or not all(0 < i <= MAX_LABEL for i in self.ids)
        ):
            raise DeepAtlasError(
                f"Template: names and ids must be distinct, ids in 1..{MAX_LABEL}, got {self.names}, {self.ids}"
            )
        if not np.isfinite(self.masks).all():
            raise DeepAtlasError("Template: masks hold NaN or infinite values")
        if self.appearance is not None and len(self.appearance.log_odds) != k:
            raise DeepAtlasError(
                f"Template: {len(self.appearance.log_odds)} rows of appearance for {k} structures"
            )

    def __repr__(self) -> str:
        parts = []
        if self.names:
            some = ", ".join(self.names[:4]) + (", …" if len(self.names) > 4 else "")
            size = " x ".join(map(str, self.masks.shape[:0:-1]))
            parts += [f"{len(self.names)} structures ({some})", f"{size} voxels"]
        marks = {"points": self.marks.points, "lines": self.marks.lines, "boxes": self.marks.boxes}
        parts += [f"{len(items)} {kind}" for kind, items in marks.items() if items]
        if self.appearance is not None:
            parts.append("which know what they look like")
        if exams := self.meta.get("exams"):
            parts.append(f"from {len(exams)} exams")
        if model := self.meta.get("model"):
            parts.append(f"for model {model}")
        return f"Template({', '.join(parts)})"

    @property
    def labels(self) -> dict[str, int]:
        """``{name: id}``, as in ``labels.json``."""
        return dict(zip(self.names, self.ids, strict=True))

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The value that each mask must reach to count: its isosurface encloses the volume that the mask sums to.

        The mean of several exams is blurred, and so is the smoothed mask of one exam. A blurred convex body that is
        cut at one half is too small, and a lower value preserves its volume. For sharp masks the value is 0.5.
        """
        return tuple(volume_keeping(mask[box]) for mask, box in zip(self.masks, self._boxes, strict=True))

    @cached_property
    def supports(self) -> NDArray[np.int64]:
        """The first and the last voxel (x, y, z) of each mask with a positive value: int64 ``[K, 2, 3]``."""
        out = np.empty((len(self.masks), 2, 3), dtype=np.int64)
        for row, mask in enumerate(self.masks):
            held = mask > 0
            z_y, z_x = held.any(axis=2), held.any(axis=1)
            for axis, line in enumerate((z_x.any(axis=0), z_y.any(axis=0), z_y.any(axis=1))):
                used = np.flatnonzero(line)
                # The support of an empty mask is empty: its first voxel lies after its last one.
                out[row, :, axis] = (used[0], used[-1]) if len(used) else (1 << 30, -1)
        return out

    @cached_property
    def _boxes(self) -> list[tuple[slice, ...]]:
        """The support of each mask as an index (z, y, x)."""
        return [tuple(slice(a, b + 1) for a, b in support.T[::-1]) for support in self.supports]

    @cached_property
    def overlapping(self) -> NDArray[np.bool_]:
        """Bool ``[K, K]``: which structures may have a voxel in common, by ``meta["overlaps"]``."""
        return overlap_matrix(len(self.names), self._pairs())

    @cached_property
    def stack(self) -> tuple[int, ...]:
        """The rows of the structures in the order in which a label image shows them, the lowest first.

        Of two that overlap, the upper one of ``meta["overlaps"]`` is the later; otherwise the smaller one.
        """
        pairs = zip(self.masks, self._boxes, strict=True)
        sizes = [float(np.clip(mask[box], 0, 1).sum(dtype=np.float64)) for mask, box in pairs]
        return stack_order(sizes, self._pairs())

    def _pairs(self) -> list[tuple[int, int]]:
        """``meta["overlaps"]`` as rows."""
        return rows_of(self.meta.get("overlaps", []), self.names)

    def select(self, names: Sequence[str], name: str = "template") -> Template:
        """The template of some of the structures, points, lines and boxes, in the order of ``names``.

        A name may be spelled otherwise than in the template, or be a synonym (:mod:`deepatlas.names.meet`); the result
        has the names of this template, and whatever has one of them. ``name`` is what a message calls the template, for
        example its file.

        Raises :class:`~deepatlas.errors.DataError` for a name that the template does not hold.
        """
        known = list(dict.fromkeys((*self.names, *names_of_marks(self.marks))))
        names = chosen(names, known, name)
        kept = [n for n in names if n in self.names]
        rows = [self.names.index(n) for n in kept]
        ids = tuple(self.ids[r] for r in rows)
        seen = self.appearance.rows(rows) if self.appearance is not None and rows else None
        return Template(self.masks[rows], tuple(kept), ids, self.meta, some_marks(self.marks, names), seen)

    def shape_only(self) -> Template:
        """The template whose masks alone decide, whatever the structures look like.

        A calibration (``meta["trust"]``) is about masks that the image corrected, and is left out; ``meta`` says so.
        """
        if self.appearance is None:
            return self
        meta = {key: value for key, value in self.meta.items() if key != "trust"}
        if "trust" in self.meta:
            meta[NO_TRUST] = "calibrated on masks that the image corrects, but used with --shape-only"
        return replace(self, appearance=None, meta=meta)

    def silenced(self, rows: Sequence[int]) -> Template:
        """The template where the masks alone decide about some structures."""
        if self.appearance is None:
            return self
        odds = self.appearance.log_odds.copy()
        odds[list(rows)] = 0
        return replace(self, appearance=replace(self.appearance, log_odds=odds))

    def check_model(self, fingerprint: str, name: str = "template") -> None:
        """Raise DeepAtlasError if the masks belong to the coordinate space of another model.

        Args:
            fingerprint: of the model that is used. A template whose model is unknown is accepted.
            name: what the message calls the template, for example its file.
        """
        own = self.meta.get("model")
        if own is not None and own != fingerprint:
            raise DeepAtlasError(
                f"{name}: made for the model {own}, but this model is {fingerprint}, and its coordinates denote "
                "other places; make a template for this model with `deepatlas template`"
            )

    def save(self, path: str | Path) -> None:
        """Write the template as an HDF5 file that :meth:`load` reads. The file is complete or absent.

        Raises :class:`~deepatlas.errors.DataError` where the file cannot be written.
        """
        with atomic_h5(path) as f:
            f.attrs["format"] = FORMAT
            f.attrs["version"] = (
                VERSION if self.appearance is not None
                else VERSION_OF_MARKS if len(self.marks)
                else VERSION_OF_MASKS
            )  # fmt: skip
            # An attribute holds at most 64 KB, and the meta of a large cohort lists many exams. So it is a dataset.
            f.create_dataset("meta", data=json.dumps(self.meta), dtype=h5py.string_dtype())
            f.create_dataset(
                "names", data=list(self.names), shape=(len(self.names),), dtype=h5py.string_dtype()
            )
            f.create_dataset("ids", data=np.asarray(self.ids, dtype=np.int32))
            if len(self.marks):
                text = np.frombuffer(marks_to_json(self.marks).encode(), dtype=np.uint8)
                # Only a checksum reveals a wrong digit.
                f.create_dataset("marks", data=text, chunks=text.shape, fletcher32=True)
            if self.appearance is not None:
                f.attrs["appearance_scale_mm"] = self.appearance.scale_mm
                for name, data in (("edges", self.appearance.edges), ("log_odds", self.appearance.log_odds)):
                    f.create_dataset(f"appearance/{name}", data=data, chunks=data.shape, fletcher32=True)
            if not self.names:
                f.create_dataset("masks", data=self.masks)
                return
            # One chunk per structure, so that each can be read alone. Masks are mostly 0 and compress well.
            f.create_dataset(
                "masks", data=self.masks, chunks=(1, *self.masks.shape[1:]), compression="gzip",
                compression_opts=1, shuffle=True, fletcher32=True,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Template:
        """Read a file that :meth:`save` wrote, or the template of a shipped model by the name of the model.

        Raises:
            DataError: the file is missing, damaged, not a template, or of another format version. The message names
                the file, the problem and the cure.
        """
        path = resolve(path, TEMPLATE)
        if not path.is_file():
            raise DataError(f"{path}: no such template file; make one with `deepatlas template`")
        refuse_pointer(path)
        cure = "make it again with `deepatlas template`"
        try:
            with h5py.File(path, "r", locking=False) as f:
                if f.attrs.get("format") != FORMAT:
                    raise DataError(
                        f"{path}: not a template file (HDF5, but not by `deepatlas template`); {cure}"
                    )
                version = int(f.attrs.get("version", 0))
                if version not in (VERSION, VERSION_OF_MARKS, VERSION_OF_MASKS):
                    raise DataError(
                        f"{path}: template format {version}, this version reads up to {VERSION}; {cure}"
                    )
                names = tuple(f["names"].asstr()[()])
                meta = json.loads(f["meta"].asstr()[()])
                has_marks = version == VERSION_OF_MARKS or "marks" in f
                marks = marks_from_json(f["marks"][()].tobytes().decode()) if has_marks else Markups()
                seen = (
                    Appearance(
                        f["appearance/edges"][()],
                        f["appearance/log_odds"][()],
                        float(f.attrs["appearance_scale_mm"]),
                    )
                    if version == VERSION
                    else None
                )
                return cls(f["masks"][()], names, tuple(f["ids"][()]), meta, marks, seen)
        except DataError:
            raise
        except DeepAtlasError as error:
            raise DataError(f"{path}: damaged template file: {error}; {cure}") from error
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(f"{path}: not a template file, or damaged ({error}); {cure}") from error


def volume_keeping(mask: NDArray[np.float32]) -> float:
    """The value that as many voxels of the mask reach as the mask sums to, within the bounds of thresholds."""
    values = np.clip(mask[mask > 0], 0, 1)
    count = round(float(values.sum(dtype=np.float64)))
    if not 0 < count < len(values):
        # The mask holds only zeros and ones, or next to nothing.
        return 0.5
    inner, outer = np.partition(values, (-count - 1, -count))[[-count, -count - 1]]
    # Where many voxels share the value, all of them belong to the structure. Interpolation leaves them slightly below
    # it, so the threshold is a little lower.
    return float(np.clip((inner + outer) / 2 if inner > outer else inner - 1e-3, *_BOUNDS))
