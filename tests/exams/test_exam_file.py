"""Exam files: what is written comes back, the same exam gives the same bytes, and damage is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from real_exams import real
from small_dataset import write_dataset
from small_exams import LABELS, body, oblique, one_line

from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.exam_file import ExamFile, chunk_shape, orientation_code, write_exam
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


@pytest.fixture
def grid():
    return oblique(np.random.default_rng(4), shape=(70, 33, 90))


@pytest.fixture
def exam(tmp_path, grid):
    """An exam on an oblique, anisotropic, flipped grid, of more chunks than one."""
    rng = np.random.default_rng(1)
    hu = rng.integers(-1000, 300, grid.shape).astype(np.float32)
    labels = rng.integers(0, 3, grid.shape).astype(np.int32)
    ct, seg = Volume(hu, grid), Volume(labels, grid)
    record = write_exam(tmp_path / "a1.h5", ct, seg, LABELS, {}, [])
    return tmp_path / "a1.h5", ct, seg, record


# -- one exam ---------------------------------------------------------------------------------------


def test_comes_back_as_it_was(exam):
    path, ct, seg, _ = exam
    with ExamFile(path) as read:
        assert read.id == "a1" and read.grid == ct.grid and read.names == LABELS and read.has_labels
        assert read.volume().array.dtype == np.int16
        np.testing.assert_array_equal(read.volume().array, ct.array)
        np.testing.assert_array_equal(read.labels().array, seg.array)
        np.testing.assert_array_equal(read.ct[3, :, 5], ct.array[3, :, 5])
        box = (40, 3, 50), (25, 30, 40)
        for part, labels in [(ct, False), (seg, True)]:
            read_part, expected = read.crop(*box, labels=labels), part.cropped(*box)
            np.testing.assert_array_equal(read_part.array, expected.array)
            assert read_part.grid == expected.grid
        with pytest.raises(ValueError, match="leaves the exam"):
            read.crop((60, 0, 0), (11, 3, 3))
        read.verify()


def test_geometry_against_nibabel_and_simpleitk(exam, tmp_path):
    """The exam file, the NIfTI and the NRRD of one volume put every voxel at the same place of the patient."""
    path, ct, *_ = exam
    back = read_volume(path)
    for name in ("ct.nii.gz", "ct.nrrd"):
        write_volume(tmp_path / name, back)
    nifti = nib.load(tmp_path / "ct.nii.gz")
    itk = sitk.ReadImage(str(tmp_path / "ct.nrrd"))
    record = ExamFile(path).record()
    assert record.orientation == "".join(nib.aff2axcodes(nifti.affine))
    straight = nib.as_closest_canonical(nifti)
    np.testing.assert_allclose(record.spacing, straight.header.get_zooms(), rtol=1e-5)
    np.testing.assert_allclose(
        record.extent, np.array(straight.shape) * straight.header.get_zooms(), rtol=1e-5
    )
    values = np.asarray(nifti.dataobj)
    rng = np.random.default_rng(0)
    for x, y, z in (rng.integers(0, n, 3) for n in [ct.grid.shape[::-1]] * 20):
        at = back.grid.voxel_to_world((x, y, z))
        np.testing.assert_allclose(at, nifti.affine @ [x, y, z, 1] @ np.eye(4, 3), atol=1e-3)
        place = itk.TransformIndexToPhysicalPoint([int(x), int(y), int(z)])
        np.testing.assert_allclose(at, np.array(place) * (-1, -1, 1), atol=1e-3)
        assert values[x, y, z] == itk[int(x), int(y), int(z)] == back.array[z, y, x] == ct.array[z, y, x]


@pytest.mark.parametrize("seed", range(20))
def test_orientation_codes_are_nibabels(seed):
    grid = oblique(np.random.default_rng(seed), angle=0.25)
    assert orientation_code(grid) == "".join(nib.aff2axcodes(grid.affine))


def test_packed_row_is_what_a_store_holds(tmp_path):
    """An exam's row, put together to a dataset, is the row of a store that was prepared from the same images."""
    data = tmp_path / "data"
    for name, seed in (("e1", 1), ("e2", 2)):
        ct, seg = body(seed=seed)
        write_volume(data / name / "ct.nii.gz", Volume(np.rint(ct.array).astype(np.int16), ct.grid))
        write_volume(data / name / "seg.nii.gz", seg)
    (data / "labels.json").write_text(json.dumps(LABELS))
    direct = prepare_cohort(data, tmp_path / "store.h5", crop="foreground", progress=False)
    dataset = write_dataset(tmp_path / "set", ("e1", "e2", "e3"), crop="foreground")
    for row in range(2):
        for name in ("hu", "mask", "labels_64", "labels_128"):
            np.testing.assert_array_equal(getattr(direct, name)[row], getattr(dataset.store, name)[row])
        assert direct.grid(row).matches(dataset.store.grid(row), 1e-4)
        assert direct.native_grid(row).matches(dataset.store.native_grid(row), 1e-4)
        assert (direct.has_label[row] == dataset.store.has_label[row]).all()


def test_values_are_rounded_and_clipped(tmp_path):
    ct, _ = body()
    array = ct.array.copy()
    array[0, 0, :4] = (-1000.4, 30.6, 40000, -40000)
    record = write_exam(tmp_path / "a.h5", Volume(array, ct.grid), None, {}, {}, [])
    assert record.warnings == ["2 voxels beyond -32768 to 32767 HU were clipped"]
    assert ExamFile(tmp_path / "a.h5").ct[0, 0, :4].tolist() == [-1000, 31, 32767, -32768]
    assert not record.has_seg
    with pytest.raises(DataError, match="nothing was drawn"):
        ExamFile(tmp_path / "a.h5").labels()


def test_same_arguments_same_bytes(tmp_path):
    ct, seg = body()
    a, b = (
        write_exam(tmp_path / folder / "x.h5", ct, seg, LABELS, {"kvp": 120}, ["odd"])
        for folder in ("a", "b")
    )
    assert a == b and (tmp_path / "a" / "x.h5").read_bytes() == (tmp_path / "b" / "x.h5").read_bytes()
    other = write_exam(tmp_path / "c" / "x.h5", ct, seg, LABELS, {"kvp": 120}, ["odder"])
    assert other.content != a.content


def test_chunks():
    assert chunk_shape((107, 512, 512)) == (54, 64, 64)
    assert chunk_shape((4, 64, 65)) == (4, 64, 33)
    assert all(c <= 64 for n in range(1, 400) for c in chunk_shape((n, 1, 1)))


BAD = {
    "grid": lambda ct, seg: (
        ct,
        Volume(seg.array, Grid(seg.grid.shape, seg.grid.affine @ np.diag([1, 1, 2, 1]))),
    ),
    "shape": lambda ct, seg: (ct, seg.cropped((0, 0, 0), (20, 40, 40))),
    "unnamed": lambda ct, seg: (ct, Volume(seg.array * 20, seg.grid)),
    "nan": lambda ct, seg: (Volume(np.where(ct.array > 500, np.nan, ct.array), ct.grid), seg),
    "air": lambda ct, seg: (Volume(np.full_like(ct.array, -1000), ct.grid), None),
    "text": lambda ct, seg: (Volume(ct.array.astype(str), ct.grid), None),
    "fractions": lambda ct, seg: (ct, Volume(seg.array + 0.5, seg.grid)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_exams_leave_no_file(tmp_path, what):
    ct, seg = BAD[what](*body())
    with pytest.raises(DataError) as error:
        write_exam(tmp_path / "x.h5", ct, seg, LABELS, {}, [])
    one_line(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", ".x", "", "a b", "a" * 101, "a\n"])
def test_bad_ids(tmp_path, name):
    with pytest.raises(DataError, match="exam id"):
        write_exam(tmp_path / f"{name}.h5".replace("/", "%"), *body(), LABELS, {}, [])


def test_labels_beyond_255(tmp_path):
    ct, seg = body()
    record = write_exam(
        tmp_path / "x.h5",
        ct,
        Volume(seg.array.astype(np.int64) * 300, seg.grid),
        {"bone": 300, "lung": 600},
        {},
        [],
    )
    assert record.present == ["bone", "lung"]
    assert ExamFile(tmp_path / "x.h5").labels().array.dtype == np.uint16


# -- readers ----------------------------------------------------------------------------------------


def test_pickled_open_and_closed(exam):
    path, ct, *_ = exam
    read = ExamFile(path)
    first = read.ct[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read)).ct[0], first)
    read.close()
    np.testing.assert_array_equal(read.ct[0], first)


def _sum(read, queue):
    queue.put((int(read.ct[5].astype(np.int64).sum()), os.getpid() == read._pid))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_file_for_themselves(exam, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    if method == "spawn" and not os.environ.get("DEEPATLAS_LONG_TESTS"):
        pytest.skip("starts two interpreters (set DEEPATLAS_LONG_TESTS=1)")
    path, ct, *_ = exam
    read = ExamFile(path)
    expected = int(read.ct[5].sum(dtype=np.int64))  # open in the parent
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_sum, args=(read, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=300) for _ in workers] == [(expected, True)] * len(workers)
    for worker in workers:
        worker.join()
    assert int(read.ct[5].sum(dtype=np.int64)) == expected


def test_damaged_exam_files(exam, tmp_path):
    path, *_ = exam
    whole = path.read_bytes()
    with pytest.raises(DataError, match="no such exam file"):
        ExamFile(tmp_path / "none.h5")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated exam file") as error:
        ExamFile(path)
    one_line(error.value)
    path.write_bytes(whole)
    with h5py.File(path) as file:
        chunk = file["ct"].id.get_chunk_info(1)
    wrong = bytearray(whole)
    wrong[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(wrong)
    with pytest.raises(DataError, match="ct is damaged"):
        ExamFile(path).volume()
    with pytest.raises(DataError, match="damaged"):
        ExamFile(path).verify()
    other = tmp_path / "other.h5"
    other.write_bytes(whole)
    with h5py.File(other, "r+") as file:
        file["affine"][0, 3] += 1
    with pytest.raises(DataError, match="checksum"):
        ExamFile(other).verify()


# -- real exams -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trunk_ct():
    """A trunk CT in the folder that DEEPATLAS_DATA names, or in ../shared/data beside the repository."""
    return real("totalsegmentator/ct.nii.gz").parent


def test_a_real_exam_against_nibabel(trunk_ct, tmp_path):
    ct, seg = (nib.load(trunk_ct / name) for name in ("ct.nii.gz", "seg.nii.gz"))
    names = json.loads((trunk_ct / "labels.json").read_text())
    read = read_volume(trunk_ct / "ct.nii.gz"), read_volume(trunk_ct / "seg.nii.gz", labels=True)
    record = write_exam(tmp_path / "trunk.h5", *read, names, {"format": "nifti"}, [], crop="foreground")
    exam = ExamFile(tmp_path / "trunk.h5")
    np.testing.assert_allclose(exam.grid.affine, ct.affine, atol=1e-3)
    hu = np.rint(np.asarray(ct.dataobj, dtype=np.float64)).transpose(2, 1, 0)
    np.testing.assert_array_equal(exam.volume().array, hu)
    np.testing.assert_array_equal(exam.labels().array, np.asarray(seg.dataobj).transpose(2, 1, 0))
    assert record.orientation == "".join(nib.aff2axcodes(ct.affine))
    assert {names[n] for n in record.present} == set(np.unique(np.asarray(seg.dataobj)).astype(int)) - {0}
    exam.verify()
