"""How the tables of the brain-age track are made: values from records, the rest from predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from harness.metrics.regression_intervals import SCORES, Cases, scores_of
from harness.results import aggregate
from harness.results.age_groups import SEXES, Bin, age_bins
from harness.results.age_tables import Z95, AgeEntry, AgeTables, Gap
from harness.results.ages import Found
from harness.results.anomaly_sizes import spread
from harness.results.anomaly_tables import worst
from harness.results.records import VALUED
from harness.results.runinfo import RunInfo
from harness.results.significance import intervals

TRACK = "brain_age"
WORST, NEAREST = 5, 3
"""Scans whose gaps are listed: the largest, and the smallest."""


def build(info: RunInfo, table: pl.DataFrame, found: Found) -> AgeTables | None:
    """The tables of all records; None for another track."""
    if info.track != TRACK:
        return None
    sources = ordered_sources(table["source"].unique().to_list(), info.sites)
    largest = pl.col("source") == pl.lit(sources[0] if sources else "")
    present = set(table["target"].unique())
    targets = (*(site for site in info.sites if site in present), *sorted(present - set(info.sites)))
    rows = found.predictions
    known = rows["unit"].unique().sort().to_list() or [info.dataset.model_dump().get("age_unit") or "weeks"]
    scans = rows.filter(largest).unique(["target", "scan"])
    bins = age_bins(scans["age"].to_list(), known[0])
    sexes = SEXES if set(SEXES) <= set(scans["sex"].unique()) else ()
    entries: list[AgeEntry] = []
    for source in sources:
        everybody = list(_of_source(table.filter(pl.col("source") == source), source, targets))
        own = rows.filter(pl.col("source") == source)
        entries += _with_predictions(everybody, own, source, *((sexes, bins) if source == sources[0] else ((), ())))
    gaps = _gaps(rows.filter(largest), info)
    return AgeTables(known[0], sources, targets, sexes, bins, tuple(entries), gaps, found.warnings)


def size_of(source: str) -> float | None:
    """How many scans a source has: those it names, infinitely many if "all"; None where it does not say."""
    if source == "all":
        return math.inf
    counted = re.match(r"\d+", source)
    return float(counted[0]) if counted else None


def ordered_sources(sources: Sequence[str], listed: Sequence[str]) -> tuple[str, ...]:
    """Largest first; those that do not say their size after them, as listed."""

    def place(source: str) -> tuple[bool, float, int, str]:
        size = size_of(source)
        return size is None, -(size or 0), listed.index(source) if source in listed else len(listed), source

    return tuple(sorted(sources, key=place))


# ------------------------------------------------------------------------------------------- from the records


def _of_source(table: pl.DataFrame, source: str, targets: Sequence[str]) -> Iterator[AgeEntry]:
    """An entry for each method and metric of one source, and for each site where there are several."""
    values: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in cell_means(table).iter_rows(named=True):
        values.setdefault((row["method"], row["metric"]), {})[row["target"], row["seed"]] = row["value"]
    states: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in aggregate.cell_states(table).filter(pl.col("state") != "not_applicable").iter_rows(named=True):
        states.setdefault((row["method"], row["metric"]), []).append(row)
    limits = intervals(table)
    for (method, metric), cells in states.items():
        own = values.get((method, metric), {})
        errors = values.get((method, "error_sd"), {}) if metric == "mae" else {}
        low, high = limits.get((method, metric), (None, None))
        state, note = worst(cells)
        yield AgeEntry(
            source, metric, method, value=_mean(own), sd=_mean(errors), seed_sd=_seed_spread(own), low=low, high=high,
            expected=len(cells), scored=len(own), state=state, note=note,
        )  # fmt: skip
        for target in targets if len(targets) > 1 else ():
            here = [cell for cell in cells if cell["target"] == target]
            of_site = {key: value for key, value in own.items() if key[0] == target}
            if here:
                state, note = worst(here)
                error = _mean({key: value for key, value in errors.items() if key[0] == target})
                yield AgeEntry(
                    source, metric, method, "site", target, _mean(of_site), error, _seed_spread(of_site),
                    expected=len(here), scored=len(of_site), state=state, note=note,
                )  # fmt: skip


def cell_means(table: pl.DataFrame) -> pl.DataFrame:
    """One value per cell. Errors are means over scans, as printed ones are: a person with two scans counts twice."""
    per_scan = pl.col("metric").is_in(["mae", "mse"])
    errors = table.filter(per_scan & pl.col("status").is_in(VALUED))
    scans = errors.group_by(aggregate.CELL, maintain_order=True).agg(pl.col("value").mean())
    return pl.concat([scans, aggregate.cell_means(table.filter(~per_scan)).select(scans.columns)])


def _mean(cells: Mapping[tuple[str, int], float]) -> float | None:
    """The mean over sites of the mean over seeds."""
    sites: dict[str, list[float]] = {}
    for (target, _), value in cells.items():
        sites.setdefault(target, []).append(value)
    means = [math.fsum(values) / len(values) for values in sites.values()]
    return math.fsum(means) / len(means) if means else None


def _seed_spread(cells: Mapping[tuple[str, int], float]) -> float | None:
    """SD over seeds of their means over sites; of seeds that have every site."""
    sites = {target for target, _ in cells}
    seeds = {seed for _, seed in cells}
    whole = [seed for seed in seeds if all((target, seed) in cells for target in sites)]
    return spread([math.fsum(cells[target, seed] for target in sites) / len(sites) for seed in sorted(whole)])


# ------------------------------------------------------------------------------------------- from the predictions


def _with_predictions(
    entries: list[AgeEntry], rows: pl.DataFrame, source: str, sexes: Sequence[str], bins: Sequence[Bin]
) -> Iterator[AgeEntry]:
    """The entries of one source with intervals and counts; then what only predictions tell."""
    fates = {entry.method: entry for entry in entries if entry.metric == "mae" and entry.kind == ""}
    groups: list[tuple[str, str, pl.Expr]] = [("", "", pl.lit(True))]
    groups += [("site", site, pl.col("target") == site) for site in dict.fromkeys(e.group for e in entries) if site]
    groups += [("sex", sex, pl.col("sex") == sex) for sex in sexes]
    groups += [("age", each.name, each.holds(pl.col("age"))) for each in bins]
    scored: dict[tuple[str, str, str], dict[str, AgeEntry]] = {}
    for method in dict.fromkeys((*fates, *rows["method"].unique(maintain_order=True))):
        own = rows.filter(pl.col("method") == method)
        for kind, group, inside in groups:
            head = AgeEntry(source, "", method, kind, group)
            scored[method, kind, group] = _scored(own.filter(inside), head, fates.get(method))
    for entry in entries:
        found = scored.get((entry.method, entry.kind, entry.group), {}).get(entry.metric)
        yield entry if found is None else _completed(entry, found)
    known = {(entry.metric, entry.method, entry.kind, entry.group) for entry in entries}
    for of_group in scored.values():
        yield from (e for e in of_group.values() if (e.metric, e.method, e.kind, e.group) not in known)


def _completed(entry: AgeEntry, found: AgeEntry) -> AgeEntry:
    """An entry of the records with what the predictions add."""
    more: dict[str, Any] = {"scans": found.scans, "people": found.people}
    if entry.value is not None and found.low is not None:
        more |= {"low": found.low, "high": found.high}
    if entry.metric == "mae" and entry.value is not None and entry.sd is None:
        more["sd"] = found.sd
    return AgeEntry(**{**vars(entry), **more})


def _scored(rows: pl.DataFrame, head: AgeEntry, fate: AgeEntry | None) -> dict[str, AgeEntry]:
    """Scores of one method's predictions of a group of scans, by metric."""
    fields = {**vars(head)}
    if fate is not None:
        fields |= {"expected": fate.expected, "scored": fate.scored, "state": fate.state, "note": fate.note}
    if rows.is_empty():
        return {name: AgeEntry(**{**fields, "metric": name}) for name in SCORES if fate is not None}
    fields |= {
        "scans": rows.select("target", "scan").n_unique(), "people": rows.select("target", "subject").n_unique(),
    }  # fmt: skip
    sites = [
        [
            Cases(model["subject"].to_list(), model["age"].to_numpy(), model["predicted"].to_numpy())
            for _, model in site.group_by("seed", maintain_order=True)
        ]
        for _, site in rows.group_by("target", maintain_order=True)
    ]
    scores = scores_of(sites)
    found = {}
    for name, score in scores.items():
        sd = scores["error_sd"].value if name == "mae" else None
        found[name] = AgeEntry(
            **{**fields, "metric": name, "value": score.value, "sd": sd, "low": score.low, "high": score.high}
        )
    if rows["sd"].null_count() == 0:
        covered = rows.select(((pl.col("predicted") - pl.col("age")).abs() <= Z95 * pl.col("sd")).mean()).item()
        found["coverage"] = AgeEntry(**{**fields, "metric": "coverage", "value": covered})
    return found


def _gaps(rows: pl.DataFrame, info: RunInfo) -> tuple[Gap, ...]:
    """The largest and the smallest gaps of each method, in the order of the benchmark's rows."""
    found: list[Gap] = []
    listed = [method.name for method in info.methods]
    for method in sorted(rows["method"].unique(), key=lambda m: (listed.index(m) if m in listed else len(listed), m)):
        own = first_seed(rows.filter(pl.col("method") == method))
        ranked = own.with_columns(size=(pl.col("predicted") - pl.col("age")).abs()).sort(
            "size", "scan", descending=True
        )
        for place, row in enumerate(ranked.iter_rows(named=True), 1):
            if place <= WORST or place > len(ranked) - NEAREST:
                kept = ("target", "scan", "subject", "sex", "age", "predicted", "sd")
                found.append(Gap(method, place, **{name: row[name] for name in kept}))
    return tuple(found)


def first_seed(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of the lowest seed that there is."""
    return rows.filter(pl.col("seed") == pl.col("seed").min())
