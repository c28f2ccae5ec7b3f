"""The anomaly part of a benchmark file, and its cross-checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.anomaly import AnomalyDetector, Processing
from harness.api import Settings
from harness.data.dataset import Dataset
from harness.data.schema import SPLITS, Choice, Part
from harness.metrics.catalogue import METRICS
from harness.problems import Problem, did_you_mean
from harness.tracks import base
from harness.tracks.anomaly.plan import (
    COSTS,
    HEALTHY,
    OPERATING,
    POOLED,
    SIZES,
    Protocol,
    Setting,
    build_plan,
    detector_of,
)
from harness.yamlfile import Document, check

TRACK_METRICS = (*POOLED, *SIZES, *OPERATING, *COSTS)
COMMON = Processing(erode=3, median=5, smallest=7)
"""The chain that is the same for all methods (ours, with the lengths of pDDPM)."""


Processed = Literal["raw", "common", "published"]
RAW: Processed = "raw"


class SettingSection(Settings):
    """One setting: healthy slices of one site are learnt from, lesions of another are sought."""

    train: str = Field(description="site whose healthy slices are learnt from")
    test: str | None = Field(None, description="site whose lesions are sought; default: the site of train")
    subjects: Literal["test", "all"] | None = Field(
        None, description="subjects of the test site; default: its test split where it is also trained on, else all"
    )


class SlicesSection(Settings):
    """Which slices are sought through for lesions. Learnt from is always every slice without any."""

    test: Literal["largest", "lesions", "all"] = Field(
        "largest", description="the slice with most lesion of each scan, all with a lesion, or all"
    )


class AnomalySpec(base.BenchmarkSpec):
    """A benchmark file of track `anomaly`."""

    track: Literal["anomaly"]
    settings: dict[str, SettingSection] = Field(
        default_factory=dict, description="name → sites; empty: every site of the data is a setting of its own"
    )
    slices: SlicesSection = SlicesSection()
    processing: list[Processed] = Field(
        default_factory=lambda: [RAW],
        min_length=1,
        description="what is done to maps before they are scored, each scored apart; the first orders the leaderboard",
    )
    common: Processing = Field(COMMON, description="the processing called common")
    false_positive_rate: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the brain of healthy validation slices that may be called abnormal: fixes the threshold",
    )
    size_bins: Literal["thor", "itermask"] = Field("thor", description="bounds of small, medium and large lesions")
    examples: int = Field(3, ge=0, le=12, description="slices of each setting that are shown in the report")


def resolve(document: Document, cache: Path, root: Path | None = None) -> base.Benchmark:
    """Benchmark and plan from a document. Raises UserError with every problem of the file."""
    spec, problems = check(document, document.data, AnomalySpec)
    rows, found = base.resolve_rows(document, (AnomalyDetector,))
    dataset, card_problems = base.resolve_dataset(document, cache, root)
    problems += [p for p in (*found, *card_problems) if p not in problems]
    settings: tuple[Setting, ...] = ()
    if spec is not None:
        problems += base.unknown(document, ("metrics",), spec.metrics, TRACK_METRICS, "metric")
        problems += base.check_report(document, spec)
        if dataset is not None:
            settings, setting_problems = _settings(document, spec, dataset)
            problems += setting_problems
        problems += base.check_size(
            document,
            len(rows) * len(settings) * len(spec.seeds),
            f"{len(rows)} rows, {len(settings)} settings and {len(spec.seeds)} seeds",
        )
    base.fail_if(problems)
    assert spec is not None
    assert dataset is not None
    protocol = Protocol(
        test_slices=spec.slices.test,
        metrics=tuple(spec.metrics),
        processing=tuple(spec.processing),
        common=spec.common,
        false_positive_rate=spec.false_positive_rate,
        size_bins=spec.size_bins,
        examples=spec.examples,
        workers=spec.resources.train.workers,
    )
    plan, examples = build_plan(spec.benchmark, dataset, settings, rows, tuple(spec.seeds), protocol)
    sites = tuple(dict.fromkeys(site for s in settings for site in (s.train, s.test)))
    places = tuple(dict.fromkeys([*(s.source for s in settings), *(s.name for s in settings)]))
    extra: dict[str, Any] = {
        "settings": settings,
        "traits": {},
        "reference_sites": sites,
        "processing": tuple(spec.processing),
        "examples": examples,
        "files": tuple(dict.fromkeys(path for row in rows for path in detector_of(row).all_files())),
        "choices": tuple(dict.fromkeys(choice for s in settings for choice in _choices(s, spec))),
    }
    return base.Benchmark(spec, dataset, sites, rows, plan, extra, places)


def _settings(document: Document, spec: AnomalySpec, dataset: Dataset) -> tuple[tuple[Setting, ...], list[Problem]]:
    """The settings of the file, or one for each site; and what is wrong with them."""
    sites = tuple(spec.data.sites) or dataset.sites
    problems = base.unknown(document, ("data", "sites"), spec.data.sites, dataset.sites, "site")
    asked = spec.settings or {site: SettingSection(train=site) for site in sites if dataset.lesioned(site)}
    if not asked and not problems:
        what = "no site has lesion masks; name sites under settings:, or mend the card's labels"
        problems.append(document.problem(("data", "card"), what))
    found = []
    for name, section in asked.items():
        at = ("settings", name) if name in spec.settings else ("data",)
        test = section.test or section.train
        for field, site in (("train", section.train), ("test", section.test)):
            if site is not None and site not in dataset.sites:
                what = f"unknown site {site!r}{did_you_mean(site, dataset.sites)}"
                problems.append(document.problem((*at, field), what))
        if not {section.train, test} <= set(dataset.sites):
            continue
        asked_of: tuple[tuple[str, str, Choice], ...] = (
            ("train", section.train, "healthy"),
            ("test", test, spec.slices.test),
        )
        for field, site, choice in asked_of:
            if trouble := dataset.choice_trouble(site, choice):
                problems.append(document.problem((*at, field) if name in spec.settings else at, trouble))
        if not dataset.lesioned(test) and spec.slices.test == "all":
            problems.append(document.problem(at, f"{test} has no lesion masks: there is nothing to find"))
        if name == (HEALTHY if test == section.train else section.train):
            problems.append(
                document.problem(at, f"{name!r} is what its training slices are called; rename the setting")
            )
        subjects = section.subjects or ("test" if test == section.train else "all")
        if subjects == "all" and test == section.train:
            what = f"{test} is trained on, so its lesions can only be sought in subjects of the test split"
            problems.append(document.problem((*at, "subjects"), what))
        if test != section.train and subjects == "all":
            problems += _apart(document, at, dataset, section.train, test)
        found.append(Setting(name, section.train, test, subjects))
    return tuple(found), problems


def _choices(setting: Setting, spec: AnomalySpec) -> Iterator[tuple[str, Part, Choice]]:
    """Site, split and choice of every set of slices that a setting needs."""
    for split in SPLITS:
        yield setting.train, split, "healthy"
    yield setting.test, setting.subjects, spec.slices.test


def _apart(document: Document, at: tuple[str, ...], dataset: Dataset, train: str, test: str) -> list[Problem]:
    """A person may not be learnt from at one site and sought at another."""
    learnt = {scan.subject for split in SPLITS[:2] for scan in dataset.scans(train, split)}
    both = sorted(learnt & {scan.subject for scan in dataset.scans(test)})
    if not both:
        return []
    what = f"{len(both)} subjects of {test} are learnt from at {train}, {both[0]} for one; write subjects: test"
    return [document.problem(at, what)]


assert set(TRACK_METRICS) <= set(METRICS)
