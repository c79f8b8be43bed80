"""Coordinates that are kept on disk: used once more, never for anything else, mended and bounded."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from affine_model import GRIDS, LABELS, exam
from affine_user import AffineUser

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.cohort import named_exams
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import Piece
from deepatlas.model.map_cache import SUFFIX, MapCache


@pytest.fixture
def files(tmp_path):
    path = write_volume(tmp_path / "e1" / "ct.nii.gz", exam(GRIDS["coarse"], "e1")[0])
    (found,) = named_exams([path]).values()
    return found


def test_an_exam_passes_the_network_once(files, tmp_path):
    model, cache = AffineUser(), MapCache(tmp_path / "kept")
    first = cache.exam(model, files)
    again = MapCache(tmp_path / "kept").exam(model, files)
    assert model.passes == 1 and (cache.hits, cache.misses) == (0, 1)
    np.testing.assert_array_equal(again.field.coords, first.field.coords)
    np.testing.assert_array_equal(again.body, first.body)
    assert again.grid == first.grid and again.field.grid == first.field.grid
    assert again.name == "e1" and again.fit == first.fit
    (entry,) = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    # The image is not kept: coordinates and one bit a voxel of the body.
    assert entry.stat().st_size < 3 * 4 * 32**3 + 32**3 // 8 + 20_000


def test_another_use_of_the_model_or_another_content_is_another_entry(files, tmp_path):
    model, cache = AffineUser(), MapCache(tmp_path / "kept")
    cache.exam(model, files)
    for name, value in (
        ("refine", 3),
        ("average", 2),
        ("fingerprint", "other"),
        ("crop", "foreground"),
        ("depth", 0),
    ):
        before = getattr(model, name)
        setattr(model, name, value)
        cache.exam(model, files)
        setattr(model, name, before)
    assert cache.hits == 0 and cache.misses == 6
    # A copy of the file elsewhere is the same exam.
    copy = tmp_path / "e2" / "ct.nii.gz"
    copy.parent.mkdir()
    copy.write_bytes(files.ct.read_bytes())
    (other,) = named_exams([copy]).values()
    assert cache.exam(model, other).name == "e2" and cache.hits == 1
    # The same name with other voxels is not.
    write_volume(copy, exam(GRIDS["plain"], "e2")[0])
    assert cache.exam(model, other).grid == GRIDS["plain"] and cache.hits == 1


def test_the_answers_of_regions_are_kept(files, tmp_path):
    model = AffineUser()

    def with_region(volume, plain=AffineUser.map_exam):
        found = plain(model, volume)
        piece = Piece("r", found.coords + 0.1, found.grid, torch.rand(1, 1, 32, 32, 32))
        return ExamMap(found.coords, found.grid, found.hu, found.body, found.fit, (piece,))

    model.map_exam = with_region
    cache = MapCache(tmp_path / "kept")
    first, again = cache.exam(model, files), cache.exam(model, files)
    assert cache.hits == 1
    points = np.random.default_rng(0).uniform(-40, 40, (50, 3))
    np.testing.assert_array_equal(again.field.at(points), first.field.at(points))
    assert again.field.pieces[0].name == "r"


def test_what_is_unusual_about_an_exam_is_said_for_kept_coordinates_too(files, tmp_path):
    model = AffineUser()

    def noted(volume, plain=AffineUser.map_exam):
        found = plain(model, volume)
        return replace(found, fit=replace(found.fit, notes=("air lies near -1300",)))

    model.map_exam = noted
    cache = MapCache(tmp_path / "kept")
    cache.exam(model, files)
    with pytest.warns(DataWarning, match="ct.nii.gz: air lies near -1300"):
        assert cache.exam(model, files).fit.notes == ("air lies near -1300",)
    assert cache.hits == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_entry_is_made_again_with_a_line(files, tmp_path, damage):
    model, cache = AffineUser(), MapCache(tmp_path / "kept")
    whole = cache.exam(model, files)
    (entry,) = (tmp_path / "kept").iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "bit":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        model.refine = 9
        cache.exam(model, files)
        model.refine = 0
        (stranger,) = set((tmp_path / "kept").iterdir()) - {entry}
        content = bytearray(stranger.read_bytes())
    entry.write_bytes(content)
    with pytest.warns(DataWarning, match="damaged coordinates of e1 .*; they are made again"):
        mended = cache.exam(model, files)
    np.testing.assert_array_equal(mended.field.coords, whole.field.coords)
    assert cache.exam(model, files) is not None and cache.hits == 1


def test_the_folder_is_bounded_and_the_oldest_go_first(tmp_path):
    model = AffineUser()
    exams = []
    for i in range(4):
        ct = exam(GRIDS["coarse"], f"e{i}")[0]
        ct.array[0, 0, 0] = i
        exams += named_exams([write_volume(tmp_path / f"e{i}" / "ct.nii.gz", ct)]).values()
    cache = MapCache(tmp_path / "kept")
    cache.exam(model, exams[0])
    size = next((tmp_path / "kept").iterdir()).stat().st_size
    cache.limit = int(2.5 * size)
    cache.exam(model, exams[1])
    for age, path in enumerate(sorted((tmp_path / "kept").iterdir(), key=lambda p: p.stat().st_mtime_ns)):
        os.utime(path, ns=(10**9 * age, 10**9 * age))
    # The first is used again, so that the second is the oldest.
    cache.exam(model, exams[0])
    cache.exam(model, exams[2])
    assert len(list((tmp_path / "kept").glob(f"*{SUFFIX}"))) == 2
    hits = cache.hits
    cache.exam(model, exams[0])
    assert cache.hits == hits + 1
    cache.exam(model, exams[1])
    assert cache.hits == hits + 1


def test_a_folder_that_cannot_be_written_to_costs_a_line_and_no_result(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, and the cache of coordinates is a folder"):
        MapCache(tmp_path / "file")
    with pytest.warns(DataWarning, match="the coordinates of e1 are not kept"):
        assert MapCache(tmp_path / "file" / "below").exam(AffineUser(), files).name == "e1"
    assert MapCache.beside(tmp_path / "none") is None and MapCache.beside("headneck") is None
    # A folder that holds no model may be called as a shipped one, which is then used.
    assert MapCache.beside(tmp_path) is None
    (tmp_path / "model.pt").touch()
    assert MapCache.beside(tmp_path).folder == tmp_path / "coordinates"


FULL_DISK = """
import resource, signal, sys, warnings
from affine_user import AffineUser
from deepatlas.exams.cohort import named_exams
from deepatlas.model.map_cache import MapCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
(files,) = named_exams([sys.argv[1]]).values()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = MapCache(sys.argv[2]).exam(AffineUser(), files)
print(found.name, *(w.message for w in said))
"""


@pytest.mark.slow(2)
def test_a_full_disk_costs_a_line_and_no_result(files, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(files.ct), str(tmp_path / "kept")], capture_output=True,
        encoding="utf-8", env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("e1 ") and "cannot write" in done.stdout and "are not kept" in done.stdout
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_methods_of_a_model_use_its_cache(files, tmp_path):
    model = AffineUser()
    model.cache = MapCache(tmp_path / "kept")
    for _ in range(3):
        found = model.locate([[1.0, 2.0, 3.0]], str(files.ct), files.ct)
        np.testing.assert_allclose(found.points, [[1.0, 2.0, 3.0]], atol=0.02)
    assert model.passes == 1


def test_a_template_that_was_interrupted_goes_on_with_the_coordinates_that_are_kept(tmp_path):
    data = tmp_path / "data"
    for name, grid in (("e1", "coarse"), ("e2", "anisotropic"), ("e3", "oblique")):
        ct, seg = exam(GRIDS[grid], name)
        write_volume(data / name / "ct.nii.gz", ct)
        write_volume(data / name / "seg.nii.gz", seg)
    (data / "labels.json").write_text(json.dumps(LABELS))
    plain = build_template(AffineUser(), data, size=32)

    model, kept = AffineUser(), tmp_path / "kept"

    def stopped(files, volume):
        if files.id == "e3":
            raise KeyboardInterrupt
        return MapCache(kept).exam(model, files, volume, keep_image=True)

    with pytest.raises(KeyboardInterrupt):
        build_template(model, data, size=32, know=stopped)
    assert model.passes == 2
    for passes in (3, 3):
        made = build_template(model, data, size=32, know=partial(MapCache(kept).exam, model))
        assert model.passes == passes
        np.testing.assert_array_equal(made.masks, plain.masks)
        np.testing.assert_array_equal(made.appearance.log_odds, plain.appearance.log_odds)
        assert made.meta == plain.meta
