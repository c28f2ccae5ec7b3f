"""Max Dice by lesion size: the bins of every method and setting, and the two averages that are told apart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from harness.metrics.catalogue import METRICS
from harness.results import aggregate

MARK = "†"
"""Stands beside a mean over fewer cells than expected."""

BINNED = ("max_dice_binned", "max_dice_binned_mm2")
"""Metrics of one bin of lesion sizes each: their mean over bins says nothing, so no leaderboard shows it."""

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Bin:
    """Max Dice of the n images of one bin of lesion sizes: mean and population SD over seeds."""

    name: str
    n: int
    value: float | None
    sd: float | None


@dataclass(frozen=True)
class Sizes:
    """The bins of one method in one setting, by area in pixels or mm², and the mean weighted by their images.

    complete: whether every seed has a value.
    """

    metric: str
    method: str
    setting: str
    bins: tuple[Bin, ...]
    weighted: float | None
    weighted_sd: float | None
    complete: bool

    def text(self, value: float | None, sd: float | None) -> str:
        """A value of these as tables show it, marked if seeds lack."""
        info = METRICS[self.metric]
        if value is None:
            return "–"
        return info.text(value) + ("" if sd is None else f" ± {info.text(sd)}") + ("" if self.complete else MARK)


def sizes_of(table: pl.DataFrame, expected: int) -> list[Sizes]:
    """The bins of every method and setting that has any; expected: seeds of a complete one."""
    weighted = {
        (row["method"], row["target"], row["seed"]): row["value"]
        for row in aggregate.cell_means(table.filter(pl.col("metric") == "max_dice_bin_weighted")).iter_rows(named=True)
    }
    groups: dict[tuple[str, str, str], dict[int, dict[str, tuple[int, float | None]]]] = {}
    for row in table.filter(pl.col("metric").is_in(BINNED) & (pl.col("label") != "")).iter_rows(named=True):
        of_seed = groups.setdefault((row["metric"], row["method"], row["target"]), {}).setdefault(row["seed"], {})
        counted = re.match(r"\d+", row["note"])
        of_seed[row["label"]] = (int(counted[0]) if counted else 0, row["value"])
    found = []
    for (metric, method, setting), seeds in groups.items():
        names = in_order({name: None for of in seeds.values() for name in of})
        bins = []
        for name, _ in names:
            own = [of[name] for of in seeds.values() if name in of]
            values = [value for _, value in own if value is not None]
            mean = math.fsum(values) / len(values) if values else None
            bins.append(Bin(name, max(n for n, _ in own), mean, spread(values)))
        averages = [weighted.get((method, setting, seed)) if metric == "max_dice_binned" else None for seed in seeds]
        known = [_weighted(of.values()) if a is None else a for a, of in zip(averages, seeds.values(), strict=True)]
        defined = [value for value in known if value is not None]
        mean = math.fsum(defined) / len(defined) if defined else None
        whole = len(seeds) >= expected
        found.append(Sizes(metric, method, setting, tuple(bins), mean, spread(defined), whole))
    return found


def _weighted(bins: Iterable[tuple[int, float | None]]) -> float | None:
    filled = [(n, value) for n, value in bins if n and value is not None]
    total = sum(n for n, _ in filled)
    return math.fsum(n * value for n, value in filled) / total if total else None


def in_order(names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Bins from small to large; names of other bins after them, as they come."""
    return sorted(names.items(), key=lambda item: SIZES.index(item[0]) if item[0] in SIZES else len(SIZES))


def spread(values: Sequence[float]) -> float | None:
    """Population SD; None of fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
