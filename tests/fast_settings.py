"""Settings of the smallest run of all phases of the paper: a few seconds on one core."""

FAST = [
    "phantom.train=3",
    "phantom.test=1",
    # Five times fewer voxels than the default.
    "phantom.spacing=8",
    "network.size=16",
    "network.fold=1",
    "network.finest_level=0",
    "network.channels=[8,8,16]",
    "network.features=8",
    "network.atlas_size=32",
    "loss.size=16",
    "loss.similarity=features",
    "refine.steps=2",
    "autoencoder.steps=3",
    "autoencoder.batch=2",
    "coarse.steps=3",
    "coarse.batch=2",
    "train.steps=[2,2,2]",
    "train.batch=2",
    "train.head_steps=2",
]
