"""Calibration of trust on phantoms whose coordinates are wrong by known amounts."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from affine_model import KnownRegion
from scipy import stats
from small_exams import one_line
from truth_model import TruthModel

from deepatlas.cli.main import main
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.evaluate.calibrate.collect import collect, tabulate
from deepatlas.evaluate.calibrate.regression import Table, calibrate_table, conformal
from deepatlas.evaluate.calibrate.report import FILES, write_calibration
from deepatlas.evaluate.calibrate.run import TooFewError, calibrate, spearman
from deepatlas.evaluate.calibrate.truth import in_common_slices
from deepatlas.exams.joined import find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.localize.points import locate
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.calibration import Calibration
from deepatlas.localize.trust.estimate import exam_trust
from deepatlas.localize.trust.points import with_errors
from deepatlas.localize.trust.signs import SIGNS
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.space.grid import Grid

COUNT = 14
NAMES = ["liver", "heart", "lung_left", "brain"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    cohort = PhantomCohort(seed=2, shape=(40, 32, 36), partial=0.3)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((COUNT, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # From right to wrong by 36 mm.
    errors = {cohort.exam_id(i): directions[i] * 36 * i / COUNT for i in range(COUNT)}
    model = TruthModel(cohort, COUNT, errors, size=32)
    model.write(root)
    return root, model, model.template(NAMES, size=64)


@pytest.fixture(scope="module")
def found(made):
    root, model, template = made
    return calibrate(model, template, root, views=4)


@pytest.mark.slow(5)
def test_trust_follows_the_true_dice_and_the_bound_holds(found):
    figures = found.figures
    assert figures["rows"] > 40
    assert figures["spearman_pooled"] > 0.7 and figures["error"] < 0.6 * figures["error_of_constant"]
    assert 0.8 <= figures["coverage"] <= 1
    assert figures["poor"] > 0.1 and figures["poor_without_worst_fifth"] < 0.6 * figures["poor"]


def test_the_calibration_survives_the_template_file(found, tmp_path):
    found.template.save(tmp_path / "t.h5")
    again = Template.load(tmp_path / "t.h5")
    assert again.meta["trust"] == found.template.meta["trust"]
    assert len(json.dumps(again.meta["trust"])) < 20_000
    stored = Calibration.from_dict(again.meta["trust"])
    assert set(stored.structures) == set(NAMES) and stored.views == 4
    with pytest.raises(DeepAtlasError, match="another version"):
        Calibration.from_dict({**again.meta["trust"], "version": 0})


def test_masks_carry_their_trust_and_those_below_are_left_out(made, found):
    _, model, _ = made
    good, bad = model.exams["phantom_0000"], model.exams["phantom_0013"]
    right = segment(model, good.volume, found.template, trust=True)
    wrong = segment(model, bad.volume, found.template, trust=True)
    assert set(right.trust) == set(NAMES)
    for name, one in right.trust.items():
        assert 0 <= one.bound < one.value <= 1
        if wrong.trust[name].value is not None:
            assert wrong.trust[name].value < one.value
    assert segment(model, good.volume, found.template).trust is None
    values = {n: t.value for n, t in right.trust.items()}
    lowest = min(values, key=values.get)
    some = segment(model, good.volume, found.template, least_trust=values[lowest] + 1e-6)
    ids = found.template.labels
    assert not some.mask(ids[lowest]).any()
    for name in set(NAMES) - {lowest}:
        np.testing.assert_array_equal(some.mask(ids[name]), right.mask(ids[name]))


def test_points_carry_their_error_and_its_bound(made, found):
    _, model, _ = made
    source = model.exams["phantom_0000"]
    rng = np.random.default_rng(1)
    inside = np.argwhere(source.labels.array == source.names["liver"])
    points = source.volume.grid.voxel_to_world(inside[rng.choice(len(inside), 20)][:, ::-1])
    medians = []
    whole = [e for e in model.exams.values() if not e.partial]
    origin = exam_trust(model, model.map_exam(source.volume), found.template)
    for target in (whole[1], whole[-1]):
        plain = locate(model, points, source.volume, target.volume)
        there = exam_trust(model, model.map_exam(target.volume), found.template)
        got = with_errors(plain, there, origin, points)
        assert plain.error_mm is None
        alone = with_errors(plain, there)
        assert (alone.error_mm < got.error_mm).all()
        assert (got.bound_mm > got.error_mm).all() and (got.error_mm > 0).all()
        # The place of a point that was not found is a guess, which may be anywhere.
        lost = with_errors(replace(plain, found=np.arange(len(points)) > 0), there, origin, points)
        assert np.isnan([lost.error_mm[0], lost.bound_mm[0]]).all() and np.isfinite(lost.error_mm[1:]).all()
        medians.append(np.median(got.error_mm))
    assert medians[1] > 1.3 * medians[0]


def test_where_nobody_can_tell_the_reason_is_given(made, found):
    _, model, template = made
    exam = model.exams["phantom_0001"]
    mapped = model.map_exam(exam.volume)
    plain = exam_trust(model, mapped, template).structures["liver"]
    assert plain.value is None and plain.bound is None and "deepatlas calibrate" in plain.reason
    assert plain.to_dict() == {"trust": None, "bound": None, "reason": plain.reason}
    unknown = exam_trust(model, replace(mapped, fit=replace(mapped.fit, value=0.1)), found.template)
    assert unknown.structures["liver"].value is None and "does not know" in unknown.structures["liver"].reason
    assert np.isnan(unknown.millimetres([[0.0, 0, 0]])).all()
    for setting, said in (("refine", "--refine 8 --average 1"), ("average", "--refine 0 --average 8")):
        otherwise = copy(model)
        setattr(otherwise, setting, 8)
        used = exam_trust(otherwise, mapped, found.template).structures["liver"]
        assert used.value is None and used.reason.endswith(f"but used with {said}")
    # Calibrated were the masks that the template's own thresholds cut, and that the image corrected.
    used = exam_trust(model, mapped, found.template, threshold=0.9)
    assert used.structures["liver"].reason.endswith("but used with --threshold 0.9")
    assert used.structures["liver"].value is None
    # How far a place is off does not depend on them.
    place = [[0.0, 0, 0]]
    np.testing.assert_array_equal(
        used.millimetres(place), exam_trust(model, mapped, found.template).millimetres(place)
    )
    used = exam_trust(model, mapped, found.template, threshold=0.9, places=False)
    assert np.isnan(used.millimetres(place)).all()
    # A network of a region makes other coordinates, for which other signs count.
    cascade = copy(model)
    cascade.regions = [KnownRegion("head")]
    used = exam_trust(cascade, mapped, found.template).structures["liver"]
    assert used.value is None and used.reason.startswith(
        "calibrated with the model alone, but used with head"
    )
    cascade.depth = 0
    assert exam_trust(cascade, mapped, found.template).structures["liver"].value is not None
    more = Template(
        np.concatenate([found.template.masks, found.template.masks[:1]]), (*NAMES, "new"),
        (*found.template.ids, 99), found.template.meta,
    )  # fmt: skip
    assert "no labelled exam" in exam_trust(model, mapped, more).structures["new"].reason


@pytest.mark.slow(3)
def test_exams_of_the_template_are_judged_by_templates_without_them(made, monkeypatch):
    root, model, template = made
    of_all = replace(template, meta={**template.meta, "exams": sorted(model.exams)})
    selection = Selection(find_cohort(root), sorted(model.exams)[:10])
    drawn = {n: model.cohort.names[n] for n in NAMES}
    exams = collect(model, selection, of_all, 2, 5, drawn)
    assert {e.apart for e in exams} == {False} and sorted({e.fold for e in exams}) == list(range(5))
    used = []
    from deepatlas.evaluate.calibrate import collect as module

    whole = module.estimate_template

    def watched(items, labels, size):
        used.append({item.labels.name for item in items})
        return whole(items, labels, size)

    monkeypatch.setattr(module, "estimate_template", watched)
    table = tabulate(model, of_all, exams, drawn)
    assert len(used) == 5 and len(table.dice) > 20
    for fold, names in enumerate(used):
        assert names and not names & {e.id for e in exams if e.fold == fold}
    used.clear()
    apart = tabulate(model, template, [replace(e, apart=True) for e in exams], drawn)
    assert used == [] and len(apart.dice) >= len(table.dice)


def test_the_report_holds_the_figures_and_needs_no_other_file(found, tmp_path):
    page = write_calibration(tmp_path, found)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    text = page.read_text()
    assert "data:image/png;base64," in text and "http" not in text.replace("http-equiv", "")
    facts = json.loads((tmp_path / "calibration.json").read_text())
    assert len(facts["values"]) == facts["rows"] and facts["structures"]["liver"]["exams"] >= 10


def test_too_few_exams_and_foreign_names_are_refused(made, monkeypatch):
    root, model, template = made
    with monkeypatch.context() as patch:
        # No exam is mapped before they are counted.
        patch.setattr(model, "map_exam", None)
        with pytest.raises(TooFewError, match="3 exams are labelled, and a calibration takes 10") as error:
            calibrate(model, template, root, sorted(model.exams)[:3], views=2)
        one_line(error.value)
    other = Template(template.masks[:1], ("spleen of a fish",), (1,), template.meta)
    with pytest.raises(DataError, match="shares no structure"):
        calibrate(model, other, root)


def test_a_template_that_cannot_be_calibrated(made, tmp_path, monkeypatch, capsys):
    root, model, template = made
    out = tmp_path / "t.h5"
    command = [
        "template",
        "--model",
        "m",
        "--data",
        str(root),
        "--out",
        str(out),
        "--trust",
        "--quiet",
        "--json",
    ]
    monkeypatch.setattr("deepatlas.cli.template.model_files", lambda _: [])
    monkeypatch.setattr("deepatlas.cli.template.load_model", lambda _: model)
    few = tmp_path / "few"
    few.mkdir()
    for path in [root / "labels.json", *sorted(root.glob("phantom_*"))[:3]]:
        (few / path.name).symlink_to(path)
    # Too few are labelled: nothing is done.
    with monkeypatch.context() as patch:
        patch.setattr("deepatlas.cli.template.load_model", None)
        assert main([*command[:4], str(few), *command[5:]]) == 1
    assert "3 exams are labelled, and a calibration takes 10" in capsys.readouterr().err and not out.exists()
    # Too few can be used, which shows when the template is made: it is kept.
    monkeypatch.setattr(
        "deepatlas.localize.template.build.build_template", lambda *_, **__: made_here(template)
    )
    monkeypatch.setattr(model, "unknown", set(model.exams))
    assert main(command) == 1
    said = capsys.readouterr()
    assert "0 labelled exams can be used" in said.err and "written without trust" in said.err
    assert "written without trust" in json.loads(said.out)["error"]
    assert "trust" not in Template.load(out).meta


def made_here(template):
    return replace(template, meta={**template.meta, "skipped": {}, "fit": {}, "exams": []})


def test_dice_counts_only_the_slices_in_common():
    grid = Grid.from_spacing((10, 12, 12), (2.0, 2.0, 3.0))
    drawn, mask = np.zeros((2, 10, 12, 12), dtype=bool)
    drawn[:8, 3:7, 3:7] = True
    mask[4:, 3:7, 3:9] = True
    dice, mm = in_common_slices(drawn, mask, grid)
    assert dice == pytest.approx(2 * 16 / (16 + 24)) and 0 < mm < 4
    # The same in an array whose first axis runs along the patient's front.
    turned = Grid((12, 10, 12), grid.affine[:, [0, 2, 1, 3]])
    assert in_common_slices(drawn.transpose(1, 0, 2), mask.transpose(1, 0, 2), turned)[0] == pytest.approx(
        dice
    )
    none = in_common_slices(drawn, np.zeros_like(drawn), grid)
    assert none[0] == 0 and math.isnan(none[1])


def _table(rng, n: int, noise: float) -> Table:
    """Rows whose Dice depends on two signs, with another offset for each of three structures."""
    structure = np.arange(n) % 3
    signs = rng.standard_normal((n, len(SIGNS)))
    odds = 0.4 + 0.4 * structure + 0.4 * signs[:, SIGNS.index("agreement")]
    odds -= 0.3 * signs[:, SIGNS.index("spread")]
    dice = np.clip(1 / (1 + np.exp(-odds)) + noise * rng.standard_normal(n), 0, 1)
    mm = np.exp(0.5 + 0.4 * signs[:, SIGNS.index("spread")] + 0.2 * rng.standard_normal(n))
    return Table(["a", "b", "c"], structure, np.arange(n) // 3, (np.arange(n) // 3) % 5, signs, dice, mm)


def test_the_regression_finds_the_signs_that_count_and_its_bounds_hold_for_new_exams():
    rng = np.random.default_rng(0)
    calibration, cross = calibrate_table(_table(rng, 600, 0.03), 6)
    weights = np.array(calibration.structures["a"].weights)
    assert weights[SIGNS.index("agreement")] == pytest.approx(0.4, abs=0.08)
    assert weights[SIGNS.index("spread")] == pytest.approx(-0.3, abs=0.08)
    rest = np.delete(weights, [SIGNS.index("agreement"), SIGNS.index("spread")])
    assert np.abs(rest).max() < 0.05
    new = _table(rng, 3000, 0.03)
    said = np.array(
        [calibration.dice(new.names[s], x) for s, x in zip(new.structure, new.signs, strict=True)]
    )
    assert np.abs(said[:, 0] - new.dice).mean() < 0.035
    for row in range(3):
        own = new.structure == row
        assert 0.85 < (new.dice[own] >= said[own, 1]).mean() < 0.95
    columns = [SIGNS.index(n) for n in ("spread", "shift", "match", "fit")]
    mm, bound = calibration.millimetres(new.signs[:, columns])
    assert stats.spearmanr(mm, new.mm)[0] > 0.7 and 0.86 < (new.mm <= bound).mean() < 0.94
    assert cross.value.shape == (600,)


@pytest.mark.parametrize("folds", [[], [3]])
def test_masks_that_lie_elsewhere_than_their_drawings_are_one_line(folds):
    """Nothing is known of an error in mm, or only in one fold, by which the others cannot be judged."""
    table = _table(np.random.default_rng(0), 60, 0.03)
    apart = replace(table, mm=np.where(np.isin(table.fold, folds), table.mm, np.nan))
    with pytest.raises(DataError, match=f"20 labelled exams .* only {4 * len(folds)} of them") as error:
        calibrate_table(apart, 6)
    one_line(error.value)


def test_a_sign_may_not_speak_against_its_meaning():
    rng = np.random.default_rng(0)
    table = _table(rng, 300, 0.03)
    wrong = replace(table, signs=table.signs * np.where(np.array(SIGNS) == "agreement", -1, 1))
    calibration, _ = calibrate_table(wrong, 6)
    for one in calibration.structures.values():
        assert one.weights[SIGNS.index("agreement")] == pytest.approx(0, abs=1e-9)


def test_the_conformal_score_and_spearman_are_those_of_the_books():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        scores = rng.exponential(size=20)
        covered.append(rng.exponential() <= conformal(scores))
    # 19 of 21, with a deviation of .015 for so many trials.
    assert 0.87 < np.mean(covered) < 0.94
    # The k-th smallest of n for k = ceil(.9 (n + 1)), and the largest where there is none.
    assert [conformal(np.arange(n, 0.0, -1)) for n in (5, 9, 10, 19, 20, 29, 100)] == [
        5,
        9,
        10,
        18,
        19,
        27,
        91,
    ]
    a, b = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert spearman(np.ones(5), np.arange(5.0)) is None
