"""An index of phantoms against the truth: coverage, contrast phase, body part, and what happens between passes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from small_exams import one_line
from truth_model import CENTRE, SCALE, TruthModel

from deepatlas.cli.main import main
from deepatlas.errors import DataError, DataWarning, guarded
from deepatlas.exams.read import read_volume
from deepatlas.index import build, work
from deepatlas.index import measured as measuring
from deepatlas.index.ask import about_exam, ask, table2
from deepatlas.index.compare import departure_of, outliers, similar
from deepatlas.index.departures import departure_map
from deepatlas.index.file import IndexFile
from deepatlas.index.measured import measured, thinned
from deepatlas.io.codec import write_volume
from deepatlas.localize.segment import segment
from deepatlas.localize.template.appearance import Appearance
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.markup import Markups
from deepatlas.space.resample_to import resample_to
from deepatlas.space.volume import Volume

COUNT = 10
# Those that are enough where no value counts.
FEW = (0, 1, 2, 6, 7)
COHORT = PhantomCohort(seed=5, shape=(56, 40, 48), partial=0.6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Phantoms on disk, one of them spoilt by a large metal block, the model that knows them, and their template."""
    root = tmp_path_factory.mktemp("cohort")
    model = TruthModel(COHORT, COUNT)
    model.write(root)
    template = model.template(size=80)
    for folder in sorted(root.glob("phantom_*"))[6:]:
        (folder / "seg.nii.gz").unlink()
    odd = model.exams["phantom_0003"]
    array = odd.volume.array.copy()
    liver = np.argwhere(odd.labels.array == COHORT.names["liver"])
    z, y, x = np.median(liver, axis=0).astype(int) if len(liver) else np.array(array.shape) // 2
    array[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] = -900
    write_volume(root / "phantom_0003" / "ct.nii.gz", replace(odd.volume, array=array.astype(np.int16)))
    return root, model, template, (z, y, x)


@pytest.fixture(scope="module")
def few(made, tmp_path_factory):
    """Some of the exams."""
    data = tmp_path_factory.mktemp("few")
    for i in FEW:
        shutil.copytree(made[0] / f"phantom_{i:04d}", data / f"phantom_{i:04d}")
    shutil.copy(made[0] / "labels.json", data)
    return data


@pytest.fixture
def here(made, few, monkeypatch):
    """The worker's model and template are those of the test, at a resolution that is enough where no value counts."""
    _, model, template, _ = made
    monkeypatch.setattr(model, "size", 32)
    monkeypatch.setattr(work, "loaded", lambda tools: (model, template))
    return few, model, template


def build_here(root, model, template, out, **options):
    tools = work.Tools("truth", "truth.h5", template.names, work.template_digest(template))
    return build.build_index(
        out, [root], model, template, tools, build.IndexOptions(engine="here", **options)
    )


@pytest.fixture(scope="module")
def index(made, tmp_path_factory):
    root, model, template, _ = made
    out = tmp_path_factory.mktemp("index") / "index.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "loaded", lambda tools: (model, template))
        done = build_here(root, model, template, out)
    assert (done.exams, done.added, done.refused) == (COUNT, COUNT, {})
    with IndexFile(out) as found:
        yield found


@pytest.mark.slow(5)
def test_coverage_is_that_of_the_true_anatomy(made, index):
    _, model, template, _ = made
    _, labels = COHORT.template("none")
    whole = np.bincount(labels.array.ravel(), minlength=22) * labels.grid.voxel_volume
    large = ["brain", "spine", "lung_right", "lung_left", "heart", "liver", "stomach", "pelvis"]
    differences = []
    for exam in model.exams.values():
        # The volume of the template that each voxel of the exam shows, by its true coordinates.
        steps = np.gradient(exam.coords, axis=(3, 2, 1))
        shown = np.abs(np.linalg.det(np.stack(steps, axis=-1).transpose(1, 2, 3, 0, 4)))
        volume = np.bincount(exam.labels.array.ravel(), shown.ravel(), minlength=22)
        held = about_exam(index, exam.id)
        assert held["slices"] == exam.volume.grid.shape[0]
        for name in large:
            want = min(100.0, 100 * volume[template.labels[name]] / whole[template.labels[name]])
            differences.append(held["structures"][name]["coverage"] - want)
    # Voxels of a centimetre show a volume to some percent.
    assert abs(np.mean(differences)) < 4 and np.abs(differences).mean() < 6
    assert np.abs(differences).max() < 25


def test_structures_out_of_view_are_at_zero_and_those_in_view_at_a_hundred(made, index):
    _, model, _, _ = made
    whole = [e.id for e in model.exams.values() if not e.partial]
    assert {i for i, *_ in ask(index, "heart >= 97 and bladder >= 97 and mandible >= 97").rows} == set(whole)
    chest = [e.id for e in model.exams.values() if e.region == "head-neck-chest"]
    for exam in chest:
        held = about_exam(index, exam)["structures"]
        assert (
            held["bladder"]["coverage"] == 0
            and "hu" not in held["bladder"]
            and held["mandible"]["coverage"] >= 97
        )


def test_phases_are_those_of_the_phantoms(made, index):
    _, model, _, _ = made
    names = {"none": "none", "arterial": "arterial", "portal": "venous"}
    for exam in model.exams.values():
        assert about_exam(index, exam.id)["phase"] == names[exam.phase], exam.region
    venous = {e.id for e in model.exams.values() if e.phase == "portal"}
    assert {row[0] for row in ask(index, "phase = venous").rows} == venous


def judged_by_the_image(template):
    """The template with a say of the image: a mask is what is brighter than fat, but for lungs and airways."""
    dark = np.array([name in ("airway", "lung_right", "lung_left") for name in template.names])
    odds = np.where(dark[:, None], (2.0, -2.0), (-2.0, 2.0)).astype(np.float32)
    return replace(template, appearance=Appearance(np.array([-np.inf, -150.0]), odds, 5.0))


@pytest.mark.slow(1)
def test_volumes_and_values_are_those_of_segment(made, here, tmp_path, monkeypatch):
    root, (_, model, plain) = made[0], here
    template = judged_by_the_image(plain)
    monkeypatch.setattr(work, "loaded", lambda tools: (model, template))
    data = tmp_path / "data"
    shutil.copytree(root / "phantom_0000", data / "phantom_0000")
    shutil.copy(root / "labels.json", data)
    build_here(data, model, template, tmp_path / "i.sqlite")
    with IndexFile(tmp_path / "i.sqlite") as found:
        held = about_exam(found, "phantom_0000")["structures"]
    volume = read_volume(data / "phantom_0000" / "ct.nii.gz")
    said = segment(model, volume, template).statistics(volume)
    alone = segment(model, volume, plain).statistics(volume)
    compared = [one for one in said if "ml" in held[one.name]]
    assert len(compared) > 15
    for one in compared:
        assert held[one.name]["ml"] == pytest.approx(one.ml, abs=0.06), one.name
        assert held[one.name]["hu"] == pytest.approx(one.mean, abs=0.51), one.name
    # The image has a say, so that the masks alone would have given other volumes.
    assert sum(abs(a.ml - b.ml) > 0.05 * a.ml for a, b in zip(said, alone, strict=True)) > 5


@pytest.mark.slow(1)
def test_every_second_voxel_measures_the_same(made, monkeypatch):
    _, model, plain, _ = made
    template, exam = judged_by_the_image(plain), model.exams["phantom_0000"]
    volume = resample_to(exam.volume, exam.volume.grid.resized([2 * n for n in exam.volume.grid.shape]))
    found = model.map_exam(volume)
    every = measured(found, template, volume)
    monkeypatch.setattr(measuring, "_APART_MM", 2.1 * max(volume.grid.spacing))
    monkeypatch.setattr(measuring, "_LEAST_VOXELS", 8)
    some = measured(found, template, volume)
    for one, all_of_it in zip(some, every, strict=True):
        assert one.voxels < 0.2 * all_of_it.voxels
        # Voxels of 12 mm, four times as large as those that are ever made.
        if all_of_it.ml > 300:
            assert one.ml == pytest.approx(all_of_it.ml, rel=0.1), one.name
            assert one.mean == pytest.approx(all_of_it.mean, abs=35), one.name


def test_voxels_that_are_left_stay_where_they_are():
    affine = np.array([[0.0, -0.8, 0, 5], [0.9, 0, 0, -7], [0, 0, 4.0, 3], [0, 0, 0, 1]])
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=(70, 200, 193)), Grid((70, 200, 193), affine))
    left = thinned(volume)
    # Four millimetres stay; of the others every third, so that there are 64 at least.
    assert left.array.shape == (70, 67, 65) and left.grid.shape == left.array.shape
    assert left.grid.voxel_to_world([64, 66, 69]) == pytest.approx(volume.grid.voxel_to_world([192, 198, 69]))
    assert left.array[69, 66, 64] == volume.array[69, 198, 192]
    assert thinned(left) is left


def test_label_images_without_names_are_a_warning(here, tmp_path):
    root, model, template = here
    shutil.copytree(root / "phantom_0000", tmp_path / "data" / "phantom_0000")
    with pytest.warns(DataWarning, match=r"seg\.nii\.gz: no labels\.json names its structures"):
        build_here(tmp_path / "data", model, template, tmp_path / "data" / "index.sqlite")
    with IndexFile(tmp_path / "data" / "index.sqlite") as found:
        assert [r[0] for r in ask(found, "labelled").rows] == ["phantom_0000"]


def test_an_index_of_an_older_version_is_refused(index, tmp_path):
    old = tmp_path / "old.sqlite"
    shutil.copy(index.path, old)
    with sqlite3.connect(old) as db:
        db.execute("UPDATE about SET value = '1' WHERE name = 'version'")
    db.close()
    with pytest.raises(
        DataError, match=r"index format 1, this version reads 2; delete it, then make it again"
    ) as error:
        IndexFile(old)
    one_line(error.value)


def test_body_parts_and_table_2(made, index):
    _, model, _, _ = made
    allowed = {
        "whole": {"whole body"},
        "head-neck-chest": {"chest"},
        "chest-abdomen": {"chest", "abdomen/pelvis"},
        "abdomen-pelvis": {"abdomen/pelvis"},
    }
    for exam in model.exams.values():
        assert about_exam(index, exam.id)["body_part"] in allowed[exam.region]
    answer = table2(index)
    counts = {row[0]: row[1] for row in answer.rows}
    assert counts["total"] == COUNT == sum(counts.values()) - COUNT
    assert counts["whole body"] == sum(not e.partial for e in model.exams.values())


def test_boxes_are_covered_as_far_as_the_exam_shows_them(made, here, tmp_path, monkeypatch):
    root, (_, model, template) = made[0], here
    centre = (np.array([0.0, 0.0, 60.0]) - CENTRE) / SCALE
    box = Box("heart", centre, np.diag([40.0, 40.0, 30.0]) / SCALE)
    boxed = replace(template, marks=Markups(boxes=(box,)))
    pick = [next(e.id for e in model.exams.values() if e.region == r) for r in ("whole", "abdomen-pelvis")]
    data = tmp_path / "data"
    for exam in pick:
        shutil.copytree(root / exam, data / exam)
    shutil.copy(root / "labels.json", data)
    monkeypatch.setattr(work, "loaded", lambda tools: (model, boxed))
    build_here(data, model, boxed, tmp_path / "i.sqlite")
    with IndexFile(tmp_path / "i.sqlite") as found:
        shares = [about_exam(found, exam)["structures"]["box heart"]["coverage"] for exam in pick]
        assert shares[0] >= 97 and shares[1] <= 10
        assert {r[0] for r in ask(found, '"box heart" >= 90').rows} == {pick[0]}


def test_answers_are_sorted_by_quality_and_limited(index):
    answer = ask(index, "", 5)
    quality = [row["quality"] for row in answer.as_dicts()]
    assert quality == sorted(quality, reverse=True) and len(quality) == 5 and answer.total == COUNT
    assert len(ask(index, "", None).rows) == COUNT
    assert ask(index, "liver >= 50", 3).columns[8] == "liver"


def test_ranked_are_unlabelled_exams_with_the_largest_loss_first(index):
    rows = ask(index, rank=True).as_dicts()
    assert {row["id"] for row in rows} == {f"phantom_{i:04d}" for i in range(6, COUNT)}
    fits = [row["fit"] for row in rows]
    assert fits == sorted(fits)


def test_similar_exams_show_the_same_anatomy(made, index):
    _, model, _, _ = made
    for exam in ("phantom_0000", *(e.id for e in model.exams.values() if e.partial)):
        found = similar(index, exam)
        assert all(0 <= s.overlap <= 1 and s.id != exam for s in found)
        scores = [s.score for s in found]
        assert scores == sorted(scores, reverse=True)
        assert found[0].overlap >= np.median([s.overlap for s in found])


def test_the_spoilt_exam_departs_most_and_where_it_was_spoilt(made, index):
    root, model, template, spoilt = made
    found = outliers(index, template)
    assert found[0].id == "phantom_0003" and found[0].largest > 4
    volume = Volume(
        np.asanyarray(nibabel.load(root / "phantom_0003" / "ct.nii.gz").dataobj).astype(np.float32).transpose(2, 1, 0),
        model.exams["phantom_0003"].volume.grid, "phantom_0003",
    )  # fmt: skip
    result = departure_map(model, volume, departure_of(index, "phantom_0003"))
    assert result.grid == volume.grid and result.array.dtype == np.float32
    worst = np.unravel_index(np.abs(result.array).argmax(), result.array.shape)
    mm = np.linalg.norm(
        result.grid.voxel_to_world(np.array(worst)[::-1]) - result.grid.voxel_to_world(np.array(spoilt)[::-1])
    )
    assert mm < 45 and result.array[spoilt] < -3


def test_unknown_exams_have_no_anatomy_and_lie_last(here, tmp_path):
    root, model, template = here
    model.unknown = {"phantom_0001", "phantom_0007"}
    try:
        build_here(root, model, template, tmp_path / "i.sqlite")
    finally:
        model.unknown = set()
    with IndexFile(tmp_path / "i.sqlite") as found:
        assert about_exam(found, "phantom_0001")["structures"] == {}
        assert {r[0]: r[1] for r in table2(found).rows}["unknown"] == 2
        assert ask(found, rank=True).rows[-1][0] == "phantom_0007"
        with pytest.raises(DataError, match="does not know"):
            similar(found, "phantom_0001")
        assert {r[0] for r in ask(found, "not known").rows} == {"phantom_0001", "phantom_0007"}


def test_a_mirrored_exam_raises_the_alarm(here, tmp_path):
    root, model, template = here
    model.flipped = ("phantom_0002",)
    try:
        build_here(root, model, template, tmp_path / "i.sqlite")
    finally:
        model.flipped = ()
    with IndexFile(tmp_path / "i.sqlite") as found:
        assert [r[0] for r in ask(found, "flip = left-right").rows] == ["phantom_0002"]


def test_passes_add_change_and_drop_and_do_nothing_twice(made, here, tmp_path, capsys):
    root, (_, model, template) = made[0], here
    data = tmp_path / "data"
    for i in range(4):
        shutil.copytree(root / f"phantom_{i:04d}", data / f"phantom_{i:04d}")
    shutil.copy(root / "labels.json", data)
    out = tmp_path / "i.sqlite"
    first = build_here(data, model, template, out)
    assert (first.exams, first.added) == (4, 4)
    again = build_here(data, model, template, out)
    assert (again.exams, again.added, again.changed, again.removed) == (4, 0, 0, 0)
    shutil.rmtree(data / "phantom_0000")
    shutil.copytree(root / "phantom_0005", data / "phantom_0005")
    write_volume(data / "phantom_0001" / "ct.nii.gz", model.exams["phantom_0001"].volume)
    (data / "phantom_0002" / "ct.nii.gz").write_bytes(b"no image")
    then = build_here(data, model, template, out)
    assert (then.exams, then.added, then.changed, then.removed) == (4, 1, 1, 1)
    assert list(then.refused) == ["phantom_0002"]
    with IndexFile(out) as found:
        # What could not be read again keeps what was known of it, and does not pass as current.
        assert set(found.keys()) == {f"phantom_{i:04d}" for i in (1, 2, 3, 5)}
        assert found.outdated() == ["phantom_0002"]
    for question in (
        [],
        ["--show", "phantom_0002"],
        ["labelled"],
        ["--table2"],
        ["--similar", "phantom_0001"],
    ):
        assert main(["query", str(out), *question]) == 0
        said = capsys.readouterr().err
        assert (
            "1 of the exams could not be read" in said
            and "(phantom_0002)" in said
            and len(said.splitlines()) == 1
        )
    assert main(["query", str(out), "--show", "phantom_0001"]) == 0
    assert capsys.readouterr().err == ""
    # Two images: which of them is the exam?
    shutil.copy(root / "phantom_0002" / "ct.nii.gz", data / "phantom_0002" / "ct.nii.gz")
    shutil.copy(root / "phantom_0003" / "ct.nii.gz", data / "phantom_0003" / "ct.nrrd")
    then = build_here(data, model, template, out)
    assert (then.exams, then.changed, list(then.skipped)) == (4, 1, ["phantom_0003"])
    with IndexFile(out) as found:
        assert found.outdated() == ["phantom_0003"]
    (data / "phantom_0003" / "ct.nrrd").unlink()
    assert build_here(data, model, template, out).changed == 1
    with IndexFile(out) as found:
        assert found.outdated() == []
    shutil.copytree(root / "phantom_0000", tmp_path / "other" / "phantom_0000")
    shutil.copy(root / "labels.json", tmp_path / "other")
    with pytest.raises(DataError, match="none of its 4 exams is in these data"):
        build_here(tmp_path / "other", model, template, out)
    with IndexFile(out) as found:
        assert len(found) == 4


@pytest.mark.slow(1)
def test_a_pass_that_is_stopped_goes_on_where_it_was(here, tmp_path, monkeypatch, capsys):
    root, model, template = here
    out, seen = tmp_path / "i.sqlite", []
    whole = work.describe

    def stopped(job):
        # What was described lies in the file already, as if this process were killed now.
        with IndexFile(out) as so_far:
            assert so_far.keys().keys() == set(seen)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(job.id)
        return whole(job)

    monkeypatch.setattr(build, "describe", stopped)
    assert guarded(lambda: build_here(root, model, template, out)) == 130
    assert capsys.readouterr().err == "deepatlas: ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(build, "describe", whole)
    assert build_here(root, model, template, out).added == len(FEW) - 3


@pytest.mark.slow(1)
def test_shards_join_to_the_whole(here, tmp_path):
    root, model, template = here
    build_here(root, model, template, tmp_path / "whole.sqlite")
    parts = [tmp_path / f"{i}.sqlite" for i in range(2)]
    counts = [build_here(root, model, template, p, shard=(i, 2)).exams for i, p in enumerate(parts)]
    assert sum(counts) == len(FEW) and min(counts) > 0
    assert build.merge_indexes(tmp_path / "all.sqlite", parts) == len(FEW)
    with IndexFile(tmp_path / "all.sqlite") as joined, IndexFile(tmp_path / "whole.sqlite") as index:
        assert ask(joined, "", None).rows == ask(index, "", None).rows
        assert dict(joined.appearances()) == dict(index.appearances())


def test_an_index_of_another_model_or_template_is_not_continued(here, index, tmp_path):
    root, model, template = here
    out = tmp_path / "i.sqlite"
    shutil.copy(index.path, out)
    model.fingerprint = "other-model"
    try:
        with pytest.raises(DataError, match=r"index of another model, truth-model .*not other-model"):
            build_here(root, model, template, out)
    finally:
        model.fingerprint = "truth-model"
    with pytest.raises(DataError, match="another template"):
        build_here(root, model, template.select(["heart"]), out)
    with pytest.raises(DataError, match="made without --trust"):
        build_here(root, model, template, out, trust=True)
    with IndexFile(out) as found:
        assert len(found) == COUNT


def test_commands_answer_in_text_json_and_csv(index, capsys):
    place = str(index.path)
    assert main(["query", place, "heart >= 50 and phase = venous", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {e["phase"] for e in answer["exams"]} == {"venous"} and min(
        e["heart"] for e in answer["exams"]
    ) >= 50
    assert main(["query", place, "--table2", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("body_part,count") and lines[-1].startswith(f"total,{COUNT}")
    for arguments in (
        ["--similar", "phantom_0000"],
        ["--rank"],
        ["--outliers"],
        ["--show", "phantom_0002"],
        [],
    ):
        assert main(["query", place, *arguments]) == 0
        assert "phantom_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["heart >> 90"], "heart >^> 90"),
        (["--similar", "phantom_0099"], "no exam 'phantom_0099'"),
        (["--show", "x"], "no exam 'x'"),
        (["heart > 3", "--outliers"], "leave one of them out"),
        (["--map", "m.nii.gz"], "--map goes with --outliers"),
    ],
)
def test_wrong_questions_are_one_line(index, capsys, arguments, says):
    assert main(["query", str(index.path), *arguments]) == 1
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / "empty.sqlite").write_bytes(b"")
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be read as one " * 20)
    for name, says in (("empty", "not an index"), ("text", "not an index"), ("none", "no such index")):
        with pytest.raises(DataError, match=says) as error:
            IndexFile(tmp_path / f"{name}.sqlite")
        one_line(error.value)


def test_exams_that_vanished_are_named_and_nothing_is_lost(here, tmp_path, capsys):
    root, model, template = here
    data = tmp_path / "data"
    for i in range(2):
        shutil.copytree(root / f"phantom_{i:04d}", data / f"phantom_{i:04d}")
    shutil.copy(root / "labels.json", data)
    build_here(data, model, template, data / "index.sqlite")
    shutil.rmtree(data / "phantom_0001")
    assert main(["query", str(data)]) == 0
    said = capsys.readouterr()
    assert "phantom_0001" in said.out and "vanished" in said.err and len(said.err.splitlines()) == 1
