"""The leaderboard of a results folder: means, coverage, ranks and tests, as frozen rows that tables render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from harness.metrics.catalogue import METRICS, MetricInfo
from harness.results import age_entries, ages, aggregate, anomaly_tables, board_notes, records, runinfo
from harness.results.age_tables import AgeTables
from harness.results.ages import Found
from harness.results.aggregate import Failure
from harness.results.anomaly_sizes import BINNED, MARK
from harness.results.anomaly_tables import COSTS, BySetting
from harness.results.remarks import REMARKS, read_lines
from harness.results.runinfo import RunInfo
from harness.results.significance import Comparison, RankTest, compare, intervals, rank_test


@dataclass(frozen=True)
class Score:
    """One metric of one method over its off-diagonal cells; values in the unit of the records.

    mean, sd: over source–target pairs, population SD; None without a value, sd also in an anomaly benchmark of one
    setting. Of brain ages sd is that of the absolute errors beside an MAE, else None. low, high: 95 % interval of the
    mean, None where it is not defined. seed_sd: over seeds; None with one seed. in_domain: mean over the diagonal
    cells, None where the method was not run there. The counts are cells (seed, source, target), `penalised` is records.
    """

    metric: str
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    seed_sd: float | None = None
    in_domain: float | None = None
    pairs: int = 0
    expected: int = 0
    scored: int = 0
    failed: int = 0
    blocked: int = 0
    absent: int = 0
    empty: int = 0
    penalised: int = 0

    @property
    def applicable(self) -> bool:
        """Whether the method is expected to have this metric anywhere."""
        return self.expected > 0

    @property
    def complete(self) -> bool:
        """Whether every expected cell was scored; only such means are compared with one another."""
        return self.scored > 0 and self.scored + self.empty == self.expected

    @property
    def lacking(self) -> bool:
        """Whether a cell that has something to measure is without a value."""
        return self.scored + self.empty < self.expected

    @property
    def text(self) -> str:
        """Mean ± SD as tables show it, marked if incomplete; "–" where not applicable, "failed" without a value.

        The SD over seeds stands where there is none over pairs, and nothing where there is neither.
        """
        info = METRICS[self.metric]
        if self.mean is None:
            return "failed" if self.failed + self.blocked + self.absent else "–"
        sd = self.seed_sd if self.sd is None else self.sd
        spread = "" if sd is None else f" ± {info.text(sd)}"
        return info.text(self.mean) + spread + ("" if self.complete else MARK)

    @property
    def interval_text(self) -> str:
        """Both ends of the interval as tables show them; "–" where there is none."""
        info = METRICS[self.metric]
        return "–" if self.low is None else f"{info.text(self.low)} to {info.text(self.high)}"


@dataclass(frozen=True)
class Row:
    """One method. `cells` and `failed_cells` count (seed, source, target) of all metrics, diagonal included.

    oracle: tuned by the target's labels; such rows come last, have no position, and enter no rank, test or best.
    """

    position: int | None
    method: str
    id: str
    family: str
    reference: str
    traits: Mapping[str, bool]
    scores: Mapping[str, Score]
    mean_rank: float | None
    available_rank: float | None
    cells: int
    failed_cells: int
    oracle: bool = False

    @property
    def shown_name(self) -> str:
        """The row's name as tables show it: an oracle is named as one."""
        return f"{self.method} (oracle)" if self.oracle else self.method


@dataclass(frozen=True)
class Leaderboard:
    """Rows best first by the headline metric; rows with missing cells come after all complete ones.

    anomaly: what the means over settings are made of; None for a track whose cells have a source and a target.
    ages: the same of brain ages, whose rows are of the largest set of training scans; None for another track.
    """

    info: RunInfo
    rows: tuple[Row, ...]
    ranks: RankTest | None
    comparisons: tuple[Comparison, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    anomaly: BySetting | None = None
    ages: AgeTables | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that at least one row has, the headline first; those of bins have no mean that says anything."""
        headline = self.info.headline
        seen = [m for m in self.info.metrics if any(row.scores[m].applicable for row in self.rows)]
        return tuple(sorted((m for m in seen if m == headline or m not in BINNED), key=lambda m: m != headline))

    @property
    def score_metrics(self) -> tuple[str, ...]:
        """Those of the metrics that are no costs, nor the SD that stands beside another, unless one is the headline."""
        apart = (*COSTS, *(("error_sd",) if self.ages and "mae" in self.metrics else ()))
        return tuple(m for m in self.metrics if m == self.info.headline or m not in apart)

    @property
    def traits(self) -> tuple[str, ...]:
        """Names of the traits that any row declares, in order of appearance."""
        return tuple(dict.fromkeys(trait for row in self.rows for trait in row.traits))

    @property
    def failed_cells(self) -> int:
        """Number of cells (method, seed, source, target) that lack a result."""
        return len({(f.method, f.seed, f.source, f.target) for f in self.failures})

    def metric(self, metric: str) -> MetricInfo:
        """What a metric is called here: errors of brain ages are in the unit of the ages."""
        return METRICS[metric].in_unit(self.ages.unit) if self.ages else METRICS[metric]

    @property
    def chosen(self) -> str:
        """Which trial a sweep chose on validation scans, in a sentence; "" where none was."""
        return board_notes.choice(self.info, self.ages)

    def best(self, metric: str) -> frozenset[str]:
        """Names of the rows with the best mean among the complete ones."""
        return _best({row.method: row.scores[metric] for row in self.rows if not row.oracle}, metric)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "benchmark": self.info.benchmark,
            "run_id": self.info.run_id,
            "dataset": self.info.dataset.id,
            "simulated": self.info.dataset.simulated,
            "baseline": self.info.baseline,
            "headline": self.info.headline,
            "metrics": list(self.metrics),
            "rows": [asdict(row) for row in self.rows],
            "ranks": asdict(self.ranks) if self.ranks else None,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
            **(self.anomaly.as_json() if self.anomaly else {}),
            **(self.ages.as_json() if self.ages else {}),
        }


def build(folder: Path) -> Leaderboard:
    """The leaderboard of a results folder. Raises UserError where its files are absent or damaged."""
    return build_beside(folder, runinfo.read(folder), records.read(folder))


def build_beside(folder: Path, info: RunInfo, table: pl.DataFrame) -> Leaderboard:
    """The same, where the run's description and records are already read. Raises UserError likewise."""
    return build_from(info, table, ages.read(folder), read_lines(folder / REMARKS))


def build_from(
    info: RunInfo, table: pl.DataFrame, found: Found = ages.NONE, remarks: tuple[str, ...] = ()
) -> Leaderboard:
    """The leaderboard of records, of what ages have beside them, and of a run's remarks, already read."""
    by_setting = anomaly_tables.build(info, table)
    of_ages = age_entries.build(info, table, found)
    whole = table = records.of_processing(table, info.processing)
    if of_ages:
        table = table.filter(pl.col("source") == of_ages.largest)
    names = [method.name for method in info.methods]
    names += sorted(set(table["method"].unique()) - set(names))
    metrics = tuple(dict.fromkeys((*info.metrics, *table["metric"].unique().sort())))
    info = info.model_copy(update={"metrics": metrics})
    scores = _scores(table, names, metrics)
    if by_setting and len(by_setting.settings) == 1:
        scores = _of_one_setting(scores, by_setting)
    if of_ages:
        scores = _of_ages(scores, of_ages)
    oracles = {method.name for method in info.methods if method.oracle}
    fair = [name for name in names if name not in oracles]
    best = {m: min(_best({n: scores[n][m] for n in fair}, m), key=names.index, default=None) for m in metrics}
    ranks = rank_test(table.filter(~pl.col("method").is_in(oracles)), fair, info.rank_metrics)
    if ranks and by_setting:
        ranks = replace(ranks, unit="setting, metric")
    if ranks and of_ages:
        ranks = replace(ranks, unit="site, metric")
    ordered = sorted(names, key=lambda name: (name in oracles, *_place(scores[name][info.headline], info.headline)))
    fates = aggregate.cell_fates(whole)
    rows = tuple(
        _row(None if name in oracles else i, name, info, list(fates.get(name, {}).values()), scores[name], ranks)
        for i, name in enumerate(ordered, 1)
    )
    # Neither costs nor means over bins are worth a test.
    tested = [m for m in metrics if not by_setting or (METRICS[m].counts and m not in BINNED)]
    if of_ages:  # one value of a site separates nothing
        tested = [m for m in metrics if METRICS[m].per_subject]
    comparisons = compare(table, [n for n in ordered if n in fair], tested, best, info.baseline)
    failures = aggregate.failures(whole)
    notes = board_notes.notes_of(info, rows, ranks, failures, by_setting, of_ages)
    return Leaderboard(info, rows, ranks, comparisons, failures, (*notes, *remarks), by_setting, of_ages)


def _of_one_setting(scores: dict[str, dict[str, Score]], by_setting: BySetting) -> dict[str, dict[str, Score]]:
    """The same without a spread over settings, which one has not, and with the setting's own intervals."""
    found: dict[str, dict[str, Score]] = {}
    for name, own in scores.items():
        found[name] = {}
        for metric, score in own.items():
            entry = by_setting.entry(metric, name)
            low, high = (entry.low, entry.high) if entry else (score.low, score.high)
            found[name][metric] = replace(score, sd=None, low=low, high=high)
    return found


def _of_ages(scores: dict[str, dict[str, Score]], of_ages: AgeTables) -> dict[str, dict[str, Score]]:
    """The same, of the largest set of training scans, with the spread and intervals that ages are reported with."""
    found: dict[str, dict[str, Score]] = {}
    for name, own in scores.items():
        found[name] = {}
        for metric, score in own.items():
            entry = of_ages.entry(metric, name)
            kept = ("sd", "seed_sd", "low", "high")
            new = {} if entry is None else {"mean": entry.value, **{field: getattr(entry, field) for field in kept}}
            found[name][metric] = replace(score, **new)
    return found


def _scores(table: pl.DataFrame, names: list[str], metrics: tuple[str, ...]) -> dict[str, dict[str, Score]]:
    means = _by_key(aggregate.method_means(table))
    diagonal = _by_key(aggregate.in_domain_means(table))
    counts = _by_key(aggregate.coverage(table))
    limits = intervals(table)
    found: dict[str, dict[str, Score]] = {}
    for name in names:
        found[name] = {}
        for metric in metrics:
            key = (name, metric)
            low, high = limits.get(key, (None, None))
            found[name][metric] = Score(
                metric,
                low=low,
                high=high,
                in_domain=diagonal.get(key, {}).get("mean"),
                **means.get(key, {}),
                **counts.get(key, {}),
            )
    return found


def _by_key(frame: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row.pop("method"), row.pop("metric")): row for row in frame.iter_rows(named=True)}


def _best(scores: Mapping[str, Score], metric: str) -> frozenset[str]:
    complete = {name: s.mean for name, s in scores.items() if s.complete and s.mean is not None}
    if not complete:
        return frozenset()
    top = (min if METRICS[metric].lower_is_better else max)(complete.values())
    return frozenset(name for name, mean in complete.items() if mean == top)


def _place(score: Score, metric: str) -> tuple[int, float]:
    """Sort key: complete means, then incomplete ones, then rows the metric does not apply to, then failed rows."""
    if score.mean is None:
        return (3 if score.applicable else 2), 0.0
    return (0 if score.complete else 1), score.mean if METRICS[metric].lower_is_better else -score.mean


def _row(
    position: int | None, name: str, info: RunInfo, fates: list[bool], scores: dict[str, Score], ranks: RankTest | None
) -> Row:
    known = next((m for m in info.methods if m.name == name), None)
    return Row(
        position=position,
        method=name,
        id=known.id if known else name,
        family=known.family if known else "",
        reference=known.reference if known else "",
        # What changes nothing claims nothing.
        traits=dict(known.traits) if known and name != info.baseline else {},
        scores=scores,
        mean_rank=ranks.mean_ranks.get(name) if ranks else None,
        available_rank=ranks.available_ranks.get(name) if ranks else None,
        cells=len(fates),
        failed_cells=sum(fates),
        oracle=position is None,
    )
