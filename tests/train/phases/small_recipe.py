"""A recipe with one phase of each kind on a tiny network, for tests that run single steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.phase import Phase
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.world import World

CONFIG = preset("tiny").override(
    [
        "network.size=16", "network.fold=1", "network.finest_level=0", "network.channels=[8,16]", "network.features=8",
        "network.atlas_size=24", "loss.size=16", "loss.window=5", "loss.similarity=features", "loss.min_overlap=0",
        "autoencoder.batch=5", "coarse.batch=5", "coarse.contrast=0.3", "train.batch=5", "train.steps=[1,1]",
        "train.head_steps=1", "distil.steps=[1]", "distil.batch=5",
    ]
)  # fmt: skip
PHASES = ["autoencoder", "coarse", "level-1", "head-0", "level-0", "distil-0"]


def process(rank: int, size: int) -> World:
    """One of several processes, without the others: the test itself sums the gradients."""
    world = World(torch.device("cpu"))
    world.rank, world.size = rank, size
    return world


def phases(
    array: ExamArray, world: World, accumulate: int, start: dict[str, torch.Tensor] | None = None
) -> Iterator[Phase]:
    """The optimisations of the recipe; ``start`` holds parameters of the network to begin with."""
    torch.manual_seed(0)
    config = CONFIG.override([f"train.accumulate={accumulate}"])
    modules: dict[str, nn.Module] = make_modules(config, len(array))
    if start:
        modules["network"].load_state_dict(start)
    modules["cohort"].coords.copy_(
        0.8 * affine_coords(torch.eye(3, 4)[None], modules["cohort"].coords.shape[-1])
    )
    for module in modules.values():
        module.to(world.device)
    modules["atlas"].seed(array.volumes[:1].float(), config.train.extent)
    facts = Facts(array.ids[0], torch.ones(1, 1, 24, 24, 24))
    session = Session(config, None, world, NullLog(), modules, torch.Generator().manual_seed(5), facts)
    return (phase for phase in recipe(session, array) if isinstance(phase, Phase))
