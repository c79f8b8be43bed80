"""The small structures of the phantom: where they lie, how large they are, and that their coordinates are true."""

from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from deepatlas.cli.main import main
from deepatlas.exams.phantoms import unresolved, unresolved_lines, write_phantoms
from deepatlas.phantom import patients
from deepatlas.phantom.anatomy import build_template
from deepatlas.phantom.deform import determinant
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.phantom.structures import ALL_STRUCTURES, SMALL_STRUCTURES, STRUCTURES

LONG = bool(os.environ.get("DEEPATLAS_LONG_TESTS"))
COARSE = (40, 32, 36)
# The exams at 3 mm.
NUMBERS = (0, 1, 2)
PAIRED = sorted({name.removesuffix("_right") for name in SMALL_STRUCTURES if name.endswith("_right")})
# Volumes in mL: what is normal from a child to an adult, with room for voxels of 3 mm.
VOLUMES = {
    "orbit": (4, 11), "lens": (0.05, 0.4), "optic_nerve": (0.2, 1.2), "lacrimal_gland": (0.2, 1.3),
    "cochlea": (0.03, 0.3), "parotid_gland": (3, 30), "submandibular_gland": (2.5, 12), "thyroid": (5, 25),
    "gallbladder": (5, 50), "pancreas": (14, 100), "adrenal": (0.7, 6), "psoas": (30, 250),
}  # fmt: skip
# Exam 0 of the default cohort at the shape COARSE, as it was before there were small structures.
DEFAULT_VOXELS = {
    "brain": 702, "skull": 379, "mandible": 57, "airway": 36, "spine": 331, "spinal_canal": 72,
    "humerus_right": 34, "humerus_left": 33, "lung_right": 369, "lung_left": 316, "heart": 184, "aorta": 99,
    "liver": 413, "spleen": 36, "stomach": 170, "kidney_right": 58, "kidney_left": 57, "bladder": 91,
    "pelvis": 357, "femur_right": 70, "femur_left": 72,
}  # fmt: skip
DEFAULT_MEAN = -722.34


@pytest.fixture(scope="module")
def body():
    return build_template(True)


@pytest.fixture(scope="module")
def exams():
    """Whole-body exams at 3 mm."""
    cohort = PhantomCohort(structures="all", spacing=3.0, partial=0)
    return [cohort.exam(i) for i in NUMBERS]


@pytest.fixture(scope="module")
def written(exams, tmp_path_factory):
    """One of these exams, which is not drawn again, and another one, in files."""
    root = tmp_path_factory.mktemp("phantoms")
    cohort = PhantomCohort(structures="all", spacing=3.0, partial=0)
    draw = PhantomCohort.exam
    drawn = dict(zip(NUMBERS, exams, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhantomCohort, "exam", lambda self, i: drawn[i] if i in drawn else draw(self, i))
        return write_phantoms(cohort, root, [1, 3], progress=False, workers=2)


def mask(body, name):
    return body.label == ALL_STRUCTURES[name]


def around(body, name):
    """The labels of the voxels that touch a structure."""
    inside = mask(body, name)
    return body.label[ndimage.binary_dilation(inside, iterations=1) & ~inside]


def points(body, name):
    """The voxels of a structure in template mm, ``[n, 3]`` (x, y, z)."""
    return body.grid.voxel_to_world(np.argwhere(mask(body, name))[:, ::-1])


def share(labels, *names):
    return np.isin(labels, [ALL_STRUCTURES[name] for name in names]).mean()


@pytest.mark.slow(6)
def test_nibabel_finds_every_structure_on_the_patients_side_with_a_plausible_volume(written):
    for folder in written:
        image = nibabel.load(folder / "seg.nii.gz")
        labels, names = np.asarray(image.dataobj), json.loads((folder.parent / "labels.json").read_text())
        assert set(names) == {*STRUCTURES, *SMALL_STRUCTURES}
        assert np.allclose(image.header.get_zooms(), 3.0)
        voxel, centres = abs(np.linalg.det(image.affine[:3, :3])) / 1000, {}
        for name, number in names.items():
            index = np.argwhere(labels == number)
            centres[name] = nibabel.affines.apply_affine(image.affine, index.mean(axis=0))
            kind = name.removesuffix("_right").removesuffix("_left")
            if kind in VOLUMES:
                low, high = VOLUMES[kind]
                assert low < len(index) * voxel < high, (folder.name, name)
        # nibabel's world is RAS+ by NIfTI, where this package's phantoms have +x on the patient's right as in the
        # rest of it: the liver tells which side is which.
        right = np.sign(centres["liver"][0] - centres["spleen"][0])
        for name in PAIRED:
            apart = right * (centres[f"{name}_right"][0] - centres[f"{name}_left"][0])
            assert apart > 25, name
        assert right * (centres["gallbladder"][0] - centres["spinal_canal"][0]) > 10


@pytest.mark.slow(1)
def test_the_body_at_two_mm_has_every_structure_in_one_piece(body):
    for name in SMALL_STRUCTURES:
        assert ndimage.label(mask(body, name), np.ones((3, 3, 3)))[1] == 1, name
    assert set(np.unique(body.label)) == {0, *ALL_STRUCTURES.values()}


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_eye_has_its_parts_in_place(body, side):
    assert share(around(body, f"lens_{side}"), f"orbit_{side}") > 0.9
    orbit, lens, nerve = (points(body, f"{part}_{side}") for part in ("orbit", "lens", "optic_nerve"))
    # A globe of 24 mm, with the lens in its front half and the nerve behind it.
    whole = np.concatenate([orbit, lens])
    assert np.allclose(np.ptp(whole, axis=0) + 2, 24, atol=2.1)
    assert lens[:, 1].mean() > whole[:, 1].mean() + 5
    assert np.ptp(lens[:, 0]) + 2 == pytest.approx(9, abs=2) and np.ptp(lens[:, 1]) + 2 <= 6
    # From the globe to the chiasm in the middle, in the floor of the brain.
    assert abs(nerve[:, 1].max() - whole[:, 1].min()) <= 6
    last = nerve[nerve[:, 1] < nerve[:, 1].min() + 4]
    assert np.abs(last[:, 0]).max() < 8 and 30 < np.linalg.norm(nerve[nerve[:, 1].argmax()] - last[0]) < 60
    assert share(around(body, f"optic_nerve_{side}"), "brain") > 0.05
    # Its cross-section, from the volume and the length.
    assert 2.5 < 2 * np.sqrt(8 * len(nerve) / 50 / np.pi) < 5
    fat = body.tissue[ndimage.binary_dilation(mask(body, f"orbit_{side}"), iterations=2)]
    hu, _ = PhantomCohort(structures="all").template("none")
    assert (hu.array[ndimage.binary_dilation(mask(body, f"orbit_{side}"), iterations=2)] < -60).mean() > 0.15
    assert len(fat)


@pytest.mark.parametrize("side", ["right", "left"])
def test_structures_have_their_neighbours(body, side):
    assert share(around(body, f"cochlea_{side}"), "skull") > 0.95
    assert not share(around(body, f"cochlea_{side}"), "brain")
    assert share(around(body, f"submandibular_gland_{side}"), "mandible") > 0.01
    kidney, adrenal = points(body, f"kidney_{side}"), points(body, f"adrenal_{side}")
    assert kidney[:, 2].mean() < adrenal[:, 2].min() and adrenal[:, 2].mean() > kidney[:, 2].max() - 12
    assert abs(adrenal[:, 0].mean()) < abs(kidney[:, 0].mean())
    psoas, spine = points(body, f"psoas_{side}"), points(body, "spine")
    for z in (-150, -170, -190):
        level, bone = psoas[psoas[:, 2] == z], spine[spine[:, 2] == z]
        assert 25 < np.abs(level[:, 0]).mean() < 60 and np.ptp(level[:, 0]) > 10
        assert np.linalg.norm(level[:, None] - bone[None], axis=2).min() < 6


def test_the_adrenals_are_shaped_like_a_lambda(body):
    for side in ("right", "left"):
        gland = points(body, f"adrenal_{side}")
        middle = gland[np.abs(gland[:, 2] - np.median(gland[:, 2])) < 1]
        front, back = (
            middle[middle[:, 1] == y] for y in np.quantile(middle[:, 1], (1, 0.15), method="nearest")
        )
        gaps = [np.diff(np.sort(row[:, 0])).max(initial=0) for row in (front, back)]
        assert gaps[0] <= 2 < gaps[1], side


def test_gallbladder_pancreas_and_thyroid_have_their_neighbours(body):
    assert share(around(body, "gallbladder"), "liver") > 0.15
    pancreas = points(body, "pancreas")
    head, tail = pancreas[pancreas[:, 0] > 12], pancreas[pancreas[:, 0] < -40]
    assert len(head) > 200 and len(tail) > 100 and head[:, 2].mean() < tail[:, 2].mean() - 20
    assert tail[:, 1].mean() < points(body, "stomach")[:, 1].mean()
    spleen = points(body, "spleen")
    assert np.linalg.norm(spleen[::7, None] - tail[None, ::5], axis=2).min() < 15
    thyroid, airway = points(body, "thyroid"), points(body, "airway")
    assert all((sign * thyroid[:, 0] > 10).sum() > 100 for sign in (1, -1))
    isthmus = thyroid[np.abs(thyroid[:, 0]) < 4]
    assert len(isthmus) > 5
    level = airway[np.isin(airway[:, 2], isthmus[:, 2])]
    assert isthmus[:, 1].min() > level[:, 1].max()


@pytest.mark.parametrize(
    ("name", "phase", "low", "high"),
    [
        ("lens_right", "none", 80, 120), ("orbit_left", "none", 0, 25), ("thyroid", "none", 85, 130),
        ("thyroid", "portal", 130, 200), ("gallbladder", "portal", -5, 20), ("pancreas", "arterial", 75, 125),
        ("adrenal_right", "portal", 50, 100), ("submandibular_gland_left", "none", 15, 50),
        ("cochlea_left", "none", 150, 400), ("psoas_right", "none", 40, 65), ("optic_nerve_left", "none", 25, 50),
    ],
)  # fmt: skip
def test_structures_have_realistic_hounsfield_units(name, phase, low, high):
    hu, labels = PhantomCohort(structures="all").template(phase)
    assert low < np.median(hu.array[labels.array == ALL_STRUCTURES[name]]) < high


@pytest.mark.slow(3)
def test_true_coordinates_of_a_structure_agree_between_patients(body, exams):
    # The thighs and the spine are cut off at different heights.
    for name in (*SMALL_STRUCTURES, "liver", "spleen", "bladder", "mandible"):
        number, middle = ALL_STRUCTURES[name], points(body, name).mean(axis=0)
        for exam in exams:
            found = exam.coords[:, exam.labels.array == number].mean(axis=1)
            # The mean over voxels of a patient, in which parts of an organ may have grown more than others.
            size = np.ptp(points(body, name), axis=0).max()
            assert np.linalg.norm(found - middle) < max(3.0, 0.15 * size), (exam.id, name)


def test_labels_are_exactly_the_templates_at_the_true_coordinates(body, exams):
    exam = exams[1]
    index = body.grid.world_to_voxel(exam.coords[:, exam.foreground].T.astype(np.float64)).T[::-1]
    away = np.abs(index - np.rint(index)).max(axis=0) < 0.499
    found = ndimage.map_coordinates(body.label, np.rint(index[:, away]), order=0, mode="nearest")
    assert np.array_equal(found, exam.labels.array[exam.foreground][away])


def test_structures_differ_between_patients(exams):
    for name in ("gallbladder", "pancreas", "thyroid", "adrenal_left", "psoas_right"):
        volumes = [exam.voxels()[name] for exam in exams[1:]]
        assert abs(volumes[0] / volumes[1] - 1) > 0.01, name


@pytest.mark.slow(1)
def test_the_same_seed_draws_the_same_voxels_whatever_the_slabs(monkeypatch):
    cohort = PhantomCohort(structures="all", spacing=8.0, partial=0)
    exam = cohort.exam(1)
    assert exam.labels.array.size < patients.SLAB
    # Slabs of a few slices, and a last one of fewer.
    monkeypatch.setattr(patients, "SLAB", 7_000)
    assert len(patients._slabs(exam.labels.array.shape)) > 10
    again = cohort.exam(1)
    for part in ("coords", "foreground"):
        assert np.array_equal(getattr(again, part), getattr(exam, part))
    assert np.array_equal(again.volume.array, exam.volume.array)
    assert np.array_equal(again.labels.array, exam.labels.array)


def test_the_large_structures_stay_what_they_are_beside_the_small_ones():
    large, both = build_template(), build_template(True)
    assert set(np.unique(large.label)) == {0, *STRUCTURES.values()}
    assert np.array_equal(large.body, both.body)
    for name, number in STRUCTURES.items():
        a, b = large.label == number, both.label == number
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > (0.97 if name in ("skull", "stomach") else 0.99), (
            name
        )


def test_the_default_cohort_is_the_one_that_it_was():
    """Numbers of voxels from before there were small structures."""
    exam = PhantomCohort(shape=COARSE).exam(0)
    assert exam.names == STRUCTURES
    for name, count in DEFAULT_VOXELS.items():
        assert exam.voxels()[name] == pytest.approx(count, abs=2), name
    assert exam.volume.array.mean() == pytest.approx(DEFAULT_MEAN, abs=0.05)


@pytest.mark.slow(1)
def test_a_spacing_gives_cubic_voxels_and_the_whole_field_of_view(exams):
    default = PhantomCohort(structures="all", partial=0)
    for index, exam in zip(NUMBERS, exams, strict=True):
        assert np.allclose(exam.volume.grid.spacing, 3.0)
        coarse = default.exam(index).volume.grid
        extent = [np.array(g.shape[::-1]) * g.spacing for g in (exam.volume.grid, coarse)]
        assert (np.abs(extent[0] - extent[1]) <= 3).all()


@pytest.mark.slow(2)
def test_another_population_has_another_mean_body_and_the_same_coordinates(body):
    home, away = (PhantomCohort(structures="all", anatomy=n, partial=0) for n in (0, 1))
    a, b = home.exam(0), away.exam(0)
    assert a.volume.grid == b.volume.grid
    inside = a.foreground & b.foreground
    assert 3 < np.linalg.norm((a.coords - b.coords)[:, inside], axis=0).mean() < 40
    assert determinant(b.coords.astype(np.float64), b.volume.grid.spacing).min() > 0
    assert np.array_equal(b.labels.array, away.exam(0).labels.array)
    assert not np.array_equal(b.coords, PhantomCohort(structures="all", anatomy=2, partial=0).exam(0).coords)
    for name in ("liver", "pancreas", "psoas_left", "orbit_right"):
        found = b.coords[:, b.labels.array == ALL_STRUCTURES[name]].mean(axis=1)
        assert np.linalg.norm(found - points(body, name).mean(axis=0)) < 12, name


@pytest.mark.slow(2)
def test_structures_between_the_voxels_are_named(tmp_path, capsys):
    cohort = PhantomCohort(structures="all", shape=COARSE)
    folders = write_phantoms(cohort, tmp_path / "a", 3, progress=False)
    for i, folder in enumerate(folders):
        content, exam = json.loads((folder / "voxels.json").read_text()), cohort.exam(i)
        assert content["voxels"] == {n: int((exam.labels.array == k).sum()) for n, k in exam.names.items()}
        for name in content["unresolved"]:
            assert content["voxels"][name] == 0
    # The first exam shows the whole body, in voxels that are larger than a cochlea.
    assert {"cochlea_right", "cochlea_left"} & set(
        json.loads((folders[0] / "voxels.json").read_text())["unresolved"]
    )
    counts = unresolved(folders)
    assert "liver" not in counts and max(counts.values()) <= 3
    (line,) = unresolved_lines(counts, 3)
    assert "cochlea" in line and "smaller spacing" in line
    assert unresolved_lines({}, 3) == []


@pytest.mark.slow(2)
def test_what_lies_outside_the_field_of_view_is_not_called_too_small():
    cohort = PhantomCohort(structures="all", partial=1)
    exam = next(e for e in map(cohort.exam, range(1, 9)) if e.region == "abdomen-pelvis")
    assert exam.voxels()["lens_right"] == exam.voxels()["orbit_left"] == 0
    assert not {"lens_right", "orbit_left", "brain"} & set(cohort.unresolved(exam))


@pytest.mark.slow(1)
def test_the_number_of_workers_changes_nothing(tmp_path):
    cohort = PhantomCohort(structures="all", shape=COARSE)
    for name, workers in (("one", 1), ("three", 3)):
        write_phantoms(cohort, tmp_path / name, 2, progress=False, workers=workers)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        other = tmp_path / "three" / path.relative_to(tmp_path / "one")
        if path.suffix == ".gz":
            assert np.array_equal(nibabel.load(path).get_fdata(), nibabel.load(other).get_fdata())
        elif path.is_file():
            assert path.read_bytes() == other.read_bytes()


def test_folders_from_before_these_settings_are_continued(tmp_path):
    cohort = PhantomCohort(shape=COARSE)
    write_phantoms(cohort, tmp_path, 1, progress=False)
    path = tmp_path / "phantom.json"
    old = {
        k: v for k, v in json.loads(path.read_text()).items() if k not in ("structures", "spacing", "anatomy")
    }
    path.write_text(json.dumps(old))
    assert len(write_phantoms(cohort, tmp_path, 2, progress=False)) == 2
    with pytest.raises(Exception, match=r"other settings \(anatomy\)"):
        write_phantoms(PhantomCohort(shape=COARSE, anatomy=1), tmp_path, 1, progress=False)


def test_the_command_takes_structures_spacing_and_anatomy(tmp_path, capsys):
    arguments = [
        "--exams",
        "1",
        "--structures",
        "all",
        "--spacing",
        "6",
        "--anatomy",
        "2",
        "--json",
        "--quiet",
    ]
    assert main(["phantom", str(tmp_path / "a"), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["exams"] == 1 and set(result["unresolved"]) <= set(SMALL_STRUCTURES)
    settings = json.loads((tmp_path / "a" / "phantom.json").read_text())
    assert (settings["structures"], settings["spacing"], settings["anatomy"]) == ("all", 6.0, 2)
    assert main(["phantom", str(tmp_path / "b"), "--spacing", "0.1"]) == 1
    assert "spacing must be 0.75 to 12.0 mm, got 0.1" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structures": "small"}, "structures must be large or all"),
        ({"spacing": 0.5}, "spacing must be"),
        ({"spacing": 2.0, "shape": COARSE}, "shape and spacing exclude each other"),
        ({"anatomy": -1}, "anatomy must not be negative"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhantomCohort(**arguments)


@pytest.mark.slow(4)
def test_a_fine_exam_shows_what_a_coarse_one_cannot(monkeypatch):
    """At 1.5 mm with DEEPATLAS_LONG_TESTS (25 seconds), otherwise at 2 mm and of a template that is coarser too.

    That one is twice as coarse as what a cohort of fine voxels asks for, which other tests have painted already.
    """
    spacing = 1.5 if LONG else 2.0
    if not LONG:
        monkeypatch.setattr(patients, "build_template", lambda small, mm: build_template(small, 2 * mm))
    cohort = PhantomCohort(structures="all", spacing=spacing, partial=0)
    assert cohort.body.grid.spacing[0] == (1.0 if LONG else 2.0)
    exam = cohort.exam(1)
    assert np.allclose(exam.volume.grid.spacing, spacing) and not cohort.unresolved(exam)
    volumes = {name: count * spacing**3 for name, count in exam.voxels().items()}
    assert min(volumes.values()) >= 50 and volumes["lens_right"] > 100 and volumes["adrenal_left"] > 675
    lens = exam.labels.array == exam.names["lens_right"]
    globe = exam.labels.array == exam.names["orbit_right"]
    assert exam.volume.array[lens].mean() > exam.volume.array[globe].mean() + 35
