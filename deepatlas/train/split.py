"""Which exams a run trains on and tests on, which one seeds its atlas, and which make its template."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams
from deepatlas.store.store import Store
from deepatlas.train.request import Request


@dataclass(frozen=True)
class Split:
    """The exams of a run, by their ids."""

    train: list[str]
    # Exams of ``test_root`` to score on; empty if there are none.
    test: list[str]
    test_root: str | None
    # The exam that the atlas starts from.
    seed: str
    # Labelled exams of the template; empty if no training exam has labels.
    template: list[str]
    # The directory that the training exams came from; it may be gone.
    data: str


def choose_split(store: Store, request: Request, holdout: int, seed: int) -> Split:
    """Choose what the request leaves open.

    Without a test set, up to ``holdout`` labelled exams (and at most half of them) are kept out of training, drawn with
    the random ``seed``; that needs the images, so not if only a prepared store is there.

    Raises:
        DataError: an exam that the request names does not exist or has no labels, an exam would be both trained and
            tested on, or fewer than two exams are left to train on.
    """
    named = set(request.template_exams or []) | ({request.seed_exam} if request.seed_exam else set())
    for exam in named:
        store.index(exam)
    test, test_root = _tests(store, request, named, holdout, seed)
    same = test_root is not None and Path(test_root).resolve() == Path(store.root).resolve()
    if clash := named & set(test) if same else set():
        raise DataError(
            f"{test_root}: {', '.join(sorted(clash))} is both tested on and named for the atlas or the template; "
            "leave it out of one (--test-exams, --seed-exam, --template-exams)"
        )
    train = [i for i in store.ids if not (same and i in test)]
    if len(train) < 2:
        raise DataError(f"{store.root}: {len(train)} exam left to train on; at least 2 are needed")
    first = request.seed_exam or widest_exam(store, train)
    template = request.template_exams or _best_labelled(store, train, first)
    return Split(train, test, test_root, first, template, store.root)


def _tests(
    store: Store, request: Request, named: set[str], holdout: int, seed: int
) -> tuple[list[str], str | None]:
    """The exams to test on, and the directory that holds them."""
    if request.test:
        cohort = find_exams(request.test)
        test = request.test_exams or [e.id for e in cohort.exams if e.seg]
        for exam in test:
            if cohort.exam(exam).seg is None:
                raise DataError(
                    f"{cohort.root / exam}: no seg beside the CT, so it cannot be scored; leave it out"
                )
        return test, request.test
    labelled = [i for i, has in zip(store.ids, store.has_label, strict=True) if has.any()]
    if len(labelled) < 2 or request.data is None or not os.path.isdir(request.data):
        return [], None
    order = np.random.default_rng(seed).permutation(sorted(set(labelled) - named))
    return sorted(order[: min(holdout, len(labelled) // 2)].tolist()), request.data


def widest_exam(store: Store, ids: list[str]) -> str:
    """The exam that shows most of the body axis; among those within 5 %, the one of the most typical volume."""
    length, volume = {}, {}
    for exam in ids:
        index = store.index(exam)
        mask = store.mask[index].astype(bool)
        spacing = store.grid(index).spacing
        length[exam] = mask.any((1, 2)).sum() * spacing[2]
        volume[exam] = mask.sum() * float(np.prod(spacing))
    longest = max(length.values())
    near = [exam for exam in ids if length[exam] >= 0.95 * longest]
    typical = np.median([volume[exam] for exam in near])
    return min(near, key=lambda exam: abs(volume[exam] - typical))


def _best_labelled(store: Store, ids: list[str], seed: str) -> list[str]:
    """The exam with the most labelled structures, preferably the atlas seed; no exam if none has labels."""
    counts = {exam: int(store.has_label[store.index(exam)].sum()) for exam in ids}
    most = max(counts.values())
    if not most:
        return []
    return [seed if counts[seed] == most else max(ids, key=lambda exam: counts[exam])]


def insist_on_same_exams(store: Store, before: list[str], now: list[str]) -> None:
    """Refuse to resume a run on other exams: it would be neither the old run nor a new one.

    Raises:
        DataError: the training exams ``now`` are not those ``before``.
    """
    if before == now:
        return
    missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    found = [
        f"{len(ids)} {what} ({', '.join(ids[:3])})"
        for ids, what in ((missing, "missing"), (new, "new"))
        if ids
    ]
    raise DataError(
        f"{store.root}: the training exams are not those that the run started with: "
        f"{', '.join(found) or 'another order'}; restore them, or start a new run with --out"
    )
