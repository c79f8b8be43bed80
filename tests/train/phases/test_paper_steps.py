"""One step of every phase of preset ``paper``, with its real network and a batch of two exams.

The exams have half the resolution of the preset, or with DEEPATLAS_LONG_TESTS all of it.
"""

import math
import os

import pytest
import torch

from deepatlas.presets import preset
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.world import World

PHASES = [
    "autoencoder", "coarse", "level-4", "head-3", "level-3", "head-2", "level-2", "head-1", "level-1", "head-0",
    "level-0",
]  # fmt: skip


SMALLER = ["network.size=32", "loss.size=32", "network.atlas_size=64"]


class Recorded(NullLog):
    def __init__(self):
        self.records = {}

    def record(self, phase, step, overall, **scalars):
        self.records[phase] = scalars


@pytest.mark.slow
def test_every_phase_of_the_paper_makes_a_step(store, tmp_path):
    config = preset("paper").override(
        ["autoencoder.steps=1", "coarse.steps=1", "train.steps=[1,1,1,1,1]", "train.head_steps=1"]
        + ["autoencoder.batch=2", "coarse.batch=2", "train.batch=2"]
        + ([] if os.environ.get("DEEPATLAS_LONG_TESTS") else SMALLER)
    )
    torch.manual_seed(0)
    modules = make_modules(config, len(store))
    array, log = TrainingArray(store, config.network.size), Recorded()
    modules["atlas"].seed(array.volumes[:1].float(), config.train.extent)
    mask = torch.nn.functional.interpolate(array.masks[:1].float(), size=(config.network.atlas_size,) * 3)
    before = {name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()}
    facts = Facts(array.ids[0], mask)
    world, generator = World(torch.device("cpu")), torch.Generator().manual_seed(0)
    session = Session(config, tmp_path, world, log, modules, generator, facts)
    session.run(recipe(session, array))

    assert session.done == PHASES == list(log.records) and session.overall == len(PHASES)
    for phase, scalars in log.records.items():
        assert all(map(math.isfinite, scalars.values())), phase
    for name, parameters in before.items():
        pairs = list(zip(parameters, modules[name].parameters(), strict=True))
        assert all(p.isfinite().all() for _, p in pairs), name
        assert any(not torch.equal(a, b) for a, b in pairs), name
