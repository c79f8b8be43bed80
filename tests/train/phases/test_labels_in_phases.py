"""Labels in the phases: the masks of the atlas by eq. 14, both tasks of a level in parts, and registration."""

import contextlib

import numpy as np
import pytest
import torch
from drawn_masks import Drawn
from matplotlib.image import imread
from small_exams import LABELS, write_cohort
from small_recipe import process
from waits import Waits

import deepatlas_ops as ops
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.losses import LabelTask
from deepatlas.model.refine import register_to_atlas
from deepatlas.nn import Atlas, LabelAtlas
from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords
from deepatlas.space.labels import BoxMask
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.phases.labels import chosen_exams, label_sweep, learned_template
from deepatlas.train.pictures import save_panel
from deepatlas.train.recipe import make_modules, recipe
from deepatlas_ops.reference import invert

CONFIG = preset("tiny").override(
    [
        "network.size=16", "network.fold=1", "network.finest_level=0", "network.channels=[8,16]", "network.features=8",
        "network.atlas_size=24", "loss.size=16", "loss.window=5", "loss.min_overlap=0", "coarse.steps=0",
        "train.batch=5", "train.steps=[1,1]", "loss.labels=0.5", "data.labelled_share=0.6", "distil.steps=[1]",
        "distil.labels=0.5", "distil.batch=5", "cohort.steps=2",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four exams, of which the last has no labels."""
    root = write_cohort(tmp_path_factory.mktemp("labelled") / "data", 4)
    with prepare_cohort(root, root.parent / "store.h5", progress=False) as store:
        yield store


@pytest.fixture(scope="module")
def array(store):
    return TrainingArray(store, 16)


@pytest.fixture(scope="module")
def labels(store):
    return LabelMaps(store, range(len(store)), 16, 16)


def session(array, labels, world=None, config=CONFIG):
    torch.manual_seed(0)
    modules = make_modules(config, len(array), len(labels))
    modules["atlas"].seed(array.volumes[:1].float(), config.train.extent)
    place = affine_coords(torch.eye(3, 4)[None], modules["cohort"].coords.shape[-1])
    modules["cohort"].coords.copy_(0.8 * place)
    facts = Facts(array.ids[0], torch.ones(1, 1, 24, 24, 24))
    generator = torch.Generator().manual_seed(5)
    return Session(config, None, world or process(0, 1), NullLog(), modules, generator, facts)


def plain(x, positions):
    """Coordinates of exams that all lie in the middle of the space."""
    return 0.8 * affine_coords(torch.eye(3, 4)[None], 16).expand(len(x), -1, -1, -1, -1)


def test_the_masks_of_the_atlas_explain_the_labelled_exams(array, labels):
    of = session(array, labels)
    sweep = label_sweep(of, array, labels, "labels", plain)
    assert sweep.step(0)["label_misfit"] < 0.5
    atlas = of.modules["labels"]
    mean = torch.stack([labels.take([i]).masks([0], [0, 1])[0] for i in range(3)]).mean(0)
    pulled = atlas(plain(mean[None], [0]))[0]
    for channel in range(2):
        # A mask carried over by the coordinates resembles the mean of those that it was made from.
        both = (pulled[channel] * mean[channel]).sum() / (pulled[channel].norm() * mean[channel].norm())
        assert both > 0.9
        filled = [np.mean(labels.store.labels_64[i] == labels.ids[channel]) for i in range(3)]
        body = [labels.store.mask[i].mean() for i in range(3)]
        assert atlas.fraction[channel].item() == pytest.approx(np.mean(np.divide(filled, body)), rel=1e-4)
    template = learned_template(atlas, labels, "abc", "zscore")
    assert (
        template.labels == LABELS
        and template.meta["model"] == "abc"
        and template.meta["intensity"] == "zscore"
    )


def test_enough_exams_of_each_structure_are_chosen():
    drawn = np.zeros((40, 3), dtype=bool)
    drawn[:, 0], drawn[30:, 1], drawn[[3, 39], 2] = True, True, True

    class Maps:
        labelled = list(range(40))

        def __len__(self):
            return 3

        def drawn(self, position):
            return drawn[position]

    chosen = chosen_exams(Maps())
    assert chosen == [*range(8), *range(30, 38), 39]


def gradients(array, labels, processes, accumulate):
    """The gradients and scalars of the first step of each phase with labels, summed over the processes."""
    found = {}
    for rank in range(processes):
        world = process(rank, processes)
        # Every process fills the masks itself here; in a run they come from the first one.
        world.sum_tensors = lambda *_: None
        of = session(array, labels, world, CONFIG.override([f"train.accumulate={accumulate}"]))
        for phase in recipe(of, array, labels=labels):
            if not phase.name.startswith(("level", "distil")):
                continue
            with torch.no_grad():
                of.modules["labels"].values.copy_(
                    torch.linspace(0, 1, 24**3).view(1, 1, 24, 24, 24)[..., :16, :16, :16]
                )
                of.modules["labels"].fraction.fill_(0.02)
            parameters = [p for group, _factor in phase.parameters for p in group]
            for p in [*parameters, of.modules["labels"].values]:
                p.grad = None
            scalars = {}
            for loss, values in phase.step(0):
                loss.backward()
                for key, value in values().items():
                    scalars[key] = scalars.get(key, 0) + value
            # While registered coordinates are taught, the masks of the atlas stay as they are.
            learns = phase.name.startswith("level")
            assert (of.modules["labels"].values.grad is not None) == learns
            flat = torch.cat(
                [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
            )
            grad, total = found.get(phase.name, (0, {}))
            found[phase.name] = grad + flat, {k: total.get(k, 0) + v for k, v in scalars.items()}
    return found


@pytest.mark.slow(1)
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 3), (5, 1)])
def test_processes_and_parts_add_up_to_one_batch(array, labels, processes, accumulate):
    """Also where a process has only exams without labels."""
    whole = gradients(array, labels, 1, 1)
    assert list(whole) == ["level-1", "level-0", "distil-0"]
    assert all(scalars["explicit_labels"] > 0 for _, scalars in whole.values())
    for name, (grad, scalars) in gradients(array, labels, processes, accumulate).items():
        expected, wanted = whole[name]
        assert (grad - expected).norm() < 1e-3 * expected.norm(), name
        assert scalars == pytest.approx(wanted, rel=1e-3, abs=1e-6), name


@pytest.mark.slow(1)
def test_a_step_with_labels_never_waits_for_the_device(store, monkeypatch):
    """On the meta device, which has no values to wait for, as test_no_waiting.py."""
    array = TrainingArray(store, 16)
    array.device, array.volumes, array.masks = (
        torch.device("meta"),
        array.volumes.to("meta"),
        array.masks.to("meta"),
    )
    there = LabelMaps(store, range(len(store)), 16, 16, "meta")
    read = there._read

    def overlapping(position):
        exam = read(position)
        if exam.slots is not None:
            exam.overlaps.append(
                (0, BoxMask.of(np.ones((2, 2, 2), bool)), torch.ones(2, 2, 2, device="meta"))
            )
        return exam

    monkeypatch.setattr(there, "_read", overlapping)
    monkeypatch.setattr(invert, "_may_look", lambda: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    world = process(0, 1)
    world.device = torch.device("meta")
    of = session(TrainingArray(store, 16), there, world)
    for module in of.modules.values():
        module.to("meta")
    # What is read from the store is read before, as a run does it in its first steps.
    there.take(range(len(store)))
    steps = 0
    for phase in recipe(of, array, labels=there):
        if phase.name.startswith("level"):
            with Waits(monkeypatch) as waits:
                for loss, _scalars in phase.step(0):
                    loss.backward()
            assert waits.found == [], phase.name
            # While registered coordinates are taught, the masks of the atlas stay as they are.
            learns = phase.name.startswith("level")
            assert (of.modules["labels"].values.grad is not None) == learns
            steps += 1
    assert steps == 2


def test_labels_steer_the_registration_of_the_exams_that_have_them():
    """In images that show nothing; the exam beside them, without labels, is registered as ever."""
    size = 16
    atlas, masks = Atlas(size), LabelAtlas(1, size)
    place = affine_coords(torch.eye(3, 4)[None], size)
    x = place[:, :1]
    with torch.no_grad():
        atlas.values.fill_(0.5)
        masks.values.copy_(((x > -0.4) & (x < 0.2)).float())
        masks.fraction.fill_(0.3)
    # The structure lies further to one side in the exams.
    values = ((x > -0.1) & (x < 0.5)).float().expand(2, 1, -1, -1, -1)
    start, image, body = (
        place.expand(2, -1, -1, -1, -1),
        torch.full((2, 1, *(size,) * 3), 0.5),
        torch.ones(2, 1, *(size,) * 3),
    )
    drawn = np.array([[True], [False]])
    task = LabelTask(Drawn(values[:, :, None].flatten(1, 2), drawn), masks, learns=False)
    plain_result = register_to_atlas(start, image, body, atlas, CONFIG, 30)
    steered = register_to_atlas(start, image, body, atlas, CONFIG, 30, task)

    def error(coords):
        return (masks(ops.resize(coords, (size,) * 3))[0] - values[0]).square().mean().item()

    assert masks.values.grad is None
    assert error(steered) < 0.5 * error(plain_result)
    assert torch.equal(steered[1], plain_result[1])
    # Without the weight nothing changes.
    off = CONFIG.override(["loss.labels=0", "data.labelled_share=0"])
    assert torch.equal(register_to_atlas(start, image, body, atlas, off, 30, task), plain_result)


@pytest.mark.slow(2)
def test_the_picture_of_a_level_outlines_the_learned_masks(array, labels, store, tmp_path):
    of = session(array, labels)
    grids = [store.grid(0), store.grid(1)]
    masks = of.modules["labels"]
    for name in ("without", "with"):
        if name == "with":
            with torch.no_grad():
                masks.values[0, :, 4:12, 4:12, 4:12] = 1
        save_panel(
            tmp_path / f"{name}.png", of.modules["network"], of.modules["atlas"], array, grids, 0, masks
        )
    without, drawn = (imread(tmp_path / f"{name}.png") for name in ("without", "with"))
    changed = np.argwhere((without != drawn).any(axis=2))
    # The atlas is in the upper left of the picture.
    height, width = without.shape[:2]
    assert len(changed) > 50 and ((changed[:, 1] < width / 3) & (changed[:, 0] < height / 2)).sum() > 50
