"""NIfTI of the exams of a dataset: a data directory, as :func:`~deepatlas.exams.cohort.find_exams` reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.errors import DataError, WriteError
from deepatlas.exams.exam_file import ExamFile
from deepatlas.exams.mask_files import MASKS, mask_paths, write_masks
from deepatlas.exams.outputs import check_out_folder, lies_in, refuse_overwriting
from deepatlas.files import write_error, write_text
from deepatlas.intake.dataset.folder import Dataset, exam_path
from deepatlas.io.codec import write_volume


@dataclass
class Exported:
    """What :func:`export_dataset` wrote.

    Attributes:
        exams: the names of the structures that were written, by the id of the exam.
        hidden: the structures of which the label image shows a part alone, by the id of the exam.
        failed: why an exam could not be read, by its id.
    """

    exams: dict[str, list[str]] = field(default_factory=dict)
    hidden: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def export_dataset(
    dataset: Dataset,
    out: Path,
    exams: Sequence[str] | None = None,
    *,
    label_image: bool = False,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Write exams of a dataset as NIfTI: ``<out>/<id>/ct.nii.gz`` and ``<out>/<id>/segmentations/<structure>.nii.gz``.

    The CT is int16 Hounsfield units and each mask uint8, on the exam's own grid, voxel by voxel as in the dataset.
    Masks are whole where structures overlap; a structure that was not drawn in an exam has no file.
    ``<out>/labels.json`` names all structures of the dataset with their ids. The folder of an exam appears when it is
    complete.

    Args:
        dataset: the dataset.
        out: the data directory; it is created. Nothing in it is replaced.
        exams: the ids of the exams; None takes all.
        label_image: write one label image, ``<out>/<id>/seg.nii.gz``, in place of the masks. Where structures overlap,
            it shows the one on top.
        strict: stop at the first exam that cannot be read. Otherwise it is skipped and listed.
        progress: receives one line of text per exam.

    Raises:
        DataError: an exam is unknown, ``out`` lies in the dataset or holds one of the exams or the table of other
            structures, or a file cannot be written.
    """
    ids = list(dict.fromkeys(dataset.ids if exams is None else exams))
    for exam in ids:
        dataset.store.index(exam)
    table = json.dumps(dataset.labels, indent=1, ensure_ascii=False) + "\n"
    _check(dataset, out, ids, table)
    if dataset.labels and not (out / "labels.json").exists():
        write_text(out / "labels.json", table)
    done = Exported()
    for count, exam in enumerate(ids, 1):
        try:
            with dataset.exam(exam) as file:
                _write(file, out / exam, label_image)
                done.exams[exam] = list(file.present)
                if label_image and file.overlaps:
                    done.hidden[exam] = list(file.overlaps)
        except WriteError:
            raise
        except DataError as error:
            if strict:
                raise
            done.failed[exam] = str(error)
            continue
        if progress is not None:
            progress(f"export {count}/{len(ids)} {exam}")
    return done


def _check(dataset: Dataset, out: Path, ids: Sequence[str], table: str) -> None:
    """Refuse, before any work, whatever would replace or mix up what is there."""
    check_out_folder(out)
    if lies_in(out, dataset.folder):
        raise DataError(f"{out}: lies in the dataset {dataset.folder}; choose another --out")
    # Two structures may not share a file, and a name may be too long for one.
    masks = list(mask_paths(out / MASKS, dataset.labels).values())
    refuse_overwriting([out / "labels.json", *masks], [exam_path(dataset.folder, exam) for exam in ids])
    for exam in ids:
        if (out / exam).exists() or (out / exam).is_symlink():
            raise DataError(f"{out / exam}: is there already; delete it, or choose another --out")
    names = out / "labels.json"
    try:
        other = names.exists() and json.loads(names.read_text(encoding="utf-8-sig")) != dataset.labels
    except (OSError, ValueError):
        other = True
    if other:
        raise DataError(
            f"{names}: names other structures than the dataset; choose another --out, or delete it and what it names"
        )


def _write(exam: ExamFile, folder: Path, label_image: bool) -> None:
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_volume(temporary / "ct.nii.gz", exam.volume())
        if exam.present:
            labels = exam.labels()
            if label_image:
                write_volume(temporary / "seg.nii.gz", labels)
            else:
                (temporary / MASKS).mkdir()
                names = {name: exam.names[name] for name in exam.present}
                write_masks(temporary / MASKS, labels, names)
        temporary.replace(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
