"""Labels teach the network: with them, the masks of exams that it has not seen are found better than without."""

import json

import numpy as np
import pytest
from small_recipe_of_labels import held_out_dice

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

TRAIN, TEST = 8, 3


def exam(seed, shape=(20, 24, 24)):
    """A trunk with a faint organ somewhere in it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.where((x / 0.8) ** 2 + (y / 0.7) ** 2 < 1, 0.0, -1000.0)
    cz, cy, cx = rng.uniform(-0.3, 0.3, size=3)
    organ = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < 0.3**2
    hu[organ] = 120
    hu += rng.normal(0, 40, size=shape)
    grid = Grid.from_spacing(shape, (10.0, 10.0, 10.0))
    return Volume(np.rint(hu).astype(np.int16), grid), Volume(organ.astype(np.uint8), grid)


@pytest.mark.slow(13)
def test_the_dice_of_unseen_exams_rises_with_labels(tmp_path):
    root = tmp_path / "data"
    for seed in range(TRAIN + TEST):
        ct, seg = exam(seed)
        write_volume(root / f"e{seed:02}" / "ct.nii.gz", ct)
        write_volume(root / f"e{seed:02}" / "seg.nii.gz", seg)
    (root / "labels.json").write_text(json.dumps({"organ": 1}))
    with prepare_cohort(root, tmp_path / "store.h5", progress=False) as store:
        dice = {weight: held_out_dice(store, TRAIN, weight, steps=25) for weight in (0.0, 1.0)}
    assert dice[1.0] > dice[0.0] + 0.1
