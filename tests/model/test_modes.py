"""A model does not depend on the modes of PyTorch: inference mode, default dtype, gradients."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from affine_model import GRIDS, exam
from fast_settings import FAST
from small_exams import write_cohort

import deepatlas
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.presets import preset


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model with random weights, and an atlas that has something to register to."""
    torch.manual_seed(0)
    config = (
        preset("tiny")
        .override([s for s in FAST if s.startswith(("network.", "loss.size", "train.steps"))])
        .validate()
    )
    network, atlas = CoordinateNetwork(config.network), Atlas(config.network.atlas_size)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
        atlas.values.uniform_(0, 1)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    Engine(config, network, atlas).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("data"), 2)


def everything(model, data):
    """What a model can do, with an exam that differs from the one that the template is made of."""
    moved, _ = exam(GRIDS["coarse"])
    template = build_template(model, data, size=32)
    found = model.locate([[1.0, 2, 3], [10, 0, 0]], data / "e1" / "ct.nii.gz", moved)
    return {
        "fingerprint": model.fingerprint,
        "coordinates": model.coordinates(moved).numpy(),
        "masks": template.masks,
        "labels": model.segment(moved, template).array,
        "points": found.points,
    }


@pytest.fixture(scope="module")
def usual(path, data):
    return everything(deepatlas.load(path, "cpu", refine=1, average=2), data)


def check_same(found, usual):
    for name, value in usual.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            assert found[name] == value, name


@contextlib.contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "float64": float64,
}


PAIRS = [pair for mode in MODES for pair in ((mode, mode), (mode, None), (None, mode))]


@pytest.mark.parametrize(
    ("loaded", "used"),
    [pytest.param(*pair, marks=pytest.mark.slow(2) if None in pair else ()) for pair in PAIRS],
)
def test_results_are_the_same_in_every_mode(path, data, usual, loaded, used):
    with MODES.get(loaded, contextlib.nullcontext)():
        model = deepatlas.load(path, "cpu", refine=1, average=2)
    with MODES.get(used, contextlib.nullcontext)():
        check_same(everything(model, data), usual)


@pytest.mark.parametrize("mode", MODES)
def test_the_shipped_model_has_its_fingerprint_in_every_mode(mode):
    with MODES[mode]():
        model = deepatlas.load("headneck", "cpu")
        Template.load("headneck").check_model(model.fingerprint)
        assert {p.dtype for p in model.network.parameters()} == {torch.float32}
        assert not any(p.is_inference() for p in model.to("cpu").network.parameters())


def test_a_fingerprint_is_of_the_weights_as_they_are_now():
    model = deepatlas.load("headneck")
    first = model.fingerprint
    assert model.fingerprint == first == deepatlas.load("headneck").fingerprint
    weight = next(model.network.parameters())
    kept = weight.detach().clone()
    weight.data.mul_(2)
    doubled = model.fingerprint
    weight.data.copy_(kept)
    assert doubled != first == model.fingerprint
    model.network.load_state_dict({k: v * 2 for k, v in model.network.state_dict().items()})
    assert model.fingerprint not in (first, doubled)
