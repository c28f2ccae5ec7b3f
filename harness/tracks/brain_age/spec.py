"""The brain-age part of a benchmark file, and its cross-checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator

from harness.brain_age import AgeEstimator
from harness.data.dataset import Dataset
from harness.metrics.catalogue import METRICS
from harness.problems import Problem, did_you_mean
from harness.tracks import base
from harness.tracks.base import Row
from harness.tracks.brain_age.importance import REPEATS
from harness.tracks.brain_age.plan import build_plan
from harness.tracks.brain_age.protocol import (
    ERRORS,
    MEASURED,
    SEGMENTATION,
    Protocol,
    estimator_of,
    segmenter_of,
    source_of,
    tables_of,
)
from harness.tracks.brain_age.subsets import nested
from harness.yamlfile import Document, check

TRACK_METRICS = (*ERRORS, *SEGMENTATION)
FEWEST = 4
"""Scans of a training size: of fewer, one side would be a single scan or none."""


def _size(value: Any) -> int | Literal["all"]:
    """A plain function in place of a union: one mistake gives one message."""
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= FEWEST):
        return value
    raise ValueError(f"must be a number of scans, at least {FEWEST}, or all; got {value!r}")


def _all_scans() -> list[int | Literal["all"]]:
    return ["all"]


Size = Annotated[int | Literal["all"], PlainValidator(_size)]


class BrainAgeSpec(base.BenchmarkSpec):
    """A benchmark file of track `brain_age`."""

    track: Literal["brain_age"]
    train: str | None = Field(
        None, description="site that is learnt from; default: the first. Test splits of all sites are scored"
    )
    training_sizes: list[Size] = Field(
        default_factory=_all_scans,
        min_length=1,
        description="how many scans are learnt from, validation included: nested subsets, another draw for each seed",
    )
    validation_share: float = Field(
        0.4, gt=0, lt=1, description="share of a training size that goes to validation; all keeps the card's split"
    )
    importance_repeats: int = Field(REPEATS, ge=1, le=10_000, description="permutations of each feature")

    @field_validator("training_sizes")
    @classmethod
    def _distinct(cls, sizes: list[Size]) -> list[Size]:
        if len(set(sizes)) < len(sizes):
            raise ValueError("a training size is listed twice")
        return sizes


def resolve(document: Document, cache: Path, root: Path | None = None) -> base.Benchmark:
    """Benchmark and plan from a document. Raises UserError with every problem of the file."""
    spec, problems = check(document, document.data, BrainAgeSpec)
    rows, found = base.resolve_rows(document, (AgeEstimator,))
    dataset, card_problems = base.resolve_dataset(document, cache, root, withhold_age=True)
    problems += [p for p in (*found, *card_problems) if p not in problems]
    protocol: Protocol | None = None
    if spec is not None:
        problems += base.unknown(document, ("metrics",), spec.metrics, TRACK_METRICS, "metric")
        problems += base.check_report(document, spec)
        problems += base.check_size(
            document,
            len(rows) * len(spec.training_sizes) * len(spec.seeds) * max(len(spec.data.sites), 1),
            f"{len(rows)} rows, {len(spec.training_sizes)} training sizes, {len(spec.seeds)} seeds and the sites",
        )
        if dataset is not None:
            protocol, more = _protocol(document, spec, dataset)
            problems += more
        if dataset is not None and protocol is not None and not problems:
            problems += _check_data(document, spec, dataset, protocol)
            for row in rows:
                problems += _check_row(document, row, dataset, protocol)
            if not problems:
                problems += _check_overlaps(document, rows, dataset, protocol)
    base.fail_if(problems)
    assert spec is not None
    assert dataset is not None
    assert protocol is not None
    plan, shown = build_plan(spec.benchmark, dataset, rows, tuple(spec.seeds), protocol)
    sites = tuple(dict.fromkeys((protocol.train, *protocol.tests)))
    sources = tuple(source_of(size) for size in protocol.sizes)
    extra: dict[str, Any] = {
        "traits": {},
        "reference_sites": sites,
        "protocol": protocol,
        "shown": shown,
        "warnings": dataset.warnings(),
    }
    return base.Benchmark(spec, dataset, sites, rows, plan, extra, (*sources, *protocol.tests))


def validated(benchmark: base.Benchmark, names: Iterable[str]) -> base.Benchmark:
    """The same benchmark; cells of the named rows end in "validation" too, the errors on validation scans.

    Raises ValueError for a row that learns from those scans.
    """
    names = frozenset(names)
    for row in benchmark.rows:
        if row.name in names and estimator_of(row).learns_from_validation():
            raise ValueError(f"{row.name} learns from validation scans, so errors on them say nothing")
    protocol = replace(benchmark.extra["protocol"], validated=names)
    seeds = tuple(benchmark.spec.seeds)
    plan, shown = build_plan(benchmark.spec.benchmark, benchmark.dataset, benchmark.rows, seeds, protocol)
    return replace(benchmark, plan=plan, extra={**benchmark.extra, "protocol": protocol, "shown": shown})


def _protocol(document: Document, spec: BrainAgeSpec, dataset: Dataset) -> tuple[Protocol | None, list[Problem]]:
    """What is learnt from and scored; and what is wrong with the names of sites."""
    problems = base.unknown(document, ("data", "sites"), spec.data.sites, dataset.sites, "site")
    sites = tuple(spec.data.sites) or dataset.sites
    train = spec.train or sites[0]
    if spec.train is not None and train not in dataset.sites:
        problems.append(document.problem(("train",), f"unknown site {train!r}{did_you_mean(train, dataset.sites)}"))
    if problems:
        return None, problems
    sizes = tuple(None if size == "all" else int(size) for size in spec.training_sizes)
    return (
        Protocol(
            train=train,
            tests=sites,
            sizes=sizes,
            validation_share=spec.validation_share,
            metrics=tuple(spec.metrics),
            repeats=spec.importance_repeats,
            unit=dataset.card.age_unit,
        ),
        [],
    )


def _check_data(document: Document, spec: BrainAgeSpec, dataset: Dataset, protocol: Protocol) -> list[Problem]:
    """Whether there are ages, and scans enough for each training size. Without the data neither can be said."""
    problems = []
    for site in dict.fromkeys((protocol.train, *protocol.tests)):
        scans = dataset.scans(site)
        unknown = [scan.id for scan in scans if scan.age is None]
        if unknown:
            what = f"{len(unknown)} of {len(scans)} scans of {site} have no age, {unknown[0]} for one"
            problems.append(document.problem(("data", "card"), f"{what}; complete the table, or leave these out"))
    pool = (*dataset.scans(protocol.train, "train"), *dataset.scans(protocol.train, "validation"))
    for i, size in enumerate(protocol.sizes):
        if size is None or not pool:
            continue
        try:
            for seed in spec.seeds:
                nested(pool, size, protocol.validation_share, seed)
        except ValueError as error:
            problems.append(document.problem(("training_sizes", i), f"{error}; write fewer, or all"))
    return problems


def _check_row(document: Document, row: Row, dataset: Dataset, protocol: Protocol) -> list[Problem]:
    """Whether the data has what a method reads."""
    method, at = estimator_of(row), ("methods", row.name)
    whole = dataset.card.volumes is not None
    if method.reads == "nothing":
        return []
    if method.reads == "volumes":
        return [] if whole else [document.problem(at, f"{row.name} reads volumes; {_no_volumes(dataset)}")]
    if not method.wanted():
        return [document.problem(at, f"{row.name} reads features and names no family of them; name one or more")]
    problems = []
    for site in dict.fromkeys((protocol.train, *protocol.tests)):
        known = tables_of(dataset, site)
        for family in method.wanted():
            if family in known:
                continue
            if family not in MEASURED:
                hint = did_you_mean(family, [*known, *(MEASURED if whole else ())]) or "; it has no features"
                problems.append(document.problem(at, f"{site} brings no {family!r}{hint}"))
            elif not whole:
                problems.append(document.problem(at, f"{family} is measured on label maps; {_no_volumes(dataset)}"))
            elif method.segmenter() is None and not dataset.labelled(site):
                what = f"{site} has no label maps to measure {family} on; give its label, or a segmenter"
                problems.append(document.problem(at, what))
    segmented = [site for site in (protocol.train, *protocol.tests) if segmenter_of(dataset, row, site) is not None]
    if not problems and segmented and not dataset.labelled(protocol.train):
        what = f"{row.name} trains a segmenter, and {protocol.train} has no label maps; give its label"
        problems.append(document.problem(at, what))
    return list(dict.fromkeys(problems))


def _check_overlaps(document: Document, rows: tuple[Row, ...], dataset: Dataset, protocol: Protocol) -> list[Problem]:
    """Whether there are label maps to compare, found and true, where their overlap is asked for."""
    if any(
        dataset.labelled(site) and segmenter_of(dataset, row, site) is not None
        for row in rows
        for site in protocol.tests
    ):
        return []
    what = "is of label maps that a row's segmenter makes of scans that have their own: no row makes any; drop it"
    return [
        document.problem(("metrics", i), f"{metric} {what}")
        for i, metric in enumerate(protocol.metrics)
        if metric in SEGMENTATION
    ]


def _no_volumes(dataset: Dataset) -> str:
    return f"{dataset.card.id} has none; write volumes: in a card of images, or take another method"


assert set(TRACK_METRICS) <= set(METRICS)
