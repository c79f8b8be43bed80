"""What changes between two runs, and which label image belongs to which CT."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from deepatlas.errors import DataError
from deepatlas.intake.dataset.manifest import SeriesLine
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.match import Image, match
from deepatlas.intake.find.naming import parent_folder
from deepatlas.intake.find.pairs import nearest_table
from deepatlas.intake.find.records import Peek, Role
from deepatlas.intake.privacy.identity import Identity
from deepatlas.intake.run.finish import Entry
from deepatlas.intake.run.journal import Journal, Journals
from deepatlas.intake.run.options import Options
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.intake.run.pipeline import stop_at_refusal
from deepatlas.intake.run.stock import Stock
from deepatlas.intake.run.work import left_out
from deepatlas.io.dicom.found import Found, Refusal, Subject
from deepatlas.io.glance import Glance, Holds
from deepatlas.io.structures.ignored import Ignored, Why


def drawn_on(*names):
    """``{CT: its label images}`` of files of which only the names are known."""
    matched = match(Image(Found(Path("/nowhere") / n, n), Glance(Holds.UNKNOWN)) for n in names)
    return {
        ct.name: [found.name for found, _ in matched.labels.get(ct.name, ())] for ct in matched.cts
    }, matched.refused


def test_a_drawing_of_another_patient_is_not_taken():
    drawn, refused = drawn_on("a/patientA.nii.gz", "a/patientB_seg.nii.gz")
    assert drawn == {"a/patientA.nii.gz": []}
    assert [found.name for found, _ in refused] == ["a/patientB_seg.nii.gz"]


@pytest.mark.parametrize("label", ["seg.nii.gz", "tumour_seg.nii.gz", "image-label.nrrd"])
def test_a_folder_named_after_its_exam_pairs_what_is_in_it(label):
    assert drawn_on("a/image.nii.gz", f"a/{label}") == ({"a/image.nii.gz": [f"a/{label}"]}, [])


def test_the_root_of_an_archive_is_a_folder():
    assert [parent_folder(f) for f in ("a.zip!segmentations", "a.zip!x/segmentations", "x/seg", "seg")] == [
        "a.zip!", "a.zip!x", "x", "",
    ]  # fmt: skip
    assert nearest_table("data/labelsTr", {"data": {"a": 1}, "data/labelsTr": {"b": 1}}) == {"b": 1}


@pytest.mark.parametrize("own", [Status.FAILED, Status.REFUSED])
def test_what_a_shard_has_made_counts_before_another_failure(tmp_path, own):
    for name, status in (("journal.sqlite", own), ("journal-0-of-2.sqlite", Status.DONE)):
        journal = Journal(tmp_path / name)
        journal.enter(Outcome("exam", "made-of-this", status))
        journal.close()
    entry = Entry("key", "digest", "name", "", True, (), "", id="exam", fingerprint="made-of-this")
    with Journals(tmp_path, None) as journals:
        assert journals.get(entry).status is Status.DONE


@pytest.mark.parametrize("passing", [True, False], ids=["a disk that failed", "a file that is not a CT"])
def test_exams_that_cannot_be_read_for_now_have_not_left(tmp_path, passing):
    dst = tmp_path / "dst"
    for exam in ("aa01", "bb02"):
        (dst / "exams" / exam[:2]).mkdir(parents=True)
        (dst / "exams" / exam[:2] / f"{exam}.h5").touch()
    refusals = [Refusal("b", "any reason", passing=passing)]
    entries = [Entry("key", "digest", "name", "", True, (), "", id="aa01")]
    stock = Stock(dst, Identity.open(dst))
    if passing:
        with pytest.raises(DataError, match="1 of its exams are not found .* nothing was removed"):
            stock.missing(tmp_path, entries, refusals, Options(prune=True))
    else:
        assert stock.missing(tmp_path, entries, refusals, Options(prune=True)) == {"bb02"}


def test_a_journal_of_an_earlier_version_is_read(tmp_path):
    """It kept the public reasons in a list of their own."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.enter(Outcome("e1", "f", Status.REFUSED))
    refusal = {"name": "Doe", "reason": "Doe: damaged", "kind": "exam", "passing": True}
    old = {
        "id": "e1", "fingerprint": "f", "status": "done", "record": {"id": "e1"},
        "series": [["series 2", True, "taken"]],
        "refusals": [refusal], "public": [["Doe", "exam", "damaged"]], "error": "", "seconds": 1.5,
    }  # fmt: skip
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db, db:
        db.execute("UPDATE outcomes SET outcome = ?", (json.dumps(old),))
    with Journal(tmp_path / "journal.sqlite") as journal:
        outcome = journal.get("e1")
    assert outcome.status is Status.DONE and outcome.series[0].taken and outcome.seconds == 1.5
    assert outcome.refusals == [Refusal("Doe", "Doe: damaged", Subject.EXAM, True, public="damaged")]


def test_an_outcome_survives_the_journal(tmp_path):
    series = [
        SeriesLine("series 2", True, "taken: the only one"),
        SeriesLine("series 3", False, "not taken: sharp"),
    ]
    refusals = [Refusal("a", "a: damaged", Subject.SERIES, public="damaged")]
    outcome = Outcome("e1", "f", Status.FAILED, {"bytes": 7}, series, refusals, "an error", 2.0)
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.enter(outcome)
        assert journal.get("e1") == outcome and list(journal) == [outcome] and journal.get("e2") is None


def test_strict_stops_at_what_an_earlier_run_refused():
    with pytest.raises(DataError, match="b: damaged"):
        stop_at_refusal(
            Outcome("exam", "f", Status.REFUSED, refusals=[Refusal("b", "damaged", Subject.EXAM)])
        )


def test_names_of_structures_that_were_left_out_are_stated_unless_they_may_be_somebodys():
    reason = Ignored(Why.UNUSABLE, "no closed contour")
    true = {"structure 7": "Smith^John", "smith": "smith", "Heart": "Heart", "Left-Lung": "Left-Lung"}
    lines = left_out(dict.fromkeys(true, reason), true, {"heart": 1})
    hint = "; left_out.csv in the private folder has its name"
    assert [line for line, _, _ in lines] == [
        f"structure 7: left out: no closed contour{hint}",
        f"unnamed structure 2: left out: no closed contour{hint}",
        "heart: left out: no closed contour",
        "Left-Lung: left out: no closed contour",
    ]
    assert [(name, why) for _, name, why in lines] == [(name, "no closed contour") for name in true.values()]


@pytest.fixture
def catalogue(tmp_path):
    for folder in ("src", "scratch", "private"):
        (tmp_path / folder).mkdir()
    with closing(Catalogue(tmp_path / "scratch", tmp_path / "private")) as found:
        yield found


def stat(catalogue, path, name):
    catalogue.add([Found(path, name)])
    return catalogue.stat(name)


def test_a_changed_file_in_a_folder_with_an_exclamation_mark_is_noticed(catalogue, tmp_path):
    path = tmp_path / "src" / "data!2" / "ct.nii"
    path.parent.mkdir()
    path.write_bytes(b"one")
    before = stat(catalogue, path, "data!2/ct.nii")
    path.write_bytes(b"another")
    assert before != "gone" and stat(catalogue, path, "data!2/ct.nii") != before


def test_a_changed_file_of_voxels_beside_its_header_is_noticed(catalogue, tmp_path):
    header, voxels = tmp_path / "src" / "ct.mhd", tmp_path / "src" / "ct.raw"
    header.write_bytes(b"header")
    voxels.write_bytes(b"one")
    before = stat(catalogue, header, "ct.mhd")
    voxels.write_bytes(b"another")
    assert stat(catalogue, header, "ct.mhd") != before


def test_a_header_that_a_failing_disk_hid_is_read_again(catalogue, tmp_path):
    path = tmp_path / "src" / "a"
    path.write_bytes(b"x")
    catalogue.add([Found(path, "a")])
    assert catalogue.unread() == 1
    catalogue.keep([Peek("a", Role.REFUSED, refusal=Refusal("a", "the disk failed", passing=True))])
    assert catalogue.unread() == 1
    catalogue.keep([Peek("a", Role.REFUSED, refusal=Refusal("a", "not a CT"))])
    assert catalogue.unread() == 0
