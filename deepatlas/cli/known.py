"""What commands share that find things in exams by coordinates: kept coordinates, and files of points and boxes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deepatlas.errors import PROGRAM, DataError

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.exams.cohort import ExamFiles
    from deepatlas.model.known import KnownExam
    from deepatlas.space.markup import Markups
    from deepatlas.space.volume import Volume


class Knower(Protocol):
    """Gives the coordinates of an exam from its files, and from its volume where that was read already."""

    def __call__(self, files: ExamFiles, volume: Volume | None = None, /) -> KnownExam: ...


# The formats of markups of one exam, as deepatlas.io.export.markups has them.
FORMATS = ("mrk.json", "fcsv", "csv", "json")


def add_cache(command: argparse.ArgumentParser) -> None:
    """Add ``--cache`` and ``--no-cache``."""
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep the coordinates of exams in this folder, so that each passes the network once (default: "
        "RUN/coordinates where --model is a run folder that can be written to; otherwise none are kept)",
    )
    command.add_argument("--no-cache", action="store_true", help="neither read nor keep coordinates")


def knower(args: argparse.Namespace, model: Model, *, keep_image: bool = False) -> Knower:
    """A function that gives the coordinates of an exam, from the cache of ``--cache`` where they are kept.

    With ``keep_image`` an exam that has to pass the network has its image, too.

    Raises :class:`~deepatlas.errors.DataError` if the cache is no folder.
    """
    from dataclasses import replace

    from deepatlas.exams.read import read_volume
    from deepatlas.model.known import known_exam
    from deepatlas.model.map_cache import MapCache

    cache = None
    if not args.no_cache:
        cache = MapCache(args.cache) if args.cache else MapCache.beside(args.model)

    def know(files: ExamFiles, volume: Volume | None = None) -> KnownExam:
        if cache is not None:
            return cache.exam(model, files, volume, keep_image=keep_image)
        if volume is None:
            volume = read_volume(files.ct, kind=files.kind)
        return replace(known_exam(model, volume, keep_image=keep_image), name=files.id)

    return know


def image_of(model: Model, files: ExamFiles) -> Volume:
    """An exam with values as the network of a model takes them."""
    from deepatlas.exams.read import read_volume
    from deepatlas.localize.template.soften import seen

    return seen(read_volume(files.ct, kind=files.kind), model.intensity)


def add_masks(command: argparse.ArgumentParser, source: str) -> None:
    """Add ``--masks`` and ``--labels``; ``source`` is the option that gives the exams they belong to."""
    command.add_argument(
        "--masks",
        nargs="+",
        type=Path,
        metavar="F",
        default=[],
        help=f"for each exam of {source} its label image, .seg.nrrd of 3D Slicer, DICOM-SEG or RTSTRUCT of its "
        "series, or folder of masks",
    )
    command.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help='names of the structures of --masks, {"liver": 1} (default: labels.json beside the masks or in the folder '
        "above, or the names that they have)",
    )


def add_marks(command: argparse.ArgumentParser) -> None:
    """Add ``--points`` and ``--boxes``."""
    command.add_argument(
        "--points",
        nargs="+",
        type=Path,
        metavar="F",
        default=[],
        help="points and lines of the exam: .mrk.json or .fcsv of 3D Slicer, CSV with the columns name,x,y,z in RAS "
        "mm, or JSON",
    )
    command.add_argument(
        "--boxes",
        nargs="+",
        type=Path,
        metavar="F",
        default=[],
        help="boxes of the exam: .mrk.json of 3D Slicer (ROI), CSV with the columns name,x,y,z and ax..cz, or JSON",
    )


def read_marks(points: Sequence[Path], boxes: Sequence[Path]) -> Markups:
    """Everything that these files hold; one that is named twice counts once.

    Raises:
        DataError: a file cannot be read, or holds none of what it is given for.
    """
    from deepatlas.io.export.markups import read_markups
    from deepatlas.localize.template.marks import joined_marks

    read = {path: read_markups(path) for path in dict.fromkeys([*points, *boxes])}
    for path in points:
        if not (read[path].points or read[path].lines):
            raise DataError(f"{path}: holds no point and no line, but boxes; give it as --boxes")
    for path in boxes:
        if not read[path].boxes:
            raise DataError(f"{path}: holds no box; give it as --points")
    return joined_marks(read.values())


def marks_of_each(args: argparse.Namespace, exams: Sequence[str], per: str) -> list[Markups | None]:
    """What ``--points`` and ``--boxes`` hold of each exam, of which ``per`` names the option; None where neither does.

    Raises:
        DataError: there are not as many files as exams, or one cannot be read or holds none of what it is given for.
    """
    points = one_each(args.points, exams, "--points", per)
    boxes = one_each(args.boxes, exams, "--boxes", per)
    if not (args.points or args.boxes):
        return [None] * len(exams)
    pairs = zip(points, boxes, strict=True)
    return [read_marks([p] if p else [], [b] if b else []) for p, b in pairs]


def check_format(suffix: str, points: int, lines: int, boxes: int) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if files with this suffix have no place for what is to be written."""
    alone = suffix.lstrip(".")
    if alone == "fcsv" and (lines or boxes):
        raise DataError("fcsv: holds points alone, and there are lines or boxes; choose mrk.json or json")
    if alone == "csv" and (lines or (points and boxes)):
        raise DataError("csv: a file holds either points or boxes, and no lines; choose mrk.json or json")


def say_notes(notes: Sequence[str]) -> None:
    """Print a line on stderr for everything that a format cannot say."""
    for note in notes:
        print(f"{PROGRAM}: warning: {note}", file=sys.stderr)


def note_unnamed(names: Sequence[str]) -> None:
    """Print a line where masks brought no names, so that their structures are called by their numbers."""
    unnamed = [name for name in names if re.fullmatch(r"structure_\d+", name)]
    if unnamed:
        say_notes(
            [
                f"{', '.join(unnamed)}: nothing names these structures, neither labels.json beside the masks or in the "
                "folder above, nor their own file; give --labels FILE"
            ]
        )


def one_each(what: Sequence[Path], exams: Sequence[str], option: str, per: str) -> list[Path | None]:
    """The file of each exam, in their order; all None where the option is not given.

    Raises :class:`~deepatlas.errors.DataError` unless there are as many files as exams.
    """
    if not what:
        return [None] * len(exams)
    if len(what) != len(exams):
        raise DataError(
            f"{option}: {len(what)} files for {len(exams)} exams; give one for each exam of {per}, in their order"
        )
    return list(what)
