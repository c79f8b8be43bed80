"""Checksums of exam files: of their bytes, of their header, and of their decoded content; and which files these are."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.io.codec import files_of_image

# The number of voxels that are hashed at once.
_BLOCK = 1 << 24


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the bytes of a file, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def image_files(path: Path) -> list[Path]:
    """The files of an exam's image, sorted: all in a DICOM folder; or the image file, with those beside a header.

    Raises :class:`OSError` if a folder cannot be listed.
    """
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else files_of_image(path)


def head_sha256(file: h5py.File) -> str:
    """The SHA-256 of the header, the affine and the shapes of a file."""
    shapes = [(name, file[name].shape, file[name].dtype.str) for name in ("ct", "labels") if name in file]
    return hashlib.sha256(
        file["header"][()] + np.asarray(file["affine"][:], "<f8").tobytes() + repr(shapes).encode()
    ).hexdigest()


def content_sha256(file: h5py.File, at_hand: dict[str, NDArray | None] | None = None) -> str:
    """The SHA-256 of the names, types, shapes and decoded values of all datasets of a file.

    Args:
        file: the open file.
        at_hand: the values of datasets by name, which are then not read from the file.
    """
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
    """The decoded bytes of a dataset, in blocks of whole chunks."""
    if dataset.shape == ():
        yield dataset[()]
        return
    source = dataset if array is None else array
    depth = dataset.chunks[0] if dataset.chunks else max(1, len(dataset))
    step = max(depth, _BLOCK // max(1, math.prod(dataset.shape[1:])) // depth * depth)
    for start in range(0, len(dataset), step):
        yield np.ascontiguousarray(source[start : start + step]).view(np.uint8).data
