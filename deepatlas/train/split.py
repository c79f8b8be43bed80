"""Which exams a run trains on and tests on, which one seeds its atlas, and which make its template."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepatlas.config import DataConfig
from deepatlas.errors import DataError
from deepatlas.exams.joined import find_cohort, roots_of
from deepatlas.exams.parts import Parts, subset
from deepatlas.names.meet import chosen
from deepatlas.store.store import Store
from deepatlas.train.request import Request


@dataclass(frozen=True)
class Split:
    """The exams of a run, by their ids."""

    train: list[str]
    # Exams of ``test_data`` to score on; empty if there are none.
    test: list[str]
    test_data: list[str]
    # The exam that the atlas starts from.
    seed: str
    # Labelled exams of the template; empty if no exam has labels that may be used.
    template: list[str]
    # The directories that the training exams came from; they may be gone.
    data: list[str]
    # Training exams with labels that may be used. Training reads the labels of no other exam.
    drawn: list[str]
    # The number of labelled exams of which ``test`` are held out of training; 0 where nothing is held out.
    labelled: int = 0

    def held_out(self, holdout: int) -> str:
        """A line about the exams that are held out of training, with the setting behind it; empty if there are none."""
        if not self.labelled:
            return ""
        return (
            f"{len(self.test)} of {self.labelled} labelled exams held out of training for the score (data.holdout="
            f"{holdout}, at most half of them); data.holdout=0 trains on all, --test DIR scores on others"
        )


def choose_split(store: Store, request: Request, data: DataConfig, seed: int, *, least: int = 2) -> Split:
    """Choose what the request leaves open.

    A split file decides which exams are trained on, whose labels may be used, and which are scored on: its validation,
    or else its test. Where neither it nor ``--test`` names exams to score on, up to ``data.holdout`` labelled exams
    (and at most half of them) are kept out of training, drawn with the random ``seed``; that needs the images, so not
    if only a prepared store is there. Of the others ``data.limit`` are trained on.

    Raises:
        DataError: an exam that the request names does not exist, has no labels or none that may be used, a structure is
            labelled in no exam of the template, an exam would be both trained and tested on, or fewer than ``least``
            exams are left to train on.
    """
    named = set(request.template_exams or []) | ({request.seed_exam} if request.seed_exam else set())
    for exam in named:
        store.index(exam)
    parts = request.split_parts()
    ids = parts.training(store.ids) if parts else store.ids
    usable = set(parts.learnable(store.ids) if parts else store.ids)
    labelled = [i for i, has in zip(store.ids, store.has_label, strict=True) if has.any() and i in usable]
    test, test_data, of = _tests(store, request, parts, labelled, named, data.holdout, seed)
    same = {Path(root).resolve() for root in test_data} & {Path(root).resolve() for root in store.roots}
    if clash := named & set(test) if same else set():
        raise DataError(
            f"{', '.join(test_data)}: {', '.join(sorted(clash))} is both tested on and named for the atlas or the "
            "template; leave it out of one (--test-exams, --seed-exam, --template-exams)"
        )
    if parts and (foreign := sorted(named - set(ids))):
        raise DataError(
            f"{parts.path}: {', '.join(foreign)} is named for the atlas or the template, and is no training exam; name "
            "another, or add it to train"
        )
    ids = [i for i in ids if not (same and i in test)]
    train = ids if data.limit is None else subset(ids, data.limit, seed, named)
    if len(train) < least:
        why = "" if data.limit is None else f" with data.limit={data.limit}"
        raise DataError(f"{store.root}: {len(train)} exam left to train on{why}; at least {least} are needed")
    first = request.seed_exam or widest_exam(store, train)
    drawn = [i for i in train if i in labelled]
    # The exam of the template need not be one that is trained on.
    template = _template(store, request, drawn or [i for i in labelled if i in ids], labelled, first)
    return Split(train, test, test_data, first, template, store.roots, drawn, of if test else 0)


def _tests(
    store: Store,
    request: Request,
    parts: Parts | None,
    labelled: list[str],
    named: set[str],
    holdout: int,
    seed: int,
) -> tuple[list[str], list[str], int]:
    """The exams to test on, the directories that hold them, and of how many labelled exams they are held out."""
    if request.test:
        cohort = find_cohort(request.test)
        every = [e.id for e in cohort.exams if e.seg]
        test = request.test_exams or (cohort.parts.scoring(every) if cohort.parts else every)
        for exam in test:
            if cohort.exam(exam).seg is None:
                raise DataError(
                    f"{cohort.root / exam}: no seg beside the CT, so it cannot be scored; leave it out"
                )
        return test, [request.test], 0
    roots = [] if request.data is None else [str(root) for root in roots_of(request.data)]
    if not roots or not all(map(os.path.isdir, roots)):
        return [], [], 0
    if parts and (part := parts.validation or parts.test):
        scored = [
            i for i, has in zip(store.ids, store.has_label, strict=True) if has.any() and i in set(part)
        ]
        return scored, roots, 0
    if len(labelled) < 2:
        return [], [], 0
    order = np.random.default_rng(seed).permutation(sorted(set(labelled) - named))
    return sorted(order[: min(holdout, len(labelled) // 2)].tolist()), roots, len(labelled)


def widest_exam(store: Store, ids: list[str]) -> str:
    """The exam that shows most of the body axis; among those within 5 %, the one of the most typical volume.

    Where no exam shows anything but the patient, they are crops. The longest shows no more anatomy than others, so the
    volume decides alone.
    """
    length, volume, crops = {}, {}, True
    for exam in ids:
        index = store.index(exam)
        mask = store.mask[index].astype(bool)
        spacing = store.grid(index).spacing
        length[exam] = mask.any((1, 2)).sum() * spacing[2]
        volume[exam] = mask.sum() * float(np.prod(spacing))
        crops &= bool(mask.all())
    longest = max(length.values())
    near = [exam for exam in ids if crops or length[exam] >= 0.95 * longest]
    typical = np.median([volume[exam] for exam in near])
    return min(near, key=lambda exam: abs(volume[exam] - typical))


def _template(
    store: Store, request: Request, candidates: list[str], labelled: list[str], seed: str
) -> list[str]:
    """The exams of the template: those of the request, or the one with the most labelled structures.

    Of equal ones that is the atlas seed if possible. There is none if no candidate has labels. Only the structures of
    the request count, if it names any, and each of them must be labelled in one of the exams. Labels of exams that are
    not ``labelled`` may not be used.
    """
    wanted = chosen(request.structures, store.labels, str(store.path)) if request.structures else store.labels
    columns = [list(store.labels).index(name) for name in wanted]
    drawn = {
        exam: store.has_label[store.index(exam)][columns] for exam in (request.template_exams or candidates)
    }
    for exam in request.template_exams or []:
        if not drawn[exam].any():
            raise DataError(
                f"{store.root}: nothing is labelled in the template exam {exam} "
                f"(of {', '.join(wanted) or 'no structure'}); leave it out"
            )
        if exam not in labelled:
            raise DataError(
                f"{store.root}: the split does not list the template exam {exam} as labelled; leave it out, or list it"
            )
    if request.template_exams:
        template = request.template_exams
    else:
        most = max((int(d.sum()) for d in drawn.values()), default=0)
        full = [exam for exam in candidates if int(drawn[exam].sum()) == most]
        template = ([seed] if seed in full else full[:1]) if most else []
    missing = [] if template else list(wanted)
    if template:
        missing = [n for i, n in enumerate(wanted) if not any(drawn[exam][i] for exam in template)]
    if request.structures and missing:
        raise DataError(
            f"{store.root}: {', '.join(missing)} is labelled in no exam of the template "
            f"({', '.join(template) or 'there is none'}); choose others with --template-exams or --structures"
        )
    return template


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
