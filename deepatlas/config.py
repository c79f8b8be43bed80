"""Every setting of a run, its presets, and overrides of the form ``section.key=value``."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field

from deepatlas.errors import DeepAtlasError

# Step matrices of implicit_warp that a loss may use (named here: settings are read without importing torch).
STEPS = ("moving", "fixed", "direction_cosine", "newton")


@dataclass(frozen=True)
class DataConfig:
    """How exams become network input (section 5.5.2)."""

    crop: str | None = None  # before the fixed-shape resampling: "foreground" or "midline", see to_model_grid
    holdout: int = 8  # labelled exams kept out of training for the one-shot score, where no test set is given
    scale: tuple[float, float] = (0.7, 1.3)  # augmentation ranges of section 5.5.2
    rotation: float = 0.5  # radians
    translation: float = 0.25  # normalised: 8 voxels of 64
    elastic: float = 0.0  # strength of smooth random displacements (random_displacement); 0 (the paper): none
    resident: str | bool = "auto"  # all exams in the device's memory (true), or read ahead of use (false)


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network (sections 2.2 and 5.2.1)."""

    size: int = 64
    fold: int = 1  # blocks of fold**3 input voxels become channels (CPU presets; 1 is the paper)
    channels: tuple[int, ...] = (8, 16, 32, 64, 128)
    features: int = 128  # K, the fixed depth of the head feature maps
    groups: int = 8
    head_kernel: int = 3  # of the convolution shared by all heads
    finest_level: int = 0  # last level that is trained and used
    atlas_size: int = 128


@dataclass(frozen=True)
class AutoencoderConfig:
    """Feature autoencoder (section 5.3)."""

    channels: tuple[int, ...] = (8, 16)
    steps: int = 20_000
    batch: int = 16
    lr: float = 5e-3
    decay: float = 0.995  # every 50 steps


@dataclass(frozen=True)
class CoarseConfig:
    """Supervised pretraining on known crops of the template exam (section 5.2.5)."""

    steps: int = 2_000
    batch: int = 16
    lr: float = 5e-3
    levels: int | None = 1  # heads that learn, from the coarsest (the paper: that one alone); null is all
    crop: float = 0.4  # random crops keep this fraction of the body axis and up, times 1.15, at most all
    elastic: float = (
        0.08  # strength of smooth random displacements (random_displacement), normalised; 0: none
    )
    contrast: float = 0.3  # strength of random intensity changes


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the losses (sections 2.3 and 5.1); the paper leaves the weights open."""

    size: int = 64  # voxels per axis of the grid on which the losses are evaluated
    explicit: float = 1.0
    implicit: float = 1.0
    smoothness: float = 0.5
    prewitt: float = 0.5
    similarity: str = "features"  # features | histogram | intensity | mse
    window: int | None = None  # NCC window in voxels of the loss grid; None is the global form of eq. 9
    orthonormality: str = "det"
    iterations: int = 20  # of the recursion, eq. 6
    tolerance: float = 0.0  # voxels; steps smaller than this end it early (0: never)
    step: str = "moving"
    min_overlap: float = 0.05  # pairs that share less of the fixed foreground do not count


@dataclass(frozen=True)
class TrainConfig:
    """Staged optimisation (sections 5.2.3 and 5.2.6)."""

    steps: tuple[int, ...] = (7_500, 7_500, 7_500, 7_500, 7_500)  # coarsest level first
    batch: int = 64
    lr: float = 5e-3
    level_decay: float = 0.5
    decay: float = 0.995  # every 50 steps
    warmup: int = 500
    warmup_from: float = 0.1
    atlas_lr: float = 1.0  # factor on the learning rate
    clip: float = 2.0  # gradient norm
    average: float = 0.0  # decay of a running mean of the weights, which is what is kept; 0 turns it off
    head_steps: int = 200  # warm start of a new head (section 5.2.3)
    extent: float = 0.85  # half-width of the seed exam in coordinate space
    accumulate: int = (
        1  # parts that a batch is computed in, one after another: less memory, the same gradient
    )
    precision: str = (
        "float32"  # of the networks' convolutions: float32 | bfloat16; coordinates and losses are float32
    )
    compile: bool = False  # the networks through torch.compile
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True)
class RefineConfig:
    """Optional refinement of one exam's coordinates at inference (not in the paper): see localize/refine.py."""

    steps: int = 20  # of the second score that a run reports; inference refines only where it is asked to
    control: int = 8  # control points per axis of the displacement that is added
    lr: float = 0.01  # of Adam, in normalised coordinates
    smoothness: float = 0.25
    similarity: str = "intensity"  # intensity | histogram
    window: int | None = None  # NCC window in voxels of the loss grid; None is the global form of eq. 9
    prewitt: float = 0.5


@dataclass(frozen=True)
class CohortConfig:
    """Registration of every training exam to the atlas, by the settings of ``refine`` (not in the paper)."""

    steps: int = 20  # of the registration of an exam
    batch: int = 4
    prewitt: tuple[float, ...] = ()  # weight of the edge channel in each round; (): refine.prewitt in all


@dataclass(frozen=True)
class DistilConfig:
    """Registered coordinates taught to the network (not in the paper): as many rounds as ``steps`` has entries.

    A round predicts the coordinates of every exam, registers them (``cohort``) and teaches them.
    """

    steps: tuple[int, ...] = ()
    batch: int = 4
    lr: float = 2e-3
    elastic: float = 0.04  # strength of smooth random displacements (random_displacement), normalised
    contrast: float = 0.3  # strength of random intensity changes
    background: float = 0.1  # weight of the background, whose coordinates continue the foreground
    delta: float = 0.02  # of the Huber loss, normalised
    average: float = 0.998  # decay of the running mean of the weights


@dataclass(frozen=True)
class PhantomConfig:
    """The cohort that is made when no data are given."""

    train: int = 144
    test: int = 8
    seed: int = 0
    deformation: float = 1.0  # strength of the anatomy's variation, see PhantomCohort


@dataclass(frozen=True)
class Config:
    """A whole run. ``preset`` names where it started."""

    preset: str = "paper"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Inverse of :meth:`to_dict`; a key that does not exist is an error that names it."""
        return _build(cls, values, "config")

    def override(self, assignments: list[str]) -> Config:
        """A copy with ``section.key=value`` changes, values in JSON (bare words are strings)."""
        values = self.to_dict()
        for text in assignments:
            path, separator, raw = text.partition("=")
            keys = path.strip().split(".")
            node = values
            for key in keys[:-1]:
                node = node.get(key) if isinstance(node, dict) else None
            if not separator or not isinstance(node, dict) or keys[-1] not in node:
                raise DeepAtlasError(
                    f"setting {text!r} is not known: write section.key=value, for example train.batch=4; "
                    f"sections are {', '.join(k for k, v in self.to_dict().items() if isinstance(v, dict))}"
                )
            try:
                node[keys[-1]] = json.loads(raw)
            except json.JSONDecodeError:
                node[keys[-1]] = raw
        return Config.from_dict(values)

    def validate(self) -> Config:
        """Raise on combinations that cannot run; returns itself."""
        net, loss, train, coarse, refine = self.network, self.loss, self.train, self.coarse, self.refine
        levels = len(net.channels)
        trained = levels - net.finest_level
        rules = {
            "data.crop": (self.data.crop in (None, "foreground", "midline"), "null, foreground or midline"),
            "network.size": (net.size in (16, 32, 64), "16, 32 or 64"),
            "network.fold": (net.fold in (1, 2, 4), "1, 2 or 4"),
            "network.channels": (
                net.size // net.fold >> (levels - 1) >= 2,
                "so many levels that the coarsest has at least 2 voxels",
            ),
            "network.groups": (
                net.groups > 0 and all(c % min(net.groups, c) == 0 for c in (*net.channels, net.features)),
                "a divisor of network.channels and network.features",
            ),
            "network.head_kernel": (net.head_kernel in (1, 3, 5), "1, 3 or 5"),
            "network.finest_level": (0 <= net.finest_level < levels, f"in 0..{levels - 1}"),
            "data.scale": (
                0 < self.data.scale[0] <= self.data.scale[1],
                "two numbers above 0, the lower first",
            ),
            "data.resident": (self.data.resident in ("auto", True, False), "auto, true or false"),
            "data.rotation": (self.data.rotation >= 0, "not negative"),
            "data.translation": (self.data.translation >= 0, "not negative"),
            "autoencoder.batch": (self.autoencoder.batch >= 1, "at least 1"),
            "coarse.batch": (coarse.batch >= 1, "at least 1"),
            "coarse.crop": (0 < coarse.crop <= 1, "in (0, 1]"),
            "coarse.levels": (
                coarse.levels is None or 1 <= coarse.levels <= trained,
                f"null or in 1..{trained}",
            ),
            "loss.size": (
                loss.size in (8, 16, 32, 64) and loss.size <= net.size,
                "a power of two, from 8 to network.size",
            ),
            "loss.implicit": (loss.implicit >= 0, "not negative"),
            "loss.explicit": (
                loss.explicit > 0 or (loss.explicit == 0 and loss.implicit > 0),
                "above 0 where loss.implicit is 0, and never negative",
            ),
            "loss.step": (loss.step in STEPS, f"one of {', '.join(STEPS)}"),
            "loss.orthonormality": (loss.orthonormality in ("log", "det"), "log or det"),
            "loss.iterations": (loss.iterations >= 1, "at least 1"),
            "loss.tolerance": (loss.tolerance >= 0, "not negative"),
            "loss.similarity": (
                loss.similarity in ("features", "histogram", "intensity", "mse"),
                "features, histogram, intensity or mse",
            ),
            "loss.window": (_is_window(loss.window), "odd or null"),
            "phantom.train": (self.phantom.train >= 2, "at least 2"),
            "phantom.test": (self.phantom.test >= 1, "at least 1"),
            "phantom.deformation": (self.phantom.deformation >= 0, "not negative"),
            "cohort.steps": (self.cohort.steps >= 0, "not negative"),
            "cohort.prewitt": (
                len(self.cohort.prewitt) in (0, len(self.distil.steps))
                and all(w >= 0 for w in self.cohort.prewitt),
                f"[] or one number for each of the {len(self.distil.steps)} rounds, none negative",
            ),
            "cohort.batch": (self.cohort.batch >= 1, "at least 1"),
            "distil.steps": (all(s >= 0 for s in self.distil.steps), "numbers, none negative"),
            "distil.batch": (self.distil.batch >= 1, "at least 1"),
            "distil.lr": (self.distil.lr > 0, "above 0"),
            "distil.background": (self.distil.background >= 0, "not negative"),
            "distil.delta": (self.distil.delta > 0, "above 0"),
            "distil.average": (0 <= self.distil.average < 1, "in [0, 1)"),
            "refine.prewitt": (refine.prewitt >= 0, "not negative"),
            "refine.lr": (refine.lr > 0, "above 0"),
            "refine.steps": (refine.steps >= 0, "not negative"),
            "refine.control": (refine.control >= 2, "at least 2"),
            "refine.similarity": (
                refine.similarity in ("intensity", "histogram"),
                "intensity or histogram",
            ),
            "refine.window": (_is_window(refine.window), "odd or null"),
            "train.steps": (
                len(train.steps) == trained and all(s >= 0 for s in train.steps),
                f"one number for each of the {trained} trained levels, none negative",
            ),
            "train.batch": (train.batch >= 2, "at least 2 (the implicit loss needs pairs)"),
            "train.accumulate": (1 <= train.accumulate <= train.batch, "in 1..train.batch"),
            "train.precision": (train.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            "train.checkpoint_minutes": (train.checkpoint_minutes >= 0, "not negative"),
            "train.extent": (0 < train.extent <= 1, "in (0, 1]"),
            "train.average": (0 <= train.average < 1, "in [0, 1)"),
        }
        values = self.to_dict()
        for key, (good, expected) in rules.items():
            if not good:
                section, name = key.split(".")
                raise DeepAtlasError(f"setting {key} must be {expected}, got {values[section][name]}")
        return self


def preset(name: str) -> Config:
    """A named starting point.

    ``tiny`` (phantoms, CPU), ``small`` (real exams, CPU), ``headneck`` (the shipped model, CPU), ``paper`` (the
    publication).
    """
    if name not in PRESETS:
        raise DeepAtlasError(f"preset {name!r} is not known: choose {', '.join(PRESETS)}")
    return PRESETS[name].validate()


def _is_window(value: int | None) -> bool:
    return value is None or (value % 2 == 1 and value > 0)


def _build(kind, values, where):
    if not isinstance(values, dict):
        raise DeepAtlasError(f"{where} must be a table of settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise DeepAtlasError(f"{where}: unknown setting {sorted(unknown)[0]!r}; known are {', '.join(hints)}")
    return kind(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint, value, where):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if isinstance(hint, types.UnionType):
        if type(value) in hint.__args__:
            return value
        hint = next(h for h in hint.__args__ if h is not type(None))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if isinstance(value, (list, tuple)) and (items[-1] is Ellipsis or len(value) == len(items)):
            return tuple(_convert(items[0], v, where) for v in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) or str(hint)
    raise DeepAtlasError(f"setting {where.removeprefix('config.')} must be of type {name}, got {value!r}")


PRESETS = {
    # Minutes are too few for the paper's augmentation: exams of one orientation need less of it. Coordinates of
    # 8^3 points bend as little as bodies do, and cost little. Correlating intensities instead of autoencoder
    # features makes the loss four times as fast.
    "tiny": Config(
        preset="tiny",
        data=DataConfig(crop="foreground", scale=(0.85, 1.15), rotation=0.15, translation=0.1, elastic=0.05),
        network=NetworkConfig(
            size=64, fold=4, channels=(16, 32, 64), features=32, head_kernel=1, finest_level=1
        ),
        autoencoder=AutoencoderConfig(steps=120, batch=8, lr=2e-3),
        coarse=CoarseConfig(steps=1_000, batch=4, lr=2e-3, levels=None, elastic=0.1),
        loss=LossConfig(size=32, smoothness=0.25, similarity="intensity", tolerance=0.05),
        train=TrainConfig(
            steps=(20, 2_800),
            batch=4,
            lr=2.5e-3,
            level_decay=0.95,
            decay=0.95,
            warmup=20,
            atlas_lr=0.02,
            average=0.98,
            head_steps=0,
        ),
    ),
    # Refinement was measured to lower the Dice of head-and-neck CTs, from 0.620 to 0.538.
    "small": Config(
        preset="small",
        data=DataConfig(crop="foreground"),
        network=NetworkConfig(
            size=64, fold=2, channels=(16, 32, 64, 64), features=32, head_kernel=1, atlas_size=128
        ),
        autoencoder=AutoencoderConfig(steps=150, batch=8, lr=2e-3),
        coarse=CoarseConfig(steps=400, batch=4, lr=2e-3, levels=None),
        loss=LossConfig(size=32, smoothness=0.25, tolerance=0.05),
        train=TrainConfig(
            steps=(20, 60, 200, 500),
            batch=4,
            lr=2e-3,
            level_decay=0.9,
            decay=0.9,
            warmup=20,
            atlas_lr=0.5,
            average=0.98,
            head_steps=0,
        ),
        refine=RefineConfig(steps=0),
    ),
    # The recipe of the shipped head-and-neck model, for one CPU thread: what every part of it brought is in its card
    # (deepatlas/pretrained/headneck/README.md).
    "headneck": Config(
        preset="headneck",
        data=DataConfig(crop="midline", scale=(0.85, 1.15), rotation=0.2, translation=0.1),
        network=NetworkConfig(
            size=64, fold=2, channels=(16, 32, 64, 96), features=32, head_kernel=1, finest_level=1
        ),
        coarse=CoarseConfig(steps=400, batch=4, lr=2e-3, levels=None),
        loss=LossConfig(smoothness=1.5, similarity="histogram", window=9, tolerance=0.05),
        train=TrainConfig(
            steps=(20, 60, 400),
            batch=4,
            lr=2e-3,
            level_decay=0.9,
            decay=0.8,
            warmup=20,
            atlas_lr=0.5,
            average=0.99,
            head_steps=0,
        ),
        refine=RefineConfig(
            steps=20, control=16, lr=0.006, smoothness=1.5, similarity="histogram", window=5, prewitt=0.5
        ),
        cohort=CohortConfig(prewitt=(0.0, 0.0, 0.5)),
        distil=DistilConfig(steps=(2_500, 3_500, 11_000)),
    ),
    "paper": Config(refine=RefineConfig(steps=0)),
}
