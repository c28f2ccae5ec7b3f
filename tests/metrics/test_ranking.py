"""Ranks, tests and intervals, against enumeration and published answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from harness.metrics.ranking import bootstrap_mean, friedman, holm, mean_ranks, nemenyi_cd, paired_t, wilcoxon

cells = st.one_of(st.integers(0, 6).map(float), st.just(math.nan))
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(0, 6)), elements=cells)


def rank_by_counting(column: np.ndarray, i: int, lower: bool) -> float:
    """1 + methods strictly better + half the other methods that tie."""
    values = column if lower else -column
    return 1 + float((values < values[i]).sum()) + 0.5 * (float((values == values[i]).sum()) - 1)


@given(tables, st.lists(st.booleans(), min_size=6, max_size=6))
@settings(deadline=None, max_examples=80)
def test_ranks_equal_counting(table: np.ndarray, directions: list[bool]) -> None:
    lower = directions[: table.shape[1]]
    ranks = mean_ranks(table, lower)
    complete = [j for j in range(table.shape[1]) if not np.isnan(table[:, j]).any()]
    assert (ranks.n_settings, ranks.n_dropped) == (len(complete), table.shape[1] - len(complete))
    for i in range(len(table)):
        own = [rank_by_counting(table[:, j], i, lower[j]) for j in complete]
        assert ranks.mean_rank[i] == pytest.approx(np.mean(own) if own else math.nan, nan_ok=True)
        there = [j for j in range(table.shape[1]) if not np.isnan(table[i, j])]
        own = [rank_by_counting(table[:, j], i, lower[j]) for j in there]
        assert ranks.mean_rank_available[i] == pytest.approx(np.mean(own) if own else math.nan, nan_ok=True)
        assert ranks.n_available[i] == len(there)


def test_direction_is_per_setting() -> None:
    dsc_then_hd95 = [[80.0, 3.0], [70.0, 5.0], [60.0, 9.0]]
    assert mean_ranks(dsc_then_hd95, [False, True]).mean_rank.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="2 settings need as many directions"):
        mean_ranks(dsc_then_hd95, [True])
    with pytest.raises(ValueError, match=r"\[methods, settings\]"):
        mean_ranks([1.0, 2.0], True)


def test_friedman_of_perfect_agreement() -> None:
    table = np.arange(4.0)[:, None] + np.zeros(6)
    result = friedman(table, True)
    assert result.chi2 == pytest.approx(6 * 3)
    assert (result.f, result.f_p, result.k, result.n) == (math.inf, 0, 4, 6)


@pytest.mark.parametrize(
    "table",
    [np.ones((4, 5)), np.random.default_rng(0).random((2, 5)), np.full((4, 5), np.nan), np.zeros((4, 0))],
    ids=["all tied", "two methods", "nothing complete", "no settings"],
)
def test_friedman_is_nan_where_it_is_not_defined(table: np.ndarray) -> None:
    result = friedman(table, True)
    assert all(math.isnan(v) for v in (result.chi2, result.p, result.f, result.f_p))


def test_friedman_uses_complete_settings_and_their_direction() -> None:
    table = np.random.default_rng(1).random((4, 8))
    holed = np.concatenate([table, table[:, :2]], axis=1)
    holed[1, 8:] = np.nan
    assert friedman(holed, True) == friedman(table, True)
    turned = table * np.where(np.arange(8) < 3, -1, 1)
    assert friedman(turned, [False] * 3 + [True] * 5) == friedman(table, True)


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (5, 2.728), (8, 3.031), (9, 3.102)])
def test_nemenyi_has_the_published_quantiles(k: int, q: float) -> None:
    assert nemenyi_cd(k, 13) == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 13)), rel=2e-4)
    assert math.isnan(nemenyi_cd(1, 13))
    assert math.isnan(nemenyi_cd(k, 0))


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
@settings(deadline=None, max_examples=40)
def test_wilcoxon_is_the_enumeration_of_signs(differences: list[int]) -> None:
    """Pratt: zeros are ranked, then left out; all signs of the others are equally likely."""
    size = np.abs(differences)
    rank = np.array([rank_by_counting(size, i, True) for i in range(len(size))])
    live, signs = rank[size > 0], np.sign([d for d in differences if d])
    larger = [
        sum(r for r, s in zip(live, s_, strict=True) if s > 0) for s_ in itertools.product([-1, 1], repeat=live.size)
    ]
    observed = sum(r for r, s in zip(live, signs, strict=True) if s > 0)
    share = min(sum(v <= observed + 1e-9 for v in larger), sum(v >= observed - 1e-9 for v in larger)) / len(larger)
    result = wilcoxon(np.array(differences, float), np.zeros(len(differences)))
    assert result.p == pytest.approx(min(1.0, 2 * share), abs=1e-9)
    assert (result.n, result.n_zero) == (len(differences), differences.count(0))


def test_wilcoxon_ignores_floating_noise() -> None:
    rng = np.random.default_rng(5)
    base, step = rng.integers(700, 900, 30), rng.integers(-4, 9, 30)
    exact = wilcoxon((base + step).astype(float), base.astype(float))
    assert wilcoxon((base + step) / 1000, base / 1000).p == exact.p


def test_paired_tests_drop_and_count_incomplete_pairs() -> None:
    a, b = np.array([1.0, 2.5, 3.0, np.nan, 5.0, 9.0]), np.array([0.5, 2.0, np.nan, 1.0, 4.0, 7.0])
    complete = [0, 1, 4, 5]
    for test in (paired_t, wilcoxon):
        result, expected = test(a, b), test(a[complete], b[complete])
        assert (result.statistic, result.p) == (expected.statistic, expected.p)
        assert (result.n, result.n_dropped) == (4, 2)
        assert result.mean_difference == 1.0


def test_paired_t_by_hand() -> None:
    result = paired_t([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert result.statistic == pytest.approx(2 / math.sqrt(1 / 3))
    assert result.p == pytest.approx(0.0741799, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_paired_t_needs_spread(shift: float) -> None:
    a = np.array([0.3, 0.5, 0.9])
    assert math.isnan(paired_t(a + shift, a).p)


def test_degenerate_wilcoxon() -> None:
    same = wilcoxon([0.1, 0.2], [0.1, 0.2])
    assert (same.statistic, same.p, same.n_zero) == (0, 1, 2)
    assert math.isnan(wilcoxon([], []).p)
    with pytest.raises(ValueError, match="one length"):
        wilcoxon([1.0], [1.0, 2.0])


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
@settings(deadline=None, max_examples=80)
def test_holm_rejects_what_stepping_down_rejects(p: list[float]) -> None:
    adjusted = holm(p)
    tested = sorted((v, i) for i, v in enumerate(p) if not math.isnan(v))
    for level in (0.01, 0.05, 0.3, 0.9):
        rejected = set()
        for step, (value, i) in enumerate(tested):
            if value * (len(tested) - step) > level:
                break
            rejected.add(i)
        assert {i for i, v in enumerate(adjusted) if v <= level} == rejected
    assert [math.isnan(v) for v in adjusted] == [math.isnan(v) for v in p]


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_percentile_interval_is_the_quantiles_of_resampled_means() -> None:
    values = np.random.default_rng(2).gamma(2.0, size=21)
    index = np.random.default_rng(9).integers(0, 21, (500, 21))
    means = values[index].mean(axis=1)
    got = bootstrap_mean(values, resamples=500, seed=9, method="percentile")
    np.testing.assert_array_equal([got.low, got.high], np.quantile(means, [0.025, 0.975]))
    assert got.standard_error == pytest.approx(means.std(ddof=1))


def test_bca_shifts_towards_the_long_tail_and_repeats() -> None:
    values = np.random.default_rng(2).gamma(0.5, size=40)
    bca, percentile = (bootstrap_mean(values, resamples=2000, method=m) for m in ("BCa", "percentile"))
    assert bca.low > percentile.low
    assert bca.high > percentile.high
    assert bca.low < bca.estimate < bca.high
    assert bca == bootstrap_mean(values, resamples=2000)


def test_degenerate_bootstrap() -> None:
    constant = bootstrap_mean([0.1, 0.1, 0.1])
    assert (constant.estimate, constant.low, constant.high, constant.standard_error) == (0.1, 0.1, 0.1, 0.0)
    single = bootstrap_mean([0.7])
    assert (single.estimate, single.n) == (0.7, 1)
    assert math.isnan(single.low)
    assert math.isnan(bootstrap_mean([]).estimate)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, math.nan])


@pytest.mark.parametrize("n", [3, 6, 9])
def test_wilcoxon_with_ties_and_zeros_equals_scipys_enumeration(n: int) -> None:
    for seed in range(4):
        difference = np.random.default_rng(seed).integers(-2, 4, n) / 8
        if not difference.any():
            continue
        ours = wilcoxon(difference, np.zeros(n))
        theirs = stats.wilcoxon(difference, zero_method="pratt", correction=False)
        assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)
        assert ours.statistic == pytest.approx(theirs.statistic)
