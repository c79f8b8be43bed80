"""A short training with labels and the Dice of exams that it has not seen."""

from __future__ import annotations

import torch

import deepatlas_ops as ops
from deepatlas.nn import LabelAtlas
from deepatlas.presets import preset
from deepatlas.store.store import Store
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.phases.labels import level_labels
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.world import World

SETTINGS = [
    "network.size=16", "network.fold=1", "network.finest_level=0", "network.channels=[8,16]", "network.features=16",
    "network.atlas_size=24", "loss.size=16", "coarse.steps=60", "coarse.batch=4", "train.batch=4",
    "data.scale=[0.9,1.1]", "data.rotation=0.1", "data.translation=0.05",
]  # fmt: skip


def held_out_dice(store: Store, train: int, weight: float, steps: int) -> float:
    """Train on the first exams of a store; the mean Dice of its first structure in the others, on the loss grid."""
    config = preset("tiny").override([*SETTINGS, f"train.steps=[10,{steps}]", f"loss.labels={weight}"])
    everyone = range(len(store))
    array = TrainingArray(store, 16, exams=everyone[:train])
    labels = LabelMaps(store, everyone[:train], 16, 16)
    torch.manual_seed(0)
    modules = make_modules(config, train, len(labels))
    modules["atlas"].seed(array.volumes[:1].float(), config.train.extent)
    facts = Facts(array.ids[0], torch.nn.functional.interpolate(array.masks[:1].float(), size=(24,) * 3))
    generator = torch.Generator().manual_seed(0)
    session = Session(config, None, World(torch.device("cpu")), NullLog(), modules, generator, facts)
    session.save = lambda: None
    session.run(recipe(session, array, labels=labels if weight else None))
    # The same template for both: eq. 14 of the training exams.
    level_labels(session, array, labels, 0).step(0)
    unseen = TrainingArray(store, 16, exams=everyone[train:])
    truth = LabelMaps(store, everyone[train:], 16, 16).take(range(len(unseen)))
    x, _ = unseen.take(range(len(unseen)))
    atlas: LabelAtlas = modules["labels"]
    with torch.no_grad():
        found = atlas(ops.resize(modules["network"](x, 0), (16,) * 3))[:, 0] > 0.5
    true = truth.masks(list(range(len(unseen))), [0])[:, 0] > 0.5
    overlap = (found & true).flatten(1).sum(1)
    return (2 * overlap / (found.flatten(1).sum(1) + true.flatten(1).sum(1))).mean().item()
