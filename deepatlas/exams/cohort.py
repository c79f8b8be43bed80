"""A data directory: exams in folders, with one table of labels."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.errors import DataError, did_you_mean
from deepatlas.exams.kind import MODALITY_NAMES, Kind, exam_name, kind_of
from deepatlas.exams.mask_files import MASKS, masks_in
from deepatlas.exams.parts import Parts
from deepatlas.io.codec import SUFFIXES, image_suffix
from deepatlas.space.constants import MAX_LABEL
from deepatlas.store.store import DATASET, Store, is_dataset

LAYOUT = (
    "expected <root>/<exam>/ct.nii.gz (or mr, image; .nii, .nrrd, .mha; or a DICOM series), optional seg.nii.gz (or "
    "segmentations/<structure>.nii.gz) beside it, and <root>/labels.json"
)


@dataclass(frozen=True)
class ExamFiles:
    """The files of one exam.

    Attributes:
        id: the id of the exam.
        ct: the CT, or the image of another modality: an image file, a folder with a DICOM series, or an exam file of a
            dataset.
        seg: the segmentation on the grid of the image, or None where nothing was drawn. In a dataset it is the same
            file as ``ct``; :func:`~deepatlas.exams.read.read_volume` reads either from it. It is a folder where every
            structure has a mask of its own, ``segmentations/<structure>.nii.gz``.
        kind: what ``ct`` is, so that no reader needs to find out again.
    """

    id: str
    ct: Path
    seg: Path | None = None
    kind: Kind = Kind.IMAGE


@dataclass(frozen=True, repr=False)
class Cohort:
    """The exams of a data directory or dataset, or of several.

    Attributes:
        root: the data directory, or the folder that several have in common.
        exams: the exams in natural order.
        labels: ``{name: id}`` of the structures.
        labels_path: the file that ``labels`` were read from, or None.
        skipped: why a folder could not be used, by its name.
        parts: which exams are for training, validation and test, where a split file says it.
        roots: the data directories.
    """

    root: Path
    exams: list[ExamFiles]
    labels: dict[str, int]
    labels_path: Path | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    parts: Parts | None = None
    roots: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.roots:
            object.__setattr__(self, "roots", (self.root,))

    def __len__(self) -> int:
        return len(self.exams)

    def __repr__(self) -> str:
        labelled = sum(exam.seg is not None for exam in self.exams)
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        structures = f"{len(self.labels)} structures"
        return f"Cohort({str(self.root)!r}, {len(self)} exams, {labelled} labelled, {structures}{skipped})"

    def exam(self, name: str) -> ExamFiles:
        """The exam with the id ``name``. Raises :class:`~deepatlas.errors.DataError` if there is none."""
        for exam in self.exams:
            if exam.id == name:
                return exam
        why = (
            f"it cannot be used ({self.skipped[name]})"
            if name in self.skipped
            else did_you_mean(name, [e.id for e in self.exams])
        )
        raise DataError(f"{self.root}: no exam {name!r}; {why}")


def find_exams(root: str | os.PathLike[str], *, drawn: bool = True) -> Cohort:
    """List the exams of a data directory in natural order (``pt_2`` before ``pt_10``). No image is read.

    Args:
        root: a data directory, or a dataset that ``deepatlas prepare`` wrote. ``labels.json`` lies in it, or in the
            directory above where several splits share it.
        drawn: whether what was drawn is looked at, so that it needs names.

    Returns:
        The exams, and the folders that cannot be used with the reasons. Without ``labels.json``, structures that have
        masks of their own are called as their files and numbered in that order.

    Raises:
        DataError: the directory is missing or holds no exam, ``labels.json`` is wrong, or there are segmentations
            but no ``labels.json``, where they are looked at.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such data directory; {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, not a data directory; {prepare_first(root)}")
    if is_dataset(root):
        return _of_dataset(root)
    try:
        folders = sorted(
            (p for p in root.iterdir() if p.is_dir() and p.name[0] not in "._"),
            key=lambda p: natural_order(p.name),
        )
    except OSError as error:
        raise DataError(f"{root}: cannot read: {error.strerror}; check its permissions") from error
    exams, skipped = [], {}
    for folder in folders:
        try:
            exams.append(_exam(folder))
        except DataError as error:
            skipped[folder.name] = str(error)
    if not exams:
        if kind_of(root) is Kind.DICOM:
            raise DataError(f"{root}: holds DICOM files, not folders of exams; {prepare_first(root)}")
        if exam_images(root):
            raise DataError(
                f"{root}: is a single exam, not a data directory; give the folder above it ({LAYOUT})"
            )
        if any((root / "exams").glob("*/*.h5")):
            raise DataError(f"{root}: an unfinished dataset ({DATASET} is missing); run prepare again")
        first = f" (first of {len(skipped)} folders: {next(iter(skipped.values()))})" if skipped else ""
        loose = sorted(p.name for p in root.iterdir() if p.is_file() and image_suffix(p))
        what = "no exam found"
        if loose:
            what = f"holds {len(loose)} loose image(s) ({loose[0]} …), and no exam in a folder of its own"
        cure = f"{LAYOUT}; {prepare_first(root)}" if any(root.iterdir()) else LAYOUT
        raise DataError(f"{root}: {what}; {cure}{first}")
    labels_path = next(
        (p for p in (root / "labels.json", root.resolve().parent / "labels.json") if p.is_file()), None
    )
    labels = read_labels(labels_path) if labels_path else names_of_masks(exams)
    with_seg = next((exam for exam in exams if exam.seg and not exam.seg.is_dir()), None)
    if drawn and with_seg and not labels_path:
        raise DataError(
            f"{with_seg.seg}: no labels.json in {root} names its structures; "
            'write one, for example {"liver": 1, "spleen": 2}'
        )
    return Cohort(root, exams, labels, labels_path, skipped)


def prepare_first(root: Path) -> str:
    """The cure for data that are no data directory: the command that makes a dataset of them, to be copied."""
    name = root.resolve().name
    made = shlex.quote(f"{name.split('.')[0] or name}-dataset")
    return f"make a dataset of it with: deepatlas prepare {shlex.quote(str(root))} {made}; and give {made} instead"


def named_exams(
    arguments: Sequence[str | os.PathLike[str]], skipped: dict[str, str] | None = None
) -> dict[str, ExamFiles]:
    """The exams that the EXAM arguments of a command name, by the names of the exams.

    Args:
        arguments: each an image file, an exam file of a dataset, the folder of an exam (with its CT or a DICOM
            series), or a data directory, which stands for all of its exams.
        skipped: receives why folders of a data directory could not be used, by their names.

    Raises:
        DataError: two exams have the same name, or a data directory cannot be used.
    """
    found: dict[str, ExamFiles] = {}
    for path in map(Path, arguments):
        for exam in _exams_at(path, {} if skipped is None else skipped):
            if exam.id in found and found[exam.id].ct.resolve() != exam.ct.resolve():
                raise DataError(
                    f"{exam.ct}: has the same name ({exam.id}) as {found[exam.id].ct}; give them in separate calls"
                )
            found[exam.id] = exam
    return found


def _exams_at(path: Path, skipped: dict[str, str]) -> list[ExamFiles]:
    images = exam_images(path) if path.is_dir() else []
    if images:
        return [ExamFiles(exam_name(images[0].absolute()), _only(path, images))]
    kind = kind_of(path)
    if kind is Kind.FOLDER:
        cohort = find_exams(path)
        skipped |= cohort.skipped
        return cohort.exams
    return [ExamFiles(exam_name(path.absolute()), path, kind=kind)]


def _of_dataset(root: Path) -> Cohort:
    store = Store(root)
    exams = []
    for exam, source in ((exam, store.sources[exam]) for exam in store.ids):
        seg = source["seg"]
        exams.append(ExamFiles(exam, root / str(source["ct"]), root / seg if seg else None, Kind.EXAM_FILE))
    return Cohort(root, exams, store.labels, root / DATASET)


def read_labels(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read a ``labels.json``: ``{"name": id}`` with distinct ids from 1 to 65535; 0 is the background.

    Raises :class:`~deepatlas.errors.DataError` if the file cannot be read or holds anything else.
    """
    path = Path(path)
    cure = 'write {"name": id, …} with whole ids from 1, each used once'
    try:
        # Some editors under Windows begin a file with a byte order mark.
        pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot read: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON (line {error.lineno}: {error.msg}); {cure}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; {cure}") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise DataError(f"{path}: not a JSON object of structures; {cure}")
    labels: dict[str, int] = {}
    owner: dict[int, str] = {}
    for name, value in pairs:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_LABEL:
            raise DataError(
                f"{path}: id {_short(value)} of {name!r} is not a whole number from 1 to {MAX_LABEL}; {cure}"
            )
        if name in labels:
            raise DataError(f"{path}: structure {name!r} is listed twice; {cure}")
        if value in owner:
            raise DataError(f"{path}: id {value} is used for {owner[value]!r} and {name!r}; {cure}")
        labels[name] = value
        owner[value] = name
    return labels


class _Pairs(list):
    """A JSON object as the list of its pairs, so that repeated names are noticed."""


def _short(value: object) -> str:
    return "{…}" if isinstance(value, _Pairs) else repr(value)[:40]


def _exam(folder: Path) -> ExamFiles:
    try:
        ct, seg = exam_images(folder), images_named(folder, "seg")
        kind = Kind.IMAGE if ct else kind_of(folder, is_exam=True)
        if kind is Kind.DICOM:
            ct = [folder]
        if not ct:
            # Listing the folder raises the error that a folder without read permission deserves.
            any(folder.iterdir())
            raise DataError(
                f"{folder}: no ct.nii.gz, mr.nii.gz or image.nii.gz (or .nii, .nrrd, .mha) and no DICOM series in this "
                "folder; rename the image, or remove the folder"
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot read: {error.strerror}; check its permissions") from error
    for found in (ct, seg):
        if found:
            _only(folder, found)
    if not seg and (folder / MASKS).is_dir() and masks_in(folder / MASKS):
        seg = [folder / MASKS]
    return ExamFiles(folder.name, ct[0], seg[0] if seg else None, kind)


def names_of_masks(exams: Sequence[ExamFiles]) -> dict[str, int]:
    """Ids for the structures that have masks of their own, in the order of their names."""
    names = {name for exam in exams if exam.seg and exam.seg.is_dir() for name in masks_in(exam.seg)}
    return {name: i for i, name in enumerate(sorted(names, key=natural_order), 1)}


def exam_images(folder: Path) -> list[Path]:
    """The images of the exam in a folder: those whose name says what they are, or otherwise those called ``image``."""
    found = [path for name in MODALITY_NAMES for path in images_named(folder, name)]
    return found or images_named(folder, "image")


def _only(folder: Path, images: list[Path]) -> Path:
    if len(images) > 1:
        names = ", ".join(p.name for p in images)
        raise DataError(f"{folder}: more than one image ({names}); keep one of them")
    return images[0]


def images_named(folder: Path, stem: str) -> list[Path]:
    """The images of a folder that are called ``stem``, whatever the case of name and suffix (``CT.NII.GZ``)."""
    names = [stem + suffix for suffix in SUFFIXES]
    try:
        found = [name for name in os.listdir(folder) if name.lower() in names]
    except OSError:
        # Whoever reads the folder says why that is not possible.
        return []
    found.sort(key=lambda name: (names.index(name.lower()), name))
    return [path for name in found if (path := folder / name).is_file()]


def natural_order(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which numbers inside a name are compared as numbers: ``pt_2`` comes before ``pt_10``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
