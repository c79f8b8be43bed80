"""``deepatlas index`` as a user calls it: processes, the shipped model, and what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from small_exams import one_line, write_cohort

from deepatlas.cli.main import main
from deepatlas.errors import DataError
from deepatlas.exams.checksums import image_files
from deepatlas.index import compare
from deepatlas.index.build import merge_indexes
from deepatlas.index.file import About, Entry, IndexFile, locked
from deepatlas.index.work import content_key

HEADNECK = ("--model", "headneck", "--template", "headneck")


@pytest.mark.slow(4)
def test_index_describes_a_data_directory_in_processes(tmp_path, capsys):
    data = write_cohort(tmp_path / "data", 2)
    assert main(["index", str(data), *HEADNECK, "--fast", "--jobs", "1", "--json", "--quiet"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["exams"], done["added"], done["failed"]) == (2, 2, {})
    assert main(["query", str(data), "labelled", "--json"]) == 0
    (exam,) = json.loads(capsys.readouterr().out)["exams"]
    # An elliptic trunk is no head, and the model says so.
    assert exam["id"] == "e1" and exam["known"] is False and exam["body_part"] is None
    assert main(["index", str(data), *HEADNECK, "--fast", "--jobs", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 0
    assert main(["index", str(data), *HEADNECK, "--jobs", "1", "--quiet"]) == 1
    assert "made with --refine 0, not 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{data}", "--shard", "0/2", *HEADNECK], "give --out FILE"),
        (["{data}", "--out", "{data}", *HEADNECK], "is a folder"),
        (["{data}", "--out", "{data}/e1/ct.nii.gz", *HEADNECK], "suffix of another format"),
        (["{data}", "--trust", *HEADNECK, "--structures", "Larynx"], "no calibration"),
        (["{data}", "--average", "2", *HEADNECK], "--average"),
        (["{data}", "--depth", "0", *HEADNECK], "--depth"),
        (["{data}/none", *HEADNECK], "no such data directory"),
        (["{data}/none.sqlite", "--merge", "--out", "{data}/i.sqlite"], "no such index"),
        (["{data}"], "give --model M"),
    ],
)
def test_what_cannot_be_indexed_is_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    data = write_cohort(tmp_path / "data", 2)
    # A shipped template may be calibrated by now; here it is not.
    from deepatlas.localize.template.file import Template

    load = Template.load

    def plain(path):
        found = load(path)
        found.meta.pop("trust", None)
        return found

    monkeypatch.setattr(Template, "load", plain)
    assert main(["index", *(a.format(data=data) for a in arguments), "--quiet"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and len(error) == 1
    assert not (data / "index.sqlite").exists()


ABOUT = About("model", "template", ("heart",), 0, False, "m", "t.h5", ("/data",))


def test_an_index_goes_on_with_the_regions_that_it_was_made_with(tmp_path):
    path = tmp_path / "i.sqlite"
    IndexFile.create(path, ABOUT).close()
    cascade = replace(ABOUT, regions=("head 0123456789ab",))
    with pytest.raises(
        DataError, match="made with no regions of the model, which now has head 0123456789ab"
    ) as error:
        IndexFile.create(path, cascade)
    one_line(error.value)
    IndexFile.create(tmp_path / "j.sqlite", cascade).close()
    with IndexFile.create(tmp_path / "j.sqlite", cascade) as again:
        assert again.about == cascade


def test_a_merged_index_is_none_of_its_parts(tmp_path, capsys):
    IndexFile.create(tmp_path / "a.sqlite", ABOUT).close()
    before = (tmp_path / "a.sqlite").read_bytes()
    merge = ["index", str(tmp_path / "a.sqlite"), "--merge", "--out"]
    assert main([*merge, str(tmp_path / "a.sqlite")]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "a.sqlite").read_bytes() == before
    assert main([*merge, str(tmp_path / "b.sqlite"), "--quiet"]) == 0


def test_shards_that_do_not_belong_together_leave_nothing(tmp_path, capsys):
    first, other, out = tmp_path / "a.sqlite", tmp_path / "b.sqlite", tmp_path / "out.sqlite"
    with IndexFile.create(first, ABOUT) as index:
        index.put([Entry("e1", "/data/e1/ct.nii.gz", "key", {"fit": 0.5})])
    with IndexFile.create(other, replace(ABOUT, refine=20)) as index:
        index.put([Entry("e2", "/data/e2/ct.nii.gz", "key", {"fit": 0.5})])
    with pytest.raises(DataError, match="not of the same model, template and settings"):
        merge_indexes(out, [first, other])
    assert not out.exists() and {p.name for p in tmp_path.glob("*.sqlite")} == {"a.sqlite", "b.sqlite"}
    assert main(["index", str(first), "--merge", "--model", "nosuch", "--out", str(out)]) == 1
    assert main(["index", str(first), "--merge", "--model", "headneck", "--out", str(out)]) == 1
    assert "a.sqlite: of another model, model; give that one" in capsys.readouterr().err
    assert not out.exists()
    assert main(["index", str(first), "--merge", "--out", str(out), "--quiet"]) == 0
    before = out.read_bytes()
    with pytest.raises(DataError, match="made with --refine 0, not 20"):
        merge_indexes(out, [other])
    assert out.read_bytes() == before
    with IndexFile.create(tmp_path / "c.sqlite", ABOUT) as index:
        index.put([Entry("e3", "/data/e3/ct.nii.gz", "key", {"fit": 0.5})])
    # An index that is there is added to.
    assert merge_indexes(out, [tmp_path / "c.sqlite"]) == 2


def test_a_damaged_index_is_not_told_to_be_made_over_itself(tmp_path, capsys):
    data = write_cohort(tmp_path / "data", 1)
    (data / "index.sqlite").write_bytes(b"")
    for command in (["query", str(data)], ["index", str(data), *HEADNECK, "--quiet"]):
        assert main(command) == 1
        assert "delete it, then make it again with `deepatlas index`" in capsys.readouterr().err
    (data / "index.sqlite").unlink()


def test_a_map_of_nothing_is_one_line(tmp_path, capsys, monkeypatch):
    # As with exams none of which show the same places.
    monkeypatch.setattr(compare, "outliers", lambda *_: [])
    IndexFile.create(tmp_path / "a.sqlite", ABOUT).close()
    assert main(["query", str(tmp_path / "a.sqlite"), "--outliers", "--map", str(tmp_path / "m.nii.gz")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "no exam can be compared" in error


def test_one_program_at_a_time_makes_an_index(tmp_path):
    IndexFile.create(tmp_path / "a.sqlite", ABOUT).close()
    out = tmp_path / "out" / "b.sqlite"
    with locked(out), pytest.raises(DataError, match=r"another `deepatlas index` works on b\.sqlite"):
        merge_indexes(out, [tmp_path / "a.sqlite"])
    assert not out.exists()
    assert merge_indexes(out, [tmp_path / "a.sqlite"]) == 0 and out.exists()


def test_new_voxels_of_a_detached_header_are_another_exam(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    for name, voxels in (("ct.mhd", "ct.raw"), ("mr.nhdr", "mr.raw")):
        sitk.WriteImage(image, str(tmp_path / name))
        paths, key = image_files(tmp_path / name), content_key(tmp_path / name)
        assert [p.name for p in paths] == [name, voxels] and content_key(tmp_path / name) == key
        os.utime(tmp_path / voxels, ns=(1, 1))
        assert content_key(tmp_path / name) != key
