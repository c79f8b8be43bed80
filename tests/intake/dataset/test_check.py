from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_dataset import add_exam, files_of, write_dataset
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.exams.checksums import file_sha256
from deepatlas.intake.dataset import folder as intake_dataset
from deepatlas.intake.dataset.check import Damage, check_dataset
from deepatlas.intake.dataset.folder import exam_name, exam_path, finish_dataset, read_dataset_json
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.intake.privacy.identity import private_folder
from deepatlas.intake.run.places import check_places
from deepatlas.sqlite import INDEX_FILES

# Number of places in every file.
FLIPS = 400 if os.environ.get("DEEPATLAS_LONG_TESTS") else 12


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("check") / "set").folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "set")


def damages(folder) -> dict[str, str]:
    found = check_dataset(folder)
    for damage in found:
        assert "\n" not in str(damage) and str(folder) not in str(damage) and damage.path in str(damage)
    return {damage.path: damage.reason for damage in found}


def test_a_whole_dataset(made):
    assert check_dataset(made) == check_dataset(made, workers=1) == []


def test_an_index_beside_it_is_no_stranger(folder):
    for name in INDEX_FILES:
        (folder / name).write_bytes(b"index")
    private_folder(folder.resolve()).mkdir()
    (private_folder(folder.resolve()) / "salt").write_bytes(b"salt")
    (folder.parent / "src").mkdir()
    check_places(folder.parent / "src", folder)
    (folder / "exams" / INDEX_FILES[0]).write_bytes(b"index")
    assert list(damages(folder)) == [f"exams/{INDEX_FILES[0]}"]


@pytest.mark.slow(1)
def test_a_flipped_bit_anywhere_is_found(folder):
    """Any bit of any file: in the values, in the structures of HDF5 and SQLite, and in unused bytes."""
    rng = np.random.default_rng(0)
    for name, whole in files_of(folder).items():
        places = {0, len(whole) - 1, *rng.integers(0, len(whole), FLIPS).tolist()}
        for place in places:
            wrong = bytearray(whole)
            wrong[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(wrong)
            assert name in damages(folder), (name, place)
        (folder / name).write_bytes(whole)
    assert check_dataset(folder) == []


@pytest.mark.slow(1)
def test_truncation_and_growth_are_found(folder):
    rng = np.random.default_rng(1)
    for name, whole in files_of(folder).items():
        for size in {0, 1, len(whole) - 1, *rng.integers(0, len(whole), FLIPS // 3).tolist()}:
            (folder / name).write_bytes(whole[:size])
            found = damages(folder)
            assert name in found, (name, size)
            if name != "dataset.json" and name != "manifest.sqlite":
                assert f"truncated, {size} of {len(whole)} bytes" in found[name]
        (folder / name).write_bytes(whole + b"\0")
        assert name in damages(folder)
        (folder / name).unlink()
        assert "missing" in damages(folder)[name] or "no such" in damages(folder)[name]
        (folder / name).write_bytes(whole)
    assert check_dataset(folder) == []


def test_only_what_is_damaged_is_named(folder):
    name = exam_name("e2")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / exam_name("e1")).unlink()
    found = damages(folder)
    assert set(found) == {name, exam_name("e1")}
    assert found[name] == "damaged or replaced (its checksum does not fit); delete it and run prepare again"


def test_strangers(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "exams" / "ab").mkdir()
    shutil.copy(folder / exam_name("e1"), folder / "exams" / "ab" / "e1.h5")
    (folder / "exams" / "ab" / "rubbish.h5").write_bytes(b"rubbish")
    (folder / "exams" / ".1234.e9.h5").write_bytes(b"half")
    (folder / "link").symlink_to(folder / "packed.h5")
    (folder / "exams" / "loop").symlink_to(folder)
    found = damages(folder)
    assert "does not belong" in found.pop("notes.txt")
    assert "not in the manifest" in found.pop("exams/ab/e1.h5")
    assert "not an exam file" in found.pop("exams/ab/rubbish.h5")
    assert "interrupted" in found.pop("exams/.1234.e9.h5")
    assert "a link" in found.pop("link") and "a link" in found.pop("exams/loop")
    assert not found


def test_a_link_instead_of_a_file(folder, tmp_path):
    shutil.move(folder / "packed.h5", tmp_path / "packed.h5")
    (folder / "packed.h5").symlink_to(tmp_path / "packed.h5")
    assert "link" in damages(folder)["packed.h5"]


def test_an_unfinished_dataset(folder):
    (folder / "dataset.json").unlink()
    assert damages(folder) == {"dataset.json": "missing; prepare has not finished here; run it again"}
    (folder / "manifest.sqlite").unlink()
    found = damages(folder)
    assert "no such manifest" in found["manifest.sqlite"]
    assert all("whole, but the manifest" in found[exam_name(exam)] for exam in ("e1", "e2", "e3"))
    with h5py.File(folder / exam_name("e1")) as file:
        place = file["ct"].id.get_chunk_info(0)
    whole = bytearray((folder / exam_name("e1")).read_bytes())
    whole[place.byte_offset + 100] ^= 1
    (folder / exam_name("e1")).write_bytes(whole)
    assert "damaged" in damages(folder)[exam_name("e1")]


def test_no_dataset(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError) as error:
            check_dataset(folder)
        one_line(error.value)


def rewritten(folder: Path) -> None:
    """Write the present checksums into dataset.json, so that only the contents of the files can reveal the damage."""
    about = read_dataset_json(folder)
    for name, known in about["files"].items():
        known |= {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    (folder / "dataset.json").write_text(intake_dataset.canonical_text(about))


def test_files_that_disagree(folder, tmp_path):
    before = files_of(folder)

    def again() -> dict[str, str]:
        rewritten(folder)
        found = damages(folder)
        for name, data in before.items():
            (folder / name).write_bytes(data)
        return found

    with closing(sqlite3.connect(folder / "manifest.sqlite")) as database, database:
        for table in ("exams", "warnings", "series"):
            database.execute(f"DELETE FROM {table} WHERE id = 'e3'")
    found = again()
    assert "2 exams, dataset.json says 3" in found["manifest.sqlite"]
    assert "not those of the manifest" in found["packed.h5"] and exam_name("e3") in found
    with Manifest(folder / "manifest.sqlite") as manifest:
        manifest.set_rows(["e2", "e1", "e3"])
    assert set(again()) == {"packed.h5"}
    other = write_dataset(tmp_path / "other", crop="foreground").folder
    shutil.copy(other / "packed.h5", folder / "packed.h5")
    assert set(again()) == {"packed.h5"}
    shutil.copy(other / exam_name("e2"), folder / exam_name("e2"))
    assert set(again()) == {exam_name("e2")}
    assert check_dataset(folder) == []


def test_an_exam_that_was_replaced(folder):
    with Manifest(folder.parent / "m.sqlite") as manifest:
        add_exam(folder, manifest, "e2", 77)
    assert set(damages(folder)) == {exam_name("e2")}


def test_killed_between_the_last_files(folder, monkeypatch):
    """Exams were added, and the run stopped before dataset.json. The check reports it, and the same call repairs it."""
    with Manifest(folder.parent / "m.sqlite") as manifest:
        add_exam(folder, manifest, "e0", 5)
    shards = [folder / "manifest.sqlite", folder.parent / "m.sqlite"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(intake_dataset, "write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            finish_dataset(folder, shards)
    assert {"manifest.sqlite", "packed.h5"} <= set(damages(folder))
    assert finish_dataset(folder, shards).ids == ["e0", "e1", "e2", "e3"]
    assert check_dataset(folder) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_files(folder):
    exam_path(folder, "e1").chmod(0)
    (folder / exam_name("e2")).parent.chmod(0)
    found = damages(folder)
    (folder / exam_name("e2")).parent.chmod(0o700)
    assert "cannot read" in found[exam_name("e1")] and any("cannot read" in r for r in found.values())


def test_damage_is_a_line():
    assert str(Damage("packed.h5", "missing")) == "packed.h5: missing"
