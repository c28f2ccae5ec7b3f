"""A small results folder whose means, ranks and gaps can be worked out by hand.

Three sites, four subjects each, two labels. A value is base + pair + subject + label, all offsets adding up to 0, so
that a method's mean DSC is its base. `broken` has no result from source A; `adapter` returns no images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.results import exhibits, records
from harness.results.records import Record, no_value
from harness.results.runinfo import Counts, DatasetInfo, MethodInfo, RunInfo

SITES = ("A", "B", "C")
BASES = {"none": 0.60, "good": 0.80, "worse": 0.70, "<script>alert(1)</script>": 0.75, "adapter": 0.78, "broken": 0.90}
PAIRS = {"AB": -0.03, "AC": -0.02, "BA": -0.01, "BC": 0.01, "CA": 0.02, "CB": 0.03}
SUBJECTS = (-0.02, -0.01, 0.01, 0.02)
LABELS = {"GM": -0.05, "WM": 0.05}
METRICS = ("dsc", "hd95", "hd95_missing", "wasserstein")
ERROR = "ValueError: the <b>loss</b> is nan at step 3\n  File x, line 1"


def cell(method: str, source: str, target: str, seed: int = 0) -> dict[str, Any]:
    """The part of a record that names its cell."""
    return {
        "benchmark": "toy",
        "track": "cross_site",
        "method": method,
        "seed": seed,
        "source": source,
        "target": target,
    }


def table_of(method: str, source: str, target: str, seed: int = 0) -> list[Record]:
    """All records of one cell."""
    key = cell(method, source, target, seed)
    if method == "broken" and source == "A":
        return no_value("failed" if target == "B" else "blocked", ERROR, METRICS, **key)
    base = 0.95 if source == target else BASES[method] + PAIRS[source + target]
    rows = []
    for number, offset in enumerate(SUBJECTS):
        for label, shift in LABELS.items():
            value = base + offset + shift + 0.001 * seed
            lost = method == "none" and number == 0 and label == "WM"
            who = {"subject": f"{target}{number}", "label": label}
            state = "penalised" if lost else "ok"
            rows.append(Record(**key, **who, metric="dsc", value=value, unit=""))
            rows.append(Record(**key, **who, metric="hd95", value=20 * (1 - value), unit="mm", status=state))
            rows.append(Record(**key, **who, metric="hd95_missing", value=float(lost), unit="structures"))
    if method == "adapter":
        return rows + no_value("not_applicable", "the method returns predictions, no images", ["wasserstein"], **key)
    return [*rows, Record(**key, subject="", label="", metric="wasserstein", value=0.1 * (1 - base), unit="")]


def info_of(**changes: Any) -> RunInfo:
    """`run.json` of the toy run."""
    methods = [
        MethodInfo(
            name=name,
            id="script" if "<" in name else name,
            family="adapter" if name == "adapter" else "harmonizer",
            reference="Someone & Other, 2021",
            traits={"source_free": name != "worse", "task_agnostic": name != "adapter", "unknown_domains": True},
            fields={"rate": 0.1, "net": {"width": [8, 16]}, "text": "<i>kept as it is</i>"},
            doc="One line.",
        )
        for name in BASES
    ]
    base = RunInfo(
        run_id="run1",
        benchmark="toy",
        track="cross_site",
        description="A toy.",
        dataset=DatasetInfo(id="phantom", name="Toy phantom", simulated=True, label_names=("background", "GM", "WM")),
        sites=SITES,
        baseline="none",
        metrics=METRICS,
        headline="dsc",
        seeds=(0,),
        methods=tuple(methods),
        task=MethodInfo(name="task", id="unet", family="task", fields={"width": 8}),
        counts=Counts(executed=10, failed=1, blocked=1),
        seconds=61.0,
        started="2025-01-31T12:00:00+00:00",
        version="0.1.0",
        environment={"python": "3.11"},
    )
    return base.model_copy(update=changes)


def all_records() -> list[Record]:
    """Every cell of the matrix: all methods off the diagonal, the baseline on it."""
    found = []
    for method in BASES:
        for source in SITES:
            for target in SITES:
                if source != target or method == "none":
                    found += table_of(method, source, target)
    return found


def write_exhibits(folder: Path) -> None:
    """Curves, histograms and panels of two methods."""
    point = {"target": "", "seed": 0, "stage": "fit", "name": "loss"}
    exhibits.write_curves(
        folder,
        [
            {**point, "method": method, "source": source, "step": step, "value": 1 / (step + 1)}
            for method in ("task", "good")
            for source in SITES
            for step in range(3)
        ],
    )
    density = {"source": 0.5, "before": 0.2, "after": 0.4}
    exhibits.write_histograms(
        folder,
        [
            {"source": "A", "site": "B", "method": method, "kind": kind, "bin": level, "density": peak / (1 + level)}
            for method in ("good", "<script>alert(1)</script>")
            for kind, peak in density.items()
            for level in range(256)
        ],
    )
    label = np.zeros((12, 10), np.uint8)
    label[3:9, 3:7] = 1
    label[5:7, 4:6] = 2
    panel = {"source": "A", "target": "B", "subject": "B0", "slice": 4, "input": label * 100, "label": label}
    exhibits.write_panels(
        folder,
        [
            {**panel, "method": "good", "harmonised": label * 90, "prediction": label},
            {**panel, "method": "adapter", "harmonised": None, "prediction": np.roll(label, 1, 0)},
        ],
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """build(rows=…, exhibits=True, **changes of run.json) → a results folder."""

    def make(rows: list[Record] | None = None, *, with_exhibits: bool = True, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("home") / "toy"
        records.write(folder, records.to_frame(all_records() if rows is None else rows))
        info_of(**changes).write(folder)
        if with_exhibits:
            write_exhibits(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def folder(build: Callable[..., Path]) -> Path:
    """The toy folder; tests that change it build their own."""
    return build()


@pytest.fixture(scope="module")
def toy() -> Any:
    """This module's numbers, for tests that work an expectation out."""

    class Toy:
        bases, pairs, sites, metrics = BASES, PAIRS, SITES, METRICS
        cell, table_of, all_records, info_of = map(staticmethod, (cell, table_of, all_records, info_of))

    return Toy
