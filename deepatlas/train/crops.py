"""The store of a region's crops: every exam that shows enough of it, cut at full resolution (section 5.2.4).

The model of the levels above maps an exam. The least-squares affine map of its coordinates carries the region's box
onto the exam, and what lies there is resampled from the exam's own voxels, labels included. Where that model puts the
voxels of the crop is kept beside it, as the start of the region's own coordinates.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.build_store import NoExamError, Preparation, prepare_by
from deepatlas.exams.cohort import Cohort, ExamFiles
from deepatlas.exams.joined import Data, find_cohort, roots_of
from deepatlas.exams.kind import kind_of
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.model.engine import Engine
from deepatlas.model.region_view import view_of
from deepatlas.model.regions import Region
from deepatlas.space.check_input import check_input
from deepatlas.space.constants import MODEL_SIZE
from deepatlas.store.fit import ExamError, PreparedExam, fit_fine
from deepatlas.store.store import Store, is_dataset, is_store
from deepatlas.train.parent import Parent

# To be raised whenever the same exams and the same model would give other crops.
_RECIPE = 1
# The voxels along each axis of the coordinates that are kept. The parent's are coarser than that.
COORDS_SIZE = 32
# Memory that a process needs for one exam at its full resolution, its coordinates and its labels.
_BYTES_PER_WORKER = 3 << 30


# Threads load the model once.
_LOADING = threading.Lock()


class NotCovered(ExamError):
    """An exam does not show enough of a region."""


class RegionNotCovered(DataError):
    """Too few exams of a cohort show a region."""


@dataclass(frozen=True)
class Cutter:
    """Cuts a region out of exams; it can be sent to other processes, each of which loads the model once.

    Attributes:
        parent: the model of the levels above.
        region: the region.
        device: where the model runs.
    """

    parent: Parent
    region: Region
    device: str

    def __call__(self, exam: ExamFiles, labels: dict[str, int]) -> PreparedExam:
        """The crop of one exam.

        Raises:
            NotCovered: it shows too little of the region.
            ExamError: it cannot be used, or the model does not know it.
        """
        with _LOADING:
            engine = _engine(self.parent, self.device)
        region, notes = self.region, list[str]()
        try:
            ct = read_volume(exam.ct, notes=notes, kind=exam.kind)
            seg = read_labels_for(ct, exam.seg, labels, notes) if exam.seg else None
            with warnings.catch_warnings():
                # The notes say the same.
                warnings.simplefilter("ignore", DataWarning)
                found = engine.map_exam(ct)
            checked, seen = check_input(ct, engine.intensity)
        except DataError as error:
            raise ExamError(error) from error
        if found.fit.known is False:
            raise ExamError(
                f"{ct.name}: the model does not know such an exam (fit {found.fit.value:.2f}, known are those from "
                f"{found.fit.threshold:.2f})"
            )
        if region.within is not None and region.within not in [piece.name for piece in found.pieces]:
            raise NotCovered(f"{ct.name}: region {region.within}, which {region.name} lies in, is not shown")
        view = view_of(
            checked, found.field, region.box, MODEL_SIZE, body=found.body, intensity=engine.intensity
        )
        coverage = view.carried.coverage if view else 0.0
        if view is None or coverage < region.coverage:
            raise NotCovered(
                f"{ct.name}: shows {coverage:.0%} of region {region.name} ({region.coverage:.0%} are needed)"
            )
        row = fit_fine(view.fine, ct.grid, seg, labels, [*notes, *seen], engine.intensity)
        if seg is not None:
            # What lies elsewhere in the exam was not drawn in the crop.
            drawn = {*np.unique(row.labels_fine).tolist(), *row.hidden_fine}
            row = replace(row, has_label=[identity in drawn for identity in labels.values()])
        return replace(row, coords=_own_coordinates(found.field.on(view.hu.grid), region))


def _own_coordinates(coords: torch.Tensor, region: Region) -> np.ndarray:
    """Coordinates ``[3, D, H, W]`` of the whole atlas as float16 ``[3, m, m, m]`` in those of the region's box."""
    places = ops.resize(coords[None].float().cpu(), (COORDS_SIZE,) * 3)[0]
    own = np.moveaxis(region.box.own(np.moveaxis(places.numpy(), 0, -1)), -1, 0)
    return own.clip(-4, 4).astype(np.float16)


@lru_cache(maxsize=1)
def _engine(parent: Parent, device: str) -> Engine:
    return parent.load(device)


def prepare_crops(
    data: Data,
    store_path: Path,
    cutter: Cutter,
    *,
    strict: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> Store:
    """Cut a region out of all exams of data directories, or reuse the store if nothing has changed.

    Args:
        data: data directories or datasets, or a store, whose exams are read from the files that it was made of.
        store_path: the HDF5 file to write.
        cutter: what to cut, and by which model.
        strict: stop at the first exam that cannot be used; one that does not show the region is no such exam.
        progress: show a progress bar on stderr.
        workers: the number of processes (on a GPU, threads); None takes one for each core for which there is memory,
            and 0 the calling thread alone. Processes compute with one thread each, so that their number does not change
            a bit of the result.

    Raises:
        RegionNotCovered: no exam shows enough of the region.
        DataError: as :func:`~deepatlas.exams.build_store.prepare_cohort`; or a store is given whose exams are gone.
    """
    roots = roots_of(data)
    cohort = _cohort(roots)
    region, parent = cutter.region, cutter.parent
    facts = {"region": region.to_dict(), **parent.to_dict()}
    preparation = Preparation(
        cutter,
        ("crops", _RECIPE, COORDS_SIZE, facts),
        {"crop": f"region {region.name}", "intensity": parent.intensity, "region": facts},
        _processes if torch.device(cutter.device).type == "cpu" else ThreadPoolExecutor,
        (NotCovered,),
    )
    count = _workers() if workers is None else workers
    try:
        return prepare_by(
            preparation, cohort, roots, store_path, strict=strict, progress=progress, workers=count
        )
    except NoExamError as error:
        if all(isinstance(reason, NotCovered) for reason in error.reasons):
            raise RegionNotCovered(
                f"{cohort.root}: none of its {len(cohort)} exams shows enough of region {region.name}; the first: "
                f"{error.reasons[0]}"
            ) from None
        raise


def _cohort(roots: Sequence[Path]) -> Cohort:
    """The exams at full resolution."""
    path = roots[0]
    if len(roots) > 1 or is_dataset(path) or not is_store(path):
        return find_cohort(roots)
    with Store(path) as store:
        exams = []
        for exam in store.ids:
            source = store.sources[exam]
            ct, seg = (Path(store.root) / name if (name := source[key]) else None for key in ("ct", "seg"))
            assert ct is not None
            exams.append(ExamFiles(exam, ct, seg, kind_of(ct, is_exam=True)))
        if not any(exam.ct.exists() for exam in exams):
            raise DataError(
                f"{path}: a region is cut from exams at full resolution, and those of this store are gone "
                f"({exams[0].ct}); give --data the directory that holds them"
            )
        return Cohort(Path(store.root), exams, store.labels, path, store.skipped)


# -- processes --------------------------------------------------------------------------------------


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory: Any = cores
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _BYTES_PER_WORKER
    return max(1, min(cores, memory))


def _processes(workers: int) -> Executor:
    """Processes that are forked from one that has imported what they need, where the system can."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start)


def _start() -> None:
    torch.set_num_threads(1)
    # An interrupt reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)
