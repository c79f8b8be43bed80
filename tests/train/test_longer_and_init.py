"""A run that has ended goes on when it becomes longer, and a new run starts from the weights of a model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fast_settings import FAST

import deepatlas
from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.presets import preset
from deepatlas.settings import changed, leaves, resumable
from deepatlas.train.__main__ import main
from deepatlas.train.start import load_start

SETTINGS = [
    *(s for s in FAST if "phantom" not in s),
    "loss.similarity=intensity",
    "network.channels=[8,16]",
    "network.atlas_size=16",
    "train.head_steps=0",
    "train.average=0.9",
]


pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def runs(cohort, no_pictures, tmp_path_factory):
    """A folder with a run of ``train.steps=[1,2]``, one of ``[1,4]``, and a function that trains another."""
    root = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setenv("DEEPATLAS_CACHE", str(root / "cache"))

    def train(name, *more):
        out = root / name
        where = ["--data", str(cohort), "--out", str(out), "--device", "cpu", "--quiet"]
        return out, main([*where, *more])

    for name, last in (("short", 2), ("long", 4)):
        assert train(name, "--preset", "tiny", *SETTINGS, f"train.steps=[1,{last}]")[1] == 0
    yield root, train
    patch.undo()


@pytest.fixture
def short(runs, tmp_path):
    """A copy of the short run."""
    return shutil.copytree(runs[0] / "short", tmp_path / "copy")


def refused(capsys, *argv) -> str:
    capsys.readouterr()
    assert main([*argv, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("deepatlas: error: ") and error.count("\n") == 1, error
    return error


def equal(a, b) -> bool:
    one, other = (checkpoint.load(run / "model.pt", "model") for run in (a, b))
    return all(
        torch.equal(value, other[part][name])
        for part in ("network", "atlas")
        for name, value in one[part].items()
    )


@pytest.mark.slow(8)
def test_a_run_that_is_made_longer_equals_one_that_was_long_from_the_beginning(runs, short):
    root, _ = runs
    assert not equal(short, root / "long")
    assert main(["--resume", str(short), "--quiet", "train.steps=[1,4]"]) == 0
    assert equal(short, root / "long")
    assert json.loads((short / "config.json").read_text())["config"]["train"]["steps"] == [1, 4]
    steps = [json.loads(line)["overall"] for line in (short / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 3 + 1 + 4 and steps == sorted(set(steps))
    # As it was set up last, and once more.
    assert main(["--resume", str(short), "--quiet"]) == 0
    assert main(["--resume", str(short), "--quiet", "train.steps=[1,5]"]) == 0
    assert checkpoint.load(short / checkpoint.NAME)["overall"] == 9


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.lr=1"], "setting train.lr cannot change when a run is resumed (data.resident, autoencoder.steps,"),
        (["network.features=16"], "setting network.features cannot change"),
        (["train.steps=[2,2]"], "level-1 has done its 1 steps, and level-0 has been trained on top of it"),
        (["train.steps=[1,1]"], "level-0 has done its 2 steps, and it cannot become shorter"),
        (["coarse.steps=9"], "coarse has done its 3 steps"),
        (["train.head_steps=2"], "level-0 is done, and phase head-0 would have come before it"),
        (["train.checkpoint_minutes=-1"], "train.checkpoint_minutes must be at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_change_is_refused_and_changes_nothing(short, capsys, settings, words):
    files = ("config.json", "model.pt", checkpoint.NAME)
    before = [(short / name).read_bytes() for name in files]
    assert words in refused(capsys, "--resume", str(short), *settings)
    assert [(short / name).read_bytes() for name in files] == before


@pytest.mark.slow(2)
def test_rounds_are_added_to_a_finished_run_and_what_does_not_matter_may_change(short):
    more = ["distil.steps=[2]", "train.checkpoint_minutes=0", "refine.steps=0", "data.resident=true"]
    assert main(["--resume", str(short), "--quiet", *more]) == 0
    assert checkpoint.load(short / checkpoint.NAME)["done"][-3:] == ["predict-0", "register-0", "distil-0"]


@pytest.mark.slow(2)
def test_a_checkpoint_without_lengths_of_an_earlier_version_resumes_as_it_is(short, capsys):
    state = checkpoint.load(short / checkpoint.NAME)
    del state["lengths"]
    checkpoint.save(short / checkpoint.NAME, state | {"pending": None})
    assert main(["--resume", str(short), "--quiet"]) == 0
    assert "an earlier version" in refused(capsys, "--resume", str(short), "train.steps=[1,4]")


@pytest.mark.slow(8)
def test_a_new_run_starts_from_the_weights_of_a_model(runs):
    root, train = runs
    # Without a step, what comes out is what went in. The settings are those of the model.
    none = ["train.steps=[0,0]"]
    out, code = train("same", "--init", str(root / "long"), *none)
    assert code == 0 and equal(out, root / "long")
    saved = json.loads((out / "config.json").read_text())
    assert saved["request"]["init"] == str(root / "long") and saved["config"]["coarse"]["steps"] == 0
    assert saved["config"]["network"]["channels"] == [8, 16]
    model = deepatlas.load(root / "long")
    assert deepatlas.load(out).card["init"] == {
        "model": str(root / "long"),
        "fingerprint": model.fingerprint,
    }
    # An atlas of another size is resampled: the corners of the space stay where they are.
    out, code = train("larger", "--init", str(root / "long" / "model.pt"), *none, "network.atlas_size=31")
    atlas = deepatlas.load(out).atlas
    assert code == 0 and torch.allclose(atlas[..., ::2, ::2, ::2], model.atlas, atol=1e-5)
    # With pretraining, and with steps that change the weights.
    out, code = train("trained", "--init", str(root / "long"), "coarse.steps=1", "train.steps=[1,1]")
    assert code == 0 and not equal(out, root / "long")


@pytest.mark.slow(2)
def test_another_network_is_refused_in_one_line(runs, cohort, tmp_path, capsys):
    root, _ = runs
    start = ["--data", str(cohort), "--out", str(tmp_path / "run"), "--init"]
    error = refused(capsys, *start, str(root / "long"), "--preset", "tiny")
    assert "its network has network.size=16 network.fold=1 network.channels=[8,16]" in error
    assert "no shipped model" in refused(capsys, *start, str(tmp_path / "none"))
    assert "leave out --init" in refused(capsys, "--resume", str(root / "long"), "--init", "headneck")
    assert not (tmp_path / "run").exists()


def test_a_shipped_model_fits_its_preset():
    assert load_start("headneck", preset("headneck")).config.network == preset("headneck").network
    with pytest.raises(DeepAtlasError, match="network.fold=2 .* this run network.fold=4"):
        load_start("headneck", preset("tiny"))


def test_settings_that_may_change_on_resume_are_declared_beside_them():
    allowed = resumable(Config())
    assert {"train.steps", "coarse.steps", "autoencoder.steps", "distil.steps", "train.accumulate"} <= set(
        allowed
    )
    # Everything that decides what a step does is fixed.
    assert not {
        "train.lr",
        "train.batch",
        "seed",
        "data.crop",
        "network.size",
        "loss.window",
        "preset",
    } & set(allowed)
    assert set(allowed) < {key for key, *_ in leaves(Config())}
    other = Config().override(["train.lr=1", "seed=4", "train.steps=[1,1,1,1,1]"])
    assert changed(Config(), other) == ["seed", "train.steps", "train.lr"]
