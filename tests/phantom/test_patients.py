"""The phantom cohort: its images agree with its ground truth."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.exams import phantoms
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.exams.read import read_volume
from deepatlas.phantom.anatomy import build_template
from deepatlas.phantom.baseline import affine_baseline, best_affine
from deepatlas.phantom.deform import determinant
from deepatlas.phantom.patients import PhantomCohort

SMALL = (40, 32, 36)


@pytest.fixture(scope="module")
def whole():
    cohort = PhantomCohort(partial=0)
    return [cohort.exam(i) for i in range(6)]


@pytest.fixture(scope="module")
def mixed():
    cohort = PhantomCohort(shape=SMALL)
    return [cohort.exam(i) for i in range(24)]


def digest(exam) -> str:
    sha = hashlib.sha256(exam.volume.grid.affine.tobytes())
    for array in (exam.volume.array, exam.labels.array, exam.coords, exam.foreground):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def core(exam, name) -> np.ndarray:
    """HU of the inside of a structure, without the voxels at its surface."""
    mask = exam.labels.array == exam.names[name]
    return exam.volume.array[ndimage.binary_erosion(mask)]


def median(exam, name) -> float:
    return float(np.median(core(exam, name)))


def centre(exam, name) -> np.ndarray:
    """World position of the centre of mass of a structure in mm."""
    index = np.argwhere(exam.labels.array == exam.names[name])
    return exam.volume.grid.voxel_to_world(index.mean(axis=0)[::-1])


@pytest.mark.slow
def test_exams_are_deterministic_and_differ(mixed):
    """Exam 2 is the same whether or not others are drawn before it."""
    assert digest(PhantomCohort(shape=SMALL).exam(2)) == digest(mixed[2])
    assert digest(mixed[1]) != digest(mixed[2])
    assert digest(PhantomCohort(seed=4, shape=SMALL).exam(2)) != digest(mixed[2])


@pytest.mark.slow
def test_exams_do_not_depend_on_the_number_of_threads(mixed):
    """A process with one thread draws the same exam."""
    code = f"""
import sys
import numpy as np
from deepatlas.phantom.patients import PhantomCohort
exam = PhantomCohort(shape={SMALL}).exam(1)
arrays = exam.volume.grid.affine, exam.volume.array, exam.labels.array, exam.coords, exam.foreground
sys.stdout.buffer.write(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
"""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(sys.path)}
    alone = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert hashlib.sha256(alone.stdout).hexdigest() == digest(mixed[1])


@pytest.mark.slow(2)
def test_arrays_have_their_documented_types(whole):
    for exam in whole:
        shape = exam.volume.grid.shape
        assert exam.volume.array.dtype == np.float32 and exam.labels.array.dtype == np.uint8
        assert exam.coords.dtype == np.float32 and exam.coords.shape == (3, *shape)
        assert exam.foreground.dtype == np.bool_ and exam.foreground.shape == shape
        assert exam.labels.grid == exam.volume.grid


def test_whole_exams_show_every_structure(whole):
    for exam in whole:
        assert exam.region == "whole" and not exam.partial
        present = np.bincount(exam.labels.array.ravel(), minlength=22)
        assert len(exam.names) >= 12 and all(present[k] > 50 for k in exam.names.values())
        assert present[max(exam.names.values()) + 1 :].sum() == 0


def test_true_coordinates_have_no_folds(whole, mixed):
    for exam in whole + mixed:
        grid = exam.volume.grid
        handed = np.sign(np.linalg.det(grid.affine[:3, :3]))
        assert (determinant(exam.coords.astype(np.float64), grid.spacing) * handed).min() > 0, exam.id


def test_labels_are_the_templates_at_the_true_coordinates(whole):
    _, labels = PhantomCohort().template()
    for exam in whole:
        points = exam.coords[:, exam.foreground].T.astype(np.float64)
        index = labels.grid.world_to_voxel(points).T[::-1]
        found = ndimage.map_coordinates(labels.array, index, order=0, mode="nearest")
        assert (found == exam.labels.array[exam.foreground]).mean() > 0.97


def test_hounsfield_units_follow_the_true_coordinates(whole):
    for exam in whole[:3]:
        hu, _ = PhantomCohort().template(exam.phase)
        points = exam.coords[:, exam.foreground].T.astype(np.float64)
        index = hu.grid.world_to_voxel(points).T[::-1]
        found = ndimage.map_coordinates(hu.array, index, order=1, mode="nearest")
        assert (
            np.corrcoef(found.clip(-1000, 300), exam.volume.array[exam.foreground].clip(-1000, 300))[0, 1]
            > 0.9
        )


def test_coordinates_keep_the_bodys_orientation_in_the_world(mixed):
    handed = set()
    for exam in mixed:
        grid = exam.volume.grid
        index = np.argwhere(exam.foreground)[::7]
        world = grid.voxel_to_world(index[:, ::-1])
        linear = np.linalg.lstsq(
            world - world.mean(axis=0),
            exam.coords[:, *index.T].T - exam.coords[:, *index.T].mean(axis=1),
            rcond=None,
        )[0].T
        assert np.all(np.diag(linear) > 0.5) and 0.4 < np.linalg.det(linear) < 2.5, exam.id
        handed.add(tuple(np.sign(np.round(np.diag(grid.affine)[:3], 6))))
    # RAS, LPS and feet-first storage all occur, and so do tilted grids.
    assert len(handed) >= 3
    assert any(np.abs(e.volume.grid.affine[0, 1]) > 0.05 for e in mixed)


def test_left_and_right_are_those_of_the_patient(whole):
    for exam in whole:
        middle = centre(exam, "spine")[0]
        # In RAS+, the right side of the patient is +x.
        assert centre(exam, "liver")[0] > middle + 15
        for name in ("spleen", "stomach", "heart"):
            assert centre(exam, name)[0] < middle, name
        for name in ("kidney", "lung", "humerus", "femur"):
            assert centre(exam, f"{name}_right")[0] > middle > centre(exam, f"{name}_left")[0]
        assert centre(exam, "brain")[2] > centre(exam, "heart")[2] > centre(exam, "bladder")[2]
        assert centre(exam, "heart")[1] > centre(exam, "spinal_canal")[1]


def test_tissues_have_realistic_hounsfield_units(whole):
    for exam in whole:
        assert -920 < median(exam, "lung_right") < -680
        assert median(exam, "airway") < -800
        assert 15 < median(exam, "brain") < 55
        assert -15 < median(exam, "bladder") < 35
        assert 0 < median(exam, "spinal_canal") < 120
        bones = exam.volume.array[
            np.isin(exam.labels.array, [exam.names[n] for n in ("skull", "femur_right")])
        ]
        # Most voxels of the thin cortical bone also contain other tissue.
        assert 700 < np.percentile(bones, 98) < 1400
        outside = exam.volume.array[~ndimage.binary_dilation(exam.foreground, iterations=2)]
        assert -1024 <= np.median(outside) < -950
        assert exam.volume.array.min() >= -1024


def test_contrast_phases_differ(whole):
    by_phase = {phase: [e for e in whole if e.phase == phase] for phase in ("none", "arterial", "portal")}
    ranges = {
        "none": {"liver": (40, 80), "aorta": (25, 65)},
        "arterial": {"liver": (40, 110), "aorta": (180, 420)},
        "portal": {"liver": (80, 140), "aorta": (110, 230)},
    }
    for phase, structures in ranges.items():
        for name, (low, high) in structures.items():
            found = [float(np.median(c)) for e in by_phase[phase] if len(c := core(e, name)) > 10]
            assert found and low < np.min(found) and np.max(found) < high, (phase, name, found)


def test_the_couch_is_outside_the_body(whole):
    for exam in whole:
        world = exam.volume.grid.voxel_to_world(np.argwhere(exam.foreground)[:, ::-1])
        couch = ~ndimage.binary_dilation(exam.foreground, iterations=3) & (exam.volume.array > -600)
        assert couch.sum() > 100
        place = exam.volume.grid.voxel_to_world(np.argwhere(couch)[:, ::-1])
        assert np.median(place[:, 1]) < np.median(world[:, 1])
        assert not exam.labels.array[couch].any()


def test_partial_exams_show_only_their_region(mixed):
    assert 0.2 < np.mean([e.partial for e in mixed]) < 0.4
    assert not mixed[0].partial
    regions = {e.region: e for e in mixed}
    assert set(regions) == {"whole", "head-neck-chest", "chest-abdomen", "abdomen-pelvis"}
    for region, inside, outside in (
        ("head-neck-chest", "brain", "bladder"),
        ("chest-abdomen", "liver", "brain"),
        ("abdomen-pelvis", "bladder", "brain"),
    ):
        labels = regions[region].labels.array
        assert (labels == regions[region].names[inside]).any()
        assert not (labels == regions[region].names[outside]).any()
        assert labels.shape[0] < SMALL[0] and labels.shape[1:] == SMALL[1:]


def test_the_first_exam_has_a_mild_deformation(whole):
    def bend(exam):
        index = np.argwhere(exam.foreground)[::11]
        world = np.column_stack([exam.volume.grid.voxel_to_world(index[:, ::-1]), np.ones(len(index))])
        coords = exam.coords[:, *index.T].T
        rest = coords - world @ np.linalg.lstsq(world, coords, rcond=None)[0]
        return np.sqrt((rest**2).sum(axis=1).mean())

    assert bend(whole[0]) < 0.75 * np.median([bend(e) for e in whole[1:]])


@pytest.mark.slow(1)
def test_affine_alignment_is_not_enough(whole):
    scores = [np.mean(list(affine_baseline(whole[0], e).values())) for e in whole[1:]]
    assert 0.25 <= np.mean(scores) <= 0.55, scores
    same = affine_baseline(whole[1], whole[1])
    assert set(same) == set(whole[1].names) and min(same.values()) > 0.99


def test_affine_baseline_finds_a_purely_affine_relation():
    cohort = PhantomCohort(deformation=0, partial=0, shape=(80, 64, 72))
    a, b = cohort.exam(1), cohort.exam(2)
    matrix = best_affine(a, b)
    index = np.argwhere(b.foreground)[::101]
    carried = b.volume.grid.voxel_to_world(index[:, ::-1]) @ matrix[:3, :3].T + matrix[:3, 3]
    at = a.volume.grid.world_to_voxel(carried).T[::-1]
    there = np.stack([ndimage.map_coordinates(c, at, order=1) for c in a.coords], axis=1)
    inside = np.all((at > 0) & (at < np.array(a.volume.grid.shape)[:, None] - 1), axis=0)
    assert np.abs(there - b.coords[:, *index.T].T)[inside].max() < 2.0
    scores = affine_baseline(a, b)
    assert scores["liver"] > 0.9 and np.mean(list(scores.values())) > 0.75


def test_affine_baseline_of_exams_without_overlap(mixed):
    head = next(e for e in mixed if e.region == "head-neck-chest")
    pelvis = next(e for e in mixed if e.region == "abdomen-pelvis")
    head.foreground, keep = head.foreground & (head.coords[2] > 150), head.foreground
    try:
        with pytest.raises(ValueError, match="no common part"):
            affine_baseline(pelvis, head)
    finally:
        head.foreground = keep


def test_finer_grids_show_the_same_body():
    coarse, fine = (PhantomCohort(shape=s, partial=0).exam(1) for s in (SMALL, tuple(2 * n for n in SMALL)))
    for name in ("liver", "brain", "lung_left"):
        volumes = [
            (e.labels.array == e.names[name]).sum() * e.volume.grid.voxel_volume for e in (coarse, fine)
        ]
        assert abs(volumes[0] / volumes[1] - 1) < 0.05
        assert np.linalg.norm(centre(coarse, name) - centre(fine, name)) < 3


def test_template_is_cached_and_read_only():
    assert build_template() is build_template() is build_template(False, 2.0) is PhantomCohort().body
    with pytest.raises(ValueError):
        build_template().label[0, 0, 0] = 1
    hu, labels = PhantomCohort().template()
    # The labels are a copy that the caller may change.
    labels.array[0, 0, 0] = 1
    assert build_template().label[0, 0, 0] == 0
    assert hu.grid == labels.grid


@pytest.mark.slow(1)
def test_written_phantoms_are_read_back_unchanged(tmp_path):
    cohort = PhantomCohort(shape=SMALL)
    folders = write_phantoms(cohort, tmp_path / "data", 3, progress=False)
    found = find_exams(tmp_path / "data")
    assert [e.id for e in found.exams] == [f.name for f in folders] == [cohort.exam_id(i) for i in range(3)]
    assert found.labels == cohort.names
    for i, files in enumerate(found.exams):
        exam = cohort.exam(i)
        ct, seg = read_volume(files.ct), read_volume(files.seg, labels=True)
        assert np.array_equal(ct.array, exam.volume.array) and np.array_equal(seg.array, exam.labels.array)
        assert ct.grid.matches(exam.volume.grid, 1e-3) and seg.grid.matches(ct.grid, 1e-6)


def test_writing_again_keeps_complete_exams_and_repairs_others(tmp_path):
    cohort = PhantomCohort(shape=SMALL)
    first, second = write_phantoms(cohort, tmp_path, 2, progress=False)
    (second / "seg.nii.gz").unlink()
    before = (first / "ct.nii.gz").stat().st_mtime_ns
    write_phantoms(cohort, tmp_path, [0, 1], progress=False)
    assert (first / "ct.nii.gz").stat().st_mtime_ns == before
    assert (second / "seg.nii.gz").is_file()


def test_folders_with_other_content_are_refused(tmp_path):
    write_phantoms(PhantomCohort(shape=SMALL), tmp_path / "a", 1, progress=False)
    with pytest.raises(DataError, match=r"phantom\.json: holds phantoms of other settings \(seed\)"):
        write_phantoms(PhantomCohort(shape=SMALL, seed=1), tmp_path / "a", 1, progress=False)
    (tmp_path / "a" / "phantom.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        write_phantoms(PhantomCohort(shape=SMALL), tmp_path / "a", 1, progress=False)
    (tmp_path / "b" / "patient").mkdir(parents=True)
    (tmp_path / "b" / "patient" / "ct.nii.gz").touch()
    with pytest.raises(DataError, match="not phantoms"):
        write_phantoms(PhantomCohort(shape=SMALL), tmp_path / "b", 1, progress=False)
    assert not (tmp_path / "b" / "labels.json").exists()


def test_a_full_disk_leaves_no_half_exam(tmp_path, monkeypatch):
    real = phantoms.write_volume

    def full(path, volume):
        if Path(path).name.startswith("seg"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, volume)

    monkeypatch.setattr(phantoms, "write_volume", full)
    with pytest.raises(DataError, match="disk is full"):
        write_phantoms(PhantomCohort(shape=SMALL), tmp_path, 1, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", "phantom.json"]
    assert json.loads((tmp_path / "phantom.json").read_text())["shape"] == list(SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (96, 96)}, "shape must be three sizes"),
        ({"shape": (8, 96, 96)}, "at least 16"),
        ({"partial": 1.5}, "between 0 and 1"),
        ({"deformation": -1}, "must not be negative"),
        ({"seed": -1}, "seed and anatomy must not be negative, got -1 and 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhantomCohort(**arguments)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="index must not be negative"):
        PhantomCohort(shape=SMALL).exam(-1)
