"""The prepared store of a run's exams, and the phantoms that are made when no data are given."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from deepatlas.config import Config, PhantomConfig
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.store.store import Store
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.request import Request
from deepatlas_ops.cache import user_cache


def make_phantoms(root: Path, settings: PhantomConfig, request: Request, *, progress: bool) -> Request:
    """Write ``root/train`` and ``root/test``; returns the request with the test exams and the exam for the atlas."""
    cohort = PhantomCohort(seed=settings.seed, deformation=settings.deformation)
    write_phantoms(cohort, root / "train", range(settings.train), progress=progress)
    tests = range(settings.train, settings.train + settings.test)
    write_phantoms(cohort, root / "test", tests, progress=progress)
    seed = request.seed_exam or cohort.exam_id(0)
    return replace(request, test=os.fspath(root / "test"), seed_exam=seed)


def open_store(
    data: Path, config: Config, request: Request, log: RunLog | NullLog, *, progress: bool
) -> Store:
    """The prepared store of ``data``; exams that are skipped are listed with the reason.

    A store or a dataset is opened as it is; it must have been cropped as the settings say. A data directory is
    prepared once and kept in the user's cache.
    """
    store = prepare_cohort(
        data,
        _store_path(data, config.data.crop),
        crop=config.data.crop,
        strict=request.strict,
        progress=progress,
    )
    for exam, reason in store.skipped.items():
        log.skip(exam, reason, data.name)
    return store


def _store_path(data: Path, crop: str | None) -> Path:
    """Where the store of a data directory is kept: in the user's cache, because data are often read-only."""
    cache = user_cache("deepatlas", "DEEPATLAS_CACHE")
    name = hashlib.sha256(f"{data.resolve()} {crop}".encode(errors="surrogateescape")).hexdigest()[:16]
    # The hash identifies the data; the name of their folder is for people, and may be as long as names can be.
    shown = data.resolve().name
    if len(os.fsencode(shown)) > 100:
        # Without half a letter at the end.
        shown = os.fsencode(shown)[:100].decode(errors="ignore")
    return cache / "stores" / f"{shown}-{name}.h5"
