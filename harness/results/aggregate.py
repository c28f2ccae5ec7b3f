"""From records to means: scans → labels → subjects → cells → seeds → source–target pairs.

A cell is one (method, seed, source, target). Leaderboards use cells whose source and target differ; the others
are the in-domain ceiling. Means never hide a gap: `cell_states` says of every expected cell what became of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.metrics.catalogue import METRICS
from harness.results.records import VALUED

CELL = ["method", "seed", "source", "target", "metric"]
PAIR = ["method", "source", "target", "metric"]
OFF_DIAGONAL = pl.col("source") != pl.col("target")

NO_VALUE = ("failed", "blocked", "absent", "empty")
"""States of a cell that should have had a value. `absent`: other methods have this cell, this one has no row."""


def subject_values(records: pl.DataFrame) -> pl.DataFrame:
    """One value per CELL and subject: repeated scans averaged, then labels averaged (or summed)."""
    summed = [metric.id for metric in METRICS.values() if metric.reduce == "sum"]
    value = pl.col("value")
    return (
        records.filter(pl.col("status").is_in(VALUED))
        .group_by([*CELL, "subject", "label"], maintain_order=True)
        .agg(value.mean())
        .group_by([*CELL, "subject"], maintain_order=True)
        .agg(pl.when(pl.col("metric").first().is_in(summed)).then(value.sum()).otherwise(value.mean()))
    )


def paired_values(records: pl.DataFrame) -> pl.DataFrame:
    """One value per PAIR and subject, seeds averaged: what paired tests and intervals are made of."""
    return subject_values(records).group_by([*PAIR, "subject"], maintain_order=True).agg(pl.col("value").mean())


def cell_means(records: pl.DataFrame) -> pl.DataFrame:
    """One value per CELL: the mean over subjects."""
    return subject_values(records).group_by(CELL, maintain_order=True).agg(pl.col("value").mean())


def pair_means(records: pl.DataFrame) -> pl.DataFrame:
    """One value per PAIR: the mean over seeds of the cell means."""
    return cell_means(records).group_by(PAIR, maintain_order=True).agg(pl.col("value").mean())


def method_means(records: pl.DataFrame) -> pl.DataFrame:
    """method, metric, mean and sd over the off-diagonal pairs that have a value, and their number `pairs`.

    sd is the population SD (divisor n). `seed_sd` is the population SD over seeds of the mean over the cells
    that every seed has; null with fewer than two seeds.
    """
    return means_of(cell_means(records))


def means_of(cells: pl.DataFrame) -> pl.DataFrame:
    """The same, of values that are means of cells already."""
    cells = cells.filter(OFF_DIAGONAL)
    value = pl.col("value")
    means = (
        cells.group_by(PAIR, maintain_order=True)
        .agg(value.mean())
        .group_by(["method", "metric"], maintain_order=True)
        .agg(mean=value.mean(), sd=value.std(ddof=0), pairs=pl.len())
    )
    return means.join(_seed_spread(cells), on=["method", "metric"], how="left", maintain_order="left")


def _seed_spread(cells: pl.DataFrame) -> pl.DataFrame:
    seeds = pl.col("seed").n_unique()
    everywhere = pl.col("seed").n_unique().over(PAIR) == seeds.over(["method", "metric"])
    return (
        cells.filter(everywhere)
        .group_by(["method", "metric", "seed"], maintain_order=True)
        .agg(pl.col("value").mean())
        .group_by(["method", "metric"], maintain_order=True)
        .agg(seed_sd=pl.when(pl.len() > 1).then(pl.col("value").std(ddof=0)))
    )


def in_domain_means(records: pl.DataFrame) -> pl.DataFrame:
    """method, metric, mean over the diagonal cells: the ceiling that no harmonisation is expected to pass."""
    diagonal = pair_means(records).filter(~OFF_DIAGONAL)
    return diagonal.group_by(["method", "metric"], maintain_order=True).agg(mean=pl.col("value").mean())


def cell_states(records: pl.DataFrame) -> pl.DataFrame:
    """CELL, state, note and `penalised` (number of penalised rows), for every cell that should exist.

    state: scored, empty (nothing to measure), failed, blocked, not_applicable, or absent. A method is expected
    to have each off-diagonal cell that any method has for a metric, unless it has no row of that metric at all.
    """
    status = pl.col("status")
    found = records.group_by(CELL, maintain_order=True).agg(
        state=pl.when(status.is_in(VALUED).any())
        .then(pl.lit("scored"))
        .when((status == "failed").any())
        .then(pl.lit("failed"))
        .when((status == "blocked").any())
        .then(pl.lit("blocked"))
        .when((status == "not_applicable").any())
        .then(pl.lit("not_applicable"))
        .otherwise(pl.lit("empty")),
        note=pl.col("note").filter(status.is_in(["failed", "blocked"])).first().fill_null(""),
        penalised=(status == "penalised").sum(),
    )
    expected = found.filter(OFF_DIAGONAL & (pl.col("state") != "not_applicable"))
    places = expected.select("metric", "seed", "source", "target").unique(maintain_order=True)
    doers = expected.select("method", "metric").unique(maintain_order=True)
    grid = doers.join(places, on="metric").select(CELL)
    absent = grid.join(found, on=CELL, how="anti").with_columns(
        state=pl.lit("absent"), note=pl.lit("no record of this cell"), penalised=pl.lit(0, pl.UInt32)
    )
    return pl.concat([found, absent.select(found.columns)], how="vertical_relaxed").sort(CELL)


def coverage(records: pl.DataFrame) -> pl.DataFrame:
    """Per method and metric over off-diagonal cells: expected, scored, failed, blocked, absent, empty, penalised."""
    states = cell_states(records).filter(OFF_DIAGONAL & (pl.col("state") != "not_applicable"))
    counts = {name: (pl.col("state") == name).sum() for name in ("scored", *NO_VALUE)}
    return states.group_by(["method", "metric"], maintain_order=True).agg(
        expected=pl.len(), **counts, penalised=pl.col("penalised").sum()
    )


@dataclass(frozen=True)
class Failure:
    """A cell without a result, and why, in one line."""

    method: str
    source: str
    target: str
    seed: int
    state: str
    note: str
    metrics: tuple[str, ...]


def failures(records: pl.DataFrame) -> tuple[Failure, ...]:
    """Every failed, blocked or absent cell, diagonal ones included; metrics with the same fate share an entry."""
    states = cell_states(records).filter(pl.col("state").is_in(["failed", "blocked", "absent"]))
    keys = ["method", "source", "target", "seed", "state", "note"]
    together = states.group_by(keys, maintain_order=True).agg("metric")
    # Failed before blocked before absent: causes come first.
    order = together["state"].replace_strict({"failed": 0, "blocked": 1, "absent": 2}, return_dtype=pl.Int8)
    return tuple(
        Failure(r["method"], r["source"], r["target"], r["seed"], r["state"], r["note"], tuple(r["metric"]))
        for r in together.with_columns(order=order).sort("order", *keys).iter_rows(named=True)
    )


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one method with one cause; `cells` reads "SOURCE→TARGET", with "#SEED" where seeds differ in it."""

    method: str
    state: str
    note: str
    cells: tuple[str, ...]
    metrics: tuple[str, ...]


def grouped(failed: tuple[Failure, ...]) -> tuple[FailureGroup, ...]:
    """The failures with the same method, state, error and metrics as one entry, in order of appearance."""
    groups: dict[tuple[str, str, str, tuple[str, ...]], dict[str, list[int]]] = {}
    seeds = {f.seed for f in failed}
    for f in failed:
        cells = groups.setdefault((f.method, f.state, f.note, f.metrics), {})
        cells.setdefault(f"{f.source}→{f.target}", []).append(f.seed)
    return tuple(
        FailureGroup(method, state, note, tuple(_with_seeds(cell, of, seeds) for cell, of in cells.items()), metrics)
        for (method, state, note, metrics), cells in groups.items()
    )


def _with_seeds(cell: str, failed: list[int], seeds: set[int]) -> str:
    return cell if set(failed) == seeds else f"{cell} {' '.join(f'#{seed}' for seed in failed)}"


def cell_fates(records: pl.DataFrame) -> dict[str, dict[tuple[int, str, str], bool]]:
    """Method → (seed, source, target) of every cell it should have → whether any of its metrics is missing there."""
    fates: dict[str, dict[tuple[int, str, str], bool]] = {}
    states = cell_states(records).filter(pl.col("state") != "not_applicable")
    for row in states.iter_rows(named=True):
        cells = fates.setdefault(row["method"], {})
        key = (row["seed"], row["source"], row["target"])
        cells[key] = cells.get(key, False) or row["state"] in ("failed", "blocked", "absent")
    return fates


@dataclass(frozen=True, eq=False)
class Matrix:
    """One metric of one method, source × target. values: float64, nan where there is none, and `states` says why.

    A state is one of `cell_states`, "partial" where only some seeds have a value, or "" where nothing was planned.
    """

    method: str
    metric: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: np.ndarray
    states: tuple[tuple[str, ...], ...]


def matrix(records: pl.DataFrame, method: str, metric: str, sites: tuple[str, ...]) -> Matrix:
    """The matrix of a method, seeds averaged, over the sites at which the metric applies to any method."""
    of_metric = records.filter((pl.col("metric") == metric) & (pl.col("status") != "not_applicable"))
    from_sites, to_sites = set(of_metric["source"].unique()), set(of_metric["target"].unique())
    sources = tuple(site for site in sites if site in from_sites)
    targets = tuple(site for site in sites if site in to_sites)
    values = np.full((len(sources), len(targets)), np.nan)
    states = [[""] * len(targets) for _ in sources]
    for row in pair_means(of_metric.filter(pl.col("method") == method)).iter_rows(named=True):
        values[sources.index(row["source"]), targets.index(row["target"])] = row["value"]
    for row in cell_states(of_metric).filter(pl.col("method") == method).iter_rows(named=True):
        i, j = sources.index(row["source"]), targets.index(row["target"])
        before = states[i][j]
        together = "partial" if "scored" in (before, row["state"]) else before
        states[i][j] = row["state"] if before in ("", row["state"]) else together
    return Matrix(method, metric, sources, targets, values, tuple(map(tuple, states)))
