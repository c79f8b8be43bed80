"""Plans of experiments: what is read, what is refused, and the commands that a plan stands for."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from deepatlas.cli import finetune
from deepatlas.cli.main import build_parser
from deepatlas.errors import DataError
from deepatlas.experiments.parts import parts_of, write_splits
from deepatlas.experiments.plan import check_settings, read_plan, shipped
from deepatlas.train.__main__ import add_arguments

SMALL = """
settings = ["seed=0", "train.batch=2"]
preset = "tiny"
[cohorts]
all = { path = "DATA" }
made = { phantoms = 3, first = 5, seed = 2 }
[splits]
few = { labelled = ["a", "b"] }
[evaluations.test]
cohort = "made"
exams = ["phantom_0005"]
options = ["--fast"]
template = { cohort = "all", exams = ["a"] }
[experiments.base]
cohorts = ["all", "made"]
[experiments."joint loss"]
cohorts = ["all"]
split = "few"
settings = ["train.batch=4", "loss.labels=1"]
template_exams = []
[experiments.tuned]
command = "finetune"
model = "base"
from_scratch = true
cohorts = ["all"]
split = "few"
"""


def plan_of(tmp_path, text=SMALL, **data):
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    return read_plan(str(tmp_path / "plan.toml"), data)


def refused(tmp_path, text, words, **data):
    with pytest.raises(DataError, match=words) as error:
        plan_of(tmp_path, text, **data)
    return str(error.value)


def test_a_plan_becomes_commands_that_need_each_other(tmp_path):
    parts = parts_of(plan_of(tmp_path), tmp_path / "out")
    every = parts.all
    made, base = every["phantom made"], every["train base"]
    assert made.arguments == (
        "phantom", str(made.out), "--exams", "3", "--seed", "2", "--first", "5", "--quiet",
    )  # fmt: skip
    assert made.out.name == "made"
    assert base.arguments == (
        "train", "--out", str(base.out), "--data", "DATA", "--data", str(made.out), "--preset", "tiny", "--quiet",
        "seed=0", "train.batch=2",
    )  # fmt: skip
    assert base.needs == ("phantom made",) and base.resumable
    joint = every["train joint loss"].arguments
    assert joint[-4:] == ("--quiet", "seed=0", "train.batch=4", "loss.labels=1")
    split = joint[joint.index("--split") + 1]
    write_splits(plan_of(tmp_path), tmp_path / "out")
    assert json.loads(open(split, encoding="utf-8").read()) == {"labelled": ["a", "b"]}
    tuned = every["finetune tuned"]
    assert tuned.needs == ("train base",) and "--preset" not in tuned.arguments
    assert tuned.arguments[tuned.arguments.index("--model") :][:3] == (
        "--model",
        str(base.out),
        "--from-scratch",
    )
    # One shot from one exam; with labels in the loss, from those that it reads.
    one, few = (every[f"template {name} for test"].arguments for name in ("base", "joint loss"))
    assert one[one.index("--exams") + 1] == "a" and "--split" not in one
    assert "--exams" not in few and few[few.index("--split") + 1] == split
    scored = every["evaluate base on test"]
    assert set(scored.needs) == {"train base", "phantom made", "template base for test"}
    assert scored.arguments[-4:] == ("--exams", "phantom_0005", "--fast", "--quiet")
    assert "--template" not in every["evaluate tuned on test"].arguments
    assert parts.evaluated["tuned"] == ["evaluate tuned on test"]


def test_a_plan_names_a_cohort_of_small_structures_and_its_voxel_size(tmp_path):
    text = SMALL.replace("seed = 2 }", 'structures = "all", spacing = 2, anatomy = 1 }')
    made = parts_of(plan_of(tmp_path, text), tmp_path / "out").all["phantom made"]
    assert made.arguments == (
        "phantom", str(made.out), "--exams", "3", "--seed", "0", "--first", "5", "--structures", "all",
        "--spacing", "2", "--anatomy", "1", "--quiet",
    )  # fmt: skip
    args = build_parser().parse_args(made.arguments)
    assert (args.structures, args.spacing, args.anatomy) == ("all", 2.0, 1)


def test_stages_hold_what_may_run_at_once(tmp_path):
    stages = [[p.name for p in stage] for stage in parts_of(plan_of(tmp_path), tmp_path).stages()]
    assert stages[0] == ["phantom made", "train joint loss"] and stages[1][:1] == ["train base"]
    place = {name: i for i, stage in enumerate(stages) for name in stage}
    for part in parts_of(plan_of(tmp_path), tmp_path).all.values():
        assert all(place[need] < place[part.name] for need in part.needs)


def test_a_change_makes_another_part_of_what_depends_on_it_and_of_nothing_else(tmp_path):
    def keys(text, out="out"):
        return {n: p.key for n, p in parts_of(plan_of(tmp_path, text), tmp_path / out).all.items()}

    before = keys(SMALL)
    assert keys(SMALL, "elsewhere") == before
    after = keys(SMALL.replace('cohorts = ["all", "made"]', 'cohorts = ["made"]'))
    assert {n for n in before if after[n] != before[n]} == {
        "train base", "template base for test", "evaluate base on test", "finetune tuned", "evaluate tuned on test",
    }  # fmt: skip
    after = keys(SMALL.replace('["a", "b"]', '["a"]'))
    assert {n for n in before if after[n] != before[n]} == {
        "train joint loss", "template joint loss for test", "evaluate joint loss on test", "finetune tuned",
        "evaluate tuned on test",
    }  # fmt: skip


def test_a_folder_whose_name_is_in_every_argument_changes_no_key(tmp_path):
    """A short name, such as ``--out 1``, is a part of settings, and these must count whole."""

    def keys(lr: str, out: str) -> dict[str, str]:
        plan = plan_of(tmp_path, SMALL.replace('"seed=0"', f'"train.lr={lr}"'))
        return {name: part.key for name, part in parts_of(plan, Path(out)).all.items()}

    assert keys("0.1", "1")["train base"] != keys("0.11", "1")["train base"]
    assert keys("0.1", "1") == keys("0.1", "elsewhere") == keys("0.1", str(tmp_path / "runs"))


def test_paths_of_cohorts_are_given_on_the_command_line(tmp_path):
    plan = plan_of(tmp_path, SMALL.replace('{ path = "DATA" }', "{}"), all="/there")
    assert plan.cohorts["all"].path == "/there"
    refused(
        tmp_path,
        SMALL.replace('{ path = "DATA" }', "{}"),
        "cohorts.all needs either path or phantoms.*--data all=DIR",
    )
    refused(tmp_path, SMALL, "--data al: no cohort 'al'; did you mean all", al="/x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("settings =", "setings =", "unknown key setings; did you mean settings"),
        ("split =", "splits =", "unknown key experiments.joint loss.splits; did you mean split"),
        ("first = 5", "frist = 5", "unknown key cohorts.made.frist; did you mean first"),
        ("phantoms = 3", 'phantoms = "3"', "cohorts.made.phantoms must be a whole number, got '3'"),
        ("phantoms = 3", "phantoms = true", "must be a whole number, got True"),
        ("phantoms = 3", "phantoms = 0", "phantoms must be 1 or more"),
        ("phantoms = 3", 'path = "x", phantoms = 3', "needs either path or phantoms"),
        ("seed = 2", "spacing = 0.1", r"cohorts.made: setting spacing must be null or in \[0.75, 12\], got 0.1"),
        ("seed = 2", "spacing = true", "cohorts.made.spacing must be a number, got True"),
        ("seed = 2", 'structures = "small"', "structures must be large or all, got 'small'"),
        ("seed = 2", "anatomy = -1", "cohorts.made: setting anatomy must be an integer"),
        ("seed = 2", "seed = -1", "cohorts.made: setting seed must be an integer"),
        ('exams = ["a"]', "exams = [1]", "template.exams must be a list of texts"),
        ("from_scratch = true", 'from_scratch = "yes"', "must be true or false"),
        ('command = "finetune"', 'command = "tune"', "command must be train or finetune, got 'tune'"),
        ('model = "base"\n', "", "tuned has no model"),
        ('model = "base"', 'model = "tuned"', "model leads back to itself"),
        ('cohorts = ["all", "made"]', 'cohorts = ["al"]', "experiments.base.cohorts: no cohort 'al'; did you mean all"),
        ('cohorts = ["all", "made"]', 'cohorts = ["all", "all"]', "experiments.base.cohorts names a cohort twice"),
        ('cohorts = ["all", "made"]', 'cohorts = ["all"]\noptions = ["--out=x"]', "base.options: --out=x is given by"),
        ('exams = ["a"] }', 'exams = ["a"], options = ["--model", "m"] }', "template.options: --model is given by"),
        ('command = "finetune"', 'command = "finetune"\npreset = "small"', "tuned.preset is of train alone"),
        ('model = "base"', 'model = "bse"', "no experiment, shipped model or file 'bse'; did you mean base"),
        ("[experiments.tuned]", '[experiments." "]', 'experiments." " has an empty name'),
        ('cohorts = ["all", "made"]', "cohorts = []", "experiments.base.cohorts is empty"),
        ('cohorts = ["all", "made"]', "from_scratch = true", "experiments.base has no cohorts, which it needs"),
        ('cohorts = ["all", "made"]', 'cohorts = ["all"]\nfrom_scratch = true', "is of finetune alone"),
        ('split = "few"', 'split = "fwe"', "no split 'fwe'; did you mean few"),
        ('template = { cohort = "all", exams = ["a"] }', "", "evaluations.test has none; add template"),
        ('cohort = "made"\nexams', 'cohort = "maid"\nexams', "evaluations.test.cohort: no cohort 'maid'"),
        ('preset = "tiny"', 'baseline = "bas"', "baseline: no experiment 'bas'; did you mean base"),
        ('preset = "tiny"', 'preset = "tiny', "not TOML"),
        ("[experiments.tuned]", '[experiments."Joint-Loss"]', "Joint-Loss and experiments.joint loss would have one"),
        ("[cohorts]", "[cohorts]\nbad = 3", "cohorts.bad must be a table, got 3"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused_with_file_key_and_cure(tmp_path, old, new, words):
    assert old in SMALL
    assert "plan.toml" in refused(tmp_path, SMALL.replace(old, new, 1), words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed=0", "sed=0", "experiments.base: unknown setting sed; did you mean seed"),
        (
            "train.batch=4",
            "trian.batch=4",
            "experiments.joint loss: unknown setting trian.batch; did you mean train.batch",
        ),
        ("train.batch=4", "train.batch=0", "experiments.joint loss: setting train.batch must be at least 2"),
        ('preset = "tiny"', 'preset = "tinny"', "experiments.base: .*tinny"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(tmp_path, old, new, words):
    plan = plan_of(tmp_path, SMALL.replace("loss.labels=1", "loss.prewitt=1").replace(old, new))
    with pytest.raises(DataError, match=f"plan.toml: {words}"):
        check_settings(plan, "plan.toml")
    check_settings(plan_of(tmp_path, SMALL.replace("loss.labels=1", "loss.prewitt=1")), "plan.toml")


def test_a_plan_without_experiments_or_file_is_refused(tmp_path):
    refused(tmp_path, "[cohorts]\n[evaluations]\n[experiments]\n", "experiments has no entry")
    refused(tmp_path, "", "the plan has no experiments")
    with pytest.raises(
        DataError,
        match="none.toml: cannot be read .* or one of ablations, hippocampus, openkbp, paper, phantom",
    ):
        read_plan(str(tmp_path / "none.toml"))


def test_the_plan_on_the_page_is_read(tmp_path):
    page = Path(__file__).resolve().parents[2] / "docs" / "comparing.md"
    (text,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    plan = plan_of(tmp_path, text)
    parts = parts_of(plan, tmp_path)
    assert set(parts.evaluated) == {"all", "ten percent", "joint, 2 labels", "fine-tuned"}


@pytest.mark.parametrize("name", ["paper", "phantom", "openkbp", "hippocampus", "ablations"])
def test_a_shipped_plan_is_whole(name, tmp_path):
    assert name in shipped()
    plan = read_plan(name)
    parts = parts_of(plan, tmp_path)
    assert set(parts.evaluated) == set(plan.experiments) and plan.baseline in plan.experiments
    if name in ("paper", "phantom"):
        assert {"explicit only", "implicit only"} <= set(plan.experiments) and len(plan.experiments) >= 10


@pytest.mark.parametrize("name", ["paper", "phantom", "openkbp", "hippocampus", "ablations"])
def test_the_commands_of_a_shipped_plan_are_those_of_the_command_line(name, tmp_path):
    parser, train = build_parser(), argparse.ArgumentParser()
    add_arguments(train)
    own = {"train": train, "finetune": finetune.build_parser()}
    plan = read_plan(name)
    check_settings(plan, name)
    for part in parts_of(plan, tmp_path).all.values():
        if part.arguments[0] in own:
            own[part.arguments[0]].parse_intermixed_args(part.arguments[1:])
        else:
            parser.parse_args(part.arguments)
