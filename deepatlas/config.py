"""Every setting of a run: its default value, which is the paper's where the paper gives one, and its rule.

Named starting points are in :mod:`deepatlas.presets`. Reading settings does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepatlas import settings
from deepatlas.settings import (
    BOOLEAN,
    LIMIT,
    NAME,
    ODD,
    SCALE_RANGE,
    SEED,
    Relation,
    above,
    at_least,
    between,
    each,
    one_of,
    one_of_named,
    optional,
    setting,
)

# Side lengths of the network's input, in voxels.
INPUT_SIZES = (16, 32, 64)

# What the values of exams are: Hounsfield units, or of no unit and brought to one scale by percentiles or by mean and
# standard deviation.
INTENSITIES = ("hu", "percentile", "zscore")

_NOT_NEGATIVE = at_least(0)
_COUNT = at_least(1)
_FRACTION = between(0, 1)
_POSITIVE_FRACTION = between(0, 1, open_low=True)
_AVERAGE = between(0, 1, open_high=True)


def _steps() -> Sequence[str]:
    """The step matrices that the inversion knows."""
    from deepatlas_ops.options import STEPS

    return STEPS


@dataclass(frozen=True)
class DataConfig:
    """How exams become network input (section 5.5.2)."""

    # Crop before the exam is resampled to the fixed shape; see space.preprocess.to_model_grid.
    crop: str | None = setting(None, one_of(None, "foreground", "midline"))
    # What the values of the exams are. "hu" is CT in Hounsfield units, and exams of another kind are refused;
    # "percentile" and "zscore" take any image, such as MR, and bring it to one scale (space/intensity.py).
    intensity: str = setting("hu", one_of(*INTENSITIES))
    # How many exams are trained on: a fraction (0.01) or a number (500); null is all. A smaller limit takes some of the
    # exams of a larger one of the same seed.
    limit: int | float | None = setting(None, optional(LIMIT))
    # Number of labelled exams that are kept out of training for the one-shot score when no test set is given.
    holdout: int = setting(8, _NOT_NEGATIVE)
    # Augmentation: factors of the field of view.
    scale: tuple[float, float] = setting((0.7, 1.3), SCALE_RANGE)
    # Augmentation: largest angle about each axis, in radians.
    rotation: float = setting(0.5, _NOT_NEGATIVE)
    # Augmentation: largest shift along each axis, normalised. The paper's 8 voxels of 64, whose 63 steps span 2.
    translation: float = setting(16 / 63, _NOT_NEGATIVE)
    # Augmentation: strength of smooth random displacements, normalised; 0 (the paper) turns them off.
    elastic: float = setting(0.0, _NOT_NEGATIVE)
    # Whether all exams are held in the device's memory (true) or read ahead of use (false).
    resident: str | bool = setting("auto", one_of("auto", True, False), resume=True)
    # At least this fraction of a batch of the registration tasks is drawn from the labelled exams (with loss.labels);
    # 0 draws all exams alike.
    labelled_share: float = setting(0.0, _FRACTION)

    def relations(self) -> Iterator[Relation]:
        yield Relation(
            "crop",
            self.crop != "midline" or self.intensity == "hu",
            "null or foreground where data.intensity is not hu: the middle of a patient is found in CT alone",
        )


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network (sections 2.2 and 5.2.1)."""

    # Side length of the input in voxels.
    size: int = setting(64, one_of(*INPUT_SIZES))
    # Blocks of fold**3 input voxels become channels: faster on a CPU. 1 is the paper's network.
    fold: int = setting(1, one_of(1, 2, 4))
    # Channels of each resolution level, finest first.
    channels: tuple[int, ...] = setting((8, 16, 32, 64, 128), each(_COUNT, empty=False))
    # Channels of the feature maps of all heads (K, the paper's fixed depth).
    features: int = setting(128, _COUNT)
    # Groups of the group normalisation.
    groups: int = setting(8, _COUNT)
    # Kernel size of the convolution that all heads share.
    head_kernel: int = setting(3, one_of(1, 3, 5))
    # The last level that is trained and used; 0 is the finest.
    finest_level: int = setting(0, _NOT_NEGATIVE)
    # Side length of the atlas in voxels.
    atlas_size: int = setting(128, at_least(2))

    def relations(self) -> Iterator[Relation]:
        levels = len(self.channels)
        yield Relation(
            "channels",
            self.size // self.fold >> (levels - 1) >= 2,
            "so many levels that the coarsest has at least 2 voxels",
        )
        yield Relation(
            "groups",
            all(c % min(self.groups, c) == 0 for c in (*self.channels, self.features)),
            "a divisor of network.channels and network.features",
        )
        yield Relation("finest_level", self.finest_level < levels, f"in 0..{levels - 1}")

    @property
    def trained_levels(self) -> int:
        """Number of levels that are trained, from the coarsest to ``finest_level``."""
        return len(self.channels) - self.finest_level


@dataclass(frozen=True)
class AutoencoderConfig:
    """Feature autoencoder (section 5.3); trained only where ``loss.similarity`` is ``features``."""

    # Channels of each resolution level, finest first.
    channels: tuple[int, ...] = setting((8, 16), each(_COUNT, empty=False))
    steps: int = setting(20_000, _NOT_NEGATIVE, resume=True)
    batch: int = setting(16, _COUNT)
    # Learning rate of Adam, and its factor after every 50 steps.
    lr: float = setting(5e-3, above(0))
    decay: float = setting(0.995, _POSITIVE_FRACTION)


@dataclass(frozen=True)
class CoarseConfig:
    """Supervised pretraining on known crops of the exam that seeds the atlas (section 5.2.5)."""

    steps: int = setting(2_000, _NOT_NEGATIVE, resume=True)
    batch: int = setting(16, _COUNT)
    lr: float = setting(5e-3, above(0))
    # Number of heads that learn, from the coarsest. The paper trains that one alone; null trains all of them.
    levels: int | None = setting(1, optional(_COUNT))
    # Random crops keep at least this fraction of the body axis (the fraction drawn is multiplied by 1.15).
    crop: float = setting(0.4, _POSITIVE_FRACTION)
    # Strength of smooth random displacements, normalised; 0 (the paper) turns them off.
    elastic: float = setting(0.0, _NOT_NEGATIVE)
    # Strength of random intensity changes; 0 (the paper) turns them off.
    contrast: float = setting(0.0, _FRACTION)


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the losses (sections 2.3 and 5.1). The paper does not state the weights."""

    # Side length of the grid on which the losses are evaluated, in voxels.
    size: int = setting(64, one_of(8, 16, 32, 64))
    # Weights of the explicit task (atlas to exam) and of the implicit task (exam to exam).
    explicit: float = setting(1.0, _NOT_NEGATIVE)
    implicit: float = setting(1.0, _NOT_NEGATIVE)
    # Weights of smoothness (eq. 11) and of the Prewitt edge channel (5.1.5) within each task.
    smoothness: float = setting(0.5, _NOT_NEGATIVE)
    prewitt: float = setting(0.5, _NOT_NEGATIVE)
    # Weight of the masks of labelled exams within each task (eqs 12 and 13); 0 leaves labels unread. Each drawn
    # structure of an exam weighs the same: its squared error is divided by the part of the foreground that it fills.
    labels: float = setting(0.0, _NOT_NEGATIVE)
    # What images are compared by: correlation (eq. 9) of autoencoder features, of images after the contrast curve of
    # section 5.3.1, or of the images themselves; or the mean absolute or mean squared error of the images (5.4.3).
    similarity: str = setting("features", one_of("features", "histogram", "intensity", "mae", "mse"))
    # Side of the correlation window in voxels of the loss grid; null is the global form of eq. 9.
    window: int | None = setting(None, optional(ODD))
    # Form of the second term of eq. 11: its letter, or a bounded form of the determinant.
    orthonormality: str = setting("det", one_of("log", "det"))
    # Recursive updates of the inversion (eqs 6 and 7), and the update in voxels below which a voxel stops early.
    iterations: int = setting(20, _COUNT)
    tolerance: float = setting(0.0, _NOT_NEGATIVE)
    # Step matrix of the inversion and how it is differentiated; see deepatlas_ops.implicit_warp.
    step: str = setting("moving", one_of_named(_steps))
    gradient: str = setting("implicit", one_of("implicit", "unrolled"))
    # Pairs of exams that share a smaller fraction of the fixed exam's foreground are left out.
    min_overlap: float = setting(0.05, _FRACTION)

    def relations(self) -> Iterator[Relation]:
        yield Relation("explicit", self.explicit > 0 or self.implicit > 0, "above 0 where loss.implicit is 0")


@dataclass(frozen=True)
class TrainConfig:
    """Staged optimisation (sections 5.2.3 and 5.2.6)."""

    # Steps of each trained level, coarsest first.
    steps: tuple[int, ...] = setting((7_500, 7_500, 7_500, 7_500, 7_500), each(_NOT_NEGATIVE), resume=True)
    batch: int = setting(64, at_least(2, "the implicit loss needs pairs"))
    # Learning rate of Adam at the coarsest level, its factor from level to level, and its factor every 50 steps.
    lr: float = setting(5e-3, above(0))
    level_decay: float = setting(0.5, _POSITIVE_FRACTION)
    decay: float = setting(0.995, _POSITIVE_FRACTION)
    # Steps of the linear warm-up at the start of each level, and the fraction of the rate at which it begins.
    warmup: int = setting(500, _NOT_NEGATIVE)
    warmup_from: float = setting(0.1, _FRACTION)
    # Learning rate of the atlas, as a factor of the network's.
    atlas_lr: float = setting(1.0, _NOT_NEGATIVE)
    # Largest norm of the gradient; 0 does not limit it.
    clip: float = setting(2.0, _NOT_NEGATIVE)
    # Decay of a running mean of the network's weights, which replaces them when a level ends; 0 turns it off.
    average: float = setting(0.0, _AVERAGE)
    # Steps of the warm start of each new head (section 5.2.3).
    head_steps: int = setting(200, _NOT_NEGATIVE, resume=True)
    # Half-width that the exam that seeds the atlas fills in coordinate space.
    extent: float = setting(0.85, _POSITIVE_FRACTION)
    # Parts in which a batch is computed one after another: less memory, the same gradient.
    accumulate: int = setting(1, _COUNT, resume=True)
    # Number type of the networks' convolutions; coordinates and losses stay float32.
    precision: str = setting("float32", one_of("float32", "bfloat16"))
    # Whether the networks run through torch.compile.
    compile: bool = setting(False, BOOLEAN, resume=True)
    checkpoint_minutes: float = setting(5.0, _NOT_NEGATIVE, resume=True)

    def relations(self) -> Iterator[Relation]:
        yield Relation("accumulate", self.accumulate <= self.batch, "in 1..train.batch")


@dataclass(frozen=True)
class RefineConfig:
    """Optional registration of one exam to the atlas after the network's pass (not in the paper): model/refine.py."""

    # Steps of the second score that a run reports. Commands refine only where they are asked to.
    steps: int = setting(20, _NOT_NEGATIVE, resume=True)
    # Control points per axis of the displacement that is added.
    control: int = setting(8, at_least(2))
    # Learning rate of Adam, in normalised coordinates.
    lr: float = setting(0.01, above(0))
    smoothness: float = setting(0.25, _NOT_NEGATIVE)
    similarity: str = setting("intensity", one_of("intensity", "histogram"))
    # Side of the correlation window in voxels of the loss grid; null is the global form of eq. 9.
    window: int | None = setting(None, optional(ODD))
    prewitt: float = setting(0.5, _NOT_NEGATIVE)


@dataclass(frozen=True)
class CohortConfig:
    """Registration of every training exam to the atlas, with the settings of ``refine`` (not in the paper)."""

    # Steps of the registration of each exam.
    steps: int = setting(20, _NOT_NEGATIVE)
    batch: int = setting(4, _COUNT)
    # Weight of the edge channel in each round; with no entries it is refine.prewitt in all of them.
    prewitt: tuple[float, ...] = setting((), each(_NOT_NEGATIVE))


@dataclass(frozen=True)
class DistilConfig:
    """Registered coordinates taught to the network (not in the paper), in as many rounds as ``steps`` has entries.

    A round predicts the coordinates of every exam, registers them (``cohort``) and teaches them to the network.
    """

    steps: tuple[int, ...] = setting((), each(_NOT_NEGATIVE), resume=True)
    batch: int = setting(4, _COUNT)
    lr: float = setting(2e-3, above(0))
    # Strength of smooth random displacements (normalised) and of random intensity changes.
    elastic: float = setting(0.04, _NOT_NEGATIVE)
    contrast: float = setting(0.3, _FRACTION)
    # Weight of the background, whose coordinates continue those of the foreground.
    background: float = setting(0.1, _NOT_NEGATIVE)
    # Weight of the masks of labelled exams (eq. 13) beside the coordinates, as with ``loss.labels``, which it needs.
    labels: float = setting(0.0, _NOT_NEGATIVE)
    # Where the Huber loss turns from quadratic to linear, normalised.
    delta: float = setting(0.02, above(0))
    # Decay of the running mean of the weights.
    average: float = setting(0.998, _AVERAGE)


@dataclass(frozen=True)
class FinetuneConfig:
    """Learning masks from labels (sections 3.3.3 and 3.3.4): ``deepatlas finetune``. The paper states none of these.

    Averaging of weights, precision, accumulation, clipping and checkpoints are those of ``train``.
    """

    # Steps of the new head alone, and of all layers after it. From scratch, all layers learn for both.
    head_steps: int = setting(200, _NOT_NEGATIVE, resume=True)
    steps: int = setting(10_000, _NOT_NEGATIVE, resume=True)
    batch: int = setting(16, _COUNT)
    # Learning rates of the head alone and of all layers; either falls along a cosine to a fiftieth.
    head_lr: float = setting(2e-3, above(0))
    lr: float = setting(1e-3, above(0))
    # Steps of the linear warm-up of all layers, and their decoupled weight decay.
    warmup: int = setting(100, _NOT_NEGATIVE)
    weight_decay: float = setting(0.01, _NOT_NEGATIVE)
    # Weights of the two terms of the loss.
    dice: float = setting(1.0, _NOT_NEGATIVE)
    cross_entropy: float = setting(1.0, _NOT_NEGATIVE)
    # Strength of smooth random displacements (normalised) and of random intensity changes; the other ranges of the
    # augmentation are those of ``data``.
    elastic: float = setting(0.05, _NOT_NEGATIVE)
    contrast: float = setting(0.3, _FRACTION)

    def relations(self) -> Iterator[Relation]:
        yield Relation(
            "dice", self.dice > 0 or self.cross_entropy > 0, "above 0 where finetune.cross_entropy is 0"
        )


@dataclass(frozen=True)
class RegionConfig:
    """How a run on a region of another model begins (section 5.2.4): ``deepatlas train --parent``."""

    # Steps that teach the network the coordinates of the levels above on crops, with the settings of ``distil``.
    steps: int = setting(1_000, _NOT_NEGATIVE, resume=True)


@dataclass(frozen=True)
class PhantomConfig:
    """The cohort that is made when no data are given."""

    # Number of phantoms to train on and to test on.
    train: int = setting(144, at_least(2))
    test: int = setting(8, _COUNT)
    seed: int = setting(0, SEED)
    # Strength of the anatomical variation; see PhantomCohort.
    deformation: float = setting(1.0, _NOT_NEGATIVE)
    # The structures that are labelled: 21 large ones, or all 42, with lenses, cochleas, adrenals and other small ones.
    structures: str = setting("large", one_of("large", "all"))
    # Voxel size in mm; null is the coarse grid of the default cohort (6 x 4 x 4 mm). The finer, the slower.
    spacing: float | None = setting(None, optional(between(0.75, 12)))
    # Number of the population: 0 is the template body, others have another mean body.
    anatomy: int = setting(0, SEED)


@dataclass(frozen=True)
class Config:
    """All settings of a run. ``preset`` is the name of the preset that they started from."""

    preset: str = setting("paper", NAME)
    seed: int = setting(0, SEED)
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def relations(self) -> Iterator[Relation]:
        trained, rounds, groups = self.network.trained_levels, len(self.distil.steps), self.network.groups
        yield Relation(
            "data.labelled_share",
            not self.data.labelled_share or self.loss.labels > 0,
            "0 where loss.labels is 0",
        )
        yield Relation(
            "distil.labels", not self.distil.labels or self.loss.labels > 0, "0 where loss.labels is 0"
        )
        yield Relation("loss.size", self.loss.size <= self.network.size, "at most network.size")
        yield Relation(
            "autoencoder.channels",
            all(c % min(groups, c) == 0 for c in self.autoencoder.channels),
            "multiples of network.groups, or smaller",
        )
        yield Relation(
            "coarse.levels",
            self.coarse.levels is None or self.coarse.levels <= trained,
            f"null or in 1..{trained}",
        )
        yield Relation(
            "train.steps",
            len(self.train.steps) == trained,
            f"one number for each of the {trained} trained levels",
        )
        yield Relation(
            "cohort.prewitt",
            len(self.cohort.prewitt) in (0, rounds),
            f"[] or one number for each of the {rounds} rounds",
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return settings.to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Inverse of :meth:`to_dict`. Missing keys keep their default values.

        Raises:
            DeepAtlasError: an unknown key, or a value of another type.
        """
        return settings.from_dict(cls, values)

    def override(self, assignments: Sequence[str]) -> Config:
        """A copy with ``section.key=value`` changes, values in JSON (bare words are strings); not validated.

        Raises:
            DeepAtlasError: an unknown key, or a value of another type.
        """
        return Config.from_dict(settings.override(self.to_dict(), assignments))

    def validate(self) -> Config:
        """Return the settings themselves.

        Raises:
            DeepAtlasError: a setting breaks its rule, or settings contradict each other.
        """
        settings.check(self)
        return self
