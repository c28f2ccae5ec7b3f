"""Ranks over settings and their tests: Friedman, Nemenyi, paired tests, Holm, and bootstrap intervals.

Source of the rank procedures: Demšar, JMLR 2006. The settings of a benchmark are not independent (two metrics of
the same predictions are two settings), so p-values over settings are too small: use ranks to describe, and paired
tests over subjects to compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

ENUMERATED = 13
"""Largest n whose signs are all tried where there are ties or zeros: what scipy does, in 8192 rows."""

Floats = NDArray[np.float64]

DECIMALS = 12  # floating noise below this would split tied differences into ranks; ours


@dataclass(frozen=True)
class Ranks:
    """Ranks of k methods over settings; 1 is best, ties share their average.

    mean_rank: float64 [k] over complete settings, those in which every method has a value; nan without any.
    n_settings: the complete ones; n_dropped: the others.
    mean_rank_available: float64 [k], the sensitivity check: ranks among the methods present in each setting, averaged
    over the settings where the method has a value (n_available, int64 [k], of them); nan without any.
    """

    mean_rank: Floats
    n_settings: int
    n_dropped: int
    mean_rank_available: Floats
    n_available: NDArray[np.int64]


@dataclass(frozen=True)
class Friedman:
    """Do k methods differ over n complete settings? chi2 is corrected for ties; F is Iman and Davenport's.

    All four are nan for fewer than three methods, without complete settings and where all ranks are tied.
    """

    chi2: float
    p: float
    f: float
    f_p: float
    k: int
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Two-sided test of a - b over n complete pairs (n_zero of them equal, n_dropped others incomplete)."""

    statistic: float
    p: float
    mean_difference: float
    n: int
    n_zero: int
    n_dropped: int


@dataclass(frozen=True)
class Interval:
    """An estimate, its confidence interval and bootstrap standard error, from n values."""

    estimate: float
    low: float
    high: float
    standard_error: float
    n: int


def mean_ranks(table: ArrayLike, lower_is_better: bool | Sequence[bool]) -> Ranks:
    """Mean ranks of methods; `table` [methods, settings] holds scores, nan where a cell is missing.

    lower_is_better: for every setting, or one value for all. Raises ValueError where the shapes do not fit.
    """
    from scipy.stats import rankdata

    costs = _costs(table, lower_is_better)
    complete = ~np.isnan(costs).any(axis=0)
    ranks = rankdata(costs, axis=0, nan_policy="omit") if costs.size else costs
    present = ~np.isnan(costs)
    n_available = present.sum(axis=1)
    return Ranks(
        mean_rank=_mean_or_nan(ranks[:, complete].sum(axis=1), np.full(len(costs), complete.sum())),
        n_settings=int(complete.sum()),
        n_dropped=int((~complete).sum()),
        mean_rank_available=_mean_or_nan(np.where(present, ranks, 0).sum(axis=1), n_available),
        n_available=n_available,
    )


def friedman(table: ArrayLike, lower_is_better: bool | Sequence[bool]) -> Friedman:
    """Friedman's test on the complete settings; arguments and errors as for `mean_ranks`."""
    from scipy.stats import f as f_distribution
    from scipy.stats import friedmanchisquare

    costs = _costs(table, lower_is_better)
    costs = costs[:, ~np.isnan(costs).any(axis=0)]
    k, n = costs.shape
    if k < 3 or n == 0 or (costs == costs[0]).all():
        return Friedman(math.nan, math.nan, math.nan, math.nan, k, n)
    result = friedmanchisquare(*costs)
    chi2 = float(result.statistic)
    if n == 1:
        return Friedman(chi2, float(result.pvalue), math.nan, math.nan, k, n)
    rest = n * (k - 1) - chi2
    # Nothing is left where all settings agree on one ranking; rounding leaves a trace of it.
    f = (n - 1) * chi2 / rest if rest > 1e-9 * n * k else math.inf
    return Friedman(chi2, float(result.pvalue), f, float(f_distribution.sf(f, k - 1, (k - 1) * (n - 1))), k, n)


@lru_cache(maxsize=64)
def nemenyi_cd(k: int, n: int, alpha: float = 0.05) -> float:
    """Critical difference of the mean ranks of k methods over n settings: q·sqrt(k(k+1)/6n).

    Two methods differ at level alpha where their mean ranks do by at least this much. q is the studentised range
    over √2 with infinite degrees of freedom; ties are not corrected for. nan for k < 2 or n < 1.
    """
    from scipy.stats import studentized_range

    if k < 2 or n < 1:
        return math.nan
    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


def paired_t(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Student's paired t-test over cases, [n] each; pairs with a nan are dropped and counted.

    statistic and p are nan for fewer than two pairs or where all differences are the same: there is no spread to
    measure the mean against. Raises ValueError where the lengths differ.
    """
    from scipy.stats import ttest_1samp

    difference, n_dropped = _differences(a, b)
    statistic = p = math.nan
    if difference.size > 1 and np.ptp(difference) > 0:
        result = ttest_1samp(difference, 0.0)
        statistic, p = float(result.statistic), float(result.pvalue)
    return _paired_test(statistic, p, difference, n_dropped)


def wilcoxon(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Wilcoxon's signed-rank test over cases, [n] each; pairs with a nan are dropped and counted.

    Zero differences are ranked and then left out (Pratt, JASA 1959); no continuity correction. The p-value is exact
    without ties and zeros up to n = 50 and, by permutation, with them up to 13; asymptotic beyond. Where all
    differences are zero it is 1 (every change of signs gives the same statistic; scipy says nan). nan without pairs.
    Raises ValueError where the lengths differ.
    """
    from scipy import stats

    difference, n_dropped = _differences(a, b)
    if difference.size == 0:
        statistic = p = math.nan
    elif not difference.any():
        statistic, p = 0.0, 1.0
    else:
        magnitudes = np.abs(difference)
        even = np.unique(magnitudes).size == magnitudes.size and magnitudes.all()
        if difference.size <= ENUMERATED and not even:
            statistic, p = _signed_rank_by_enumeration(difference)
        else:
            result = stats.wilcoxon(difference, zero_method="pratt", correction=False)
            statistic, p = float(result.statistic), float(result.pvalue)
    return _paired_test(statistic, p, difference, n_dropped)


def _signed_rank_by_enumeration(difference: Floats) -> tuple[float, float]:
    """Statistic and two-sided p over all 2^n signs, [n] with ties or zeros; scipy does it in a Python loop."""
    from scipy import stats

    n = difference.size
    ranks = np.where(difference == 0, 0.0, stats.rankdata(np.abs(difference)))
    positive = float(ranks[difference > 0].sum())
    signs = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    sums = signs @ ranks
    low, high = float(np.mean(sums <= positive)), float(np.mean(sums >= positive))
    return min(positive, float(ranks.sum()) - positive), min(1.0, 2 * min(low, high))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values, float64 [m] in the order given; compare them with the level itself.

    nan stays nan and does not count among the m tests. Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def bootstrap_mean(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0, method: str = "BCa"
) -> Interval:
    """The mean of one value per subject, [n], with its bootstrap interval (Efron, JASA 1987; scipy's BCa).

    Give subjects, or differences of paired subjects, never slices: those of one subject are not independent.
    method: "BCa", "percentile" or "basic". Equal values give an interval of no width; a single one gives nan
    bounds, none nan throughout. Raises ValueError for values that are not finite.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not np.isfinite(sample).all():
        raise ValueError("the bootstrap needs a list of finite values; leave missing subjects out and count them")
    n = sample.size
    if n < 2:
        return Interval(float(sample[0]) if n else math.nan, math.nan, math.nan, math.nan, n)
    if np.ptp(sample) == 0:
        value = float(sample[0])
        return Interval(value, value, value, 0.0, n)
    result = bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(sample.mean()), float(low), float(high), float(result.standard_error), n)


def _costs(table: ArrayLike, lower_is_better: bool | Sequence[bool]) -> Floats:
    """The table with the sign turned where higher is better, so that lower is better everywhere."""
    scores = np.asarray(table, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores must be [methods, settings], not shape {scores.shape}")
    lower = np.asarray(lower_is_better, np.bool_)
    if lower.shape not in ((), (scores.shape[1],)):
        raise ValueError(f"{scores.shape[1]} settings need as many directions, not shape {lower.shape}")
    return np.where(lower, scores, -scores)


def _mean_or_nan(total: Floats, count: NDArray[np.int64]) -> Floats:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _differences(a: ArrayLike, b: ArrayLike) -> tuple[Floats, int]:
    """a - b of the complete pairs, rounded to DECIMALS, and how many pairs were incomplete."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired tests need two lists of one length, not shapes {first.shape} and {second.shape}")
    complete = ~(np.isnan(first) | np.isnan(second))
    return np.round(first[complete] - second[complete], DECIMALS), int((~complete).sum())


def _paired_test(statistic: float, p: float, difference: Floats, n_dropped: int) -> PairedTest:
    mean = float(difference.mean()) if difference.size else math.nan
    return PairedTest(statistic, p, mean, difference.size, int((difference == 0).sum()), n_dropped)
