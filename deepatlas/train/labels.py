"""The labels that a run learns from (``loss.labels``), and what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from deepatlas.config import Config
from deepatlas.errors import DataError
from deepatlas.store.store import Store
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.log import NullLog, RunLog


def open_labels(
    store: Store,
    train: Sequence[str],
    config: Config,
    device: torch.device,
    log: RunLog | NullLog,
    exams: Collection[str] | None = None,
) -> LabelMaps | None:
    """The labels of the training exams, or None where the settings do not use them.

    Args:
        store: the prepared cohort.
        train: ids of the training exams.
        config: the settings.
        device: the device of the masks.
        log: receives a line on what is used and what is not.
        exams: ids of the exams whose labels may be used; None allows all.

    Raises:
        DataError: no training exam has labels.
    """
    if not config.loss.labels:
        return None
    rows = [store.index(exam) for exam in train]
    labels = LabelMaps(store, rows, config.network.size, config.loss.size, device, exams=exams)
    if not labels.names:
        raise DataError(
            f"{store.root}: loss.labels={config.loss.labels:g} learns from labels, and none of the {len(train)} "
            "training exams has any; add seg files, or leave out loss.labels"
        )
    tell_labels(store, train, labels, log)
    return labels


def tell_labels(store: Store, train: Sequence[str], labels: LabelMaps, log: RunLog | NullLog) -> None:
    """Log which labels of the training exams are learned, and which are not."""
    log.say(
        f"labels of {len(labels.names)} structures in {len(labels.labelled)} of {len(train)} training exams are learned"
    )
    if labels.missing:
        some = ", ".join(labels.missing[:5]) + (" …" if len(labels.missing) > 5 else "")
        log.say(f"not learned, because no training exam has a label of it: {some}")
    empty = [
        e
        for e, row in zip(train, labels.rows, strict=True)
        if store.sources[e]["seg"] and not store.has_label[row].any()
    ]
    if empty:
        some = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
        log.say(f"segmentations without a voxel count as not drawn: {some}")


def insist_on_same_structures(store: Store, before: Sequence[str] | None, labels: LabelMaps | None) -> None:
    """Refuse to resume a run on other labels.

    Args:
        store: the prepared cohort.
        before: the structures that the run started with.
        labels: the labels of now.

    Raises:
        DataError: the structures are others, or in another order.
    """
    now = labels.names if labels else None
    if before == now:
        return
    gone, new = sorted(set(before or ()) - set(now or ())), sorted(set(now or ()) - set(before or ()))
    found = [
        f"{', '.join(names[:3])} {what}" for names, what in ((gone, "is gone"), (new, "is new")) if names
    ]
    raise DataError(
        f"{store.root}: the labelled structures are not those that the run started with: "
        f"{'; '.join(found) or 'another order'}; restore them, or start a new run with --out"
    )
