"""A store built from a data directory: what it holds, when it is built again, and what interrupts a build."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
from small_exams import LABELS, body, one_line, write_cohort

from deepatlas.errors import DataError
from deepatlas.exams import build_store
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_mask, to_model_grid
from deepatlas.space.volume import Volume
from deepatlas.store.store import Store, is_store


def ready(root, tmp_path, **options) -> Store:
    """The store of a data directory, prepared in ``tmp_path``."""
    return prepare_cohort(root, tmp_path / "store.h5", progress=False, **options)


@pytest.mark.parametrize("crop", [None, "foreground"])
def test_store_holds_what_preprocessing_gives(cohort_dir, tmp_path, crop):
    store = ready(cohort_dir, tmp_path, crop=crop)
    assert (
        store.ids == ["e1", "e2", "e3"] and len(store) == 3 and store.labels == LABELS and store.crop == crop
    )
    assert store.has_label.tolist() == [[True, True], [True, True], [False, False]]
    assert store.hu.shape == (3, 64, 64, 64) and store.hu.dtype == np.int16
    for i, exam in enumerate(find_exams(cohort_dir).exams):
        ct = read_volume(exam.ct)
        expected = to_model_grid(ct, crop=crop)
        assert np.abs(store.hu[i] - expected.array).max() <= 0.5
        np.testing.assert_array_equal(store.mask[i].astype(bool), foreground_mask(expected.array))
        assert store.grid(i) == expected.grid and store.native_grid(i) == ct.grid
        assert store.fine_grid(i).pooled(2).matches(expected.grid, 1e-6)
        assert store.source(i).resolve() == exam.ct.resolve()
    assert not store.labels_64[2].any() and not store.labels_128[2].any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store.h5"]


def test_labels_lie_on_their_anatomy(cohort_dir, tmp_path):
    store = ready(cohort_dir, tmp_path)
    hu, labels = store.hu[0], store.labels_64[0]
    assert hu[labels == LABELS["bone"]].mean() > 400
    assert hu[labels == LABELS["lung"]].mean() < -600
    seg = read_volume(cohort_dir / "e1" / "seg.nii.gz", labels=True)
    for value in LABELS.values():
        native = (seg.array == value).sum() * seg.grid.voxel_volume
        for array, grid in [(store.labels_64[0], store.grid(0)), (store.labels_128[0], store.fine_grid(0))]:
            # A corner-aligned grid ends at voxel centres, so its volume lacks the outer halves of its outer voxels.
            assert (array == value).sum() * grid.voxel_volume == pytest.approx(native, rel=0.1)
            centre = grid.voxel_to_world(np.argwhere(array == value).mean(0)[::-1])
            expected = seg.grid.voxel_to_world(np.argwhere(seg.array == value).mean(0)[::-1])
            assert np.abs(grid.world_to_voxel(centre) - grid.world_to_voxel(expected)).max() < 0.5


@pytest.mark.slow(1)
def test_one_thread_gives_the_same_store(cohort_dir, tmp_path):
    two = ready(cohort_dir, tmp_path)
    one = prepare_cohort(cohort_dir, tmp_path / "one.h5", progress=False, workers=1)
    for name in ("hu", "mask", "labels_64", "labels_128"):
        np.testing.assert_array_equal(getattr(one, name)[:], getattr(two, name)[:])


# Separate processes run the PyTorch bodies of the kernels, because these tests do not concern the native ones.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DEEPATLAS_OPS_BACKEND": "torch"}


def python(code: str, *arguments) -> str:
    """The standard output of a program that runs in a separate process and must succeed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- reuse ------------------------------------------------------------------------------------------


def built(store_path, root, **options) -> bool:
    """Whether a call builds the store instead of reusing it."""
    before = store_path.stat().st_ino
    prepare_cohort(root, store_path, progress=False, **options).close()
    return store_path.stat().st_ino != before


@pytest.mark.slow(1)
def test_a_store_is_reused_until_something_changes(cohort_dir, tmp_path):
    path = tmp_path / "store.h5"
    ready(cohort_dir, tmp_path).close()
    assert not built(path, cohort_dir)
    assert built(path, cohort_dir, crop="foreground")
    assert built(path, cohort_dir)
    os.utime(cohort_dir / "e1" / "ct.nii.gz", ns=(1, 1))
    assert built(path, cohort_dir)
    (cohort_dir / "labels.json").write_text('{"bone": 1, "air": 2}')
    assert built(path, cohort_dir)
    (cohort_dir / "e1" / "seg.nii.gz").unlink()
    assert built(path, cohort_dir)
    assert not built(path, cohort_dir)


def test_a_store_is_accepted_in_place_of_a_data_directory(cohort_dir, tmp_path):
    path = ready(cohort_dir, tmp_path, crop="foreground").path
    assert is_store(path)
    assert prepare_cohort(path, tmp_path / "unused.h5", crop="foreground").ids == ["e1", "e2", "e3"]
    with pytest.raises(DataError, match="crop=foreground, not crop=None"):
        prepare_cohort(path, tmp_path / "unused.h5")
    assert not (tmp_path / "unused.h5").exists()


def test_a_store_of_an_older_format_is_built_again(cohort_dir, tmp_path):
    path = ready(cohort_dir, tmp_path).path
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 0
    with pytest.raises(DataError, match="store format 0, this program reads 2"):
        Store(path)
    assert built(path, cohort_dir)


def test_a_foreign_file_is_left_alone(cohort_dir, tmp_path):
    path = tmp_path / "store.h5"
    path.write_text("my notes")
    with pytest.raises(DataError, match="not a prepared cohort"):
        ready(cohort_dir, tmp_path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="not a prepared cohort"):
        ready(cohort_dir, tmp_path)
    with h5py.File(path) as file:
        assert file["x"][()] == 1


# -- bad exams --------------------------------------------------------------------------------------


def spoil(root):
    """Add five exams that cannot be used, each for another reason."""
    ct, seg = body(seed=9)
    write_volume(root / "moved" / "ct.nii.gz", ct)
    affine = seg.grid.affine.copy()
    affine[0, 3] += 9
    write_volume(root / "moved" / "seg.nii.gz", Volume(seg.array, Grid(seg.grid.shape, affine)))
    write_volume(root / "resized" / "ct.nii.gz", ct)
    write_volume(root / "resized" / "seg.nii.gz", seg.cropped((0, 0, 0), (20, 40, 40)))
    write_volume(root / "unnamed" / "ct.nii.gz", ct)
    write_volume(root / "unnamed" / "seg.nii.gz", Volume(seg.array * 20, seg.grid))
    (root / "cut").mkdir()
    whole = (root / "moved" / "ct.nii.gz").read_bytes()
    (root / "cut" / "ct.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "nothing").mkdir()
    return root


def test_bad_exams_are_skipped_and_listed(cohort_dir, tmp_path, capsys):
    spoil(cohort_dir)
    store = prepare_cohort(cohort_dir, tmp_path / "store.h5")
    assert store.ids == ["e1", "e2", "e3"]
    assert set(store.skipped) == {"moved", "resized", "unnamed", "cut", "nothing"}
    assert "9.0 mm apart" in store.skipped["moved"]
    assert "40 x 40 x 20" in store.skipped["resized"] and "40 x 40 x 24" in store.skipped["resized"]
    assert "labels.json does not name (20, 40)" in store.skipped["unnamed"]
    assert (
        "truncated" in store.skipped["cut"] and str(cohort_dir / "cut" / "ct.nii.gz") in store.skipped["cut"]
    )
    # Who asked for the store says which exams it lacks.
    assert "skipped" not in capsys.readouterr().err
    with pytest.raises(DataError, match="it was skipped"):
        store.index("cut")
    with pytest.raises(DataError, match="no exam 'x'"):
        store.index("x")
    assert prepare_cohort(cohort_dir, tmp_path / "store.h5").skipped == store.skipped
    # The store is up to date, but it lacks exams, which strict does not accept.
    with pytest.raises(DataError):
        prepare_cohort(cohort_dir, tmp_path / "store.h5", strict=True, progress=False)


def test_strict_stops_at_the_first_bad_exam(cohort_dir, tmp_path):
    ct, _ = body()
    write_volume(cohort_dir / "flat" / "ct.nii.gz", ct)
    (cohort_dir / "flat" / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="is empty") as error:
        ready(cohort_dir, tmp_path, strict=True)
    one_line(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_a_cohort_without_a_usable_exam_is_an_error(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "ct.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="none of its 1 exams can be used; the first: ") as error:
        ready(tmp_path / "data", tmp_path)
    one_line(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_an_image_that_holds_only_air_is_skipped(tmp_path):
    write_cohort(tmp_path / "data", 1)
    air = np.random.default_rng(0).normal(-1000, 5, size=(20, 20, 20)).astype(np.float32)
    write_volume(tmp_path / "data" / "air" / "ct.nii.gz", Volume(air, Grid.from_spacing(air.shape)))
    assert "holds nothing but air" in ready(tmp_path / "data", tmp_path).skipped["air"]


def test_unusual_exams_are_noted_and_others_than_hounsfield_units_skipped(tmp_path):
    ct, _ = body()
    for name, array in {
        "clipped": ct.array.clip(-200, 200),
        "raw": ct.array + 1024,
        "fine": ct.array,
    }.items():
        write_volume(tmp_path / "data" / name / "ct.nii.gz", Volume(array, ct.grid))
    with ready(tmp_path / "data", tmp_path) as store:
        assert list(store.notes) == ["clipped"] and "exactly -200" in store.notes["clipped"][0]
        assert list(store.skipped) == ["raw"] and "rescale intercept" in store.skipped["raw"]
        # The air of the clipped exam is air again.
        clipped, fine = (store.hu[store.ids.index(name)] for name in ("clipped", "fine"))
        assert ((clipped < -900) == (fine < -900)).mean() > 0.97


# -- interruption and failure -----------------------------------------------------------------------


def test_an_interrupted_build_continues(cohort_dir, tmp_path, monkeypatch):
    done: list[str] = []
    prepare_exam = build_store.prepare_exam

    def counted(exam, *rest):
        if exam.id == "e3" and "e3" not in done:
            done.append("e3")
            raise KeyboardInterrupt
        done.append(exam.id)
        return prepare_exam(exam, *rest)

    monkeypatch.setattr(build_store, "prepare_exam", counted)
    with pytest.raises(KeyboardInterrupt):
        ready(cohort_dir, tmp_path, workers=1)
    assert not (tmp_path / "store.h5").exists()
    done[:] = ["e3"]
    assert ready(cohort_dir, tmp_path, workers=1).ids == ["e1", "e2", "e3"]
    # The exams e1 and e2 were kept.
    assert done == ["e3", "e3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store.h5"]


@pytest.mark.slow
def test_a_killed_build_continues(tmp_path):
    root = write_cohort(tmp_path / "data", 12)
    code = (
        "import sys, time; from deepatlas.exams import build_store; prepare_exam = build_store.prepare_exam\n"
        "def slow(*a):\n    time.sleep(0.2); print('go', flush=True); return prepare_exam(*a)\n"
        "build_store.prepare_exam = slow; build_store.prepare_cohort(sys.argv[1], sys.argv[2], workers=1)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(tmp_path / "store.h5")],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    for _ in range(4):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "store.h5").exists()
    parts = len(list((tmp_path / ".store.h5.parts").glob("[!.]*.h5")))
    assert 2 <= parts <= 4
    assert len(ready(root, tmp_path)) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store.h5"]


@pytest.mark.slow(1)
def test_a_build_waits_for_another_process(cohort_dir, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    # This lock stands for the one that another process holds.
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    builder = threading.Thread(target=lambda: ready(cohort_dir, tmp_path).close())
    builder.start()
    builder.join(0.5)
    assert builder.is_alive() and sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    os.close(folder)
    builder.join(60)
    assert len(Store(tmp_path / "store.h5")) == 3
    assert "waiting for another process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(cohort_dir, tmp_path):
    """A limit on the file size stands for a full disk, first in the part of an exam and then in the store itself."""
    code = (
        "import os, resource, signal, sys; from deepatlas.exams.build_store import prepare_cohort\n"
        "from deepatlas.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for limit in (60_000, 500_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
        "    try:\n        prepare_cohort(sys.argv[1], sys.argv[2], progress=False)\n"
        "    except DataError as error:\n        print(error)\n"
        "    print(sorted(os.listdir(os.path.dirname(sys.argv[2]))))\n"
    )
    done = python(code, cohort_dir, tmp_path / "store.h5")
    first, left, second, left_again = done.splitlines()
    for line in (first, second):
        assert "cannot write: the file is larger than this system allows" in line
    assert ".parts" in first and str(tmp_path / "store.h5") in second
    assert left == left_again == "['data']"


def test_a_folder_that_cannot_be_created_is_one_line(cohort_dir, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write.*not a folder") as error:
        prepare_cohort(cohort_dir, tmp_path / "file" / "store.h5", progress=False)
    one_line(error.value)


# -- reading ----------------------------------------------------------------------------------------


def test_damaged_stores_are_refused_with_the_cure(cohort_dir, tmp_path):
    path = ready(cohort_dir, tmp_path).path
    whole = path.read_bytes()
    with pytest.raises(DataError, match="no such store"):
        Store(tmp_path / "none.h5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated store; delete it") as error:
        Store(cut)
    one_line(error.value)
    with h5py.File(path, "r") as file:
        hu, labels = file["hu"].id.get_offset(), file["labels_fine"].id.get_chunk_info(1)
    wrong = bytearray(whole)
    # One bit of the second exam.
    wrong[hu + 64**3 * 2 + 1000] ^= 1
    for k in range(labels.byte_offset + labels.size // 2, labels.byte_offset + labels.size // 2 + 8):
        wrong[k] ^= 0xFF
    cut.write_bytes(bytes(wrong))
    store = Store(cut)
    assert store.hu[0].any() and store.mask[:].any() and store.labels_128[0].any()
    with pytest.raises(DataError, match="hu is damaged in exam e2; delete it") as error:
        store.hu[1]
    one_line(error.value)
    with pytest.raises(DataError, match="labels_fine is damaged; delete it") as error:
        store.labels_128[1]
    one_line(error.value)
    with h5py.File(path, "r+") as file:
        del file["native_grid"]
    with pytest.raises(DataError, match="damaged store"):
        Store(path)


def test_a_store_can_be_closed_and_pickled(cohort_dir, tmp_path):
    with ready(cohort_dir, tmp_path) as store:
        first = store.hu[0]
    np.testing.assert_array_equal(store.hu[0], first)  # opens again
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).hu[0], first)
    assert "3 exams" in repr(store)


# -- real exams -------------------------------------------------------------------------------------


def test_real_exams_of_openkbp_are_prepared(real_data, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.json").write_bytes((real_data / "openkbp" / "labels.json").read_bytes())
    for exam in ("pt_1", "pt_122", "pt_143", "pt_76"):
        (tmp_path / "data" / exam).symlink_to(real_data / "openkbp" / "train" / exam)
    store = ready(tmp_path / "data", tmp_path, crop="foreground")
    assert store.ids == ["pt_1", "pt_76", "pt_122", "pt_143"] and not store.skipped
    for i in range(4):
        mask = store.mask[i].astype(bool)
        # No slice is left empty.
        assert mask.mean() > 0.2 and mask[1:-1].any(axis=(1, 2)).all()
        assert abs(store.grid(i).affine[:3, 3]).max() < 400
        for name, value in store.labels.items():
            drawn = store.labels_64[i] == value
            if store.has_label[i, list(store.labels).index(name)] and drawn.any() and name != "Larynx":
                assert mask[drawn].mean() > 0.9, (store.ids[i], name)
    right, left = (store.labels_64[2] == store.labels[f"{side}Parotid"] for side in ("Right", "Left"))
    x = [store.grid(2).voxel_to_world(np.argwhere(m).mean(0)[::-1])[0] for m in (right, left)]
    assert x[0] > x[1] + 50 or x[1] > x[0] + 50


def test_a_real_exam_of_totalsegmentator_is_cropped_to_the_patient(real_data):
    ct = read_volume(real_data / "totalsegmentator" / "ct.nii.gz")
    seg = read_volume(real_data / "totalsegmentator" / "seg.nii.gz", labels=True)
    assert ct.grid.matches(seg.grid) and seg.array.max() > 50
    model = to_model_grid(ct, crop="foreground")
    assert foreground_mask(model.array).mean() > 0.3
