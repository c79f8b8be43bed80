"""A prepared dataset is trained on, scored one-shot, and accepted by every other command."""

import contextlib
import json
import shutil

import pytest
from fast_settings import FAST
from small_exams import write_cohort
from undrawn import undrawn

from deepatlas.cli import main as cli
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.folder import exam_path, finish_dataset, write_exam
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.train.__main__ import main

pytestmark = pytest.mark.slow

FEWER = [
    "refine.steps=0",
    "loss.similarity=intensity",
    "coarse.steps=1",
    "train.steps=[1,1,1]",
    "train.head_steps=0",
]
SETTINGS = [s for s in FAST if "phantom" not in s] + FEWER


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # The last exam has no labels.
    return write_cohort(tmp_path_factory.mktemp("data") / "directory", 4)


@pytest.fixture(scope="module")
def dataset(data):
    """The same exams as a dataset, cropped as the preset crops."""
    folder, cohort = data.parent / "dataset", find_exams(data)
    with Manifest(data.parent / "m.sqlite") as manifest:
        for exam in cohort.exams:
            labels = read_volume(exam.seg, labels=True) if exam.seg else None
            path = exam_path(folder, exam.id)
            record = write_exam(path, read_volume(exam.ct), labels, cohort.labels, {}, [], crop="foreground")
            manifest.add_exam(record)
    finish_dataset(folder, [data.parent / "m.sqlite"])
    return folder


@pytest.fixture(scope="module")
def runs(data, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(out / "cache"))
        for source, drawn in ((data, False), (dataset, True)):
            where = ["--data", str(source), "--preset", "tiny", "--out", str(out / source.name)]
            with contextlib.nullcontext() if drawn else undrawn():
                assert main([*where, "--quiet", *SETTINGS]) == 0
    return out


def test_the_same_run_as_from_the_images(runs):
    """Held-out exams, template and one-shot score are exactly those of a run on the images."""
    expected, result = (
        json.loads((runs / name / "result.json").read_text()) for name in ("directory", "dataset")
    )
    assert result["test_exams"] and result["template_exams"] and result["dice"] > 0
    for key in ("seed_exam", "template_exams", "test_exams", "dice", "hd95_mm", "dice_per_structure"):
        assert result[key] == expected[key], key
    assert (runs / "dataset" / "figures" / "overview.png").stat().st_size > 10_000


def test_the_datasets_crop_is_taken_and_another_refused(dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--preset", "small", "--out", str(tmp_path / "r"), "--quiet"]
    assert main([*arguments, "data.crop=midline", *SETTINGS]) == 1
    error = capsys.readouterr().err
    assert "prepared with crop=foreground, not crop=midline" in error and len(error.splitlines()) == 1


def test_every_command_takes_a_dataset(runs, data, dataset, tmp_path, capsys):
    model, out = str(runs / "dataset"), tmp_path
    exam = exam_path(dataset, find_exams(data).exams[0].id)

    def command(*arguments) -> dict:
        assert cli.main([*map(str, arguments), "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    found = {}
    for source in (data, dataset):
        template = out / f"{source.name}.h5"
        made = command("template", "--model", model, "--data", source, "--out", template)
        scored = command(
            "evaluate", "--model", model, "--template", template, "--data", source, "--out", out / source.name,
            "--no-pictures",
        )  # fmt: skip
        found[source.name] = made["exams"], scored["dice"], scored["seconds"]["per_exam"].keys()
        segmented = command(
            "segment", "--model", model, "--template", template, source, "--out", out / f"seg-{source.name}"
        )
        assert set(segmented["segmented"]) == {*made["exams"], "e4"}
    assert found["directory"] == found["dataset"]
    names = sorted(p.name for p in (out / "seg-dataset").glob("*.nii.gz"))
    assert names == sorted(p.name for p in (out / "seg-directory").glob("*.nii.gz")) and len(names) == 4
    for name in names:
        a, b = (read_volume(out / folder / name, labels=True) for folder in ("seg-directory", "seg-dataset"))
        assert a.grid.matches(b.grid, 1e-3) and (a.array == b.array).all()
    one = command("segment", "--model", model, "--template", template, exam, "--out", out / "one")
    assert list(one["segmented"]) == [exam.stem]


def test_the_dataset_can_move(dataset, tmp_path):
    moved = shutil.copytree(dataset, tmp_path / "moved")
    assert all(exam.ct.is_relative_to(moved) and exam.ct.is_file() for exam in find_exams(moved).exams)
