"""Phantom cohorts, written as data directories in the layout of real ones."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from deepatlas.errors import DataError
from deepatlas.files import write_error, write_text
from deepatlas.io.codec import write_volume
from deepatlas.phantom.patients import PhantomCohort

SETTINGS = "phantom.json"
# In the folder of an exam with small structures: their numbers of voxels.
VOXELS = "voxels.json"
# To be raised whenever exam(i) of the same settings changes, so that no folder mixes old and new anatomy.
ANATOMY_VERSION = 2
# Settings that came later, with the value that all folders before them have.
ADDED = {"structures": "large", "spacing": None, "anatomy": 0}
# An exam at 1.5 mm takes half a gigabyte while it is drawn.
MOST_WORKERS = 2


def settings(cohort: PhantomCohort) -> dict[str, Any]:
    """The settings that determine the exams of a cohort, as JSON values."""
    return json.loads(json.dumps({"anatomy_version": ANATOMY_VERSION, **asdict(cohort)}))


def write_phantoms(
    cohort: PhantomCohort,
    root: str | Path,
    indices: int | Iterable[int],
    *,
    progress: bool = True,
    workers: int | None = None,
) -> list[Path]:
    """Write phantom exams as a data directory.

    The files are ``<root>/<id>/ct.nii.gz`` (int16 Hounsfield units), ``<root>/<id>/seg.nii.gz``,
    ``<root>/labels.json``, and ``<root>/phantom.json`` with the settings of the cohort. The folder of an exam appears
    when it is complete. An exam that is there already is kept, so that an interrupted call can be repeated. With all
    structures, ``<root>/<id>/voxels.json`` holds the number of voxels of each structure, and the names of those that
    lie in the field of view and have none (``unresolved``).

    Args:
        cohort: the phantom patients.
        root: the data directory; it is created.
        indices: the number n of exams (0 to n - 1), or the numbers of the exams.
        progress: show a progress bar on stderr.
        workers: number of threads, each of which draws an exam at a time; by default one per core, two at most.

    Returns:
        The folders of the exams.

    Raises:
        DataError: ``root`` holds phantoms of other settings, or exams that are not phantoms, or cannot be written.
    """
    root = Path(root)
    indices = list(range(indices)) if isinstance(indices, int | np.integer) else [int(i) for i in indices]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(root, error) from error
    _claim(cohort, root)
    folders = [root / cohort.exam_id(i) for i in indices]
    missing = [(i, folder) for i, folder in zip(indices, folders, strict=True) if not _is_complete(folder)]
    if not missing:
        return folders
    # Threads share the template body, and NumPy and SciPy compute without the lock of Python.
    cohort.body  # noqa: B018  # painted once, and not by every thread
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, MOST_WORKERS)) as pool:
        jobs = [pool.submit(_write_exam, cohort, index, folder) for index, folder in missing]
        try:
            for job in tqdm(jobs, desc="phantom exams", unit="exam", disable=not progress):
                job.result()
        finally:
            # After an error or an interruption no further exam is begun.
            pool.shutdown(cancel_futures=True)
    return folders


def unresolved(folders: Iterable[Path]) -> dict[str, int]:
    """The structures that have no voxel in some exams although they lie in the field of view; and in how many.

    Args:
        folders: folders of exams, as :func:`write_phantoms` returns them.
    """
    counts: Counter[str] = Counter()
    for folder in folders:
        if (path := folder / VOXELS).exists():
            counts.update(json.loads(path.read_text(encoding="utf-8"))["unresolved"])
    return dict(counts.most_common())


def unresolved_lines(counts: Mapping[str, int], exams: int) -> list[str]:
    """What a user is told about structures that are too small for the voxels: at most one line."""
    if not counts:
        return []
    names = ", ".join(f"{name} in {count}" for name, count in counts.items())
    return [
        f"too small for the voxels, and therefore without a label in some of the {exams} exams: {names}; "
        "a smaller spacing shows them"
    ]


def _claim(cohort: PhantomCohort, root: Path) -> None:
    """Record the settings of the cohort in ``root``, or compare them with the settings that are recorded there."""
    path, now = root / SETTINGS, settings(cohort)
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); delete the folder or choose another"
            ) from error
        if isinstance(found, dict):
            # Folders that were written before these settings existed hold what is now their default.
            found = {key: value for key, value in ADDED.items() if key not in found} | found
        if found != now:
            keys = ["all"]
            if isinstance(found, dict):
                keys = sorted(k for k in {*found, *now} if found.get(k) != now.get(k))
            raise DataError(
                f"{path}: holds phantoms of other settings ({', '.join(keys)}); "
                "delete the folder or choose another"
            )
    elif any(root.glob("*/ct.*")):
        raise DataError(f"{root}: holds exams that are not phantoms (no {SETTINGS}); choose an empty folder")
    for target, content in ((root / "labels.json", cohort.names), (path, now)):
        if not target.exists():
            write_text(target, json.dumps(content, indent=1) + "\n")


def _is_complete(folder: Path) -> bool:
    return (folder / "ct.nii.gz").is_file() and (folder / "seg.nii.gz").is_file()


def _write_exam(cohort: PhantomCohort, index: int, folder: Path) -> None:
    exam = cohort.exam(index)
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_volume(temporary / "ct.nii.gz", replace(exam.volume, array=exam.volume.array.astype(np.int16)))
        write_volume(temporary / "seg.nii.gz", exam.labels)
        if cohort.structures == "all":
            counts = {"voxels": exam.voxels(), "unresolved": cohort.unresolved(exam)}
            write_text(temporary / VOXELS, json.dumps(counts, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
