"""Coordinates of exams that are kept on disk, so that an exam passes the network once.

An entry is keyed by the bytes of the exam's files, by the weights of the model and by how the model is used, so that it
never stands for anything else. It holds coordinates and the outline of the body, and no image.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from deepatlas.errors import DataError, DataWarning, WriteError
from deepatlas.exams.checksums import file_sha256
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.kind import MODALITY_NAMES, Kind, exam_stem
from deepatlas.exams.read import read_volume
from deepatlas.files import atomic_h5, private_folder
from deepatlas.model.engine import Engine
from deepatlas.model.field import CoordinateField, Piece
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam
from deepatlas.pretrained import MODEL
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

FORMAT, VERSION = "deepatlas-coordinates", 1
SUFFIX = ".map.h5"
# The bytes that a folder holds before its oldest entries are removed: some 700 exams of 64^3.
LIMIT = 2_000_000_000
# The images whose voxels lie in another file.
_SPLIT = (".nhdr", ".mhd")


@dataclass
class MapCache:
    """A folder of coordinates of exams.

    Attributes:
        folder: made when the first entry is written, for its owner alone.
        limit: the bytes that it may hold; the entries that were not used for longest are removed.
        hits: how often an exam was there.
        misses: how often one had to pass the network.
    """

    folder: Path
    limit: int = LIMIT
    hits: int = 0
    misses: int = 0

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: is a file, and the cache of coordinates is a folder; give another name"
            )

    @classmethod
    def beside(cls, model: str | os.PathLike[str]) -> MapCache | None:
        """The cache of a run, ``RUN/coordinates``; None for what is no run folder, or cannot be written to."""
        run = Path(model)
        # A folder that is called as a shipped model, which is then meant, is no run.
        return cls(run / "coordinates") if (run / MODEL).is_file() and os.access(run, os.W_OK) else None

    def exam(
        self, model: Engine, files: ExamFiles, volume: Volume | None = None, *, keep_image: bool = False
    ) -> KnownExam:
        """The coordinates of an exam: those that are kept, or by a pass of the network, which are then kept.

        ``volume`` is the exam, for whoever has read it already. With ``keep_image`` an exam that needed a pass has its
        image; nothing keeps it beyond that.

        Warns:
            DataWarning: an entry is damaged and is made again, or one cannot be written.

        Raises:
            DataError: the exam cannot be read, or shows no patient.
        """
        key = _content(files)
        if key is not None:
            path = self._path(model, key)
            if (found := self._read(path, files)) is not None:
                return found
        if volume is None:
            volume = read_volume(files.ct, kind=files.kind)
        if key is None:
            path = self._path(model, _of_voxels(volume))
            if (found := self._read(path, files)) is not None:
                return found
        self.misses += 1
        made = KnownExam.of(model.map_exam(volume), volume.grid, files.id, keep_image=keep_image)
        try:
            private_folder(self.folder)
            _write(path, made)
            self._trim(path)
        except WriteError as error:
            warnings.warn(f"{error}; the coordinates of {files.id} are not kept", DataWarning, stacklevel=2)
        return made

    def _path(self, model: Engine, content: str) -> Path:
        used = {
            "version": VERSION,
            "model": model.fingerprint,
            "refine": model.refine,
            "average": model.average,
            "size": model.size,
            "crop": model.crop,
            "intensity": model.intensity,
            "threshold": model.fit_threshold,
            "view": model.card.get("view"),
            "regions": [[region.region.name, region.fingerprint] for region in model.regions],
            "depth": model.depth,
            "exam": content,
        }
        key = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key[:32]}{SUFFIX}"

    def _read(self, path: Path, files: ExamFiles) -> KnownExam | None:
        """The entry at ``path``; None where there is none, or a damaged one, of which a line is said.

        What was unusual about the exam is said again, as by a pass of the network.
        """
        if not path.is_file():
            return None
        try:
            found = _load(path, files.id)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            # DataError, which grids raise, is a ValueError.
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(
                f"{path}: damaged coordinates of {files.id} ({why}); they are made again",
                DataWarning,
                stacklevel=3,
            )
            return None
        with suppress(OSError):
            # The time of the last use decides what is removed first.
            os.utime(path)
        self.hits += 1
        for note in found.fit.notes:
            warnings.warn(f"{files.ct}: {note}", DataWarning, stacklevel=3)
        return found

    def _trim(self, kept: Path) -> None:
        """Remove the entries that were not used for longest until the rest fits; ``kept`` stays."""
        entries = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            # Another process may have removed it.
            with suppress(OSError):
                about = path.stat()
                entries.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            if path != kept:
                with suppress(OSError):
                    path.unlink()
                total -= size


def _content(files: ExamFiles) -> str | None:
    """A digest of the bytes of an exam's files; None where the voxels lie in files that only a reader finds."""
    digest = hashlib.sha256()
    # The name of an image may say what its values are.
    stem = exam_stem(files.ct).lower()
    digest.update(f"{files.kind.name} {stem if stem in MODALITY_NAMES else ''}\n".encode())
    try:
        if files.ct.is_dir():
            for path in _files_below(files.ct):
                digest.update(file_sha256(path).encode())
        elif files.kind is Kind.IMAGE and files.ct.name.lower().endswith(_SPLIT):
            return None
        else:
            digest.update(file_sha256(files.ct).encode())
    except OSError:
        # Whoever reads the exam says what is wrong with it.
        return None
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if (path := Path(place, name)).is_file():
                yield path


def _of_voxels(volume: Volume) -> str:
    digest = hashlib.sha256(f"{volume.array.dtype.str} {volume.grid.shape} {volume.modality}\n".encode())
    digest.update(np.ascontiguousarray(volume.grid.affine).tobytes())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def _write(path: Path, exam: KnownExam) -> None:
    field = exam.field
    about = {
        "scan": _grid_to(exam.grid),
        "grid": _grid_to(field.grid),
        "pieces": [{"name": p.name, "grid": _grid_to(p.grid)} for p in field.pieces],
        "fit": [exam.fit.value, exam.fit.threshold, list(exam.fit.notes)],
    }
    with atomic_h5(path, private=True) as file:
        file.attrs["format"], file.attrs["version"], file.attrs["key"] = FORMAT, VERSION, path.name
        _put(file, "about", np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))
        _put(file, "coords", field.coords.float().cpu().numpy())
        _put(file, "body", np.packbits(exam.body))
        for number, piece in enumerate(field.pieces):
            _put(file, f"coords-{number}", piece.coords.float().cpu().numpy())
            _put(file, f"weight-{number}", piece.weight.float().cpu().numpy())


def _put(file: h5py.File, name: str, array: NDArray) -> None:
    # A checksum finds wrong bits. Coordinates compress too little to be worth the time.
    file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)


def _load(path: Path, name: str) -> KnownExam:
    with h5py.File(path, "r", locking=False) as file:
        if (
            file.attrs["format"] != FORMAT
            or file.attrs["version"] != VERSION
            or file.attrs["key"] != path.name
        ):
            raise ValueError("another format, or the entry of another exam")
        about = json.loads(file["about"][()].tobytes())
        grid = _grid_from(about["grid"])
        bits = file["body"][()]
        body = np.unpackbits(bits, count=math.prod(grid.shape)).view(bool).reshape(grid.shape)
        pieces = tuple(
            Piece(
                piece["name"],
                _tensor(file, f"coords-{i}"),
                _grid_from(piece["grid"]),
                _tensor(file, f"weight-{i}"),
            )
            for i, piece in enumerate(about["pieces"])
        )
        field = CoordinateField(_tensor(file, "coords"), grid, pieces)
        value, threshold, notes = about["fit"]
        return KnownExam(name, _grid_from(about["scan"]), field, body, Fit(value, threshold, tuple(notes)))


def _tensor(file: h5py.File, name: str) -> torch.Tensor:
    return torch.from_numpy(file[name][()])


def _grid_to(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": np.asarray(grid.affine).tolist()}


def _grid_from(entry: dict[str, Any]) -> Grid:
    depth, height, width = entry["shape"]
    return Grid((depth, height, width), np.array(entry["affine"], dtype=np.float64))
