"""Reference masks in the learned coordinate space (paper 5.2.7) and the file that holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.files import atomic_h5
from deepatlas.pretrained import TEMPLATE, resolve
from deepatlas.space.constants import MAX_LABEL

FORMAT = "deepatlas-template"
VERSION = 1
_BOUNDS = 0.25, 0.75  # of thresholds: masks that are nowhere near an exam's need not decide more


@dataclass
class Template:
    """One mask per structure over the coordinate space; not to be changed once made.

    ``masks`` float32 ``[K, D, H, W]`` on the corner-aligned grid of [-1, 1]^3, so that
    ``ops.resample(masks[None], coords)`` carries them onto an exam; they are the least-squares solutions of
    eq. 14 and so leave [0, 1] a little at sharp borders. ``names`` and ``ids`` (positive, distinct) are
    those of the label images that segmentation writes. ``meta`` is JSON: ``model`` (fingerprint of the
    model whose coordinates these are), ``refine`` and ``average`` (steps of refinement, views), ``exams``
    used per structure, the solver's settings and outcome.
    """

    masks: np.ndarray
    names: tuple[str, ...]
    ids: tuple[int, ...]
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = np.ascontiguousarray(self.masks, dtype=np.float32)
        self.names = tuple(str(n) for n in self.names)
        self.ids = tuple(int(i) for i in self.ids)
        k = len(self.names)
        if self.masks.ndim != 4 or len(self.masks) != k or len(self.ids) != k or k == 0:
            raise DeepAtlasError(
                f"Template: masks must be [K, D, H, W] with K names and K ids (K > 0), got masks "
                f"{self.masks.shape}, {k} names, {len(self.ids)} ids"
            )
        if (
            len(set(self.names)) != k
            or len(set(self.ids)) != k
            or min(self.ids) <= 0
            or max(self.ids) > MAX_LABEL
        ):
            raise DeepAtlasError(
                f"Template: names and ids must be distinct, ids in 1..{MAX_LABEL}, got {self.names}, {self.ids}"
            )
        if not np.isfinite(self.masks).all():
            raise DeepAtlasError("Template: masks hold NaN or infinite values")

    @property
    def labels(self) -> dict[str, int]:
        """``{name: id}``, as in ``labels.json``."""
        return dict(zip(self.names, self.ids, strict=True))

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """What each mask must reach where it counts: the value whose isosurface encloses as much as the mask sums to.

        Means of several exams, and one exam's smoothed masks, are blurred, and a blurred convex body that is cut at
        a half is too small: its volume is kept by a lower value. 0.5 for sharp masks.
        """
        return tuple(_volume_keeping(mask) for mask in self.masks)

    @cached_property
    def supports(self) -> np.ndarray:
        """First and last voxel (x, y, z) with a positive value of each mask: int64 ``[K, 2, 3]``."""
        out = np.empty((len(self.masks), 2, 3), dtype=np.int64)
        for row, mask in enumerate(self.masks > 0):
            for axis in range(3):
                used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
                # An empty mask reaches no place.
                out[row, :, 2 - axis] = (used[0], used[-1]) if len(used) else (1 << 30, -1)
        return out

    def select(self, names: list[str]) -> Template:
        """The template of some of its structures, in the order asked for."""
        missing = [n for n in names if n not in self.names]
        if missing:
            raise DeepAtlasError(
                f"template has no structure {', '.join(missing)}; it holds {', '.join(self.names)}"
            )
        rows = [self.names.index(n) for n in names]
        return Template(self.masks[rows], tuple(names), tuple(self.ids[r] for r in rows), self.meta)

    def check_model(self, fingerprint: str, name: str = "template") -> None:
        """Raise DeepAtlasError where the masks live in another model's coordinate space."""
        own = self.meta.get("model")
        if own is not None and own != fingerprint:
            raise DeepAtlasError(
                f"{name}: made for the model {own}, but this model is {fingerprint}, whose coordinates "
                "mean other places; make a template for this model with `deepatlas template`"
            )

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file, whole or not at all."""
        import h5py

        with atomic_h5(path) as f:
            f.attrs["format"], f.attrs["version"] = FORMAT, VERSION
            # A dataset and no attribute, which may hold 64 KB only: a large cohort lists many exams.
            f.create_dataset("meta", data=json.dumps(self.meta), dtype=h5py.string_dtype())
            f.create_dataset("names", data=list(self.names), dtype=h5py.string_dtype())
            f.create_dataset("ids", data=np.asarray(self.ids, dtype=np.int32))
            # Chunked by structure: one can be read without the others; mostly zeros, so it compresses well.
            f.create_dataset(
                "masks", data=self.masks, chunks=(1, *self.masks.shape[1:]), compression="gzip",
                compression_opts=1, shuffle=True, fletcher32=True,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Template:
        """Read a file of :meth:`save`, or the template of a shipped model by that model's name.

        Raises DataError naming the file, what is wrong and the cure.
        """
        import h5py

        path = resolve(path, TEMPLATE)
        if not path.is_file():
            raise DataError(f"{path}: no such template file; make one with `deepatlas template`")
        cure = "make it again with `deepatlas template`"
        try:
            with h5py.File(path, "r") as f:
                if f.attrs.get("format") != FORMAT:
                    raise DataError(
                        f"{path}: not a template file (HDF5, but not by `deepatlas template`); {cure}"
                    )
                version = int(f.attrs.get("version", 0))
                if version != VERSION:
                    raise DataError(
                        f"{path}: template format {version}, this version reads {VERSION}; {cure}"
                    )
                names = tuple(f["names"].asstr()[()])
                return cls(f["masks"][()], names, tuple(f["ids"][()]), json.loads(f["meta"].asstr()[()]))
        except DataError:
            raise
        except DeepAtlasError as error:
            raise DataError(f"{path}: damaged template file: {error}; {cure}") from error
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(f"{path}: not a template file, or damaged ({error}); {cure}") from error


def _volume_keeping(mask: np.ndarray) -> float:
    values = np.clip(mask[mask > 0], 0, 1)
    count = round(float(values.sum(dtype=np.float64)))
    if not 0 < count < len(values):  # a mask of ones and zeros, or next to none
        return 0.5
    inner, outer = np.partition(values, (-count - 1, -count))[[-count, -count - 1]]
    # Where many voxels share the value they all belong: interpolation leaves them a rounding below it.
    return float(np.clip((inner + outer) / 2 if inner > outer else inner - 1e-3, *_BOUNDS))
