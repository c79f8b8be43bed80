"""Masks of the training exams: they move with their images, keep overlaps, and are only there where they were drawn."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_exams import LABELS, body, write_cohort

from deepatlas.config import DataConfig
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.io.codec import write_volume
from deepatlas.space.volume import Volume
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import TrainingArray

EXAMS = 5
NAMES = list(LABELS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Five exams; the last one has no labels, and lung was not drawn in the second."""
    root = write_cohort(tmp_path_factory.mktemp("labels") / "data", EXAMS)
    seg = body(seed=2)[1]
    seg.array[seg.array == LABELS["lung"]] = 0
    write_volume(root / "e2" / "seg.nii.gz", seg)
    with prepare_cohort(root, root.parent / "store.h5", progress=False) as store:
        yield store


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hot(store, exam, name):
    """The mask of a structure on the grid of the store."""
    return torch.from_numpy(store.labels_64[exam] == LABELS[name]).float()[None]


def maps(store, size=64, loss_size=64, **options):
    return LabelMaps(store, range(len(store)), size, loss_size, **options)


def test_only_drawn_structures_are_there(store):
    labels = maps(store)
    assert labels.names == NAMES and labels.missing == [] and labels.labelled == [0, 1, 2, 3]
    assert labels.drawn(0).tolist() == [True, True] and labels.drawn(1).tolist() == [True, False]
    assert labels.take([4, 1]).drawn.tolist() == [[False, False], [True, False]]


def test_labels_can_be_restricted_to_some_exams(store):
    labels = maps(store, exams=["e2", "e5"])
    assert labels.names == ["bone"] and labels.missing == ["lung"] and labels.labelled == [1]
    assert not labels.take([0]).drawn.any()


@pytest.mark.parametrize(
    ("elastic", "loss_size", "close"), [(0.0, 64, 1e-3), (0.1, 64, 1e-3), (0.1, 32, 0.25)]
)
def test_masks_move_with_their_images(store, elastic, loss_size, close):
    """The oracle is the image path, by which a mask is augmented as if it were an exam."""
    array = TrainingArray(store, 64)
    labels = maps(store, 64, loss_size)
    batches = Batches(array, array.ids, DataConfig(elastic=elastic), loss_size, labels)
    drawn = batches.draw(3, generator(1))
    ours = batches.masks(drawn, range(3))
    for channel, name in enumerate(NAMES):
        array.volumes = torch.stack([hot(store, exam, name) for exam in range(EXAMS)]).half()
        _, image, _ = batches.take(drawn, range(3))
        rows = np.flatnonzero(ours.drawn[:, channel]).tolist()
        found = ours.masks(rows, [channel])
        assert found.shape == (len(rows), 1, *(loss_size,) * 3)
        # On a coarser grid the image is averaged after it was moved, and the mask is read where the averages lie.
        assert (found - image[rows]).square().mean().sqrt() < close * image[rows].std()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_masks_that_are_not_moved_are_means_of_blocks(store, size):
    found = maps(store, size, 16).take([2, 0]).masks([0, 1], [1, 0])
    for row, exam in enumerate((2, 0)):
        for place, name in enumerate(("lung", "bone")):
            whole = F.avg_pool3d(hot(store, exam, name)[None], 2)
            # Of a block of the loss grid, samples read its middle.
            inner = F.avg_pool3d(whole, 2)[0, 0]
            torch.testing.assert_close(found[row, place], inner, atol=1e-5, rtol=0)


def test_structures_that_overlap_keep_their_whole_masks(tmp_path):
    root = tmp_path / "data"
    for number in (1, 2):
        ct, seg = body(seed=number)
        write_volume(root / f"e{number}" / "ct.nii.gz", ct)
        big, small = np.zeros_like(seg.array), np.zeros_like(seg.array)
        big[6:20, 10:30, 10:30], small[10:14, 14:20, 14:20] = 1, 1
        for name, mask in (("big", big), ("small", small)):
            write_volume(root / f"e{number}" / "segmentations" / f"{name}.nii.gz", Volume(mask, seg.grid))
    with prepare_cohort(root, tmp_path / "store.h5", progress=False) as store:
        labels = maps(store)
        both = labels.take([1]).masks([0], [1, 0])[0]
        small, big = both[0] > 0.5, both[1] > 0.5
        assert small.any() and (big & small).sum() == small.sum()
        assert torch.equal(big, torch.from_numpy(labels.labels(1).mask(store.labels["big"])))
        # The other structure alone, which has no overlap of its own.
        assert torch.equal(labels.take([1]).masks([0], [1])[0, 0], both[0])


def test_what_is_cropped_away_is_not_absent(tmp_path):
    root = write_cohort(tmp_path / "data", 3)
    for exam in ("e1", "e2"):
        ct, seg = body(seed=int(exam[1:]))
        seg.array[:] = 0
        # In the air beside the patient, which is cropped.
        seg.array[:, :2, :2] = LABELS["lung"]
        if exam == "e1":
            seg.array[:, 18:22, 18:22] = LABELS["bone"]
        write_volume(root / exam / "seg.nii.gz", seg)
    with prepare_cohort(root, tmp_path / "store.h5", crop="foreground", progress=False) as store:
        assert store.has_label[0].all()
        assert maps(store).drawn(0).tolist() == [True, False]


def test_labels_that_are_not_held_are_read_again(store):
    few, all_of_them = maps(store, 16, 16, keep=1), maps(store, 16, 16)
    for exam in (0, 2, 0, 3):
        move = Augmentation.draw(1, generator(exam))
        ours, theirs = (m.take([exam], move).masks([0], [0, 1]) for m in (few, all_of_them))
        assert torch.equal(ours, theirs) and len(few._held) == 1


def test_the_share_of_labelled_exams(store):
    array = TrainingArray(store, 16)

    def drawn(share, count, seed, labels, exams=None):
        found = maps(store, 16, 16, exams=exams) if labels else None
        return (
            Batches(array, array.ids, DataConfig(labelled_share=share), 16, found)
            .draw(count, generator(seed))
            .indices
        )

    for seed in range(8):
        # Without a share, labels change no batch.
        assert drawn(0.0, 3, seed, True) == drawn(0.0, 3, seed, False)
        few = drawn(0.5, 4, seed, True, exams=["e2", "e4"])
        # The labelled exams come first, and each exam comes once.
        assert set(few[:2]) == {1, 3} and len(set(few)) == 4
        one = drawn(0.5, 4, seed, True, exams=["e2"])
        assert one[:2] == [1, 1] and 1 not in one[2:]
        assert len(drawn(1.0, 7, seed, True, exams=["e2", "e4"])) == 7
    assert len({tuple(drawn(0.5, 4, seed, True)) for seed in range(8)}) > 4


def test_more_structures_than_a_byte_counts(tmp_path):
    root = write_cohort(tmp_path / "data", 3)
    table = {f"s{i}": i for i in range(1, 301)}
    (root / "labels.json").write_text(json.dumps(table))
    ct, seg = body(seed=1)
    many = np.zeros(seg.array.shape, np.uint16)
    many[4:20, 10:30, 10:30] = (np.arange(16 * 400) % 300 + 1).reshape(16, 20, 20)
    write_volume(root / "e1" / "seg.nii.gz", Volume(many, seg.grid))
    with prepare_cohort(root, tmp_path / "store.h5", progress=False) as store:
        labels = maps(store, 16, 16)
        assert len(labels) == 300 and labels.take([0]).drawn[0].all()
        for identity in (1, 254, 255, 256, 300):
            mask = torch.from_numpy((store.labels_64[0] == identity).astype(np.float32))
            found = labels.take([0]).masks([0], [labels.names.index(f"s{identity}")])
            torch.testing.assert_close(
                found[0, 0], F.avg_pool3d(mask[None, None], 4)[0, 0], atol=1e-5, rtol=0
            )


def test_masks_of_the_fine_grid_are_the_filled_part_of_each_voxel(store):
    """Means over blocks of 2^3 voxels of the 128^3 grid, and the same augmented masks as of 64^3 but for borders."""
    whole = range(len(store))
    fine, coarse = (LabelMaps(store, whole, 64, 64, source=s) for s in (128, 64))
    position = fine.labelled[0]
    rows = np.flatnonzero(fine.drawn(position)).tolist()
    batch = fine.take([position])
    found = batch.masks([0], rows)[0]
    drawn = store.drawn(position)
    for row, mask in zip(rows, found, strict=True):
        own = torch.from_numpy(drawn.mask(fine.ids[row])).float()[None]
        torch.testing.assert_close(mask, torch.nn.functional.avg_pool3d(own, 2)[0], rtol=0, atol=1e-4)
    assert batch.seen().min() == 1
    moved = Augmentation.draw(
        1, torch.Generator().manual_seed(0), scale=(0.9, 1.1), rotation=0.2, translation=0.2
    )
    a, b = (maps.take([position], moved).masks([0], rows) for maps in (fine, coarse))
    assert (a - b).abs().mean() < 0.02 * a.mean().clamp_min(0.1)
    # What the map takes from beyond the exam is not seen, and the rest is.
    seen, place = fine.take([position], moved).seen()[0, 0], moved.coords(64, "cpu")[0]
    assert (seen[(place.abs() < 0.98).all(0)] == 1).all() and (seen[(place.abs() > 1.03).any(0)] == 0).all()
    assert 0.2 < seen.mean() < 1
