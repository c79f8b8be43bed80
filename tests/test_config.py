"""Settings: presets are valid, overrides are typed, and every setting has a rule that names mistakes."""

import re
import subprocess
import sys

import pytest

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.presets import PRESETS, preset
from deepatlas.settings import leaves


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
    # Section 5.2.5: affine crops of the seed exam alone.
    assert (config.coarse.elastic, config.coarse.contrast) == (0, 0)
    # Section 5.5.2: 8 voxels of 64 along each axis, whose 63 steps span 2.
    assert config.data.translation * 63 / 2 == pytest.approx(8)
    assert (preset("small").data.translation, preset("small").coarse.elastic) == (0.25, 0.08)


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
        ("train.steps=3", r"train.steps must be a list in brackets, such as 'train.steps=\[1,2\]'"),
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
        ("phantom.structures=small", "phantom.structures must be large or all"),
        ("phantom.spacing=0.1", "phantom.spacing must be null or in"),
        ("phantom.anatomy=-1", "phantom.anatomy must be an integer"),
        ("network.size=48", "network.size must be 16, 32 or 64"),
        ("loss.window=4", "loss.window must be null or odd, got 4"),
        ("loss.size=128", "loss.size must be 8, 16, 32 or 64, got 128"),
        ("network.fold=0", "network.fold must be 1, 2 or 4, got 0"),
        ("network.channels=[]", "network.channels must be numbers that are at least 1, one or more of them"),
        ("network.finest_level=7", r"network.finest_level must be in 0..2, got 7"),
        ("coarse.levels=3", r"coarse.levels must be null or in 1..2, got 3"),
        ("autoencoder.channels=[8,12]", "autoencoder.channels must be multiples of network.groups"),
        ("cohort.prewitt=[0.5]", r"cohort.prewitt must be \[\] or one number for each of the 0 rounds"),
        ("loss.step=mean", "got mean"),
        ("loss.gradient=none", "loss.gradient must be implicit or unrolled"),
        ("loss.smoothness=-1", "loss.smoothness must be at least 0, got -1.0"),
        ("train.lr=-1", "train.lr must be above 0, got -1.0"),
        ("train.lr=NaN", "train.lr must be above 0, got nan"),
        ("train.lr=Infinity", "train.lr must be above 0, got inf"),
        ("train.accumulate=9", "train.accumulate must be in 1..train.batch, got 9"),
        ("data.elastic=-1", "data.elastic must be at least 0"),
        ("coarse.lr=0", "coarse.lr must be above 0"),
        ("coarse.contrast=2", r"coarse.contrast must be in \[0, 1\]"),
        ("data.resident=maybe", "data.resident must be auto, true or false"),
        ("data.crop=half", "data.crop must be null, foreground or midline"),
    ],
)
def test_settings_that_cannot_run_are_named(setting, message):
    with pytest.raises(DeepAtlasError, match=message):
        preset("tiny").override([setting]).validate()


LEAVES = list(leaves(Config()))
WRONG = (
    float("nan"),
    float("inf"),
    -1,
    -0.5,
    -2.0,
    (),
    (-1,),
    (float("nan"),),
    10**30,
    None,
    "",
    "?",
    True,
    object(),
)


@pytest.mark.parametrize(("key", "value", "rule"), LEAVES, ids=[key for key, *_ in LEAVES])
def test_every_setting_has_a_rule(key, value, rule):
    """It accepts the default, refuses every number that makes no sense, and all values of another type."""
    assert rule.accepts(value) and str(rule)
    refused = [wrong for wrong in WRONG if not rule.accepts(wrong)]
    assert object in map(type, refused)
    assert rule.accepts(None) == ("null" in str(rule))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for wrong in (float("nan"), float("inf"), -1, -0.5, "?", (), True):
            assert not rule.accepts(wrong), wrong
    if isinstance(value, tuple):
        for wrong in ((-1,), (float("nan"),), -1, "?", None):
            assert not rule.accepts(wrong), wrong
    if isinstance(value, str):
        for wrong in ("", 1, (), float("nan")):
            assert not rule.accepts(wrong), wrong


def test_every_wrong_value_reaches_the_user_with_the_name_of_its_setting():
    for key, value, rule in LEAVES:
        if isinstance(value, float):
            with pytest.raises(
                DeepAtlasError, match=f"^setting {key} must be {re.escape(str(rule))}, got nan$"
            ):
                Config().override([f"{key}=NaN"]).validate()


def test_settings_of_an_earlier_version_still_open():
    values = preset("small").to_dict()
    del values["loss"]["gradient"]
    assert Config.from_dict(values) == preset("small")


def test_the_steps_are_those_of_the_kernels():
    from deepatlas_ops.options import STEPS

    for step in STEPS:
        assert preset("tiny").override([f"loss.step={step}"]).validate().loss.step == step


def test_declaring_and_reading_settings_does_not_import_torch():
    code = "import sys; from deepatlas.presets import PRESETS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_preset_lists_the_known():
    with pytest.raises(DeepAtlasError, match="choose tiny, small, headneck, mr, hippocampus, paper"):
        preset("huge")
