"""The cross-site part of a benchmark file, and its cross-checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.api import Harmonizer, TaskModel, TestTimeAdapter
from harness.data.card import load_card
from harness.data.dataset import Dataset, open_dataset
from harness.metrics.catalogue import METRICS
from harness.problems import Problem, UserError
from harness.tracks import base
from harness.tracks.cross_site.plan import Protocol, build_plan
from harness.yamlfile import Document, check

TRACK_METRICS = ("dsc", "hd95", "hd95_pooled", "hd95_unit", "hd95_missing", "wasserstein", "psnr", "ssim")


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


def resolve(document: Document, cache: Path, root: Path | None = None) -> base.Benchmark:
    """Benchmark and plan from a document. Raises UserError with every problem of the file."""
    spec, problems = check(document, document.data, CrossSiteSpec)
    card_problems: list[Problem] = []
    rows, task, row_problems = _methods(document)
    dataset = None
    if isinstance(document.data.get("data"), dict):
        dataset, card_problems = _dataset(document, cache, root)
    problems += [p for p in (*row_problems, *card_problems) if p not in problems]
    sites: tuple[str, ...] = ()
    if spec is not None:
        problems += base.unknown(document, ("metrics",), spec.metrics, TRACK_METRICS, "metric")
        problems += _report(document, spec)
        if dataset is not None:
            sites, site_problems = _sites(document, spec, dataset)
            problems += site_problems
    base.fail_if(problems)
    assert spec is not None
    assert dataset is not None
    assert task is not None
    protocol = Protocol(spec.diagonal, spec.quantize, spec.paired, tuple(spec.metrics), spec.report.baseline)
    plan = build_plan(spec.benchmark, dataset, sites, task, rows, tuple(spec.seeds), protocol)
    return base.Benchmark(spec, dataset, sites, rows, plan, {"task": task})


def _methods(document: Document) -> tuple[tuple[base.Row, ...], base.Row | None, list[Problem]]:
    rows: list[base.Row] = []
    problems: list[Problem] = []
    listed = document.data.get("methods")
    for name, fields in listed.items() if isinstance(listed, dict) else ():
        if fields is None or isinstance(fields, dict):
            row, found = base.resolve_row(document, ("methods", name), str(name), fields, (Harmonizer, TestTimeAdapter))
            problems += found
            rows += [row] if row else []
    section = document.data.get("task")
    task = None
    if isinstance(section, dict):
        if "id" not in section:
            problems.append(document.problem(("task",), "task.id is missing; name a task model of `harness methods`"))
        else:
            task, found = base.resolve_row(document, ("task",), str(section["id"]), section, (TaskModel,))
            problems += found
    return tuple(rows), task, problems


def _dataset(document: Document, cache: Path, root: Path | None) -> tuple[Dataset | None, list[Problem]]:
    section = document.data["data"]
    if not isinstance(section.get("card"), str):
        return None, []
    try:
        card = load_card(document, section)
        given = root or (Path(section["root"]) if isinstance(section.get("root"), str) else None)
        if given is not None and root is None and not given.is_absolute():
            given = Path(document.path).parent / given
        return open_dataset(card, given, cache), []
    except UserError as error:
        return None, list(error.problems)


def _sites(document: Document, spec: CrossSiteSpec, dataset: Dataset) -> tuple[tuple[str, ...], list[Problem]]:
    sites = tuple(spec.data.sites) or dataset.sites
    problems = base.unknown(document, ("data", "sites"), sites, dataset.sites, "site")
    where = ("data", "sites") if spec.data.sites else ("data", "card")
    if len(sites) < 2:
        what = f"a cross-site benchmark needs at least two sites, here {len(sites)}; add one of"
        others = [site for site in dataset.sites if site not in sites]
        problems.append(document.problem(where, f"{what}: {', '.join(others) or '(the card has no other)'}"))
    elif not problems and not any(dataset.labelled(site) for site in sites):
        problems.append(document.problem(where, "none of the sites has labels, so no task model can be trained"))
    return sites, problems


def _report(document: Document, spec: CrossSiteSpec) -> list[Problem]:
    problems = []
    if spec.report.baseline not in spec.methods:
        at = ("report", "baseline") if "report" in document.data else ("methods",)
        what = f"the baseline {spec.report.baseline!r} is not among the methods; add it, or set report.baseline"
        problems.append(document.problem(at, what))
    headline = spec.report.headline
    if headline is not None and headline not in spec.metrics:
        what = f"the headline metric {headline!r} is not among metrics: {', '.join(spec.metrics)}"
        problems.append(document.problem(("report", "headline"), what))
    return problems


assert set(TRACK_METRICS) <= set(METRICS)
