"""The cross-site part of a benchmark file, and its cross-checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.api import Generalizer, Harmonizer, Outcome, TaskModel, TestTimeAdapter
from harness.data.dataset import Dataset
from harness.metrics.catalogue import METRICS
from harness.problems import Problem
from harness.tracks import base
from harness.tracks.cross_site.plan import TASK_METRICS, Protocol, access, build_plan, has_reference
from harness.yamlfile import Document, check

TRACK_METRICS = (
    "dsc", "hd95", "hd95_pooled", "hd95_unit", "hd95_missing", "mae", "mse", "wasserstein", "psnr", "ssim",
)  # fmt: skip
NEEDS: dict[str, str] = {"labels": "labels", "age": "ages"}
"""What a task model of each outcome is trained on, in words."""


class CrossSiteSpec(base.BenchmarkSpec):
    """A benchmark file of track `cross_site`."""

    track: Literal["cross_site"]
    task: dict[str, Any] = Field(description="the task model: `id` and its fields")
    diagonal: Literal["baseline", "all", "none"] = Field(
        "baseline", description="which rows are also scored on their own source site (the in-domain ceiling)"
    )
    quantize: Literal["round", "truncate", "none"] = Field(
        "round",
        description="harmonised images become 8-bit again as the originals are; `truncate` is what the published "
        "code does, `none` keeps float32",
    )
    paired: bool = Field(
        True, description="also compare with the same subject imaged at the source, where the data set offers it"
    )
    trace: bool = Field(
        True, description="score every step of methods that adapt step by step, for the plots of stopping rules"
    )


def resolve(document: Document, cache: Path, root: Path | None = None) -> base.Benchmark:
    """Benchmark and plan from a document. Raises UserError with every problem of the file."""
    spec, problems = check(document, document.data, CrossSiteSpec)
    rows, task, row_problems = _methods(document)
    outcome: Outcome = task.method.outcome if task and isinstance(task.method, TaskModel) else "labels"
    # Where age is to be predicted, no image set may carry it.
    dataset, card_problems = base.resolve_dataset(document, cache, root, withhold_age=outcome == "age")
    problems += [p for p in (*row_problems, *card_problems) if p not in problems]
    problems += _outcomes(document, rows, outcome)
    sites: tuple[str, ...] = ()
    if spec is not None:
        problems += base.unknown(document, ("metrics",), spec.metrics, TRACK_METRICS, "metric")
        problems += _metrics(document, spec, outcome)
        problems += base.check_report(document, spec)
        if dataset is not None:
            sites, site_problems = _sites(document, spec, dataset, outcome)
            problems += site_problems
        asked = f"{len(rows)} rows, {len(sites)} sites and {len(spec.seeds)} seeds"
        cells = len(rows) * len(sites) * (len(sites) - 1) * len(spec.seeds)
        problems += base.check_size(document, cells, asked)
    base.fail_if(problems)
    assert spec is not None
    assert dataset is not None
    assert task is not None
    protocol = Protocol(
        spec.diagonal,
        spec.quantize,
        spec.paired,
        tuple(spec.metrics),
        spec.report.baseline,
        spec.trace,
        spec.resources.train.workers,
    )
    plan = build_plan(spec.benchmark, dataset, sites, task, rows, tuple(spec.seeds), protocol)
    extra = {
        "task": task,
        "traits": access(plan, rows),
        "reference_sites": tuple(site for site in sites if has_reference(dataset, site, outcome)),
    }
    return base.Benchmark(spec, dataset, sites, rows, plan, extra, sites)


def _methods(document: Document) -> tuple[tuple[base.Row, ...], base.Row | None, list[Problem]]:
    rows, problems = base.resolve_rows(document, (Harmonizer, TestTimeAdapter, Generalizer))
    section = document.data.get("task")
    task = None
    if isinstance(section, dict):
        if "id" not in section:
            problems.append(document.problem(("task",), "task.id is missing; name a task model of `harness methods`"))
        else:
            task, found = base.resolve_row(document, ("task",), str(section["id"]), section, (TaskModel,))
            problems += found
    return rows, task, problems


def _outcomes(document: Document, rows: tuple[base.Row, ...], outcome: Outcome) -> list[Problem]:
    """Rows that cannot work with this kind of task."""
    return [
        document.problem(("methods", row.name), f"{row.name} does not work with a task model that predicts {what}")
        for row in rows
        for what in [NEEDS[outcome]]
        if isinstance(row.method, Harmonizer | TestTimeAdapter | Generalizer) and not row.method.supports(outcome)
    ]


def _metrics(document: Document, spec: CrossSiteSpec, outcome: Outcome) -> list[Problem]:
    """Metrics of the other kind of task."""
    other = {m for kind, metrics in TASK_METRICS.items() if kind != outcome for m in metrics}
    own = "use " + ", ".join(m for m in TRACK_METRICS if m in TASK_METRICS[outcome])
    return [
        document.problem(("metrics", i), f"{metric} does not fit a task model that predicts {NEEDS[outcome]}; {own}")
        for i, metric in enumerate(spec.metrics)
        if metric in other
    ]


def _sites(
    document: Document, spec: CrossSiteSpec, dataset: Dataset, outcome: Outcome
) -> tuple[tuple[str, ...], list[Problem]]:
    sites = tuple(spec.data.sites) or dataset.sites
    problems = base.unknown(document, ("data", "sites"), sites, dataset.sites, "site")
    where = ("data", "sites") if spec.data.sites else ("data", "card")
    if len(sites) < 2:
        what = f"a cross-site benchmark needs at least two sites, here {len(sites)}; add one of"
        others = [site for site in dataset.sites if site not in sites]
        problems.append(document.problem(where, f"{what}: {', '.join(others) or '(the card has no other)'}"))
    elif not problems and not any(has_reference(dataset, site, outcome) for site in sites):
        what = f"none of the sites has {NEEDS[outcome]}, so no task model can be trained"
        problems.append(document.problem(where, what))
    return sites, problems


assert set(TRACK_METRICS) <= set(METRICS)
