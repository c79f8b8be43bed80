"""Names of exams and structures, and data that cannot be trained on, are refused before the first step of a run."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from make_dicom import write_ct
from small_exams import body, write_cohort

from deepatlas.config import Config, DataConfig
from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.tree import refuse_trees
from deepatlas.io.codec import write_volume
from deepatlas.settings import leaves
from deepatlas.train import __main__ as command
from deepatlas.train.arguments import move_settings
from deepatlas.train.request import Request
from deepatlas.train.split import choose_split


def refused(capsys, *argv) -> str:
    """The one line with which a run is refused."""
    capsys.readouterr()
    assert command.main([*map(str, argv), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("deepatlas: error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--structures", "bonne"], "no structure 'bonne'; did you mean bone?"),
        (["--structures", "bone", "lungs", "coarse.steps=20"], "did you mean lung?"),
        (["--structures", "bone", "corse=20"], "no structure 'corse=20'"),
        (["--structures", "bone", "coarse.step=20"], "setting 'coarse.step=20' is not known"),
        (["--structures", "coarse.steps=20"], "--structures names nothing but settings"),
        (["--template-exams", "e9"], "no exam 'e9'; there are: e1, e2, e3"),
        (["--template-exams", "e3"], "exam e3 has no seg"),
        (["--seed-exam", "x"], "no exam 'x'; there are: e1, e2, e3"),
        (["--test", "{data}", "--test-exams", "e9"], "no exam 'e9'"),
        (["--test", "{data}", "--test-exams", "e3"], "exam e3 has no seg"),
        (["--test", "{other}"], "shares no structure with the training data (bone, lung)"),
        (["--test", "{unlabelled}"], "none of its 1 exams has a seg"),
    ],
)
def test_wrong_names_leave_no_run(cohort_dir, tmp_path, capsys, argv, words):
    other = tmp_path / "other"
    shutil.copytree(cohort_dir, other)
    (other / "labels.json").write_text('{"spleen": 1, "heart": 2}')
    shutil.copytree(cohort_dir / "e3", tmp_path / "unlabelled" / "e3")
    places = {"data": cohort_dir, "other": other, "unlabelled": tmp_path / "unlabelled"}
    out = tmp_path / "run"
    argv = [a.format(**places) for a in argv]
    error = refused(capsys, "--data", cohort_dir, "--preset", "tiny", "--out", out, *argv)
    assert words in error and not out.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--structures", "hart"], "no structure 'hart'; did you mean heart or aorta?"),
        (["--seed-exam", "phantom_9999"], "no exam 'phantom_9999'"),
        (["--test", "d"], "--test needs --data"),
    ],
)
def test_wrong_names_of_phantoms_leave_no_run(tmp_path, capsys, argv, words):
    out = tmp_path / "run"
    assert words in refused(capsys, "--preset", "tiny", "--out", out, *argv) and not out.exists()


def test_settings_behind_a_list_of_names_are_settings():
    arguments = SimpleNamespace(
        structures=["brain", "coarse.steps=20", "PTV=60", "seed=3"], template_exams=None,
        test_exams=["a", "train.lr=1"], settings=["data.holdout=1"],
    )  # fmt: skip
    move_settings(arguments, ("test_exams", "template_exams", "structures"))
    assert (arguments.structures, arguments.test_exams) == (["brain", "PTV=60"], ["a"])
    assert set(arguments.settings) == {"data.holdout=1", "coarse.steps=20", "seed=3", "train.lr=1"}


REFUSED = {int: "-1", float: "-1", tuple: "[-1]", str: "?", bool: "7", type(None): "-1"}


@pytest.mark.parametrize("key", [key for key, *_ in leaves(Config()) if key != "preset"])
def test_a_setting_out_of_range_leaves_no_run(cohort_dir, tmp_path, capsys, key):
    value = next(value for k, value, _ in leaves(Config()) if k == key)
    out = tmp_path / "run"
    error = refused(capsys, "--data", cohort_dir, "--out", out, f"{key}={REFUSED[type(value)]}")
    assert f"setting {key} must be " in error and not out.exists()


def store(labels: dict[str, list[str]], root="data", structures=("bone", "lung")):
    """What the choice of exams asks of a store in which some structures of each exam are labelled."""
    ids = list(labels)
    return SimpleNamespace(
        ids=ids, index=ids.index, root=str(root), roots=[str(root)], path="store.h5",
        labels={s: i for i, s in enumerate(structures, 1)},
        has_label=np.array([[s in drawn for s in structures] for drawn in labels.values()]),
    )  # fmt: skip


def test_the_template_is_made_from_an_exam_that_has_the_structures():
    exams = store({"a": ["bone"], "b": ["lung"], "c": []})

    def choice(**request):
        return choose_split(
            exams, Request("out", seed_exam="a", **request), DataConfig(holdout=0), 0
        ).template

    assert choice() == ["a"]
    # Spelling does not count.
    assert choice(structures=["Lung"]) == ["b"]
    assert choice(template_exams=["a", "b"], structures=["lung", "bone"]) == ["a", "b"]
    with pytest.raises(DataError, match="data: lung is labelled in no exam of the template"):
        choice(template_exams=["a"], structures=["lung", "bone"])
    with pytest.raises(DataError, match="nothing is labelled in the template exam c"):
        choice(template_exams=["c", "a"])


def test_the_line_about_exams_that_are_held_out_names_the_setting(tmp_path):
    twelve = store({f"e{i}": ["bone"] for i in range(12)}, tmp_path)
    split = choose_split(twelve, Request("out", data=str(tmp_path), seed_exam="e0"), DataConfig(), 0)
    line = split.held_out(8)
    assert len(split.train) == len(split.test) == 6
    assert (
        line.startswith("6 of 12 labelled exams held out") and "data.holdout=8" in line and "--test" in line
    )
    everything = choose_split(
        twelve, Request("out", data=str(tmp_path), seed_exam="e0"), DataConfig(holdout=0), 0
    )
    assert len(everything.train) == 12 and everything.held_out(0) == ""


# -- data that prepare reads -------------------------------------------------------------------------------------


def test_an_archive_a_flat_folder_and_dicom_point_to_prepare(tmp_path, capsys):
    flat, series = tmp_path / "all exams", tmp_path / "series"
    archive = shutil.make_archive(str(tmp_path / "exams"), "zip", write_cohort(tmp_path / "data"))
    for name in ("a", "b"):
        write_volume(flat / f"{name}.nii.gz", body()[0])
    write_ct(series, np.zeros((5, 8, 8)), np.eye(4))
    for data, command_line in (
        (archive, f"deepatlas prepare {archive} exams-dataset"),
        (flat, f"deepatlas prepare '{flat}' 'all exams-dataset'"),
        (series, f"deepatlas prepare {series} series-dataset"),
    ):
        assert command_line in refused(capsys, "--data", data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tree_of_several_studies_points_to_prepare_and_one_study_is_an_exam(tmp_path):
    for patient in ("p1", "p2"):
        for number in (2, 3):
            write_ct(
                tmp_path / "download" / "collection" / patient / str(number), np.zeros((5, 8, 8)), np.eye(4),
                study=f"1.2.{patient[1]}", number=number,
            )  # fmt: skip
    with pytest.raises(
        DataError, match="several studies, and not one exam; make a dataset .*: deepatlas prepare"
    ):
        refuse_trees(find_exams(tmp_path / "download"))
    studies = find_exams(tmp_path / "download" / "collection")
    refuse_trees(studies)
    assert [exam.id for exam in studies.exams] == ["p1", "p2"]
