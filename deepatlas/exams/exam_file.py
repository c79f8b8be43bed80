"""One exam as one HDF5 file: the CT and its labels at native resolution, and its row of the training array.

Layout of format 1 (also in docs/dataset.md):

============  ====================  ==============================================================================
``ct``        int16 [D, H, W]       Hounsfield units in the voxel order of the source (z, y, x)
``labels``    uint8/16 [D, H, W]    label ids on the same voxels; absent where nothing was drawn
``affine``    float64 [4, 4]        voxel indices (x, y, z) to RAS+ millimetres
``header``    JSON                  id, label names and ids, names that have voxels, facts, warnings, crop
``row/``      group                 the exam's row of the training array (:mod:`deepatlas.store.rows`)
============  ====================  ==============================================================================

Attributes: ``format``, ``version``, ``sha256`` of all of this as it is decoded, and ``head``, the SHA-256 of header,
affine and shapes, which is compared whenever the file is opened (the voxels carry HDF5's checksums).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.exams.facts import allowed_facts
from deepatlas.files import atomic_h5
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels, fit_exam
from deepatlas.store.hdf5 import FileArray, Hdf5Reader
from deepatlas.store.rows import write_part

FORMAT = "deepatlas-exam"
VERSION = 1
CHUNK = 64  # voxels along each side of a chunk, at most
_BLOCK = 1 << 24  # voxels that are hashed at a time
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ExamRecord:
    """What the manifest says about an exam file.

    ``spacing`` and ``extent`` (the field of view, outer face to outer face) are in mm along the patient's axes: to the
    right, to the front, to the head. ``orientation`` are nibabel's codes of the source's voxel axes x, y, z.
    ``sha256`` and ``bytes`` are the file's, ``content`` is the SHA-256 of what it holds.
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
        """In plain types, for JSON."""
        return asdict(self)


def check_id(exam_id: str) -> str:
    """``exam_id`` if it can be a file's name everywhere; :class:`~deepatlas.errors.DataError` otherwise."""
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
    """Write one exam, whole or not at all; the file's name (without ``.h5``) is the exam's id.

    Args:
        path: ``<id>.h5``; missing folders are made.
        volume: the CT in Hounsfield units, of any numeric type. It is rounded to whole numbers; what does not fit
            in int16 is clipped, with a warning.
        labels: integer ids on the CT's grid, or None where nothing was drawn.
        names: ``{name: id}`` of the structures that could have been drawn; the same ids in all exams of a dataset.
        facts: provenance; only what :func:`~deepatlas.exams.facts.allowed_facts` lets through is stored.
        warnings: lines for the reader, which must identify nobody.
        crop: as in :func:`~deepatlas.space.preprocess.to_model_grid`, for the exam's row of the training array.

    The same arguments give the same bytes.

    Raises:
        DataError: no patient in the CT, voxels that are not finite, labels on another grid or without a name,
            an id that cannot be a file name, and every failure of the disk.
    """
    path = Path(path)
    exam_id = check_id(path.name.removesuffix(".h5"))
    lines = list(dict.fromkeys(" ".join(str(w).split()) for w in warnings))
    array, clipped = _to_int16(volume)
    if clipped:
        lines.append(f"{clipped} voxels beyond -32768 to 32767 HU were clipped")
    ct = Volume(array, volume.grid, volume.name or exam_id)
    seg = None
    if labels is not None and (names or labels.array.any()):
        seg = _label_image(ct, labels, names)
    exam = fit_exam(ct, seg, names, crop, lines)
    header = {
        "id": exam_id,
        "labels": names,
        "present": [name for name, there in zip(names, exam.has_label, strict=True) if there],
        "facts": allowed_facts(facts),
        "warnings": lines,
        "crop": crop,
    }
    with atomic_h5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file["header"] = json.dumps(header)
        file["affine"] = ct.grid.affine
        options = {"chunks": chunk_shape(array.shape), "compression": "gzip", "compression_opts": 1}
        file.create_dataset("ct", data=array, shuffle=True, fletcher32=True, **options)
        file.flush()  # else chunks come to lie in the order in which Python happens to forget their datasets
        if seg is not None:
            file.create_dataset(
                "labels", data=seg.array, shuffle=seg.array.itemsize > 1, fletcher32=True, **options
            )
            file.flush()
        file.attrs["head"] = _head_sha256(file)
        write_part(file.create_group("row"), exam, names)
        file.attrs["sha256"] = content_sha256(
            file, {"ct": array, "labels": None if seg is None else seg.array}
        )
    with ExamFile(path) as written:
        return written.record()


class ExamFile(Hdf5Reader):
    """An exam file, opened in each process that reads from it; nothing but its header is read at once.

    Attributes: ``path``, ``id``, ``grid``, ``names`` (``{name: id}``), ``present`` (names that have voxels),
    ``facts``, ``warnings``, ``row_crop``, ``has_labels``, ``content`` (SHA-256), and ``ct``, indexed like an array
    (int16 Hounsfield units; z, y, x).

    Raises :class:`~deepatlas.errors.DataError` if the file is missing, damaged, truncated, no exam file, or of
    another format version.
    """

    kind = "exam file"
    absent = "prepare the dataset again"
    foreign = "not an exam file (not an HDF5 file); give one that `prepare` wrote"
    again = "prepare this exam again"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            file = self._open()
            if file.attrs.get("format") != FORMAT:
                raise DataError(f"{self.path}: an HDF5 file, but not an exam; give one that `prepare` wrote")
            if int(file.attrs["version"]) != VERSION:
                raise DataError(
                    f"{self.path}: exam format {file.attrs['version']}, this program reads {VERSION}; "
                    "install the version that wrote it, or prepare this exam again"
                )
            if file.attrs.get("head") != _head_sha256(file):
                raise DataError(
                    f"{self.path}: damaged exam file (its header does not fit its checksum); {self.again}"
                )
            header = json.loads(file["header"][()])
            self.id: str = header["id"]
            self.names: dict[str, int] = header["labels"]
            self.present: list[str] = header["present"]
            self.facts: dict[str, Any] = header["facts"]
            self.warnings: list[str] = header["warnings"]
            self.row_crop: str | None = header["crop"]
            self.content = str(file.attrs["sha256"])
            self.grid = Grid(file["ct"].shape, file["affine"][:])
            self.has_labels = "labels" in file
        except DataError:
            raise
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(f"{self.path}: damaged exam file ({error}); {self.again}") from error
        finally:
            self.close()  # opened again, and then kept open, when an array is indexed
        self.ct = FileArray(self, "ct")

    def __repr__(self) -> str:
        depth, height, width = self.grid.shape
        return f"ExamFile({str(self.path)!r}, {width} x {height} x {depth} voxels)"

    def volume(self) -> Volume:
        """The whole CT: int16 Hounsfield units on :attr:`grid`."""
        return Volume(self.ct[...], self.grid, str(self.path))

    def labels(self) -> Volume:
        """The whole label image (uint8 or uint16); :class:`~deepatlas.errors.DataError` where nothing was drawn."""
        return Volume(self._labels()[...], self.grid, str(self.path))

    def crop(self, start: Sequence[int], shape: Sequence[int], *, labels: bool = False) -> Volume:
        """The box of ``shape`` from voxel ``start`` (both z, y, x) with its own grid, reading little more than it.

        Raises ValueError where it leaves the exam.
        """
        box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        if any(b.start < 0 or b.stop > n for b, n in zip(box, self.grid.shape, strict=True)):
            raise ValueError(f"crop {tuple(start)} + {tuple(shape)} leaves the exam {self.grid.shape}")
        array = self._labels() if labels else self.ct
        return Volume(array[box], self.grid.cropped(start, shape), str(self.path))

    def verify(self) -> None:
        """Read everything; :class:`~deepatlas.errors.DataError` unless it is what was written."""
        try:
            content = content_sha256(self._open())
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path}: damaged exam file ({error}); {self.again}") from error
        if content != self.content:
            raise DataError(f"{self.path}: does not hold what its checksum says; {self.again}")

    def record(self) -> ExamRecord:
        """The exam's line of the manifest; reads the whole file once for its checksum, without decoding it."""
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


def chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Chunks of at most 64 voxels a side that cut every axis into equal pieces: none is nearly empty."""
    return tuple(math.ceil(n / math.ceil(n / CHUNK)) for n in shape)


def orientation_code(grid: Grid) -> str:
    """Where the voxel axes x, y, z run to, as nibabel names it: ``"LPS"`` for most DICOM."""
    _, axes, flips = grid.canonical()
    codes = ["", "", ""]
    for new, old in enumerate(axes):  # array axes: new 0, 1, 2 run to the head, the front and the right
        codes[2 - old] = ("SAR" if new not in flips else "IPL")[new]
    return "".join(codes)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _to_int16(volume: Volume) -> tuple[NDArray[np.int16], int]:
    """Rounded Hounsfield units, and how many voxels had to be clipped. Slice by slice: exams are large."""
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


def _label_image(ct: Volume, labels: Volume, names: dict[str, int]) -> Volume:
    if labels.array.dtype.kind not in "iub":
        raise DataError(f"{ct.name}: labels of type {labels.array.dtype}; give whole ids")
    seg = Volume(labels.array, labels.grid, labels.name or f"labels of {ct.name}")
    check_labels(ct, seg, names)
    dtype = np.uint8 if max(names.values()) < 256 else np.uint16
    return Volume(np.ascontiguousarray(seg.array, dtype=dtype), ct.grid, seg.name)


def _head_sha256(file: h5py.File) -> str:
    shapes = [(name, file[name].shape, file[name].dtype.str) for name in ("ct", "labels") if name in file]
    return hashlib.sha256(
        file["header"][()] + np.asarray(file["affine"][:], "<f8").tobytes() + repr(shapes).encode()
    ).hexdigest()


def content_sha256(file: h5py.File, at_hand: dict[str, NDArray | None] | None = None) -> str:
    """SHA-256 over names, types, shapes and decoded values of all that a file holds; ``at_hand`` is not read again."""
    digest = hashlib.sha256()
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in sorted(found):
        dataset = file[name]
        digest.update(
            f"{name} {dataset.dtype.str if dataset.dtype.kind != 'O' else 'text'} {dataset.shape}\n".encode()
        )
        for block in _blocks(dataset, (at_hand or {}).get(name)):
            digest.update(block)
    return digest.hexdigest()


def _blocks(dataset: h5py.Dataset, array: NDArray | None) -> Iterable[bytes | memoryview]:
    if dataset.shape == ():
        yield dataset[()]
        return
    source = dataset if array is None else array
    depth = dataset.chunks[0] if dataset.chunks else max(1, len(dataset))
    step = max(depth, _BLOCK // max(1, math.prod(dataset.shape[1:])) // depth * depth)
    for start in range(0, len(dataset), step):
        yield np.ascontiguousarray(source[start : start + step]).view(np.uint8).data
