"""Overlaps in datasets, stores and folders of masks: what was drawn comes back whole, and damage is noticed."""

from __future__ import annotations

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_dataset import files_of
from small_exams import body, oblique, one_line

from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.exam_file import ExamFile, write_exam
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.intake.dataset.folder import exam_path, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.io.codec import write_volume
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.space.volume import Volume
from deepatlas.store.store import Store

TABLE = {"ptv": 1, "ctv": 2, "gtv": 3, "lung": 4}
# The sides of boxes in parts of the image: PTV holds CTV holds GTV, and they lie half in the lung.
SIDES = {"ptv": (0.2, 0.8), "ctv": (0.3, 0.7), "gtv": (0.4, 0.6), "lung": (0.5, 0.9)}


def boxes(shape) -> dict[str, np.ndarray]:
    masks = {}
    for name, (low, high) in SIDES.items():
        masks[name] = np.zeros(shape, dtype=bool)
        masks[name][tuple(slice(int(low * n), int(high * n)) for n in shape)] = True
    return masks


def labels_of(masks, grid, order=("ptv", "ctv", "lung", "gtv")) -> Labels:
    return Labels.painted([(TABLE[n], BoxMask.of(masks[n])) for n in order], grid, np.uint8, "drawn")


@pytest.fixture
def exam(tmp_path):
    """An exam file with overlaps on an oblique, anisotropic, flipped grid of more chunks than one."""
    grid = oblique(np.random.default_rng(4), shape=(70, 33, 90))
    hu = np.random.default_rng(1).integers(-1000, 300, grid.shape).astype(np.int16)
    masks = boxes(grid.shape)
    record = write_exam(
        tmp_path / "a1.h5", Volume(hu, grid), labels_of(masks, grid), TABLE, {}, [], crop=None
    )
    return tmp_path / "a1.h5", masks, record


def test_masks_come_back_whole(exam):
    path, masks, record = exam
    assert record.present == list(TABLE) and record.has_seg
    with ExamFile(path) as read:
        assert read.overlaps == ["ptv", "ctv", "lung"]
        part = read.crop((20, 3, 30), (40, 25, 50), labels=True)
        assert (read.labels().array[masks["gtv"]] == 3).all()
        for name, mask in masks.items():
            np.testing.assert_array_equal(read.labels().mask(TABLE[name]), mask)
            np.testing.assert_array_equal(read.mask(name).array, mask)
            np.testing.assert_array_equal(part.mask(TABLE[name]), mask[20:60, 3:28, 30:80])
        np.testing.assert_array_equal(read_volume(path, labels=True).mask(1), masks["ptv"])
        read.verify()
        with pytest.raises(DataError, match="no structure 'liver'; it has ptv"):
            read.mask("liver")


def test_bits_in_the_file_are_numpys(exam):
    """Whoever has h5py and NumPy alone finds the mask as docs/dataset.md describes it."""
    path, masks, _ = exam
    with h5py.File(path) as file:
        assert file.attrs["version"] == 2 and json.loads(file["header"][()])["overlaps"] == [
            "ptv",
            "ctv",
            "lung",
        ]
        whole, place = file["labels"][:] == 2, 0
        for identity, *box in file["hidden/boxes"][:].tolist():
            size = int(np.prod(box[3:]))
            bits = np.unpackbits(file["hidden/bits"][place : place + -(-size // 8)], count=size)
            place += -(-size // 8)
            if identity == 2:
                whole[tuple(slice(a, a + n) for a, n in zip(box[:3], box[3:], strict=True))] |= bits.reshape(
                    box[3:]
                ).astype(bool)
    np.testing.assert_array_equal(whole, masks["ctv"])


def test_the_row_of_training_holds_whole_masks(exam):
    path, masks, _ = exam
    with h5py.File(path) as file:
        assert {"hidden", "hidden_fine"} <= set(file["row"])
    store_of(path.parent, path)
    with Store(path.parent) as store:
        assert store.has_label.all()
        drawn = store.drawn(0)
        for name, mask in masks.items():
            alone = labels_to_grid(Volume(mask.astype(np.uint8), ExamFile(path).grid), store.fine_grid(0))
            np.testing.assert_array_equal(drawn.mask(TABLE[name]), alone.array.astype(bool))
        small = Labels(store.labels_64[0], store.grid(0), "", store.hidden_64(0)).mask(1)
        # Pooling keeps the volume of the whole PTV, of which the label image shows a part.
        assert small.sum() * 8 == pytest.approx(drawn.mask(1).sum(), rel=0.05)
        assert (store.labels_64[0] == 1).sum() < 0.8 * small.sum()


def store_of(folder, path):
    """Finish a dataset of one exam file."""
    with Manifest(folder / "m.sqlite") as manifest:
        target = exam_path(folder, "a1")
        target.parent.mkdir(parents=True)
        path.rename(target)
        path.symlink_to(target)
        manifest.add_exam(ExamFile(target).record(), "source", [])
    finish_dataset(folder, [folder / "m.sqlite"])
    (folder / "m.sqlite").unlink()


def dataset_of(folder, ids=("e1", "e2", "e3")):
    """A dataset of exams of which the last has nothing that overlaps."""
    with Manifest(folder.parent / "m.sqlite") as manifest:
        for seed, name in enumerate(ids, 1):
            ct, _ = body(seed=seed)
            labels = labels_of(boxes(ct.grid.shape), ct.grid)
            drawn = labels if name != ids[-1] else Volume(labels.array, labels.grid)
            manifest.add_exam(write_exam(exam_path(folder, name), ct, drawn, TABLE, {}, []), name, [])
    return finish_dataset(folder, [folder.parent / "m.sqlite"])


def test_a_dataset_is_checked_and_any_changed_byte_of_an_overlap_is_found(tmp_path):
    dataset = dataset_of(tmp_path / "set")
    assert not check_dataset(tmp_path / "set")
    path = exam_path(dataset.folder, "e1")
    with h5py.File(path) as file:
        places = [
            file[name].id.get_chunk_info(0)
            for name in ("hidden/bits", "hidden/boxes", "row/hidden/bits", "row/hidden_fine/bits")
        ]
    with h5py.File(dataset.folder / "packed.h5") as file:
        packed = [file[f"{name}/0/bits"].id.get_chunk_info(0) for name in ("hidden", "hidden_fine")]
        assert file.attrs["version"] == 3 and list(file["hidden"]) == ["0", "1"]
    for target, chunks in ((path, places), (dataset.folder / "packed.h5", packed)):
        whole = target.read_bytes()
        for chunk in chunks:
            at = chunk.byte_offset + chunk.size // 2
            target.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            assert [d.path for d in check_dataset(dataset.folder)] == [
                target.relative_to(dataset.folder).as_posix()
            ]
        target.write_bytes(whole)
    assert not check_dataset(dataset.folder)


def test_a_damaged_overlap_is_one_line_and_not_a_smaller_mask(exam):
    path, *_ = exam
    with h5py.File(path, "r+") as file:
        chunk = file["hidden/bits"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(data)
    with ExamFile(path) as read, pytest.raises(DataError, match="damaged exam file") as error:
        read.labels()
    one_line(error.value)
    with h5py.File(path, "r+") as file:
        del file["hidden"]
    with pytest.raises(DataError, match="its overlaps are not those of its header"):
        ExamFile(path).labels()


def test_without_overlaps_the_formats_are_those_of_before(tmp_path):
    ct, _ = body()
    image = labels_of(boxes(ct.grid.shape), ct.grid).array
    write_exam(tmp_path / "x.h5", ct, Volume(image, ct.grid), TABLE, {}, [])
    with h5py.File(tmp_path / "x.h5") as file:
        assert (
            file.attrs["version"] == 1
            and not {"hidden", "row/hidden"} & set(file)
            and "hidden" not in file["row"]
        )
        assert "overlaps" not in json.loads(file["header"][()])
    read = ExamFile(tmp_path / "x.h5").labels()
    np.testing.assert_array_equal(read.array, image)
    assert not read.hidden


@pytest.mark.slow(1)
def test_the_same_overlaps_give_the_same_bytes_and_rows_are_taken_over(tmp_path):
    first, second = (dataset_of(tmp_path / name / "set") for name in "ab")
    assert files_of(first.folder)["packed.h5"] == files_of(second.folder)["packed.h5"]
    before = files_of(first.folder)
    # Finished again, with all rows copied from the store that is there.
    finish_dataset(first.folder, [first.folder / "manifest.sqlite"])
    assert files_of(first.folder)["packed.h5"] == before["packed.h5"]


# -- folders of masks -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A data directory whose exam has a mask for each structure, written by SimpleITK."""
    ct, _ = body()
    write_volume(tmp_path / "data" / "e1" / "ct.nii.gz", ct)
    (tmp_path / "data" / "e1" / "segmentations").mkdir()
    like = sitk.ReadImage(str(tmp_path / "data" / "e1" / "ct.nii.gz"))
    masks = boxes(ct.grid.shape)
    for name, mask in masks.items():
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.CopyInformation(like)
        sitk.WriteImage(image, str(tmp_path / "data" / "e1" / "segmentations" / f"{name}.nii.gz"))
    return tmp_path / "data", masks


def test_a_data_directory_with_a_mask_for_each_structure(folder, tmp_path):
    root, masks = folder
    (root / "labels.json").write_text(json.dumps(TABLE))
    cohort = find_exams(root)
    (exam,) = cohort.exams
    assert exam.seg == root / "e1" / "segmentations" and cohort.labels == TABLE
    seg = read_labels_for(read_volume(exam.ct), exam.seg, cohort.labels, notes := [])
    assert not notes
    for name, mask in masks.items():
        np.testing.assert_array_equal(seg.mask(TABLE[name]), mask)
    store = prepare_cohort(root, tmp_path / "store.h5", progress=False)
    for name, mask in masks.items():
        alone = labels_to_grid(Volume(mask.astype(np.uint8), seg.grid), store.fine_grid(0))
        np.testing.assert_array_equal(store.drawn(0).mask(TABLE[name]), alone.array.astype(bool))


def test_the_files_name_the_structures_where_no_table_does(folder):
    root, masks = folder
    cohort = find_exams(root)
    assert cohort.labels == {"ctv": 1, "gtv": 2, "lung": 3, "ptv": 4} and cohort.labels_path is None
    seg = read_labels_for(read_volume(cohort.exams[0].ct), cohort.exams[0].seg, cohort.labels, [])
    np.testing.assert_array_equal(seg.mask(4), masks["ptv"])


def test_a_label_image_beside_the_masks_counts_as_before(folder):
    root, _ = folder
    ct = read_volume(root / "e1" / "ct.nii.gz")
    write_volume(root / "e1" / "seg.nii.gz", labels_of(boxes(ct.grid.shape), ct.grid))
    (root / "labels.json").write_text(json.dumps(TABLE))
    assert find_exams(root).exams[0].seg == root / "e1" / "seg.nii.gz"


def test_masks_that_cannot_be_meant_are_refused(folder):
    root, _ = folder
    exam = find_exams(root).exams[0]
    ct, notes = read_volume(exam.ct), []
    seg = read_labels_for(ct, exam.seg, {"gtv": 3}, notes)
    assert seg.ids() == {3} and "mask lung is not in labels.json; left out" in notes
    path = exam.seg / "gtv.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(values[1:], image.affine), path)
    with pytest.raises(DataError, match="gtv.nii.gz: .* voxels .* do not match") as error:
        read_labels_for(ct, exam.seg, TABLE, [])
    one_line(error.value)
    values[0, 0, 0] = 2
    nib.save(nib.Nifti1Image(values, image.affine), path)
    with pytest.raises(DataError, match="gtv.nii.gz: holds 2 structures"):
        read_labels_for(ct, exam.seg, TABLE, [])
