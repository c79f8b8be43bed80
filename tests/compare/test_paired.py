"""Paired tests against scipy and hand-made cases, Holm's correction, and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deepatlas.compare.paired import Bootstrap, holm, interval, p_text, paired

NAN = float("nan")


def sample(exams=12, structures=5, seed=0):
    """The values of two experiments, and the numbers of the exams."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(exams), structures)
    a = rng.normal(0.7, 0.1, len(numbers))
    return a + rng.normal(0.01, 0.03, len(numbers)), a, numbers


def test_the_tests_are_scipys_paired_ones():
    a, b, exams = sample()
    p = paired(a, b, exams)
    assert p.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert p.p_t == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert p.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
    means = [(a[exams == e].mean(), b[exams == e].mean()) for e in range(12)]
    assert p.p_exams == pytest.approx(stats.ttest_rel(*zip(*means, strict=True)).pvalue)
    assert (p.pairs, p.exams, p.left_out, p.untested) == (60, 12, 0, "")
    assert p.higher + p.lower == 60 and p.higher == np.count_nonzero(a > b)


def test_a_t_test_worked_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3) with two degrees of freedom."""
    p = paired(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    t = 2 * np.sqrt(3)
    # The distribution function of t with two degrees of freedom is known in closed form.
    assert p.mean == 2 and p.p_t == pytest.approx(1 - t / np.sqrt(2 + t * t))
    # Of the eight patterns of signs, two are as extreme.
    assert p.p_wilcoxon == pytest.approx(2 / 8)


def test_pairs_without_a_value_are_left_out_and_counted():
    a, b, exams = sample()
    a[3], b[7], a[9], b[9] = NAN, np.inf, NAN, NAN
    keep = [i for i in range(60) if i not in (3, 7, 9)]
    p = paired(a, b, exams, Bootstrap(200))
    assert p.left_out == 3 and p.pairs == 57
    assert p == type(p)(**(vars(paired(a[keep], b[keep], exams[keep], Bootstrap(200))) | {"left_out": 3}))


@pytest.mark.parametrize(
    ("values", "others", "exams", "why"),
    [
        ([0.9, 0.8, 0.7], [0.5, 0.6, 0.7], [0, 0, 0], "one exam"),
        ([0.9, 0.8], [0.9, 0.8], [0, 1], "equal values"),
        ([NAN, 0.8], [0.9, NAN], [0, 1], "no pair"),
    ],
)
def test_what_cannot_be_tested_says_why_and_holds_no_nan(values, others, exams, why):
    p = paired(np.array(values), np.array(others), np.array(exams), Bootstrap(50))
    assert p.untested == why and p.p_t is p.p_wilcoxon is p.p_exams is None
    assert all(v is None or v == v for v in vars(p).values() if not isinstance(v, str))


@pytest.mark.parametrize("values", [[0.75, 0.5, 0.25], [0.8, 0.7, 0.3]])
def test_differences_that_are_all_the_same_say_nothing_by_their_spread(values):
    """Two exams whose HD95 differs by a voxel each are no proof, also where rounding leaves a spread of 1e-17."""
    others = [round(v - 0.1, 3) for v in values]
    p = paired(np.array(values), np.array(others), np.array([0, 1, 2]), Bootstrap(50))
    assert p.p_t is None and p.p_exams is None and p.untested == "equal differences"
    assert p.mean == pytest.approx(0.1) and p.p_wilcoxon == pytest.approx(2 / 2**3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("others", [[0.25, 0.25, 0.0, 0.5], [0.25, 1.0, 0.75, 0.5]])
def test_exams_that_differ_by_the_same_mean_have_no_test_over_exams(others):
    p = paired(np.array([0.5, 0.75, 0.5, 0.75]), np.array(others), np.array([0, 0, 1, 1]))
    assert p.p_t is not None and p.p_exams is None and p.untested == ""


def test_rounding_breaks_no_ties_of_wilcoxon():
    values, others = np.arange(3, 11) / 10, np.arange(2, 10) / 10
    values[::3] -= 0.3
    exact = stats.wilcoxon(np.round(values - others, 6))
    assert len(np.unique(np.abs(values - others))) > 2
    assert paired(values, others, np.arange(8)).p_wilcoxon == exact.pvalue


def test_holm_of_the_example_of_r():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.9, 0.8]) == [1.0, 1.0]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(values, alpha):
    rejected = set()
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[i] * (len(values) - rank) > alpha:
            break
        rejected.add(i)
    found = holm(values)
    assert {i for i, p in enumerate(found) if p <= alpha} == rejected
    assert all(p <= q <= min(1, p * len(values)) for p, q in zip(values, found, strict=True))


def test_an_interval_draws_whole_exams_and_repeats_by_its_seed():
    rng = np.random.default_rng(3)
    exams = np.repeat(np.arange(20), 10)
    # All pairs of an exam are the same, so that ten of them tell no more than one.
    of_exams = rng.normal(0, 1, 20)
    low, high = interval(of_exams[exams], exams, Bootstrap(4000, 1))
    once = interval(of_exams, np.arange(20), Bootstrap(4000, 1))
    assert (low, high) == pytest.approx(once)
    assert (low, high) == interval(of_exams[exams], exams, Bootstrap(4000, 1))
    assert (low, high) != interval(of_exams[exams], exams, Bootstrap(4000, 2))
    standard = of_exams.std() / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * standard, rel=0.1)
    assert low < of_exams.mean() < high


def test_an_interval_weighs_exams_by_their_pairs():
    """With 99 pairs in one exam and one in another, a draw is 0, 1, or the mean of all pairs, which is .01."""
    exams = np.array([0] * 99 + [1])
    low, high = interval(np.array([0.0] * 99 + [1.0]), exams, Bootstrap(2000))
    assert (low, high) == (0.0, 1.0)
    assert interval(np.ones(3), np.zeros(3, int), Bootstrap()) == (None, None)
    assert interval(np.ones(4), np.arange(4), Bootstrap(20)) == (1.0, 1.0)


def test_p_values_are_written_as_in_the_paper():
    assert [p_text(p) for p in (0.0004, 0.001, 0.0314, None)] == ["p < 0.001", "p = 0.001", "p = 0.031", "–"]
