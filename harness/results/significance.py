"""Ranks, paired tests and intervals of a table of records; the statistics themselves are in metrics/ranking.py.

A setting is a (source, target, metric) with source ≠ target. Settings share predictions, sites and subjects, so
ranks and everything that follows from them describe; the paired comparisons are what separates two methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.metrics import ranking
from harness.metrics.catalogue import METRICS, ranked
from harness.results.aggregate import OFF_DIAGONAL, PAIR, pair_means, paired_values

LEVEL = 0.05
RESAMPLES = 2000  # ours: the ends of a 95 % interval move by about 2 % of its width from seed to seed


@dataclass(frozen=True)
class RankTest:
    """Mean ranks of methods over settings in which all of them have a value; 1 is best, ties share the average.

    metrics: those with such a setting; without: the others. left_out: methods without a single value. dropped:
    settings that lack a value of some ranked method. available_ranks: each method over all settings it has, ranked
    among those present there. statistic, p: Friedman, corrected for ties; None where it is not defined.
    critical_difference: Nemenyi at 5 %. groups: maximal runs of methods whose mean ranks differ by less than it.
    """

    metrics: tuple[str, ...]
    settings: int
    dropped: int
    mean_ranks: Mapping[str, float]
    available_ranks: Mapping[str, float]
    left_out: tuple[str, ...]
    statistic: float | None
    p: float | None
    critical_difference: float | None
    groups: tuple[tuple[str, ...], ...]
    without: tuple[str, ...] = ()
    unit: str = "source, target, metric"

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said beside the ranks."""
        metrics = ", ".join(self.metrics)
        over = f"rank: mean over {self.settings} complete settings ({self.unit} of {metrics})"
        if self.dropped:
            over += f"; {self.dropped} settings dropped, in which some method has no value"
            if self.without:
                over += f" (all of {', '.join(self.without)})"
        if not self.settings:
            over = f"no mean ranks: none of {self.dropped} settings has a value of every method"
        lines = [over]
        if self.left_out:
            lines.append(f"not ranked, without any value: {', '.join(self.left_out)}")
        if self.p is not None and self.critical_difference is not None:
            lines.append(
                f"Friedman χ² {self.statistic:.2f}, p {p_text(self.p)}; Nemenyi critical difference "
                f"{self.critical_difference:.2f}: descriptive, settings share subjects and predictions"
            )
        return tuple(lines)


@dataclass(frozen=True)
class Comparison:
    """One method against a reference on one metric, paired by (source, target, subject), seeds averaged.

    difference: mean of method − reference over cases. low, high: its 95 % BCa interval with subjects as the units,
    None for site-level metrics. p: two-sided Wilcoxon signed-rank over cases; adjusted: Holm over the `family`
    comparisons with this reference on this metric. None where there are no common cases.
    """

    metric: str
    kind: str
    method: str
    reference: str
    cases: int
    subjects: int
    unmatched: int
    family: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None

    @property
    def separated(self) -> bool:
        """Adjusted p below 5 %, and the interval over subjects, where there is one, leaves 0 out."""
        if self.adjusted is None or self.adjusted >= LEVEL:
            return False
        return self.low is None or self.high is None or self.low > 0 or self.high < 0

    @property
    def reachable(self) -> bool:
        """Whether so few cases can give an adjusted p below 5 % at all: the smallest one is family · 2^(1-cases)."""
        return self.family * 2.0 ** (1 - self.cases) < LEVEL


def p_text(p: float | None) -> str:
    """A p-value as tables show it."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def rank_test(records: pl.DataFrame, methods: Sequence[str], metrics: Sequence[str] = ()) -> RankTest | None:
    """Ranks of the methods over `metrics`, or over all that can be ranked.

    None with fewer than two methods that have values.
    """
    metrics = metrics or ranked(records["metric"].unique().sort())
    values = pair_means(records).filter(OFF_DIAGONAL & pl.col("metric").is_in(metrics))
    having = set(values["method"].unique())
    names = [name for name in methods if name in having]
    if len(names) < 2:
        return None
    settings = values.select("source", "target", "metric").unique(maintain_order=True).rows()
    column = {setting: j for j, setting in enumerate(settings)}
    table = np.full((len(names), len(settings)), np.nan)
    for row in values.iter_rows(named=True):
        table[names.index(row["method"]), column[row["source"], row["target"], row["metric"]]] = row["value"]
    left_out = tuple(name for name in methods if name not in having)
    return ranks_of(table, names, [metric for _, _, metric in settings], left_out)


def ranks_of(
    table: np.ndarray, names: Sequence[str], metrics: Sequence[str], left_out: tuple[str, ...] = (), unit: str = ""
) -> RankTest:
    """Ranks of the methods `names` in a table [methods, settings] of values of `metrics`, nan where there is none."""
    lower = [METRICS[metric].lower_is_better for metric in metrics]
    ranks, friedman = ranking.mean_ranks(table, lower), ranking.friedman(table, lower)
    mean = {n: float(r) for n, r in zip(names, ranks.mean_rank, strict=True) if math.isfinite(r)}
    difference = _number(ranking.nemenyi_cd(len(names), ranks.n_settings))
    complete = {metric for metric, column in zip(metrics, table.T, strict=True) if np.isfinite(column).all()}
    return RankTest(
        metrics=tuple(sorted(complete)),
        without=tuple(sorted(set(metrics) - complete)),
        settings=ranks.n_settings,
        dropped=ranks.n_dropped,
        mean_ranks=mean,
        available_ranks={n: float(r) for n, r in zip(names, ranks.mean_rank_available, strict=True)},
        left_out=left_out,
        statistic=_number(friedman.chi2),
        p=_number(friedman.p),
        critical_difference=difference,
        groups=_groups(mean, difference),
        **({"unit": unit} if unit else {}),
    )


def _groups(ranks: Mapping[str, float], difference: float | None) -> tuple[tuple[str, ...], ...]:
    ordered = sorted(ranks, key=lambda name: ranks[name])
    groups: list[tuple[str, ...]] = []
    reached = 0
    for i, first in enumerate(ordered):
        near = [name for name in ordered[i:] if difference is not None and ranks[name] - ranks[first] < difference]
        if len(near) > 1 and i + len(near) > reached:
            groups.append(tuple(near))
            reached = i + len(near)
    return tuple(groups)


def intervals(records: pl.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    """(method, metric) → 95 % interval of the mean over off-diagonal pairs, with subjects as the units.

    Absent for site-level metrics and for fewer than two subjects.
    """
    values = paired_values(records).filter(OFF_DIAGONAL & (pl.col("subject") != ""))
    found = {}
    for key, rows in values.group_by(["method", "metric"], maintain_order=True):
        limits = _interval(rows)
        if limits:
            found[str(key[0]), str(key[1])] = limits
    return found


def compare(
    records: pl.DataFrame,
    methods: Sequence[str],
    metrics: Sequence[str],
    best: Mapping[str, str | None],
    baseline: str,
) -> tuple[Comparison, ...]:
    """Every method against the best one (`best[metric]`) and against the baseline, metric by metric."""
    values = paired_values(records).filter(OFF_DIAGONAL)
    found: list[Comparison] = []
    for metric in metrics:
        of_metric = values.filter(pl.col("metric") == metric)
        for kind, reference in (("best", best.get(metric)), ("baseline", baseline)):
            if reference in set(of_metric["method"].unique()):
                assert reference is not None
                others = [m for m in methods if m != reference and m in set(of_metric["method"].unique())]
                found += _family(of_metric, metric, kind, others, reference)
    return tuple(found)


def _family(values: pl.DataFrame, metric: str, kind: str, others: Sequence[str], reference: str) -> list[Comparison]:
    case = ["source", "target", "subject"]
    theirs = values.filter(pl.col("method") == reference).select(*case, reference="value")
    joined = [
        values.filter(pl.col("method") == other).join(theirs, on=case, how="full", coalesce=True).sort(case)
        for other in others
    ]
    tests = [ranking.wilcoxon(_floats(rows["value"]), _floats(rows["reference"])) for rows in joined]
    adjusted = ranking.holm([test.p for test in tests])
    family = int(np.isfinite([test.p for test in tests]).sum())
    found = []
    for other, rows, test, p in zip(others, joined, tests, adjusted, strict=True):
        common = rows.drop_nulls(["value", "reference"]).with_columns(value=pl.col("value") - pl.col("reference"))
        limits = _interval(common.filter(pl.col("subject") != "")) or (None, None)
        found.append(
            Comparison(
                metric=metric,
                kind=kind,
                method=other,
                reference=reference,
                cases=test.n,
                subjects=common.filter(pl.col("subject") != "").select("target", "subject").n_unique(),
                unmatched=test.n_dropped,
                family=family,
                difference=_number(test.mean_difference),
                low=limits[0],
                high=limits[1],
                p=_number(test.p),
                adjusted=_number(float(p)),
            )
        )
    return found


def _interval(rows: pl.DataFrame) -> tuple[float, float] | None:
    """BCa interval of the mean over pairs of the means over subjects; a subject keeps all its pairs together.

    The mean is a sum over subjects of what each contributes. Taking from every contribution the mean of its stratum
    (the targets the subject was seen at) leaves the variance of a bootstrap that resamples within strata: the sites
    are the same in every resample, so differences between them do not widen the interval.
    """
    if rows.is_empty():
        return None
    pairs = rows.select(PAIR).n_unique()
    share = pl.col("value") / pl.len().over(PAIR) / pairs
    of_subject = (
        rows.with_columns(share=share)
        .group_by("subject", maintain_order=True)
        .agg(pl.col("share").sum(), stratum=pl.col("target").unique().sort().str.join("\n"))
    )
    within = pl.col("share") - pl.col("share").mean().over("stratum")
    values = of_subject.select(within * len(of_subject) + pl.col("share").sum()).to_series()
    # Rounded as the tests round: noise in equal values is no spread.
    interval = ranking.bootstrap_mean(np.round(_floats(values), ranking.DECIMALS), resamples=RESAMPLES)
    return (interval.low, interval.high) if math.isfinite(interval.low + interval.high) else None


def _floats(values: pl.Series) -> np.ndarray:
    return values.cast(pl.Float64).fill_null(math.nan).to_numpy()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
