"""One exam in one HDF5 file: its CT and labels at native resolution, and its row of the training array.

Layout of format 1 (also in docs/dataset.md); a file with overlaps states format 2:

============  ====================  ==============================================================================
``ct``        int16 [D, H, W]       Hounsfield units in the voxel order of the source (z, y, x)
``labels``    uint8/16 [D, H, W]    label ids on the same voxels; absent where nothing was drawn
``hidden/``   group                 what ``labels`` hides where structures overlap (:mod:`deepatlas.store.overlaps`)
``affine``    float64 [4, 4]        voxel indices (x, y, z) to RAS+ millimetres
``header``    JSON                  id, label names and ids, names that have voxels, facts, warnings, crop
``row/``      group                 the exam's row of the training array (:mod:`deepatlas.store.rows`)
============  ====================  ==============================================================================

The attributes are ``format``; ``version``; ``sha256``, the checksum of the decoded content of the file; and ``head``,
the SHA-256 of header, affine and shapes, which is verified whenever the file is opened. The voxels carry HDF5's own
checksums.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.exams.checksums import content_sha256, file_sha256, head_sha256
from deepatlas.exams.facts import allowed_facts
from deepatlas.files import atomic_h5
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels, hidden_within
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels, fit_exam
from deepatlas.store.hdf5 import FileArray, Hdf5Reader
from deepatlas.store.overlaps import read_hidden, write_hidden
from deepatlas.store.rows import write_part

FORMAT = "deepatlas-exam"
VERSION = 1
# That of a file in which structures overlap. Others state the former, so that older programs read them.
OVERLAPS_VERSION = 2
# The largest number of voxels along a side of a chunk.
CHUNK = 64
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ExamRecord:
    """The entry of an exam file in the manifest of its dataset.

    Attributes:
        id: the id of the exam.
        shape: voxels (z, y, x) of the CT.
        spacing: voxel spacing in mm along the axes of the patient: to the right, to the front, to the head.
        extent: the field of view in mm along the same axes, from outer face to outer face.
        orientation: nibabel's codes of the voxel axes x, y, z.
        labels: ``{name: id}`` of the structures of the dataset.
        present: the names of the structures that have voxels in this exam.
        facts: facts about the origin of the exam.
        warnings: remarks for the reader.
        crop: how the exam's row of the training array was cropped.
        bytes: the size of the file.
        sha256: the checksum of the file.
        content: the checksum of the decoded content of the file.
        has_seg: whether the file holds labels.
    """

    id: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    extent: tuple[float, float, float]
    orientation: str
    labels: dict[str, int] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    crop: str | None = None
    bytes: int = 0
    sha256: str = ""
    content: str = ""
    has_seg: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The entry in the types of JSON."""
        return asdict(self)


def check_id(exam_id: str) -> str:
    """``exam_id``, if every system accepts it as the name of a file.

    Raises :class:`~deepatlas.errors.DataError` otherwise.
    """
    if not _ID.fullmatch(exam_id):
        raise DataError(
            f"exam id {exam_id[:40]!r}: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "the first a letter or digit"
        )
    return exam_id


def write_exam(
    path: str | os.PathLike[str],
    volume: Volume,
    labels: Volume | None,
    names: dict[str, int],
    facts: dict[str, Any],
    warnings: Sequence[str],
    *,
    crop: str | None = None,
) -> ExamRecord:
    """Write one exam. The file is complete or absent, and the same arguments give the same bytes.

    Args:
        path: ``<id>.h5``, where ``<id>`` is the id of the exam. Missing folders are created.
        volume: the CT in Hounsfield units, of any numeric type. Values are rounded to integers; those beyond the range
            of int16 are clipped, with a warning.
        labels: integer ids on the grid of the CT, or None where nothing was drawn. Overlaps are stored where they are
            :class:`~deepatlas.space.labels.Labels`.
        names: ``{name: id}`` of the structures that could have been drawn; the same for all exams of a dataset.
        facts: facts about the origin of the exam. Only those that
            :func:`~deepatlas.exams.facts.allowed_facts` allows are stored.
        warnings: remarks for the reader, which must identify nobody.
        crop: how the exam's row of the training array is cropped; as in
            :func:`~deepatlas.space.preprocess.to_model_grid`.

    Returns:
        The entry of the exam in the manifest.

    Raises:
        DataError: the CT shows no patient or holds values that are not finite, the labels are on another grid or have
            ids without a name, the id cannot be a file name, or the file cannot be written.
    """
    path = Path(path)
    exam_id = check_id(path.name.removesuffix(".h5"))
    lines = list(dict.fromkeys(" ".join(str(w).split()) for w in warnings))
    array, clipped = _to_int16(volume)
    if clipped:
        lines.append(f"{clipped:,} voxels beyond -32768 to 32767 HU were clipped")
    ct = Volume(array, volume.grid, volume.name or exam_id)
    seg = None
    if labels is not None and (names or labels.array.any()):
        seg = _as_stored(ct, Labels.of(labels), names)
    exam = fit_exam(ct, seg, names, crop, lines)
    header = {
        "id": exam_id,
        "labels": names,
        "present": [name for name, there in zip(names, exam.has_label, strict=True) if there],
        "facts": allowed_facts(facts),
        "warnings": lines,
        "crop": crop,
    }
    overlaps = seg is not None and bool(seg.hidden)
    if seg is not None and overlaps:
        header["overlaps"] = [name for name, value in names.items() if value in seg.hidden]
    with atomic_h5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = OVERLAPS_VERSION if overlaps else VERSION
        file["header"] = json.dumps(header)
        file["affine"] = ct.grid.affine
        options = {"chunks": chunk_shape(array.shape), "compression": "gzip", "compression_opts": 1}
        file.create_dataset("ct", data=array, shuffle=True, fletcher32=True, **options)
        # Without this, the order of the chunks in the file depends on when Python releases the datasets.
        file.flush()
        if seg is not None:
            file.create_dataset(
                "labels", data=seg.array, shuffle=seg.array.itemsize > 1, fletcher32=True, **options
            )
            file.flush()
            write_hidden(file, "hidden", seg.hidden)
        file.attrs["head"] = head_sha256(file)
        write_part(file.create_group("row"), exam, names)
        file.attrs["sha256"] = content_sha256(
            file, {"ct": array, "labels": None if seg is None else seg.array}
        )
    with ExamFile(path) as written:
        return written.record()


class ExamFile(Hdf5Reader):
    """An exam file. Opening it reads only its header, and every process that reads from it opens it for itself.

    Attributes:
        path: the file.
        id: the id of the exam.
        grid: the grid of the CT.
        names: ``{name: id}`` of the structures of the dataset.
        present: the names of the structures that have voxels in this exam.
        overlaps: the names of those that other structures hide a part of in the label image.
        facts: facts about the origin of the exam.
        warnings: remarks for the reader.
        row_crop: how the exam's row of the training array was cropped.
        has_labels: whether the file holds labels.
        content: the SHA-256 of the decoded content of the file.
        ct: int16 Hounsfield units ``[D, H, W]``, read when indexed like an array.

    Raises:
        DataError: the file is missing, damaged, truncated, no exam file, or of another format version.
    """

    format = FORMAT
    kind = "exam file"
    absent = "prepare the dataset again"
    foreign = "not an exam file; give one that `prepare` wrote"
    again = "prepare this exam again"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        with self.reading_tables() as file:
            if int(file.attrs["version"]) not in (VERSION, OVERLAPS_VERSION):
                raise DataError(
                    f"{self.path}: exam format {file.attrs['version']}, this program reads {VERSION} and "
                    f"{OVERLAPS_VERSION}; install the version that wrote it, or prepare this exam again"
                )
            if file.attrs.get("head") != head_sha256(file):
                raise self.damaged("its header does not fit its checksum")
            header = json.loads(file["header"][()])
            self.id: str = header["id"]
            self.names: dict[str, int] = header["labels"]
            self.present: list[str] = header["present"]
            self.overlaps: list[str] = header.get("overlaps", [])
            self.facts: dict[str, Any] = header["facts"]
            self.warnings: list[str] = header["warnings"]
            self.row_crop: str | None = header["crop"]
            self.content = str(file.attrs["sha256"])
            self.grid = Grid(file["ct"].shape, file["affine"][:])
            self.has_labels = "labels" in file
        self.ct = FileArray(self, "ct")

    def __repr__(self) -> str:
        depth, height, width = self.grid.shape
        return f"ExamFile({str(self.path)!r}, {width} x {height} x {depth} voxels)"

    def volume(self) -> Volume:
        """The complete CT: int16 Hounsfield units on :attr:`grid`."""
        return Volume(self.ct[...], self.grid, str(self.path), modality="CT")

    def labels(self) -> Labels:
        """The structures on :attr:`grid`: a label image (uint8 or uint16), and what it hides where they overlap.

        Raises :class:`~deepatlas.errors.DataError` where nothing was drawn.
        """
        return Labels(self._labels()[...], self.grid, str(self.path), self._hidden())

    def mask(self, name: str) -> Volume:
        """The whole mask (bool) of a structure on :attr:`grid`, whatever lies on it.

        Raises :class:`~deepatlas.errors.DataError` where nothing was drawn, or the dataset has no such structure.
        """
        if name not in self.names:
            raise DataError(f"{self.path}: no structure {name!r}; it has {', '.join(self.names) or 'none'}")
        return Volume(self.labels().mask(self.names[name]), self.grid, str(self.path))

    def crop(self, start: Sequence[int], shape: Sequence[int], *, labels: bool = False) -> Volume:
        """A box of the CT, or of the labels, with its own grid. Little more than the box is read.

        Args:
            start: the first voxel (z, y, x).
            shape: the number of voxels (z, y, x).
            labels: read the labels, which are :class:`~deepatlas.space.labels.Labels`, instead of the CT.

        Raises:
            ValueError: the box extends beyond the exam.
            DataError: ``labels`` is set and nothing was drawn.
        """
        box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        if any(b.start < 0 or b.stop > n for b, n in zip(box, self.grid.shape, strict=True)):
            raise ValueError(f"crop {tuple(start)} + {tuple(shape)} leaves the exam {self.grid.shape}")
        grid = self.grid.cropped(start, shape)
        if not labels:
            return Volume(self.ct[box], grid, str(self.path), modality="CT")
        return Labels(self._labels()[box], grid, str(self.path), hidden_within(self._hidden(), start, shape))

    def verify(self) -> None:
        """Read the complete file, and raise :class:`~deepatlas.errors.DataError` unless it holds what was written."""
        with self.reading() as file:
            content = content_sha256(file)
        if content != self.content:
            raise DataError(f"{self.path}: does not hold what its checksum says; {self.again}")

    def record(self) -> ExamRecord:
        """The entry of the exam in the manifest. The file is read once for its checksum, without decoding it."""
        canonical, *_ = self.grid.canonical()
        return ExamRecord(
            id=self.id,
            shape=self.grid.shape,
            spacing=canonical.spacing,
            extent=canonical.extent,
            orientation=orientation_code(self.grid),
            labels=self.names,
            present=self.present,
            facts=self.facts,
            warnings=self.warnings,
            crop=self.row_crop,
            bytes=self.path.stat().st_size,
            sha256=file_sha256(self.path),
            content=self.content,
            has_seg=self.has_labels,
        )

    def _labels(self) -> FileArray:
        if not self.has_labels:
            raise DataError(f"{self.path}: nothing was drawn in exam {self.id}; choose a labelled one")
        return FileArray(self, "labels")

    def _hidden(self) -> dict[int, BoxMask]:
        if not self.overlaps:
            return {}
        with self.reading() as file:
            hidden = read_hidden(file, "hidden", self.grid.shape)
        if set(hidden) != {self.names[name] for name in self.overlaps}:
            raise self.damaged("its overlaps are not those of its header")
        return hidden


def holds_ct(exam: ExamFile, volume: Volume) -> bool:
    """Whether an exam file holds the voxels of a CT, at the same place, as :func:`write_exam` would store them."""
    same = exam.grid.shape == volume.grid.shape and exam.grid.matches(volume.grid, 1e-3)
    return same and np.array_equal(exam.ct[...], _to_int16(volume)[0])


def chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Chunks of at most 64 voxels a side that divide every axis into pieces of nearly equal length."""
    return tuple(math.ceil(n / math.ceil(n / CHUNK)) for n in shape)


def orientation_code(grid: Grid) -> str:
    """The directions of the voxel axes x, y, z in nibabel's codes: ``"LPS"`` for most DICOM series."""
    _, axes, flips = grid.canonical()
    codes = ["", "", ""]
    # The canonical array axes 0, 1 and 2 run to the head, to the front and to the right.
    for new, old in enumerate(axes):
        codes[2 - old] = ("SAR" if new not in flips else "IPL")[new]
    return "".join(codes)


def _to_int16(volume: Volume) -> tuple[NDArray[np.int16], int]:
    """Rounded Hounsfield units, and the number of clipped voxels. It works slice by slice, because exams are large."""
    source = volume.array
    name = volume.name or "CT"
    if source.dtype.kind not in "iuf":
        raise DataError(f"{name}: voxels of type {source.dtype}; give a CT in Hounsfield units")
    if source.dtype == np.int16:
        return np.ascontiguousarray(source), 0
    array, clipped = np.empty(source.shape, dtype=np.int16), 0
    for z, plane in enumerate(source):
        if source.dtype.kind == "f":
            if not np.isfinite(plane).all():
                raise DataError(f"{name}: voxels that are NaN or infinite; export it again")
            plane = np.rint(plane)
        clipped += int(np.count_nonzero((plane < -32768) | (plane > 32767)))
        array[z] = plane.clip(-32768, 32767)
    return array, clipped


def _as_stored(ct: Volume, labels: Labels, names: dict[str, int]) -> Labels:
    """The labels as they are stored, checked against the CT and the names."""
    if labels.array.dtype.kind not in "iub":
        raise DataError(f"{ct.name}: labels of type {labels.array.dtype}; give integer ids")
    seg = Labels(labels.array, labels.grid, labels.name or f"labels of {ct.name}", labels.hidden)
    check_labels(ct, seg, names)
    dtype = np.uint8 if max(names.values()) < 256 else np.uint16
    return Labels(np.ascontiguousarray(seg.array, dtype=dtype), ct.grid, seg.name, seg.hidden)
