"""Settings: presets are valid, overrides are typed, mistakes are named."""

import pytest

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = preset(name)
    assert Config.from_dict(config.to_dict()) == config


def test_paper_preset_is_the_papers():
    config = preset("paper")
    assert config.network.channels == (8, 16, 32, 64, 128) and config.network.size == 64
    assert config.train.steps == (7500,) * 5 and config.train.batch == 64
    assert (config.train.lr, config.train.level_decay, config.train.decay, config.train.warmup) == (
        0.005,
        0.5,
        0.995,
        500,
    )
    assert (config.autoencoder.batch, config.autoencoder.steps) == (16, 20_000)


def test_overrides_are_typed():
    config = preset("tiny").override(
        ["train.batch=4", "data.crop=foreground", "loss.window=5", "seed=3", "train.lr=1"]
    )
    assert (config.train.batch, config.data.crop, config.loss.window, config.seed) == (4, "foreground", 5, 3)
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float)
    assert config.override(["data.crop=null"]).data.crop is None
    assert [config.override([f"data.resident={v}"]).data.resident for v in ("auto", "true", "false")] == [
        "auto",
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batches=4", "not known: write section.key=value"),
        ("batch=4", "not known"),
        ("train.batch", "not known"),
        ("train.batch=many", "train.batch must be of type int, got 'many'"),
        ("train.batch=4.5", "train.batch must be of type int"),
        ("train.steps=3", "train.steps must be of type"),
        ("data.resident=1", "data.resident must be of type"),
    ],
)
def test_wrong_overrides_are_named(setting, message):
    with pytest.raises(DeepAtlasError, match=message):
        preset("tiny").override([setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch=1", "train.batch must be at least 2"),
        ("train.steps=[1,2,3]", "one number for each of the"),
        ("data.scale=[1.3,0.7]", "data.scale must be two numbers above 0"),
        ("network.groups=3", "network.groups must be a divisor"),
        ("loss.step=x", "loss.step must be one of moving, fixed"),
        ("refine.lr=0", "refine.lr must be above 0"),
        ("phantom.train=1", "phantom.train must be at least 2"),
        ("network.size=48", "network.size must be 16, 32 or 64"),
        ("loss.window=4", "loss.window must be odd"),
        ("data.resident=maybe", "data.resident must be auto, true or false"),
        ("data.crop=half", "data.crop must be null, foreground or midline"),
    ],
)
def test_settings_that_cannot_run_are_named(setting, message):
    with pytest.raises(DeepAtlasError, match=message):
        preset("tiny").override([setting]).validate()


def test_unknown_preset_lists_the_known():
    with pytest.raises(DeepAtlasError, match="choose tiny, small, headneck, paper"):
        preset("huge")
