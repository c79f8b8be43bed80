"""Presets: named starting points of the settings."""

from __future__ import annotations

from dataclasses import replace

from deepatlas.config import (
    AutoencoderConfig,
    CoarseConfig,
    CohortConfig,
    Config,
    DataConfig,
    DistilConfig,
    FinetuneConfig,
    LossConfig,
    NetworkConfig,
    RefineConfig,
    TrainConfig,
)
from deepatlas.errors import DeepAtlasError

# For real exams on a CPU: input folded to 32^3, and coordinates on a grid of 16^3.
_CPU_NETWORK = NetworkConfig(
    size=64, fold=2, channels=(16, 32, 64, 96), features=32, head_kernel=1, finest_level=1
)
_MR_STEPS = TrainConfig(
    steps=(20, 60, 300),
    batch=4,
    lr=2e-3,
    level_decay=0.9,
    decay=0.8,
    warmup=20,
    atlas_lr=0.5,
    average=0.99,
    head_steps=0,
)

# Rounds of registration in a region: its exams begin close to where they belong.
_REGION_ROUNDS = (1_500, 2_500)
# On a CPU.
_FINETUNE = FinetuneConfig(steps=2_000, head_steps=100, batch=4)

PRESETS = {
    # For phantoms on a CPU, in minutes. That is too short for the paper's augmentation, and exams of one orientation
    # need less of it. Coordinates on a grid of 8^3 points can bend as little as bodies do, and cost little. Correlating
    # intensities instead of autoencoder features makes the loss four times as fast.
    "tiny": Config(
        preset="tiny",
        data=DataConfig(crop="foreground", scale=(0.85, 1.15), rotation=0.15, translation=0.1, elastic=0.05),
        network=NetworkConfig(
            size=64, fold=4, channels=(16, 32, 64), features=32, head_kernel=1, finest_level=1
        ),
        autoencoder=AutoencoderConfig(steps=120, batch=8, lr=2e-3),
        coarse=CoarseConfig(steps=1_000, batch=4, lr=2e-3, levels=None, elastic=0.1, contrast=0.3),
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
        finetune=_FINETUNE,
    ),
    # For real exams on a CPU. There is no refinement, because it lowered the Dice of head-and-neck CT from 0.620 to
    # 0.538.
    "small": Config(
        preset="small",
        data=DataConfig(crop="foreground", translation=0.25),
        network=NetworkConfig(
            size=64, fold=2, channels=(16, 32, 64, 64), features=32, head_kernel=1, atlas_size=128
        ),
        autoencoder=AutoencoderConfig(steps=150, batch=8, lr=2e-3),
        coarse=CoarseConfig(steps=400, batch=4, lr=2e-3, levels=None, elastic=0.08, contrast=0.3),
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
        finetune=_FINETUNE,
    ),
    # The recipe of the shipped head-and-neck model, for one CPU thread. Its model card,
    # deepatlas/pretrained/headneck/README.md, states the contribution of every part.
    "headneck": Config(
        preset="headneck",
        data=DataConfig(crop="midline", scale=(0.85, 1.15), rotation=0.2, translation=0.1),
        network=_CPU_NETWORK,
        coarse=CoarseConfig(steps=400, batch=4, lr=2e-3, levels=None, elastic=0.08, contrast=0.3),
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
        finetune=_FINETUNE,
    ),
    # For MR of one body region on a CPU: the losses of ``headneck``, which compare images in small windows and bear the
    # differences between scanners, without its curve for the Hounsfield units of soft tissue.
    "mr": Config(
        preset="mr",
        data=DataConfig(
            crop="foreground", intensity="percentile", scale=(0.85, 1.15), rotation=0.2, translation=0.1
        ),
        network=_CPU_NETWORK,
        coarse=CoarseConfig(steps=400, batch=4, lr=2e-3, levels=None, elastic=0.08, contrast=0.3),
        loss=LossConfig(smoothness=1.0, similarity="intensity", window=9, tolerance=0.05),
        train=_MR_STEPS,
        refine=RefineConfig(
            steps=20, control=16, lr=0.006, smoothness=1.0, similarity="intensity", window=7, prewitt=0.0
        ),
        cohort=CohortConfig(steps=20),
        distil=DistilConfig(steps=(1_500, 3_000)),
        finetune=_FINETUNE,
    ),
    # For crops around one hippocampus (MR, 35 x 50 x 36 voxels). There is no air to crop to, the crops are alike, and
    # what their sides cut off says nothing: no cropping in pretraining, and little augmentation. Registration to the
    # mean of the exams aligns them from the identity already, so most steps teach its result to the network. Window and
    # smoothness of the registration are the best of those tried on 17 exams.
    "hippocampus": Config(
        preset="hippocampus",
        data=DataConfig(intensity="percentile", scale=(0.9, 1.1), rotation=0.15, translation=0.08),
        network=_CPU_NETWORK,
        coarse=CoarseConfig(steps=200, batch=4, lr=2e-3, levels=None, crop=1.0, elastic=0.08, contrast=0.3),
        loss=LossConfig(smoothness=0.5, similarity="intensity", window=9, tolerance=0.05),
        train=replace(_MR_STEPS, steps=(20, 40, 100)),
        refine=RefineConfig(
            steps=20, control=16, lr=0.006, smoothness=0.25, similarity="intensity", window=7, prewitt=0.0
        ),
        cohort=CohortConfig(steps=40),
        distil=DistilConfig(steps=(500, 800, 2_600), elastic=0.06),
        finetune=_FINETUNE,
    ),
    # The publication's recipe: the default of every setting, without refinement.
    "paper": Config(refine=RefineConfig(steps=0)),
}


def preset(name: str) -> Config:
    """The settings of a preset.

    ``tiny`` is for phantoms on a CPU, ``small`` for real exams on a CPU, ``headneck`` is the recipe of the shipped
    model on a CPU, ``mr`` is for MR on a CPU, ``hippocampus`` for MR crops around a hippocampus, and ``paper`` is the
    publication's.

    Raises:
        DeepAtlasError: no preset has this name.
    """
    if name not in PRESETS:
        raise DeepAtlasError(f"preset {name!r} is not known: choose {', '.join(PRESETS)}")
    return PRESETS[name].validate()


def region_settings(parent: Config) -> Config:
    """The settings of a region's run, from those of its parent.

    The network has the same form and begins with the parent's weights and coordinates, so that there is no pretraining
    on one exam. Crops are alike, because the parent has placed them: augmentation covers its errors. What taught the
    parent most is taught further: its rounds of registration where it had any, in about 20 minutes of one CPU core with
    the network of ``headneck``; and otherwise its finest level, for half as long.
    """
    rounds = _REGION_ROUNDS if parent.distil.steps else ()
    *coarser, finest = parent.train.steps
    return replace(
        parent,
        data=replace(
            parent.data,
            crop=None,
            scale=(0.9, 1.1),
            rotation=min(0.1, parent.data.rotation),
            translation=0.06,
        ),
        coarse=replace(parent.coarse, steps=0),
        train=replace(
            parent.train, steps=(*(0 for _ in coarser), 0 if rounds else -(-finest // 2)), extent=1.0
        ),
        cohort=replace(parent.cohort, prewitt=parent.cohort.prewitt[-len(rounds) :] if rounds else ()),
        distil=replace(parent.distil, steps=rounds),
    )
