"""Stage functions of the brain-age track: what runs on workers.

Methods are called in `fit_segmenter`, `segment`, `fit`, `predict` and `importance`, and only there. None is handed an
age of the scans it predicts: `importance` fits estimators of its own and scores them outside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from harness.api import Context
from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeEstimator,
    AgeInputs,
    AgeTraining,
    Column,
    FeatureTable,
    RegionSet,
    SegmentationTraining,
    VolumeSegmenter,
)
from harness.contract_ages import check_ages, check_label_maps
from harness.data import arrays, volume_sets
from harness.data.feature_table import featured, save_features
from harness.engine.worker import StageRun
from harness.metrics import overlap as overlaps
from harness.metrics.catalogue import METRICS
from harness.metrics.regression import regression_scores
from harness.tracks.base import build_method
from harness.tracks.brain_age.features import Regions, regional_features
from harness.tracks.brain_age.importance import Importance, permutation_importance
from harness.tracks.brain_age.inputs import age_inputs, age_training, ages_of, of_family, places_of, split_sets

Record = dict[str, Any]


def keep_scans(run: StageRun) -> None:
    """Who was scanned, of one split; leaves scans.json."""
    run.save_json("scans.json", [asdict(scan) for scan in featured(run.params)])


def keep_ages(run: StageRun) -> None:
    """The ages of one split, by scan: what no other artifact holds."""
    run.save_json("ages.json", dict(run.params["ages"]))


# ------------------------------------------------------------------------------------------------------- label maps


def fit_segmenter(run: StageRun) -> None:
    """Train a segmenter; leaves its state."""
    segmenter = _segmenter(run)
    volumes, regions = split_sets(run)
    data = SegmentationTraining(volumes["train"], regions["train"], volumes["validation"], regions["validation"])
    arrays.save_state(run.out, segmenter.fit(data, _context(run)))


def segment(run: StageRun) -> None:
    """Label maps of one chunk of volumes, or of some of them, checked; background outside the brain."""
    segmenter, state = _segmenter(run), arrays.load_state(run.inputs["state"])
    volumes = volume_sets.load_volumes(run.inputs["volumes"])
    if "scans" in run.params:
        volumes = volumes.take(places_of(volumes.scans, run.params["scans"]))
    names = run.params["names"]
    found = segmenter.segment(state, volumes, _context(run))
    checked = check_label_maps(found, volumes, len(names), segmenter.id)
    volume_sets.save_regions(run.out, names, run.params["ignored"], checked)


def overlap(run: StageRun) -> None:
    """DSC of every region of every scan of a chunk; leaves [scan, subject, region, value] rows, undefined ones out."""
    found, true = volume_sets.load_regions(run.inputs["found"]), volume_sets.load_regions(run.inputs["true"])
    rows: list[list[Any]] = []
    for scan, one, other in zip(true.scans, true, found, strict=True):
        values = overlaps.dsc(overlaps.joint_counts(one, other, len(true.names)))
        rows += [
            [scan.id, scan.subject, true.names[label], float(values[label])]
            for label in range(1, len(true.names))
            if label not in true.ignored and not math.isnan(values[label])
        ]
    run.save_json("dsc.json", rows)


def measure(run: StageRun) -> None:
    """Relational volumes and surface ratios of the label maps of one chunk; leaves a feature table."""
    regions = volume_sets.load_regions(run.inputs["regions"])
    table = regions_of(regions)
    rows = []
    for scan, labels in zip(regions.scans, regions, strict=True):
        try:
            rows.append(regional_features(labels, table, scan.spacing).vector())
        except ValueError as error:
            raise ValueError(f"{scan.id}: {error}") from None
    families = (RELATIONAL_VOLUME, SURFACE_RATIO)
    columns = tuple(
        Column(family, name, label) for family in families for label, name in zip(table.ids, table.names, strict=True)
    )
    save_features(run.out, FeatureTable(np.array(rows), columns, regions.scans))


def regions_of(regions: RegionSet) -> Regions:
    """Which labels are regions: all that have a name, but for the background and what is ignored."""
    ids = [label for label in range(1, len(regions.names)) if label not in regions.ignored]
    return Regions(tuple(ids), tuple(regions.names[label] for label in ids), regions.ignored)


# -------------------------------------------------------------------------------------------------------------- ages


def fit(run: StageRun) -> None:
    """Fit an estimator; leaves its state."""
    method = _estimator(run)
    arrays.save_state(run.out, method.fit(age_training(run, method), _context(run)))


def predict(run: StageRun) -> None:
    """Predict ages of a split, or of chosen scans of train and validation, checked; leaves predictions.json by scan,
    and who they are."""
    method = _estimator(run)
    among = ("train", "validation") if "scans" in run.params else (run.params["split"],)
    data = age_inputs(run, method, among, run.params.get("scans"))
    found = check_ages(method.predict(arrays.load_state(run.inputs["state"]), data, _context(run)), len(data.scans))
    rows = [
        {
            "scan": scan.id,
            "subject": scan.subject,
            "sex": scan.sex or "",
            "birth_age": scan.birth_age,
            "predicted": float(found.ages[i]),
            "sd": None if found.sds is None else float(found.sds[i]),
        }
        for i, scan in enumerate(data.scans)
    ]
    run.save_json("predictions.json", rows)


def importance(run: StageRun) -> None:
    """Permutation importance of each family by an estimator of that family alone; leaves importance.json.

    A single test scan has none, as it cannot be permuted; features of a family in which nothing varies have 0, as
    nothing can be learnt from them: a segmenter may find one region only. Beside it features.json: of every column |r|
    with age of training scans, whether the estimator's own fit chose it, and the values of test scans.
    """
    method = _estimator(run)
    training, test = age_training(run, method), age_inputs(run, method, ("test",))
    ages = ages_of(run, ("test",), test.scans)
    rows: list[Record] = []
    for family in method.wanted():
        alone = method.alone(family)
        if alone is None or len(test.scans) < 2:
            continue
        table = test.features.only((family,))
        learnt = of_family(training, family)
        if _varies(learnt.train.features.values):
            state = alone.fit(learnt, _context(run))
            found = permutation_importance(alone, state, table, ages, _context(run), repeats=run.params["repeats"])
        else:
            nothing = np.zeros(len(table.columns))
            found = Importance(table.columns, nothing, nothing, math.nan)
        rows += [
            {
                "family": column.family,
                "region": column.region,
                "label": column.label,
                "mean": float(mean),
                "sd": float(sd),
                "share": float(share),
            }
            for column, mean, sd, share in zip(found.columns, found.means, found.sds, found.shares, strict=True)
        ]
    run.save_json("importance.json", rows)
    chosen = method.chosen(arrays.load_state(run.inputs["state"]))
    run.save_json("features.json", _described(training, test, ages, chosen))


def _varies(values: np.ndarray) -> bool:
    """Whether any column takes two values among the scans that have one."""
    known = (column[np.isfinite(column)] for column in values.T)
    return any(len(column) > 0 and bool((column != column[0]).any()) for column in known)


def _described(training: AgeTraining, test: AgeInputs, ages: np.ndarray, chosen: Sequence[str] | None) -> Record:
    learnt, tested = training.train.features, test.features
    places = {column.name: i for i, column in enumerate(tested.columns)}
    rows = []
    for i, column in enumerate(learnt.columns):
        place = places.get(column.name)
        values = np.full(len(tested), np.nan) if place is None else tested.values[:, place]
        rows.append(
            {
                "family": column.family,
                "region": column.region,
                "label": column.label,
                "r": _correlation(learnt.values[:, i], training.ages),
                "chosen": chosen is None or column.name in chosen,
                "values": [None if math.isnan(value) else float(value) for value in values],
            }
        )
    return {
        "scans": [scan.id for scan in tested.scans],
        "subjects": [scan.subject for scan in tested.scans],
        "ages": [float(age) for age in ages],
        "columns": rows,
    }


def _correlation(values: np.ndarray, ages: np.ndarray) -> float | None:
    """|Pearson's r| over the scans that have a value; None where it is undefined."""
    known = np.isfinite(values)
    if known.sum() < 2 or np.ptp(values[known]) == 0 or np.ptp(ages[known]) == 0:
        return None
    return float(abs(np.corrcoef(values[known], ages[known])[0, 1]))


def score(run: StageRun) -> None:
    """Records of one method at one test site; leaves records.json and the predictions beside their true ages."""
    rows = json.loads((run.inputs["predictions"] / "predictions.json").read_text())
    folders = [folder for name, folder in run.inputs.items() if name.partition(".")[0] == "ages"]
    known = {scan: age for folder in folders for scan, age in json.loads((folder / "ages.json").read_text()).items()}
    true = np.array([known[row["scan"]] for row in rows], np.float64)
    predicted = np.array([row["predicted"] for row in rows], np.float64)
    wanted, unit = set(run.params["metrics"]), run.params["unit"]
    errors = np.abs(predicted - true)
    records: list[Record] = []

    def add(metric: str, value: float, subject: str = "", scan: str = "", label: str = "") -> None:
        defined = math.isfinite(value)
        records.append(
            {
                "subject": subject,
                "label": label,
                "metric": metric,
                "value": value if defined else None,
                "unit": METRICS[metric].in_unit(unit).unit,
                "status": "ok" if defined else "empty",
                "note": f"scan {scan}" if scan else "" if defined else "undefined: predictions or ages do not vary",
            }
        )

    for metric, values in (("mae", errors), ("mse", errors**2)):
        if metric in wanted:
            for row, value in zip(rows, values, strict=True):
                add(metric, float(value), row["subject"], row["scan"])
    scores = regression_scores(true, predicted)
    totals = {"rmse": scores.rmse, "error_sd": float(errors.std()), "r2": scores.r2, "r2_pearson": scores.r2_pearson}
    for metric, value in totals.items():
        if metric in wanted:
            add(metric, value)
    for name in sorted(name for name in run.inputs if name.startswith("overlap.") and "dsc" in wanted):
        for scan, subject, region, value in json.loads((run.inputs[name] / "dsc.json").read_text()):
            add("dsc", value, subject, scan, region)
    run.save_json("records.json", records)
    run.save_json("ages.json", [{**row, "age": float(age)} for row, age in zip(rows, true, strict=True)])


def atlas(run: StageRun) -> None:
    """Slices in three planes of the largest head of a chunk, with its labels: what regions are shown on."""
    volumes = volume_sets.load_volumes(run.inputs["volumes"])
    regions = volume_sets.load_regions(run.inputs["regions"])
    index = max(range(len(volumes)), key=lambda i: math.prod(volumes.scans[i].shape))
    image, labels, scan = volumes[index].image, np.asarray(regions[index]), volumes.scans[index]
    planes = {"axial": 2, "coronal": 1, "sagittal": 0}
    shown: dict[str, np.ndarray] = {}
    spacing = {}
    for plane, axis in planes.items():
        middle = _fullest(labels, axis)
        rows, columns = [a for a in (2, 1, 0) if a != axis]
        for name, volume in (("image", image), ("labels", labels)):
            flat = np.take(volume, middle, axis=axis)
            # Rows go down from superior (axial: anterior), columns from the subject's left (sagittal: posterior).
            shown[f"{plane}.{name}"] = np.ascontiguousarray(flat.T[::-1])
        spacing[plane] = [scan.spacing[rows], scan.spacing[columns]]
    for name, plane_of in shown.items():
        np.save(run.out / f"{name}.npy", plane_of, allow_pickle=False)
    run.save_json("atlas.json", {"scan": scan.id, "subject": scan.subject, "spacing": spacing})


def _fullest(labels: np.ndarray, axis: int) -> int:
    """The slice with most regions, of these the one nearest to the middle."""
    counts = np.array([len(np.unique(np.take(labels, i, axis=axis))) for i in range(labels.shape[axis])])
    best = np.flatnonzero(counts == counts.max())
    return int(best[np.abs(best - labels.shape[axis] / 2).argmin()])


# ------------------------------------------------------------------------------------------------------------- parts


def _estimator(run: StageRun) -> AgeEstimator:
    method = build_method(run.params["method"])
    assert isinstance(method, AgeEstimator)
    return method


def _segmenter(run: StageRun) -> VolumeSegmenter:
    method = build_method(run.params["method"])
    assert isinstance(method, VolumeSegmenter)
    return method


def _context(run: StageRun) -> Context:
    return Context(run.seed, run.device, run.scratch, run.log)
