"""Tables of the brain-age track: accuracy by training size, by site, by sex and by age.

A source is the set of scans that was trained on, a target the site of the scored scans. The leaderboard is of the
largest source. Values come from the records; intervals, and all that is said of groups, from the predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from harness.metrics.catalogue import METRICS, MetricInfo
from harness.results.age_groups import Bin
from harness.results.anomaly_sizes import MARK

_OWN = (
    MetricInfo(
        "bias",
        "bias",
        "Mean of predicted less true age: positive where the prediction is too old.",
        unit="weeks",
        shown_unit="weeks",
        counts=False,
    ),
    MetricInfo(
        "coverage",
        "in 95 % interval",
        "Share of scans whose age lies within 1.96 of the method's own standard deviations of its prediction: near "
        "95 % where these are right.",
        shown_unit="%",
        scale=100,
        digits=0,
        counts=False,
    ),
)
SHOWN: Mapping[str, MetricInfo] = MappingProxyType({**METRICS, **{metric.id: metric for metric in _OWN}})
"""Every number of these tables, by id."""
Z95 = 1.959963984540054
"""Standard normal quantile of a 95 % interval."""
ACCURACY = ("mae", "bias", "rmse", "r2", "r2_pearson", "coverage", "dsc")
"""Columns of the table of accuracy, as far as they are known."""


@dataclass(frozen=True)
class AgeEntry:
    """One number of one method that was trained on one source, over everybody or over one group of scans.

    kind, group: "" and "" for everybody; "site", "sex" or "age" and which. value: mean over sites of the mean over
    seeds. sd: of an MAE the population SD of absolute errors, else None. seed_sd: population SD over seeds.
    low, high: 95 % interval, people drawn within sites. scans, people: how many it is of. expected, scored: cells.
    state: of `aggregate.cell_states`, the worst of the cells. note: the first error.
    """

    source: str
    metric: str
    method: str
    kind: str = ""
    group: str = ""
    value: float | None = None
    sd: float | None = None
    seed_sd: float | None = None
    low: float | None = None
    high: float | None = None
    scans: int = 0
    people: int = 0
    expected: int = 0
    scored: int = 0
    state: str = "scored"
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether every cell has a value; only such entries are compared with one another."""
        return self.value is not None and self.scored == self.expected

    @property
    def text(self) -> str:
        """The value, an MAE with the SD of absolute errors of several scans, marked if seeds or sites lack."""
        info = SHOWN[self.metric]
        if self.value is None:
            return self.state if self.state in ("failed", "blocked", "absent") else "–"
        sign = "+" if self.metric == "bias" and round(self.value, info.digits) > 0 else ""
        around = "" if self.sd is None or self.scans == 1 else f" ± {info.text(self.sd)}"
        return sign + info.text(self.value) + around + ("" if self.complete else MARK)

    @property
    def interval_text(self) -> str:
        """Both ends of the interval; "" where there is none."""
        info = SHOWN[self.metric]
        return "" if self.low is None else f"{info.text(self.low)} to {info.text(self.high)}"


@dataclass(frozen=True)
class Gap:
    """Predicted less true age of one scan, of the first seed and the largest source. place: 1 is the largest gap."""

    method: str
    place: int
    target: str
    scan: str
    subject: str
    sex: str
    age: float
    predicted: float
    sd: float | None

    @property
    def gap(self) -> float:
        return self.predicted - self.age


@dataclass(frozen=True)
class AgeTables:
    """The tables. sources: largest first, targets: as listed; sexes: both or none, bins: those with scans.

    unit: of ages, "weeks" or "years". warnings: what has to be known about the data.
    """

    unit: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    sexes: tuple[str, ...]
    bins: tuple[Bin, ...]
    entries: tuple[AgeEntry, ...]
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def largest(self) -> str:
        """The source that the leaderboard is of; "" where nothing was run."""
        return self.sources[0] if self.sources else ""

    @cached_property
    def _index(self) -> Mapping[tuple[str, ...], AgeEntry]:
        return {(e.source, e.metric, e.method, e.kind, e.group): e for e in self.entries}

    def entry(self, metric: str, method: str, source: str = "", kind: str = "", group: str = "") -> AgeEntry | None:
        """One entry, of the largest source unless another is named; None where the method has none."""
        return self._index.get((source or self.largest, metric, method, kind, group))

    def best(self, metric: str, source: str = "", kind: str = "", group: str = "") -> frozenset[str]:
        """Names of the methods with the best value among complete ones; none of a metric that is never ranked."""
        if not SHOWN[metric].counts:
            return frozenset()
        own = (source or self.largest, metric, kind, group)
        found = [e for e in self.entries if (e.source, e.metric, e.kind, e.group) == own and e.complete]
        values = {e.method: e.value for e in found if e.value is not None}
        if not values:
            return frozenset()
        top = (min if SHOWN[metric].lower_is_better else max)(values.values())
        return frozenset(name for name, value in values.items() if value == top)

    def columns(self, metrics: Sequence[str], source: str = "") -> list[str]:
        """Columns of the table of accuracy that any method has."""
        chosen = source or self.largest
        known = {e.metric for e in self.entries if e.source == chosen and e.kind == "" and e.value is not None}
        return [m for m in ACCURACY if m in known and (m in metrics or m in ("bias", "coverage"))]

    def count(self, kind: str = "", group: str = "") -> tuple[int, int]:
        """Scans and people of a group."""
        own = [e for e in self.entries if (e.source, e.kind, e.group) == (self.largest, kind, group)]
        return max((e.scans for e in own), default=0), max((e.people for e in own), default=0)

    def counted(self, kind: str = "", group: str = "") -> str:
        """How many scans a group has, and of how many people where that differs; "" where unknown."""
        scans, people = self.count(kind, group)
        if not scans:
            return ""
        return f"{scans} scan{'s' if scans != 1 else ''}" + (f" of {people} people" if people != scans else "")

    @property
    def rising(self) -> tuple[str, ...]:
        """Sources from the smallest to the largest."""
        return tuple(reversed(self.sources))

    @property
    def gap_methods(self) -> tuple[str, ...]:
        """Methods whose gaps are listed."""
        return tuple(dict.fromkeys(gap.method for gap in self.gaps))

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "age_unit": self.unit,
            "sources": list(self.sources),
            "targets": list(self.targets),
            "age_intervals": [vars(each) for each in self.bins],
            "ages": [vars(entry) for entry in self.entries],
            "gaps": [{**vars(gap), "gap": gap.gap} for gap in self.gaps],
            "warnings": list(self.warnings),
        }


def named(source: str) -> str:
    """What was trained on, as a sentence says it."""
    return "all scans" if source == "all" else source


def outside(gap: Gap) -> bool:
    """Whether the true age lies outside of the method's own 95 % interval."""
    return gap.sd is not None and abs(gap.gap) > Z95 * gap.sd
