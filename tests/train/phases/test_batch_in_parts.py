"""A batch computed in parts, by one process or by several, has the gradient of the whole batch: in every phase."""

import pytest
import torch

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.losses.similarity import freeze
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Session
from deepatlas.train.phases.autoencoder import autoencoder_phase
from deepatlas.train.phases.coarse import TemplateCrops, coarse_phase
from deepatlas.train.phases.distil import distil_phase
from deepatlas.train.phases.register import CohortCoordinates
from deepatlas.train.phases.level import stage_phases
from deepatlas.train.world import World

CONFIG = preset("tiny").override(
    [
        "network.size=16", "network.fold=1", "network.finest_level=0", "network.channels=[8,16]", "network.features=8",
        "network.atlas_size=24", "loss.size=16", "loss.window=5", "loss.similarity=features", "loss.min_overlap=0",
        "autoencoder.batch=5", "coarse.batch=5", "coarse.contrast=0.3", "train.batch=5", "train.steps=[1,1]",
        "train.head_steps=1", "distil.steps=[1]", "distil.batch=5",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "data"
    write_phantoms(PhantomCohort(seed=0), root, range(3), progress=False)
    return TrainingArray(prepare_cohort(root, root.parent / "store.h5", progress=False), 16)


def one_of(rank, size):
    """A process among several, without the others: its gradients are summed by the test."""
    world = World(torch.device("cpu"))
    world.rank, world.size = rank, size
    return world


def phases(array, world, accumulate, start=None):
    torch.manual_seed(0)
    network = CoordinateNetwork(CONFIG.network)
    if start:
        network.load_state_dict(start)
    atlas, autoencoder = Atlas(24), Autoencoder((8, 16))
    modules = {"network": network, "atlas": atlas, "autoencoder": autoencoder}
    modules["cohort"] = CohortCoordinates(len(array), 16, 24)
    modules["cohort"].coords.copy_(0.8 * affine_coords(torch.eye(3, 4)[None], 16))
    for module in modules.values():
        module.to(world.device)
    atlas.seed(array.volumes[:1].float(), 0.85)
    config = CONFIG.override([f"train.accumulate={accumulate}"])
    generator = torch.Generator().manual_seed(5)
    session = Session(config, None, world, NullLog(), modules, generator, {"seed_exam": array.ids[0]})
    batches = Batches(array, array.ids, config.data, 16)
    yield autoencoder_phase(session, batches)
    mask = torch.ones(1, 1, 24, 24, 24)
    yield coarse_phase(session, TemplateCrops(atlas, mask, 16, 0.85, config.coarse, config.data))
    loss = RegistrationLoss(config.loss, FeatureSimilarity(freeze(autoencoder), "features", 5), 16)
    yield from stage_phases(session, batches, loss)
    yield distil_phase(session, array, array.ids, 0)


@pytest.fixture(scope="module")
def start(array):
    """A network that knows one exam a little: an untrained one sends all voxels to one point, and no pair overlaps."""
    phase = list(phases(array, one_of(0, 1), 1))[1]
    parameters = phase.parameters[0][0]
    adam = torch.optim.Adam(parameters, 0.01)
    for number in range(30):
        adam.zero_grad()
        for loss, _values in phase.step(number):
            loss.backward()
        adam.step()
    names = [name for name, _ in CoordinateNetwork(CONFIG.network).named_parameters()]
    return {name: p.detach().clone() for name, p in zip(names, parameters, strict=True)}


def gradients(array, start, processes, accumulate):
    """Name, gradient and scalars of every phase's first step, summed over the processes."""
    found = {}
    for rank in range(processes):
        for phase in phases(array, one_of(rank, processes), accumulate, start):
            parameters = [p for group, _factor in phase.parameters for p in group]
            for p in parameters:
                p.grad = None
            scalars = {}
            for loss, values in phase.step(0):
                loss.backward()
                for key, value in values().items():
                    scalars[key] = scalars.get(key, 0) + value
            flat = torch.cat(
                [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
            )
            grad, total = found.get(phase.name, (0, {}))
            found[phase.name] = grad + flat, {k: total.get(k, 0) + v for k, v in scalars.items()}
    return found


@pytest.fixture(scope="module")
def whole(array, start):
    return gradients(array, start, 1, 1)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (1, 5), (2, 1), (3, 2), (5, 1)])
def test_gradients_and_scalars_add_up(array, start, whole, processes, accumulate):
    assert list(whole) == ["autoencoder", "coarse", "level-1", "head-0", "level-0", "distil-0"]
    assert whole["level-0"][1]["implicit_similarity"] > 0 and whole["level-0"][1]["overlap"] > 0.05
    for name, (grad, scalars) in gradients(array, start, processes, accumulate).items():
        expected, wanted = whole[name]
        assert expected.norm() > 0
        # A voxel at the edge of what a pair shares may fall on either side when a network's sums are rounded
        # differently; a pair that is missing or counts twice makes a fifth of the gradient.
        assert (grad - expected).norm() < 1e-3 * expected.norm(), name
        assert scalars == pytest.approx(wanted, rel=1e-3, abs=1e-6), name


def test_parts_cover_the_batch_once():
    for processes in (1, 2, 3, 5):
        for accumulate in (1, 2, 4):
            parts = [one_of(r, processes).parts(7, accumulate) for r in range(processes)]
            assert [row for mine in parts for part in mine for row in part] == list(range(7))
            assert all(len(mine) <= accumulate for mine in parts)
