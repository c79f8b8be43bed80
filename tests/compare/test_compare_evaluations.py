"""compare_evaluations and its command: what is computed, written and refused."""

from __future__ import annotations

import csv
import json
import re
from math import inf

import numpy as np
import pytest
from made_evaluations import CONVENTIONS, many, row, write_evaluation
from scipy import stats

from deepatlas.cli.main import main
from deepatlas.compare.evaluations import compare_evaluations
from deepatlas.compare.report import OUTPUTS
from deepatlas.errors import DataError

STRUCTURES = ["brain", "lens_left", "lens_right", "parotid 50% & more", "spinal|canal"]
FAST = {"resamples": 200}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three experiments of five structures in eight exams."""
    root = tmp_path_factory.mktemp("compared")
    folders = many(root, ["one", "two", "three"], STRUCTURES, 8)
    out = root / "out"
    return compare_evaluations(folders, out, show=["brain"], **FAST), out, folders


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pair_of(root, **changes):
    """Two evaluations of three exams; ``changes`` are those of the rows of the second."""
    first = {(e, s): row(e, s, 0.8, 3.0) for e in ("e1", "e2", "e3") for s in ("liver", "lens")}
    second = dict(first)
    for key, value in changes.get("rows", {}).items():
        if value is None:
            del second[key]
        else:
            second[key] = value
    return [
        write_evaluation(root / "a", list(first.values())),
        write_evaluation(
            root / "b", list(second.values()), conventions=changes.get("conventions", CONVENTIONS)
        ),
    ]


def refused(evaluations, out, words, **options):
    with pytest.raises(DataError, match=words):
        compare_evaluations(evaluations, out, **{**FAST, **options})
    assert not out.exists(), "a comparison that was refused wrote something"


def test_differences_and_p_values_are_those_of_the_rows(compared):
    facts, out, folders = compared
    scores = [[(float(r["dice"]), float(r["hd95_mm"])) for r in table(f / "metrics.csv")] for f in folders]
    one, two = np.array(scores[0]), np.array(scores[1])
    found = facts["measures"]["dice"]["differences"][0]
    assert (found["experiment"], found["minus"]) == ("two", "one")
    assert found["mean"] == pytest.approx((two[:, 0] - one[:, 0]).mean())
    assert found["p_t"] == pytest.approx(stats.ttest_rel(two[:, 0], one[:, 0]).pvalue)
    both = np.isfinite(one[:, 1]) & np.isfinite(two[:, 1])
    assert not both.all(), "the test needs a missed structure"
    found = facts["measures"]["hd95_mm"]["differences"][0]
    assert found["p_t"] == pytest.approx(stats.ttest_rel(two[both, 1], one[both, 1]).pvalue)
    assert found["left_out"] == np.count_nonzero(~both)
    assert (
        facts["measures"]["hd95_mm"]["experiments"]["one"]["pairs"]["pairs"] == np.isfinite(one[:, 1]).sum()
    )
    assert len(facts["experiments"]["one"]["missed"]) == np.isinf(one[:, 1]).sum()


def test_all_files_are_written_and_the_page_needs_no_other(compared):
    facts, out, _ = compared
    assert {p.name for p in out.iterdir()} == set(OUTPUTS)
    assert json.loads((out / "comparison.json").read_text()) == facts
    page = (out / "comparison.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r">(nan|inf|None)[ <%]", page)
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page
    assert "parotid 50% &amp; more" in page
    assert (out / "performance.pdf").read_bytes().startswith(b"%PDF")


def test_csv_files_hold_every_value_and_name_what_is_missing(compared):
    facts, out, folders = compared
    values = table(out / "values.csv")
    assert len(values) == 4 * 8 * 5
    own = {(r["exam"], r["structure"]): r for r in table(folders[1] / "metrics.csv")}
    for r in values:
        value = own[r["exam"], r["structure"]][r["metric"]]
        assert r["two"] == ("" if value == "inf" else value)
    missing = table(out / "missing.csv")
    assert len(missing) == sum(len(e["missed"]) for e in facts["experiments"].values()) > 0
    for r in missing:
        found = {
            (q["exam"], q["structure"]): q
            for q in table(out.parent / r["experiment"] / "evaluation/metrics.csv")
        }
        assert float(found[r["exam"], r["structure"]]["predicted_ml"]) == 0
    pairs = table(out / "pairs.csv")
    assert {(r["family"], r["experiment"], r["minus"]) for r in pairs if r["metric"] == "dice"} == {
        ("all", "two", "one"), ("all", "three", "one"), ("all", "three", "two"),
        ("baseline", "two", "one"), ("baseline", "three", "one"),
    }  # fmt: skip
    means = {r["structure"]: float(r["value"]) for r in table(out / "structures.csv")
             if (r["metric"], r["experiment"]) == ("dice", "three")}  # fmt: skip
    of = [float(r["dice"]) for r in table(folders[2] / "metrics.csv") if r["structure"] == "brain"]
    assert means["brain"] == pytest.approx(np.mean(of), rel=1e-5) and list(means) == STRUCTURES


def test_holm_is_over_the_family_of_each_table(compared):
    facts, _, _ = compared
    of = facts["measures"]["dice"]
    p = {(d["experiment"], d["minus"]): d for d in of["differences"]}
    smallest = min(p.values(), key=lambda d: d["p_t"])
    assert smallest["p_t_holm"] == pytest.approx(min(1, 3 * smallest["p_t"]))
    lines = sorted(of["differences_from_baseline"], key=lambda d: d["p_t"])
    assert lines[0]["p_t_holm"] == pytest.approx(min(1, 2 * lines[0]["p_t"]))
    cells = [d for s in of["structures"] for d in s["differences_from_baseline"].values()]
    first = min(cells, key=lambda d: d["p_t"])
    assert first["p_t_holm"] == pytest.approx(min(1, len(STRUCTURES) * 2 * first["p_t"]))


def test_a_missed_structure_counts_as_dice_0_and_has_no_distance(tmp_path):
    folders = pair_of(tmp_path, rows={("e1", "lens"): row("e1", "lens", 0.0, inf)})
    facts = compare_evaluations(folders, tmp_path / "out", **FAST)
    assert facts["experiments"]["b"]["missed"] == [["", "e1", "lens"]]
    dice, hd95 = facts["measures"]["dice"], facts["measures"]["hd95_mm"]
    assert (
        dice["differences"][0]["mean"] == pytest.approx(-0.8 / 6) and dice["differences"][0]["left_out"] == 0
    )
    assert hd95["differences"][0]["mean"] == 0 and hd95["differences"][0]["left_out"] == 1
    assert facts["measures"]["surface_dice"]["experiments"]["b"]["mean_of_structures"] == pytest.approx(0.75)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert (
        "1 of 12 predictions are missing" in text
        and "e1 / lens" in (tmp_path / "out/comparison.html").read_text()
    )


def test_a_structure_that_is_never_found_has_no_distance_in_the_tables(tmp_path):
    gone = {(e, "lens"): row(e, "lens", 0.0, inf) for e in ("e1", "e2", "e3")}
    facts = compare_evaluations(pair_of(tmp_path, rows=gone), tmp_path / "out", **FAST)
    lens = facts["measures"]["hd95_mm"]["structures"][1]
    assert lens["means"] == {"a": pytest.approx(3.0), "b": None}
    assert lens["differences_from_baseline"]["b"]["untested"] == "no pair"
    assert re.search(r"\| lens +\| +3\.000 \| +n/a \|", (tmp_path / "out" / "comparison.md").read_text())
    assert facts["measures"]["hd95_mm"]["experiments"]["b"]["mean_of_structures"] == pytest.approx(3.0)


def test_different_exams_are_refused_by_name_or_compared_where_common(tmp_path):
    folders = pair_of(
        tmp_path,
        rows={("e2", "liver"): None, ("e2", "lens"): None, ("e9", "liver"): row("e9", "liver", 0.5, 2.0)},
    )
    refused(folders, tmp_path / "out", "different exams: a lacks e9; b lacks e2; .*--common")
    facts = compare_evaluations(folders, tmp_path / "out", common=True, **FAST)
    assert facts["pairs"] == 4 and facts["exams"] == 2
    assert facts["experiments"]["a"]["left_out"] == [["", "e2", "liver"], ["", "e2", "lens"]]
    assert facts["experiments"]["b"]["left_out"] == [["", "e9", "liver"]]
    assert "b: 1 pairs are left out" in (tmp_path / "out" / "comparison.html").read_text()
    assert {r["what"] for r in table(tmp_path / "out" / "missing.csv")} == {"left out"}


def test_different_structures_and_drawings_are_refused(tmp_path):
    every = {(e, "lens"): None for e in ("e1", "e2", "e3")}
    refused(pair_of(tmp_path / "x", rows=every), tmp_path / "out", "different structures: b lacks lens")
    once = pair_of(tmp_path / "y", rows={("e3", "lens"): None})
    refused(once, tmp_path / "out", "different structures of exams: b lacks e3 / lens")
    other = write_evaluation(tmp_path / "z" / "b", [row("e7", "heart", 0.5, 1)])
    refused(
        [tmp_path / "y" / "a", other], tmp_path / "out", "no structure of any exam .* in all", common=True
    )


def test_another_reference_or_definition_is_refused(tmp_path):
    changed = pair_of(tmp_path / "x", rows={("e1", "liver"): row("e1", "liver", 0.8, 3.0, reference=11.0)})
    refused(changed, tmp_path / "out", "e1 / liver has a reference of 10 ml in a and of 11 ml in b")
    refused(changed, tmp_path / "out", "e1 / liver has a reference", common=True)
    peak = pair_of(tmp_path / "y", conventions=CONVENTIONS | {"hd95_name": "max"})
    refused(peak, tmp_path / "out", r"HD95 is defined otherwise \(max\) .*\(mean\).*--hd95")
    wide = pair_of(tmp_path / "z", conventions=CONVENTIONS | {"tolerance_mm": 2.0})
    refused(wide, tmp_path / "out", r"another tolerance \(2.0\) .*--tolerance")


def test_folders_that_cannot_be_compared_are_refused(tmp_path):
    a, b = pair_of(tmp_path)
    out = tmp_path / "out"
    refused([a, tmp_path / "none"], out, "none: no such folder")
    (tmp_path / "empty").mkdir()
    refused([a, tmp_path / "empty"], out, "empty: holds no evaluation")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused([a, tmp_path / "empty"], out, "empty: the run has no evaluation")
    refused([a, tmp_path / "b" / ".." / "a"], out, "is the same evaluation as")
    refused([a], out, "two experiments are needed, got 1")
    refused([f"x={a}", f"x={b}"], out, "two experiments are needed, got 1")
    refused([a, b], out, "no experiment 'aa' for the baseline; did you mean a", baseline="aa")
    refused([a, b], out, "no structure 'livr' to show; did you mean liver", show=["livr"])
    refused([a, b], out, "2 evaluations and 1 names", names=["x"])
    refused([a, b], out, "a name is empty", names=["", "x"])
    (b / "summary.json").unlink()
    refused([a, b], out, r"has metrics.csv and no summary.json")
    (b / "metrics.csv").write_text("exam,structure\n")
    (b / "summary.json").write_text("{}")
    refused([a, b], out, r"metrics.csv: has no column dice")


def test_nothing_that_is_read_is_overwritten(tmp_path):
    a, b = pair_of(tmp_path)
    (a / "comparison.md").write_text("mine")
    with pytest.raises(DataError, match="comparison.md: .*would be overwritten"):
        compare_evaluations([a, b], a, **FAST)
    assert (a / "comparison.md").read_text() == "mine"
    before = {p.name: p.read_bytes() for p in b.iterdir()}
    compare_evaluations([a, b], b, **FAST)
    assert all((b / name).read_bytes() == content for name, content in before.items())


def test_a_single_exam_has_no_test_and_says_so(tmp_path):
    folders = [
        write_evaluation(tmp_path / n, [row("e", s, d, 2) for s, d in (("liver", d), ("lens", d / 2))])
        for n, d in (("a", 0.5), ("b", 0.7))
    ]
    facts = compare_evaluations(folders, tmp_path / "out", **FAST)
    found = facts["measures"]["dice"]["differences"][0]
    assert found["mean"] == pytest.approx(0.15) and found["p_t"] is None and found["untested"] == "one exam"
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "no test: one exam" in page and "There is one exam alone" in page
    assert not re.search(r">[^<]*\bnan\b", page)


def test_evaluations_without_surface_dice_are_compared_by_what_all_have(tmp_path):
    a, b = pair_of(tmp_path)
    lines = [line.split(",") for line in (a / "metrics.csv").read_text().splitlines()]
    (a / "metrics.csv").write_text("".join(",".join(c[:6]) + "\n" for c in lines))
    facts = compare_evaluations([a, b], tmp_path / "out", **FAST)
    assert list(facts["measures"]) == ["dice", "hd95_mm"]
    assert facts["not_measured"] == {"surface_dice": ["a"], "asd_mm": ["a"]}
    assert "ASD is not compared: the evaluations of a lack it" in (tmp_path / "out/comparison.md").read_text()


def test_names_are_those_of_runs_and_tell_them_apart(tmp_path):
    rows = [row(e, "liver", 0.5, 2) for e in ("a", "b")]
    folders = [
        write_evaluation(tmp_path / "x" / "run" / "evaluation", rows),
        write_evaluation(tmp_path / "y" / "run" / "evaluation", rows),
        write_evaluation(tmp_path / "y" / "run" / "evaluation-refined", rows),
        write_evaluation(tmp_path / "loss=mse", rows),
    ]
    given = [folders[0].parent, folders[1].parent, folders[2], folders[3], f"my own={tmp_path / 'copy'}"]
    write_evaluation(tmp_path / "copy", rows)
    facts = compare_evaluations(given, tmp_path / "out", **FAST)
    assert list(facts["experiments"]) == ["x/run", "y/run", "run (refined)", "loss=mse", "my own"]


def test_order_and_baseline_are_chosen(tmp_path):
    folders = [
        write_evaluation(tmp_path / name, [row(f"e{i}", "liver", level + i / 100, 2) for i in range(3)])
        for name, level in (("worst", 0.5), ("best", 0.7), ("middle", 0.6))
    ]
    facts = compare_evaluations(folders, tmp_path / "out", sort=True, **FAST)
    assert list(facts["experiments"]) == ["best", "middle", "worst"] and facts["baseline"] == "worst"
    facts = compare_evaluations(folders, tmp_path / "out", baseline="middle", **FAST)
    found = facts["measures"]["dice"]["differences_from_baseline"]
    assert {d["experiment"]: d["mean"] for d in found} == pytest.approx({"worst": -0.1, "best": 0.1})


def test_an_experiment_may_be_evaluated_on_several_cohorts(tmp_path):
    given = []
    for name, level in (("A", 0.5), ("B", 0.6)):
        for data, count in (("OAR", 3), ("ORG", 1)):
            # Both cohorts have an exam e0 and a structure "lung", which are not the same.
            rows = [row(f"e{i}", "lung", level + 0.1 * (data == "ORG") + i / 100, 2) for i in range(count)]
            folder = write_evaluation(tmp_path / f"{name}-{data}", rows, data=f"/d{name}/{data}")
            given.append(f"{name}={folder}")
    facts = compare_evaluations(given, tmp_path / "out", **FAST)
    assert list(facts["experiments"]) == ["A", "B"] and facts["exams"] == 4
    means = facts["measures"]["dice"]["experiments"]["A"]
    assert means["mean_of_structures, OAR"] == pytest.approx(0.51)
    assert means["mean_of_structures, ORG"] == pytest.approx(0.6)
    assert means["mean_of_structures"] == pytest.approx(0.555)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "**OAR**" in text and "average of all" in text
    refused([*given[:3], f"B={tmp_path / 'A-OAR'}"], tmp_path / "o", "is the same evaluation")
    refused(given[:3], tmp_path / "o", "different exams: B lacks ORG / e0")
    again = write_evaluation(tmp_path / "again", [row("e0", "lung", 0.5, 2)], data="/x/OAR")
    refused([*given, f"A={again}"], tmp_path / "o", "A has two evaluations of OAR")


@pytest.mark.parametrize("odd", ["$x_1$ \\frac", "<b>&_%#{", "\udcfc肝", "a" * 120])
def test_names_may_hold_anything_that_names_of_files_hold(tmp_path, odd):
    folders = [write_evaluation(tmp_path / n, [row(e, "liver", 0.5, 2) for e in ("a", "b")]) for n in "xy"]
    compare_evaluations(folders, tmp_path / "out", names=[odd, "plain"], **FAST)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<b>&_" not in page and "plain" in page


def test_a_failed_experiment_is_in_the_tables(tmp_path):
    compare_evaluations(pair_of(tmp_path), tmp_path / "out", failed={"MSE": "the run ended"}, **FAST)
    for name in ("comparison.html", "comparison.md", "comparison.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert "MSE failed: the run ended" in text and "n/a" in text


@pytest.mark.slow(1)
def test_the_command_prints_the_means_and_where_the_report_is(compared, tmp_path, capsys):
    _, _, folders = compared
    out = tmp_path / "out"
    argv = ["compare", *map(str, folders), "--out", str(out), "--names", "A", "B", "C", "--resamples", "20"]
    assert main([*argv, "--baseline", "B", "--sort"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:2] == ["experiment", "Dice"] and str(out / "comparison.html") in text
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline"] == "A"
    assert main(["compare", str(folders[0]), str(tmp_path / "none"), "--out", str(out)]) == 1
    assert "none: no such folder" in capsys.readouterr().err
