"""The prepared store of a run's exams, and the phantoms that are made when no data are given."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from deepatlas.config import Config, PhantomConfig
from deepatlas.evaluate.truth import cohort_of
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.joined import Data, roots_of
from deepatlas.exams.phantoms import unresolved, unresolved_lines, write_phantoms
from deepatlas.store.store import Store, is_store
from deepatlas.train.cache import store_path, used
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.request import Request


def make_phantoms(
    root: Path, settings: PhantomConfig, request: Request, log: RunLog | NullLog, *, progress: bool
) -> Request:
    """Write ``root/train`` and ``root/test``; returns the request with the test exams and the exam for the atlas."""
    cohort = cohort_of(settings)
    folders = write_phantoms(cohort, root / "train", range(settings.train), progress=progress)
    tests = range(settings.train, settings.train + settings.test)
    folders += write_phantoms(cohort, root / "test", tests, progress=progress)
    for line in unresolved_lines(unresolved(folders), len(folders)):
        log.say(line)
    seed = request.seed_exam or cohort.exam_id(0)
    return replace(request, test=os.fspath(root / "test"), seed_exam=seed)


def open_store(
    data: Data,
    config: Config,
    request: Request,
    log: RunLog | NullLog,
    *,
    progress: bool,
    uses: ExitStack | None = None,
) -> Store:
    """The prepared store of ``data``, one path or several; exams that are skipped are listed with the reason.

    A store or a dataset is opened as it is; it must have been cropped as the settings say. A data directory is
    prepared once and kept in the user's cache, from which it is not cleared before ``uses`` is closed.
    """
    roots = roots_of(data)
    path = roots[0]
    if len(roots) > 1 or not is_store(path):
        path = store_path(roots, config.data.crop, config.data.intensity)
        if uses is not None:
            uses.enter_context(used(path))
    new = not path.exists()
    store = prepare_cohort(
        roots,
        path,
        crop=config.data.crop,
        intensity=config.data.intensity,
        strict=request.strict,
        progress=progress,
    )
    if new:
        log.say(f"prepared exams are kept in {path}; deepatlas cache lists and clears them")
    for exam, reason in store.skipped.items():
        log.skip(exam, reason, ", ".join(root.name for root in roots))
    return store
