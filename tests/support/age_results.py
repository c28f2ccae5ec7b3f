"""A small results folder of brain ages whose numbers can be worked out by hand.

Fourteen scans of twelve people, ages 31 to 44. The error of a scan is OFFSETS, times a method's own factor, times 2
where only 20 scans were trained on, and 0.1 more with the second seed. `floor` always says 38, `broken` lacks a seed of
the smaller source, `lost` has nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.metrics import regression
from harness.results import ages, exhibits, records
from harness.results.ages import AtlasSlice, Correlation, FeatureValue, Importance, Prediction
from harness.results.records import Record, no_value
from harness.results.runinfo import DatasetInfo, MethodInfo, RunInfo

ODD = "<script>alert(1)</script>"
FACTORS = {"good": 0.5, ODD: 1.0, "broken": 1.5, "floor": 0.0}
METHODS = (*FACTORS, "lost")
SOURCES = ("20 scans", "all")
SEEDS = (0, 1)
SITES = ("DHCP",)
METRICS = ("mae", "rmse", "r2", "r2_pearson", "error_sd", "dsc")
AGES = np.arange(31.0, 45.0)
OFFSETS = np.array([1.0, -1.0, 0.6, 0.2, -0.4, 0.8, -0.2, 0.4, -0.6, 1.2, -0.8, 0.0, -1.4, 0.2])
PEOPLE = ("p0", "p0", "p1", "p1", *(f"p{number}" for number in range(2, 12)))
SEXES = tuple("F" if number % 2 else "M" for number in range(12))
SD = 0.5
ERROR = "RuntimeError: the <b>loss</b> is nan"
WARNINGS = ("<i>2</i> people are on both sides of the split",)
REGIONS = ("brainstem", "Gyri parahippocampalis et ambiens, posterior part left GM", "CSF")


def sex_of(place: int) -> str:
    """Of one scan, by its place in AGES."""
    return SEXES[int(PEOPLE[place][1:])]


def predicted(method: str, source: str, seed: int, shift: float = 0.0) -> np.ndarray:
    """Ages that a method predicts for AGES."""
    if method == "floor":
        return np.full(len(AGES), 38.0 + shift)
    return AGES + FACTORS[method] * OFFSETS * (1 if source == "all" else 2) + 0.1 * seed + shift


def fails(method: str, source: str, seed: int) -> bool:
    return method == "lost" or (method, source, seed) == ("broken", "20 scans", 1)


def table_of(info: RunInfo, names: tuple[str, ...] = METHODS, sites: tuple[str, ...] = SITES) -> list[Record]:
    """The records of every cell; a second site's predictions are 0.2 older."""
    rows: list[Record] = []
    sources = [place for place in info.sites if place not in sites]
    for method, source, site, seed in [(m, s, t, n) for m in names for s in sources for t in sites for n in info.seeds]:
        cell = {"method": method, "seed": seed, "source": source, "target": site}
        head: dict[str, Any] = {"benchmark": "ages", "track": "brain_age", **cell}
        if fails(method, source, seed):
            rows += no_value("failed", ERROR, [m for m in METRICS if m != "dsc"], **head)
            continue
        guess = predicted(method, source, seed, 0.2 * sites.index(site))
        for place, error in enumerate(np.abs(guess - AGES)):
            who = {"subject": PEOPLE[place], "label": "", "metric": "mae", "note": f"scan s{place}"}
            rows.append(Record(**head, **who, value=float(error), unit="weeks"))
            if method == "good":
                labels = {"csf": 0.8, "brainstem": 0.9}
                who = {"subject": PEOPLE[place], "metric": "dsc", "note": f"scan s{place}", "unit": ""}
                rows += [Record(**head, **who, label=name, value=value) for name, value in labels.items()]
        scores = regression.regression_scores(AGES, guess)
        found = {"rmse": scores.rmse, "r2": scores.r2, "r2_pearson": scores.r2_pearson}
        found["error_sd"] = float(np.abs(guess - AGES).std())
        for metric, value in found.items():
            known = {"value": value} if np.isfinite(value) else {"value": None, "status": "empty"}
            rows.append(Record(**head, subject="", label="", metric=metric, unit="", **known))
    return rows


def predictions_of(info: RunInfo, sites: tuple[str, ...] = SITES, unit: str = "weeks") -> list[Prediction]:
    """The predictions that the records are of."""
    sources = [place for place in info.sites if place not in sites]
    cells = [(m, s, t, n) for m in METHODS for s in sources for t in sites for n in info.seeds if not fails(m, s, n)]
    return [
        Prediction(
            method, source, site, seed, f"s{place}", PEOPLE[place], sex_of(place), age - 1, float(age), float(guess),
            SD if method == "good" else None, unit,
        )  # type: ignore[arg-type]
        for method, source, site, seed in cells
        for place, (age, guess) in enumerate(
            zip(AGES, predicted(method, source, seed, 0.2 * sites.index(site)), strict=True)
        )
    ]  # fmt: skip


def info_of(**changes: Any) -> RunInfo:
    """`run.json` of the run."""
    methods = [
        MethodInfo(name=name, id="odd" if name == ODD else name, family="age_estimator", fields={"select": 100})
        for name in METHODS
    ]
    known: dict[str, Any] = {
        "run_id": "run1",
        "benchmark": "ages",
        "track": "brain_age",
        "dataset": DatasetInfo(id="newborns", name="Toy", simulated=False),
        "sites": (*SOURCES, *SITES),
        "baseline": "floor",
        "metrics": METRICS,
        "headline": "mae",
        "seeds": SEEDS,
        "methods": tuple(methods),
        "started": "2025-01-31T12:00:00+00:00",
        "version": "0.1.0",
    }
    return RunInfo(**{**known, **changes})


def write_exhibits(folder: Path) -> None:
    """Importance, correlations, features, slices and a curve."""
    families = ("relational volume", "surface ratio")
    ages.write_importance(
        folder,
        [
            Importance("good", "all", "DHCP", 0, family, region, number + 1, mean, 0.01, mean / 0.8)
            for family in families
            for number, (region, mean) in enumerate(zip(REGIONS, (0.2, 0.8, -0.01), strict=True))
        ],
    )
    ages.write_correlations(
        folder, [Correlation(families[0], REGIONS[0], 1, 0.91), Correlation("x", "y", None, np.nan)]
    )
    ages.write_feature_values(
        folder,
        [
            FeatureValue(f"s{place}", PEOPLE[place], float(age), families[0], REGIONS[0], age / 100 if place else None)
            for place, age in enumerate(AGES)
        ],
    )
    labels = np.zeros((12, 10), np.uint8)
    labels[3:9, 2:8] = np.arange(6) // 2 + 1
    image = (labels > 0).astype(np.float32) / 2
    planes = ("sagittal", "coronal", "axial")
    ages.write_atlas(folder, [AtlasSlice(plane, image, labels, (0.5, 1.0), "<b>s3</b>, 34 weeks") for plane in planes])
    curve = {"method": "good", "source": "all", "target": "", "seed": 0, "stage": "fit", "name": "loss"}
    exhibits.write_curves(folder, [{**curve, "step": step, "value": 1 / (step + 1)} for step in range(3)])


def write_folder(
    folder: Path,
    rows: list[Record] | None = None,
    *,
    predictions: list[Prediction] | None = None,
    with_exhibits: bool = False,
    **changes: Any,
) -> Path:
    """A results folder; `changes` are of `run.json`."""
    info = info_of(**changes)
    records.write(folder, records.to_frame(table_of(info) if rows is None else rows))
    ages.write_predictions(folder, predictions_of(info) if predictions is None else predictions)
    info.write(folder)
    if with_exhibits:
        ages.write_warnings(folder, WARNINGS)
        write_exhibits(folder)
    return folder


def errors_text(method: str, source: str = "all") -> str:
    """MAE ± SD of the absolute errors, the mean over seeds of each, as tables show them."""
    own = np.abs(np.stack([predicted(method, source, seed) - AGES for seed in SEEDS]))
    return f"{own.mean():.2f} ± {own.std(axis=1).mean():.2f}"
