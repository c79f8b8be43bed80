"""Where a command may write: a file or a folder as meant, and never onto anything that the command reads.

Paths are compared as files (device and inode), because two names, a symbolic or a hard link, and a path with ``..`` in
it can all lead to the same file. A command calls these functions before any work.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepatlas.errors import DataError, WriteError
from deepatlas.exams.cohort import ExamFiles, find_exams, images_named
from deepatlas.exams.joined import Data
from deepatlas.exams.kind import IMAGE_NAMES, Kind, exam_stem
from deepatlas.exams.mask_files import MASKS
from deepatlas.exams.parts import SPLITS
from deepatlas.files import write_error
from deepatlas.io.codec import SUFFIXES, image_suffix
from deepatlas.io.dicom.magic import looks_like_dicom
from deepatlas.store.store import is_dataset

# The endings by which users and programs tell formats apart. A folder that is to be made has none of these.
_FORMATS = (
    *SUFFIXES,
    *".h5 .hdf5 .csv .tsv .json .jsonl .pt .pth .html .png .jpg .jpeg .svg .pdf .txt .md .log".split(),
    *".yaml .yml .toml .xml .npy .npz .dcm .sqlite .zip .tar .gz .tgz .bz2 .xz .7z .xls .xlsx .py".split(),
)


def check_out_folder(path: Path, option: str = "--out", *, writes: bool = True) -> None:
    """Raise :class:`~deepatlas.errors.DataError` unless ``path`` is a folder, or a name that a folder can be given.

    Args:
        path: the folder.
        option: what the message calls the argument.
        writes: whether the command writes there, so that it must be able to.
    """
    if path.is_dir():
        if writes:
            _check_writable(path, path)
        return
    if path.exists():
        raise DataError(f"{path}: is a file, and {option} is a folder; give the name of a folder")
    _check_parents(path, writes)
    if suffix := _format(path):
        raise DataError(
            f"{path}: has the name of a {suffix} file, and {option} is a folder; give the name of a folder"
        )


def check_name(path: Path, what: str) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if a name is not UTF-8, which databases and TensorBoard need.

    ``what`` is what the folder is ("a dataset").
    """
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: {what} cannot have a name that is not UTF-8 (or not ASCII, under an ASCII locale); choose "
            "another name"
        ) from None


def check_out_file(path: Path, suffixes: Sequence[str], option: str = "--out") -> None:
    """Raise :class:`~deepatlas.errors.DataError` if ``path`` is a folder, cannot be made, or has a suffix of others.

    Args:
        path: the file to write.
        suffixes: the suffixes of its format, the usual one first. A name without a suffix is accepted.
        option: what the message calls the argument.
    """
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder, and {option} is a file; give a file name, such as {path / 'out'}{suffixes[0]}"
        )
    _check_parents(path)
    suffix = _format(path)
    if suffix and suffix not in suffixes:
        raise DataError(
            f"{path}: has the suffix of another format, and {option} is a {suffixes[0]} file; "
            f"give a name that ends with {suffixes[0]}"
        )


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path], option: str = "--out") -> None:
    """Raise :class:`~deepatlas.errors.DataError` if a file that is to be written is one that is read.

    Args:
        outputs: the files to be written; they need not exist.
        inputs: files, and folders with DICOM files.
        option: the argument that decides where ``outputs`` are.
    """
    files: dict[object, Path] = {}
    folders: dict[object, Path] = {}
    for path in inputs:
        if (key := _identity(path)) is not None:
            (folders if path.is_dir() else files)[key] = path
    for output in outputs:
        _check_length(output)
        key = _identity(output)
        if key is None:
            continue
        source = files.get(key)
        if source is None and folders and output.is_file() and looks_like_dicom(output):
            parents = (_identity(parent) for parent in Path(os.path.realpath(output)).parents)
            source = next((folders[parent] for parent in parents if parent in folders), None)
        if source is not None:
            same = "is read by" if output == source else f"is (part of) {source}, which is read by"
            raise DataError(
                f"{output}: {same} this command and would be overwritten; choose another {option}"
            )


def same_place(path: Path, other: Path) -> bool:
    """Whether both paths lead to the same file or folder, which must exist."""
    key = _identity(path)
    return key is not None and key == _identity(other)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path``, which need not exist, is the existing ``folder`` or lies in it, whatever their names."""
    key = _identity(folder)
    real = Path(os.path.realpath(path))
    return key is not None and any(_identity(place) == key for place in (real, *real.parents))


def files_of_exams(exams: Iterable[ExamFiles]) -> list[Path]:
    """The files of exams: CT, segmentation, and the ``labels.json`` of the data directory that an exam belongs to.

    Masks that lie beside a CT and the table of their names belong to the exam also where a command reads the CT alone.
    """
    found: list[Path] = []
    for exam in exams:
        found += [exam.ct, *_files_of(exam.seg)]
        if exam.kind is Kind.IMAGE and exam_stem(exam.ct).lower() in IMAGE_NAMES:
            folder = exam.ct.absolute().parent
            found += images_named(folder, "seg")
            found += _files_of(folder / MASKS)
            found += [folder.parent / "labels.json"]
    return found


def files_of_data(data: Data, split: Path | None = None) -> list[Path]:
    """The files of data directories, datasets or a store, and the split file of a command.

    Where one cannot be used, whoever reads it says why.
    """
    roots = [Path(data)] if isinstance(data, str | os.PathLike) else [Path(root) for root in data]
    return [path for root in roots for path in _files_of_root(root)] + ([split] if split else [])


def _files_of_root(root: Path) -> list[Path]:
    try:
        cohort = find_exams(root, drawn=False)
    except DataError:
        return [root]
    found = files_of_exams(cohort.exams)
    if (root / SPLITS).is_file():
        found.append(root / SPLITS)
    if cohort.labels_path:
        found.append(cohort.labels_path)
    if is_dataset(root):
        found += [path for path in root.iterdir() if path.is_file()]
    return found


def _files_of(path: Path | None) -> list[Path]:
    """The files of a segmentation, which may be a folder of masks."""
    if path is None:
        return []
    return [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]


def _identity(path: Path) -> object:
    """What two paths have in common if they lead to the same file; None where there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # Some file systems under Windows number no files.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(os.path.realpath(path))


def _check_length(path: Path) -> None:
    """Raise the error for a name that is too long, which would otherwise end the command after its work."""
    there = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if there is not None:
        try:
            os.stat(there / path.name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise write_error(path, error) from error


def _check_parents(path: Path, writes: bool = True) -> None:
    """Raise :class:`~deepatlas.errors.DataError` where a part of the path is a file, or nothing can be made in it."""
    for parent in path.parents:
        if parent.is_dir():
            if writes:
                _check_writable(path, parent)
            return
        if parent.exists():
            raise DataError(f"{path}: {parent} is a file, not a folder; choose another path")


def _check_writable(path: Path, folder: Path) -> None:
    """Raise the error that ``path`` cannot be written if nothing can be made in ``folder``, which exists.

    Permissions do not tell (of a disk that is read-only, of a full one, of ``/proc``), so that a folder is made there,
    under a name that no other process uses, and removed.
    """
    trial = folder / f".{secrets.token_hex(4)}.{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except FileNotFoundError:
        raise WriteError(
            f"{path}: cannot write: nothing can be made in {folder}; choose another folder"
        ) from None
    except OSError as error:
        raise write_error(path, error) from error


def _format(path: Path) -> str:
    suffix = image_suffix(path) or path.suffix.lower()
    return suffix if suffix in _FORMATS else ""
