"""The start of a run: the atlas becomes one exam (sections 5.1.2 and 5.2.5)."""

from __future__ import annotations

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.nn import Atlas
from deepatlas.space.check_input import check_input
from deepatlas.space.preprocess import foreground_mask, normalize, to_model_grid
from deepatlas.space.volume import Volume
from deepatlas.store.store import Store
from deepatlas.train.loop import Facts, Session


def seed_atlas(session: Session, store: Store, exam: str) -> Facts:
    """Fill the session's atlas with an exam; returns the facts of a run that starts so."""
    volume = _volume(store, store.index(exam))
    hu = torch.as_tensor(np.ascontiguousarray(volume.array), dtype=torch.float32)[None, None]
    extent = session.config.train.extent
    atlas: Atlas = session.modules["atlas"]
    atlas.seed(normalize(hu).to(session.device), extent)
    mask = torch.as_tensor(foreground_mask(volume.array, store.intensity), dtype=torch.float32)[None, None]
    scale = torch.eye(3, 4)[None] / extent
    inside = ops.affine_resample(mask, scale, atlas.values.shape[2:], padding="zeros") > 0.5
    return Facts(exam, inside.float())


def _volume(store: Store, index: int) -> Volume:
    """The exam at 128^3 from its file, or at 64^3 from the store if the file cannot be read."""
    try:
        volume, _ = check_input(read_volume(store.source(index)), store.intensity)
        return to_model_grid(volume, 128, store.crop, store.intensity)
    except DataError:
        return Volume(store.hu[index].astype(np.float32), store.grid(index), store.ids[index])
