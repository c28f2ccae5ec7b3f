"""Tables of the anomaly track: every metric in every setting, after every processing, and in every bin of lesion size.

A setting is the target of a cell. A leaderboard shows means over settings; what they are made of is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from harness.metrics.catalogue import METRICS
from harness.results import aggregate
from harness.results.aggregate import OFF_DIAGONAL
from harness.results.anomaly_sizes import BINNED, MARK, Sizes, in_order, sizes_of, spread
from harness.results.records import VALUED, of_processing
from harness.results.runinfo import RunInfo
from harness.results.significance import intervals

TRACK = "anomaly"
COSTS = ("parameters", "evaluations", "seconds_per_slice", "peak_memory")

MEANINGS = {
    "max_dice_global": (
        "global",
        "One threshold, chosen by the scored labels, for the pixels of all slices pooled. Large lesions count most.",
    ),
    "max_dice_shared": (
        "shared",
        "One threshold, chosen by the scored labels; the mean of the slices' own Dice. Every slice counts alike.",
    ),
    "max_dice_oracle": (
        "oracle",
        "A threshold of its own for every slice, chosen by that slice's label: a bound that no method reaches in use.",
    ),
    "dice_operating": (
        "at threshold",
        "The threshold was fixed beforehand on healthy validation slices, at a stated share of false positives and "
        "without any label: the mean over subjects, and what a user would see.",
    ),
    "dice_gap": (
        "gap",
        "Global less the Dice of the pooled pixels at the fixed threshold: what the labels add. It is not global less "
        "at threshold, which is a mean over subjects.",
    ),
}
"""What is called maximum Dice in print, and what it is not: metric → short heading, meaning."""

FAMILIES = {
    "Dice at the best threshold": ("max_dice_global", "max_dice_shared", "max_dice_oracle", "max_dice_bin_weighted"),
    "At the fixed threshold": ("dice_operating", "dice_gap", "fpr_healthy"),
    "Ranking of pixels": ("auroc", "ap", "aupro", "auroc_full", "ap_full"),
    "Ranking of slices": ("image_auroc",),
}


@dataclass(frozen=True)
class Entry:
    """One metric of one method in one setting after one processing; setting "" is the mean over settings.

    value: mean over seeds, sd: population SD over seeds, None with fewer than two; both in the unit of the records.
    low, high: 95 % interval over subjects; with several seeds that of the seeds' mean where subjects have records of
    their own, else the mean of the seeds' bounds. processing: "" for costs. expected, scored: cells.
    state: of `aggregate.cell_states`, the worst of the seeds. note: the first error.
    """

    processing: str
    metric: str
    method: str
    setting: str
    value: float | None
    sd: float | None
    low: float | None
    high: float | None
    expected: int
    scored: int
    state: str
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether every cell has a value; only such entries are compared with one another."""
        return self.scored == self.expected > 0

    @property
    def text(self) -> str:
        """The value, with its SD over seeds where there is one, marked if seeds or settings lack."""
        info = METRICS[self.metric]
        if self.value is None:
            return self.state if self.state in ("failed", "blocked", "absent") else "–"
        spread = "" if self.sd is None else f" ± {info.text(self.sd)}"
        return info.text(self.value) + spread + ("" if self.complete or self.state == "empty" else MARK)

    @property
    def interval_text(self) -> str:
        """Both ends of the interval; "" where there is none."""
        info = METRICS[self.metric]
        return "" if self.low is None else f"{info.text(self.low)} to {info.text(self.high)}"


@dataclass(frozen=True)
class BySetting:
    """The tables. settings, processing: in the order shown; records of the first processing make the leaderboard."""

    settings: tuple[str, ...]
    processing: tuple[str, ...]
    entries: tuple[Entry, ...]
    sizes: tuple[Sizes, ...]
    oracles: frozenset[str] = frozenset()

    @cached_property
    def _index(self) -> Mapping[tuple[str, str, str, str], Entry]:
        return {(e.processing, e.metric, e.method, e.setting): e for e in self.entries}

    def entry(self, metric: str, method: str, setting: str = "", processing: str | None = None) -> Entry | None:
        """One entry, after the first processing unless another is named; None where the method has no such cell."""
        after = "" if metric in COSTS else self.processing[0] if processing is None else processing
        return self._index.get((after, metric, method, setting))

    def best(self, metric: str, setting: str = "", processing: str | None = None) -> frozenset[str]:
        """Names of the methods with the best value among complete ones; none of a metric that is never ranked."""
        if not METRICS[metric].counts:
            return frozenset()
        methods = {e.method for e in self.entries} - self.oracles
        found = [self.entry(metric, method, setting, processing) for method in methods]
        return _best({e.method: e.value for e in found if e is not None and e.value is not None and e.complete}, metric)

    def of_size(self, metric: str, setting: str) -> Mapping[str, Sizes]:
        """Method → its bins in a setting."""
        return {s.method: s for s in self.sizes if (s.metric, s.setting) == (metric, setting)}

    def best_of_size(self, metric: str, setting: str, name: str) -> frozenset[str]:
        """Names of the methods with the best value in a bin."""
        fair = [s for s in self.of_size(metric, setting).values() if s.complete and s.method not in self.oracles]
        values = {s.method: each.value for s in fair for each in s.bins if each.name == name}
        return _best({method: value for method, value in values.items() if value is not None}, metric)

    def bins(self, metric: str, setting: str) -> tuple[tuple[str, str], ...]:
        """Name and number of images of each bin, as a heading shows them."""
        counts: dict[str, set[int]] = {}
        for sizes in self.of_size(metric, setting).values():
            for each in sizes.bins:
                counts.setdefault(each.name, set()).add(each.n)
        return tuple((name, " or ".join(map(str, sorted(of)))) for name, of in in_order(counts))

    def families(self, metrics: Sequence[str], headline: str) -> list[tuple[str, list[str]]]:
        """Metrics that are shown setting by setting, in families; the headline and its family first."""
        shown = [m for m in metrics if m not in (*COSTS, *BINNED)]
        known = {m for family in FAMILIES.values() for m in family}
        named = {**FAMILIES, "Others": tuple(m for m in shown if m not in known)}
        found = [
            (name, sorted((m for m in family if m in shown), key=lambda m: m != headline))
            for name, family in named.items()
        ]
        return sorted([(name, own) for name, own in found if own], key=lambda family: headline not in family[1])

    def meanings(self, metrics: Sequence[str]) -> list[str]:
        """The metrics of `MEANINGS` that are there."""
        return [metric for metric in MEANINGS if metric in metrics]

    def compared(self, metric: str) -> bool:
        """Whether a metric was scored after several processings."""
        return len({entry.processing for entry in self.entries if entry.metric == metric}) > 1

    def costs(self) -> list[str]:
        """The costs that any method has a value of."""
        having = {entry.metric for entry in self.entries if entry.value is not None}
        return [metric for metric in COSTS if metric in having]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        entries = [vars(entry) for entry in self.entries]
        sizes = [{**vars(s), "bins": [vars(each) for each in s.bins]} for s in self.sizes]
        return {
            "settings": list(self.settings),
            "processing": list(self.processing),
            "by_setting": entries,
            "sizes": sizes,
        }


def build(info: RunInfo, table: pl.DataFrame) -> BySetting | None:
    """The tables of records of all processings; None for another track."""
    if info.track != TRACK:
        return None
    table = table.filter(OFF_DIAGONAL)
    present = set(table["target"].unique())
    settings = (*(p for p in info.sites if p in present), *sorted(present - set(info.sites)))
    processing = info.processing or ("",)
    first = of_processing(table, processing)
    subjects = {
        (setting, *key): limits
        for setting in settings
        for key, limits in intervals(first.filter(pl.col("target") == setting)).items()
    }
    entries: list[Entry] = []
    for number, name in enumerate(processing):
        cells = first if number == 0 else table.filter(pl.col("processing") == name)
        entries += _entries(cells, name, settings, subjects if number == 0 else {})
    oracles = frozenset(method.name for method in info.methods if method.oracle)
    return BySetting(settings, processing, tuple(entries), tuple(sizes_of(first, len(info.seeds))), oracles)


def cost_text(metric: str, value: float | None) -> str:
    """A cost as tables show it, with its unit: time in ms or s, whole numbers of evaluations as such."""
    if not value:
        return "–" if value is None else "0"
    if metric == "seconds_per_slice":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if metric == "evaluations":
        return f"{value:.1f}".removesuffix(".0")
    return f"{METRICS[metric].text(value)} {METRICS[metric].shown_unit}"


def _entries(
    cells: pl.DataFrame,
    processing: str,
    settings: Sequence[str],
    subjects: Mapping[tuple[str, str, str], tuple[float, float]],
) -> list[Entry]:
    """An entry for each method, metric and setting, and for each mean over settings."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in aggregate.cell_means(cells).iter_rows(named=True):
        values.setdefault((row["method"], row["metric"], row["target"]), []).append(row["value"])
    states: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in aggregate.cell_states(cells).filter(pl.col("state") != "not_applicable").iter_rows(named=True):
        states.setdefault((row["method"], row["metric"], row["target"]), []).append(row)
    pooled = _pooled_intervals(cells)
    means = {(row["method"], row["metric"]): row for row in aggregate.method_means(cells).iter_rows(named=True)}
    found: dict[tuple[str, str], list[Entry]] = {}
    for (method, metric, setting), of in states.items():
        own = values.get((method, metric, setting), [])
        low, high = subjects.get((setting, method, metric)) or pooled.get((method, metric, setting)) or (None, None)
        after = "" if metric in COSTS else processing
        state, note = worst(of)
        value = math.fsum(own) / len(own) if own else None
        head = (after, metric, method, setting, value, spread(own), low, high)
        found.setdefault((method, metric), []).append(Entry(*head, len(of), len(own), state, note))
    entries = []
    for key, own_settings in found.items():
        own_settings.sort(key=lambda entry: settings.index(entry.setting))
        entries += [*own_settings, _over_settings(own_settings, means.get(key), len(settings) == 1)]
    return entries


def _over_settings(entries: list[Entry], mean: Mapping[str, Any] | None, single: bool) -> Entry:
    """The mean over settings; where there is but one setting, that."""
    if single:
        return replace(entries[0], setting="")
    expected, scored = sum(e.expected for e in entries), sum(e.scored for e in entries)
    state, note = worst([{"state": e.state, "note": e.note} for e in entries])
    value, sd = (mean["mean"], mean["seed_sd"]) if mean is not None else (None, None)
    return replace(
        entries[0], setting="", value=value, sd=sd, low=None, high=None, expected=expected, scored=scored,
        state=state, note=note,
    )  # fmt: skip


def _pooled_intervals(cells: pl.DataFrame) -> dict[tuple[str, str, str], tuple[float, float]]:
    """(method, metric, setting) → the records' own interval, bounds averaged over seeds; none where a seed lacks it."""
    found = (
        cells.filter(pl.col("status").is_in(VALUED) & (pl.col("subject") == "") & (pl.col("label") == ""))
        .group_by(["method", "metric", "target"], maintain_order=True)
        .agg("low", "high")
    )
    limits = {}
    for method, metric, target, low, high in found.iter_rows():
        if None not in (*low, *high):
            limits[method, metric, target] = math.fsum(low) / len(low), math.fsum(high) / len(high)
    return limits


def worst(cells: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """State and note of the cell that fared worst."""
    order = ("failed", "blocked", "absent", "empty", "scored")
    return min(((cell["state"], cell["note"]) for cell in cells), key=lambda found: order.index(found[0]))


def _best(values: Mapping[str, float], metric: str) -> frozenset[str]:
    if not values:
        return frozenset()
    top = (min if METRICS[metric].lower_is_better else max)(values.values())
    return frozenset(name for name, value in values.items() if value == top)
