"""Which exam seeds the atlas when the user names none."""

from types import SimpleNamespace

import numpy as np

from deepatlas.space.grid import Grid
from deepatlas.train.split import widest_exam


def test_the_atlas_is_seeded_from_the_exam_with_the_widest_coverage():
    masks = np.zeros((4, 64, 64, 64), dtype=np.uint8)
    # A wide slab.
    masks[0, 10:20, 8:56, 8:56] = 1
    # The longest, but thin.
    masks[1, 2:62, 30:40, 30:40] = 1
    # Nearly as long, and of typical build.
    masks[2, 3:62, 20:50, 20:50] = 1
    # All slices, but each of them only 1 mm thick.
    masks[3, :, 24:44, 24:44] = 1
    spacing = [5.0, 5.0, 5.0, 1.0]
    store = SimpleNamespace(
        index="abcd".index, mask=masks, grid=lambda i: Grid.from_spacing((64, 64, 64), (5.0, 5.0, spacing[i]))
    )
    assert widest_exam(store, list("abd")) == "b"
    assert widest_exam(store, list("abcd")) in "bc" and widest_exam(store, list("acd")) == "c"
