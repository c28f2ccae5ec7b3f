"""The stage functions of the brain-age track, called on small artifacts: what is handed over, checked and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_ages
from sklearn.metrics import mean_squared_error, r2_score

from harness.api import AccessDenied, Method, MethodError
from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeInputs,
    Column,
    FeatureTable,
    Volume,
    VolumeScan,
)
from harness.data import arrays
from harness.data.feature_table import load_features, save_features
from harness.data.volume_sets import load_regions, save_regions, save_volumes
from harness.engine.worker import StageRun
from harness.results.ages import Correlation, FeatureValue, Importance
from harness.tracks.base import payload_of
from harness.tracks.brain_age import inputs, stages
from harness.tracks.brain_age.features import regional_features
from methods.brain_age.mean_age import MeanAge
from methods.brain_age.regional_regression.method import RegionalRegression

NAMES = ["background", "left", "right", "skin"]
SHAPE = (6, 7, 8)
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call a stage function as a worker would; gives the folder of its artifact."""
    counter = iter(range(1000))

    def call(function: Callable[[StageRun], None], needs: Mapping[str, Path] | None = None, **params: Any) -> Path:
        folder = tmp_path / f"stage{next(counter)}"
        out, scratch = folder / "out", folder / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        sent = json.loads(json.dumps(params))
        function(StageRun(sent, needs or {}, out, scratch, 3, "cpu", {}))
        return out

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    counter = iter(range(1000))

    def make() -> Path:
        path = tmp_path / f"made{next(counter)}"
        path.mkdir()
        return path

    return make


def payload(method: Method) -> dict[str, Any]:
    return payload_of(method)


def scan(name: str, subject: str = "", shape: tuple[int, int, int] = SHAPE, spacing: float = 1.0) -> VolumeScan:
    return VolumeScan(name, subject or f"of {name}", "A", shape, (spacing, spacing, spacing), sex="F", birth_age=38.0)


def table(names: list[str], columns: tuple[Column, ...], start: float = 0.0) -> FeatureTable:
    values = start + np.arange(len(names) * len(columns), dtype=np.float64).reshape(len(names), -1)
    return FeatureTable(values, columns, tuple(map(scan, names)))


def heads(where: Path, names: list[str]) -> tuple[Path, Path]:
    """Volumes and label maps: label 1 in the dark left half, 2 in the bright right half, a shell of background."""
    volumes, regions = where / "volumes", where / "regions"
    volumes.mkdir()
    regions.mkdir()
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    labels = np.where(mask, np.where(np.arange(SHAPE[0])[:, None, None] < 3, 1, 2), 0).astype(np.uint8)
    image = np.where(labels == 2, 0.75, 0.25).astype(np.float32)
    save_volumes(volumes, ((scan(name), Volume(image, mask)) for name in names))
    save_regions(regions, NAMES, [3], ((scan(name), labels) for name in names))
    return volumes, regions


# ------------------------------------------------------------------------------------------------ tables


SIZES = (Column(RELATIONAL_VOLUME, "left", 1), Column(RELATIONAL_VOLUME, "right", 2))
RATIOS = (Column(SURFACE_RATIO, "left", 1),)


def test_chunks_lie_under_each_other_and_other_columns_beside_them() -> None:
    one, two = table(["a", "b"], SIZES), table(["c"], SIZES, 100)
    other = table(["c", "b", "a"], RATIOS, 1000)
    found = inputs.joined([one, other, two])
    assert found.columns == (*SIZES, *RATIOS)
    assert [s.id for s in found.scans] == ["a", "b", "c"]
    np.testing.assert_array_equal(found.values, [[0, 1, 1002], [2, 3, 1001], [100, 101, 1000]])
    assert inputs.joined([one]).columns == SIZES


def test_wanted_scans_are_taken_of_every_table() -> None:
    everyone, some = table(["a", "b", "c", "d"], RATIOS), table(["d", "b"], SIZES, 10)
    found = inputs.joined([everyone, some], ["b", "d"])
    assert [s.id for s in found.scans] == ["b", "d"]
    np.testing.assert_array_equal(found.values, [[1, 12, 13], [3, 10, 11]])


@pytest.mark.parametrize("wanted", [None, ["a", "c"]])
def test_tables_of_other_scans_are_told(wanted: list[str] | None) -> None:
    with pytest.raises(MethodError, match=r"not of the same scans \(relational volume; surface ratio\); measure"):
        inputs.joined([table(["a", "b", "c"], SIZES), table(["a", "b"], RATIOS)], wanted)
    if wanted is None:
        with pytest.raises(MethodError, match="not of the same scans"):
            inputs.joined([table(["a", "b"], SIZES), table(["a", "b", "c"], RATIOS)])


def test_families_come_in_the_order_that_was_asked_for(run: Run, folder: Callable[[], Path]) -> None:
    measured = folder()
    save_features(measured, table(["a"], (*SIZES, *RATIOS)))
    found = StageRun({}, {"features.test.0": measured}, measured, measured, 0, "cpu", {})
    method = RegionalRegression(families=(SURFACE_RATIO, RELATIONAL_VOLUME), segmentation=None)
    assert inputs.age_inputs(found, method, ("test",)).features.columns == (*RATIOS, *SIZES)


# ---------------------------------------------------------------------------------------- what is learnt from


def learning(run: Run, folder: Callable[[], Path]) -> dict[str, Path]:
    """Features of three training scans in two chunks and of two validation scans, and their ages."""
    found: dict[str, Path] = {}
    for name, scans in (("train.0", ["a", "b"]), ("train.1", ["c"]), ("validation.0", ["d", "e"])):
        found[f"features.{name}"] = folder()
        save_features(found[f"features.{name}"], table(scans, SIZES, 10 * len(found)))
    for split, names in (("train", "abc"), ("validation", "de")):
        ages = [[name, 30.0 + ord(name) - ord("a")] for name in names]
        found[f"ages.{split}"] = run(stages.keep_ages, ages=ages)
    return found


def test_training_is_the_splits_as_they_are(run: Run, folder: Callable[[], Path], tmp_path: Path) -> None:
    needs = learning(run, folder)
    data = inputs.age_training(StageRun({}, needs, tmp_path, tmp_path, 0, "cpu", {}), RegionalRegression())
    assert [s.id for s in data.train.scans] == ["a", "b", "c"]
    assert data.ages.tolist() == [30, 31, 32]
    assert [s.id for s in data.validation.scans] == ["d", "e"]
    assert data.validation_ages.tolist() == [33, 34]


def test_a_subset_is_of_both_splits_with_its_ages(run: Run, folder: Callable[[], Path], tmp_path: Path) -> None:
    params = {"train": ["e", "a"], "validation": ["c"]}
    needs = learning(run, folder)
    data = inputs.age_training(StageRun(params, needs, tmp_path, tmp_path, 0, "cpu", {}), RegionalRegression())
    assert [s.id for s in data.train.scans] == ["e", "a"]
    assert data.ages.tolist() == [34, 30]
    np.testing.assert_array_equal(data.train.features.values, [[32, 33], [10, 11]])
    assert [s.id for s in data.validation.scans] == ["c"]
    assert data.validation_ages.tolist() == [32]


def test_who_reads_nothing_is_told_who_was_scanned(run: Run) -> None:
    def scanned(*names: str) -> Path:
        people = [[name, f"of {name}", "M", 37.5] for name in names]
        return run(stages.keep_scans, site="A", split="train", modality="T2w", people=people)

    def ages(**known: float) -> Path:
        return run(stages.keep_ages, ages=list(known.items()))

    needs = {
        "scans.train.0": scanned("a", "b"),
        "scans.validation.0": scanned("c"),
        "ages.train": ages(a=30.0, b=34.0),
        "ages.validation": ages(c=50.0),
    }
    state = run(stages.fit, needs, method=payload(MeanAge()))
    subset = run(stages.fit, needs, method=payload(MeanAge()), train=["c", "a"], validation=["b"])
    asked = {"scans.test.0": scanned("x", "y")}
    for folder, mean in ((state, 32.0), (subset, 40.0)):
        out = run(stages.predict, {"state": folder, **asked}, method=payload(MeanAge()), split="test")
        rows = json.loads((out / "predictions.json").read_text())
        assert [row["predicted"] for row in rows] == [mean, mean]
    assert rows[0] | {"predicted": 0, "sd": 0} == {
        "scan": "x", "subject": "of x", "sex": "M", "birth_age": 37.5, "predicted": 0, "sd": 0
    }  # fmt: skip


def test_nothing_is_handed_to_who_reads_nothing() -> None:
    nothing = AgeInputs(granted_scans=(scan("a"),))
    assert [s.id for s in nothing.scans] == ["a"]
    for what in ("volumes", "features"):
        with pytest.raises(AccessDenied, match=f'reads nothing; set `reads = "{what}"`'):
            getattr(nothing, what)
    with pytest.raises(AccessDenied, match="reads features"):
        _ = AgeInputs(granted_features=table(["a"], SIZES)).volumes


# ------------------------------------------------------------------------------------------------ label maps


def fitted(run: Run, volumes: Path, regions: Path, segmenter: toy_ages.Levels, **params: Any) -> Path:
    needs = {
        "volumes.train.0": volumes, "regions.train.0": regions,
        "volumes.validation.0": volumes.parent.parent / "held" / "volumes",
        "regions.validation.0": volumes.parent.parent / "held" / "regions",
    }  # fmt: skip
    return run(stages.fit_segmenter, needs, method=payload(segmenter), **params)


@pytest.fixture
def learnt(run: Run, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Volumes and label maps of a, b and c; and what a segmenter learnt from them, with d held out."""
    (tmp_path / "train").mkdir()
    (tmp_path / "held").mkdir()
    volumes, regions = heads(tmp_path / "train", ["a", "b", "c"])
    heads(tmp_path / "held", ["d"])
    return volumes, regions, fitted(run, volumes, regions, toy_ages.Levels())


def segmented(run: Run, learnt: tuple[Path, Path, Path], **changes: Any) -> Path:
    wrong = {"wrong": changes.pop("wrong")} if "wrong" in changes else {}
    method = payload(toy_ages.Levels(**wrong))
    params = {"method": method, "names": NAMES, "ignored": [3], **changes}
    return run(stages.segment, {"volumes": learnt[0], "state": learnt[2]}, **params)


def test_segmenters_learn_from_the_split_or_a_subset(run: Run, learnt: tuple[Path, Path, Path]) -> None:
    assert arrays.load_state(learnt[2])["seen"] == ["a", "b", "c"]
    assert arrays.load_state(learnt[2])["shapes"] == [list(SHAPE)] * 3
    subset = fitted(run, learnt[0], learnt[1], toy_ages.Levels(), train=["d", "b"], validation=["a"])
    assert arrays.load_state(subset)["seen"] == ["d", "b"]


def test_label_maps_are_background_outside_the_brain(run: Run, learnt: tuple[Path, Path, Path]) -> None:
    found, true = load_regions(segmented(run, learnt)), load_regions(learnt[1])
    assert found.scans == true.scans
    assert (found.names, found.ignored) == (tuple(NAMES), (3,))
    for one, other in zip(found, true, strict=True):
        np.testing.assert_array_equal(one, other)
    some = load_regions(segmented(run, learnt, scans=["c", "a"]))
    assert [s.id for s in some.scans] == ["c", "a"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("shape", r"levels: the label map of a must be uint8 \[6, 7, 8\], got uint8 \[5, 7, 8\]"),
        ("type", r"must be uint8 \[6, 7, 8\], got int64 \[6, 7, 8\]"),
        ("list", r"must be uint8 \[6, 7, 8\], got int64 \[2\]"),
        ("value", "the label map of a holds 9; labels go from 0 to 3"),
        ("few", "the label map of b is missing: 1 of 3 volumes were segmented"),
        ("many", "there are more label maps than the 3 volumes"),
    ],
)
def test_wrong_label_maps_are_told_in_a_line(
    run: Run, learnt: tuple[Path, Path, Path], wrong: str, message: str
) -> None:
    with pytest.raises(MethodError, match=message) as told:
        segmented(run, learnt, wrong=wrong)
    assert "\n" not in str(told.value)


def test_overlap_is_of_regions_that_occur(
    run: Run, learnt: tuple[Path, Path, Path], folder: Callable[[], Path]
) -> None:
    half = folder()
    labels = np.array(load_regions(learnt[1])[0])
    labels[2] = np.where(labels[2] == 1, 2, labels[2])  # of two planes on the left, one is called right
    save_regions(half, NAMES, [3], ((scan(name), labels) for name in "abc"))
    out = run(stages.overlap, {"found": half, "true": learnt[1]})
    rows = json.loads((out / "dsc.json").read_text())
    assert len(rows) == 3 * 2, "nobody has skin"
    assert rows[0] == ["a", "of a", "left", pytest.approx(2 / 3)]  # planes: 1 of 2 found
    assert rows[1] == ["a", "of a", "right", pytest.approx(4 / 5)]  # 3 found, 2 true


def test_features_are_those_of_the_label_maps(run: Run, learnt: tuple[Path, Path, Path]) -> None:
    found = load_features(run(stages.measure, {"regions": learnt[1]}))
    regions = load_regions(learnt[1])
    assert [c.name for c in found.columns] == [
        "relational volume of left", "relational volume of right", "surface ratio of left", "surface ratio of right"
    ]  # fmt: skip
    assert [c.label for c in found.columns] == [1, 2, 1, 2]
    assert found.scans == regions.scans
    for row, labels in zip(found.values, regions, strict=True):
        np.testing.assert_array_equal(row, regional_features(labels, stages.regions_of(regions)).vector())


def test_a_scan_that_cannot_be_measured_is_named(run: Run, folder: Callable[[], Path]) -> None:
    for labels, spacing, message in (
        (np.zeros(SHAPE, np.uint8), (1.0, 1.0, 1.0), "^b: none of the 2 regions has a voxel"),
        (np.ones(SHAPE, np.uint8), (1.0, 1.0, 2.0), "^b: voxels of 1 × 1 × 2 mm are no cubes"),
    ):
        where = folder()
        one = VolumeScan("b", "p", "A", SHAPE, spacing)
        save_regions(where, NAMES, [3], [(scan("a"), np.ones(SHAPE, np.uint8)), (one, labels)])
        with pytest.raises(ValueError, match=message):
            run(stages.measure, {"regions": where})


def test_the_atlas_lies_as_heads_are_looked_at(run: Run, folder: Callable[[], Path]) -> None:
    """x goes to the right, y to the front, z up; rows go down."""
    volumes, regions, shape = folder(), folder(), (10, 12, 14)
    image, mask, labels = np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, np.uint8)
    labels[2:8, 2:10, 2:12], mask[2:8, 2:10, 2:12] = 1, True
    labels[6:8, 5:7, 6:8] = 2  # the planes through here have most regions
    image[mask] = 0.2
    image[7, 2:10, 2:12], image[2:8, 9, 2:12], image[2:8, 2:10, 11] = 0.5, 0.75, 1.0  # right, front, top
    big = VolumeScan("big", "p", "A", shape, (1.0, 2.0, 3.0))
    save_volumes(
        volumes, [(scan("small"), Volume(np.ones(SHAPE, np.float32), np.ones(SHAPE, bool))), (big, Volume(image, mask))]
    )
    save_regions(regions, NAMES, [3], [(scan("small"), np.ones(SHAPE, np.uint8)), (big, labels)])
    out = run(stages.atlas, {"volumes": volumes, "regions": regions})
    index = json.loads((out / "atlas.json").read_text())
    assert (index["scan"], index["subject"]) == ("big", "p")
    assert index["spacing"] == {"axial": [2, 1], "coronal": [3, 1], "sagittal": [3, 2]}
    shown = {
        name: np.load(out / f"{name}.npy")
        for name in (f"{p}.{w}" for p in index["spacing"] for w in ("image", "labels"))
    }
    axial, coronal, sagittal = (shown[f"{plane}.image"] for plane in ("axial", "coronal", "sagittal"))
    assert (axial.shape, coronal.shape, sagittal.shape) == ((12, 10), (14, 10), (14, 12))
    np.testing.assert_allclose(axial[2, 2:8], 0.75, atol=1e-4)  # the front is on top
    np.testing.assert_allclose(axial[3:10, 7], 0.5, atol=1e-4)  # the right is on the right
    np.testing.assert_allclose(coronal[2, 2:8], 1.0, atol=1e-4)  # up is on top
    np.testing.assert_allclose(coronal[3:12, 7], 0.5, atol=1e-4)
    np.testing.assert_allclose(sagittal[2, 2:10], 1.0, atol=1e-4)
    np.testing.assert_allclose(sagittal[3:12, 9], 0.75, atol=1e-4)  # the front is on the right
    for plane in index["spacing"]:
        assert set(np.unique(shown[f"{plane}.labels"])) == {0, 1, 2}
        assert shown[f"{plane}.labels"].dtype == np.uint8


# ---------------------------------------------------------------------------------------------------- ages


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("type", "predict must return AgePredictions, got ndarray"),
        ("few", r"ages must be of 3 scans, \[3\], got \[2\]"),
        ("nan", "ages are not finite for 2 of 3 scans"),
        ("sds", r"sds must be of 3 scans, \[3\], got \[3, 1\]"),
        ("negative", "sds must not be negative"),
    ],
)
def test_predictions_that_cannot_be_are_refused(run: Run, folder: Callable[[], Path], how: str, message: str) -> None:
    state = folder()
    arrays.save_state(state, {})
    people = [[name, f"of {name}", None, None] for name in "abc"]
    asked = run(stages.keep_scans, site="A", split="test", modality="T2w", people=people)
    needs = {"state": state, "scans.test.0": asked}
    with pytest.raises(MethodError, match=message) as told:
        run(stages.predict, needs, method=payload(toy_ages.Wrong(how=how)), split="test")
    assert "\n" not in str(told.value)
    good = run(stages.predict, needs, method=payload(toy_ages.Wrong()), split="test")
    rows = json.loads((good / "predictions.json").read_text())
    assert [(row["scan"], row["sex"], row["predicted"], row["sd"]) for row in rows] == [
        (s, "", 40.0, 1.0) for s in "abc"
    ]


TRUE = {"a1": 30.0, "a2": 34.5, "b1": 41.0, "c1": 38.0}


def scored(run: Run, folder: Callable[[], Path], predicted: list[float], **changes: Any) -> list[dict[str, Any]]:
    predictions, overlaps = folder(), folder()
    rows = [
        {"scan": name, "subject": name[0], "sex": "F", "birth_age": None, "predicted": value, "sd": None}
        for name, value in zip(TRUE, predicted, strict=False)
    ]
    (predictions / "predictions.json").write_text(json.dumps(rows))
    (overlaps / "dsc.json").write_text(json.dumps([["a1", "a", "left", 0.9], ["c1", "c", "right", 0.8]]))
    ages = run(stages.keep_ages, ages=[[name, age] for name, age in TRUE.items()])
    needs = {"predictions": predictions, "ages": ages, "overlap.0": overlaps}
    metrics = ["mae", "mse", "rmse", "error_sd", "r2", "r2_pearson", "dsc"]
    out = run(stages.score, needs, **{"metrics": metrics, "unit": "weeks", **changes})
    kept = json.loads((out / "ages.json").read_text())
    assert kept == [{**row, "age": TRUE[row["scan"]]} for row in rows]
    found: list[dict[str, Any]] = json.loads((out / "records.json").read_text())
    return found


def test_records_are_the_errors_and_agreement(run: Run, folder: Callable[[], Path]) -> None:
    predicted = [31.0, 34.0, 39.0, 38.25]
    true = np.array(list(TRUE.values()))
    found = scored(run, folder, predicted)
    mae = [row for row in found if row["metric"] == "mae"]
    assert [(row["subject"], row["note"], row["value"]) for row in mae] == [
        ("a", "scan a1", 1.0), ("a", "scan a2", 0.5), ("b", "scan b1", 2.0), ("c", "scan c1", 0.25)
    ]  # fmt: skip
    assert [row["value"] for row in found if row["metric"] == "mse"] == [1.0, 0.25, 4.0, 0.0625]
    assert {row["unit"] for row in found if row["metric"] == "mse"} == {"weeks²"}
    (rmse,) = (row for row in found if row["metric"] == "rmse")
    assert rmse["value"] == pytest.approx(math.sqrt(mean_squared_error(true, predicted)))
    assert (rmse["subject"], rmse["note"], rmse["unit"]) == ("", "", "weeks")
    value = {row["metric"]: row["value"] for row in found if not row["subject"]}
    assert value["r2"] == pytest.approx(r2_score(true, predicted))
    assert value["r2_pearson"] == pytest.approx(np.corrcoef(true, predicted)[0, 1] ** 2)
    assert value["error_sd"] == pytest.approx(np.std([1.0, 0.5, 2.0, 0.25]))
    overlaps = [row for row in found if row["metric"] == "dsc"]
    assert [(row["subject"], row["label"], row["value"], row["note"]) for row in overlaps] == [
        ("a", "left", 0.9, "scan a1"), ("c", "right", 0.8, "scan c1")
    ]  # fmt: skip
    assert {row["status"] for row in found} == {"ok"}


def test_what_is_undefined_says_so_and_only_what_is_asked_for_is_there(run: Run, folder: Callable[[], Path]) -> None:
    found = scored(run, folder, [36.0] * 4, metrics=["r2", "r2_pearson", "rmse"], unit="years")
    assert [row["metric"] for row in found] == ["rmse", "r2", "r2_pearson"]
    by_name = {row["metric"]: row for row in found}
    assert (by_name["r2_pearson"]["status"], by_name["r2_pearson"]["value"]) == ("empty", None)
    assert by_name["r2_pearson"]["note"].startswith("undefined")
    assert by_name["r2"]["status"] == "ok"
    assert by_name["rmse"]["unit"] == "years"
    (one,) = (row for row in scored(run, folder, [31.0]) if row["metric"] == "r2")
    assert one["status"] == "empty"


def planted(names: list[str], ages: np.ndarray, rng: np.random.Generator) -> FeatureTable:
    """Three sizes of which the second follows age, and one surface, of which the last scan has none."""
    columns = (*(Column(RELATIONAL_VOLUME, f"r{i}", i) for i in (1, 2, 3)), Column(SURFACE_RATIO, "r1", 1))
    values = rng.uniform(0, 1, (len(names), 4))
    values[:, 1] = ages / 50 + rng.normal(0, 0.002, len(names))
    values[-1, 3] = np.nan
    return FeatureTable(values, columns, tuple(map(scan, names)))


def explained(run: Run, folder: Callable[[], Path], test_scans: int = 12, flat: bool = False) -> Path:
    rng, needs = np.random.default_rng(0), {}
    for split, count in (("train", 24), ("validation", 4), ("test", test_scans)):
        names = [f"{split}{i}" for i in range(count)]
        ages = rng.uniform(28, 44, count)
        needs[f"features.{split}.0"] = folder()
        features = planted(names, ages, rng)
        if flat:
            features.values[:, :3] = [1, 0, np.nan]
        save_features(needs[f"features.{split}.0"], features)
        needs[f"ages.{split}"] = run(stages.keep_ages, ages=[list(pair) for pair in zip(names, ages, strict=True)])
    method = payload(RegionalRegression(segmentation=None, select=2))
    state = run(stages.fit, {k: v for k, v in needs.items() if "test" not in k}, method=method)
    return run(stages.importance, {**needs, "state": state}, method=method, repeats=5)


def test_importance_leaves_what_the_report_needs(run: Run, folder: Callable[[], Path]) -> None:
    out = explained(run, folder)
    rows = [Importance("m", "all", "A", 0, **row) for row in json.loads((out / "importance.json").read_text())]
    assert [(row.family, row.region, row.label) for row in rows] == [
        *((RELATIONAL_VOLUME, f"r{i}", i) for i in (1, 2, 3)),
        (SURFACE_RATIO, "r1", 1),
    ]
    assert rows[1].share == 1
    assert rows[1].mean > 10 * max(abs(rows[0].mean), abs(rows[2].mean))
    described = json.loads((out / "features.json").read_text())
    assert described["scans"] == [f"test{i}" for i in range(12)]
    assert len(described["ages"]) == len(described["subjects"]) == 12
    known = {
        (c["family"], c["region"]): Correlation(c["family"], c["region"], c["label"], c["r"], c["chosen"], "m")
        for c in described["columns"]
    }
    assert sum(c.chosen for c in known.values()) == 2
    best = known[RELATIONAL_VOLUME, "r2"]
    assert best.chosen
    assert best.r is not None
    assert best.r > 0.99
    last = described["columns"][3]["values"][-1]
    assert FeatureValue("test11", "of test11", 30.0, SURFACE_RATIO, "r1", last).value is None


def test_a_single_test_scan_has_no_importance(run: Run, folder: Callable[[], Path]) -> None:
    out = explained(run, folder, test_scans=1)
    assert json.loads((out / "importance.json").read_text()) == []
    assert json.loads((out / "features.json").read_text())["scans"] == ["test0"]


def test_a_family_that_does_not_vary_has_no_importance(run: Run, folder: Callable[[], Path]) -> None:
    rows = json.loads((explained(run, folder, flat=True) / "importance.json").read_text())
    assert [(row["mean"], row["sd"], row["share"]) for row in rows[:3]] == [(0, 0, 0)] * 3
    assert rows[3]["family"] == SURFACE_RATIO
    assert rows[3]["mean"] != 0


def test_correlations_with_age_where_they_are_defined() -> None:
    ages = np.array([30.0, 32.0, 36.0, 40.0])
    assert stages._correlation(-ages, ages) == pytest.approx(1)
    assert stages._correlation(np.array([1.0, np.nan, 2.0, 5.0]), ages) == pytest.approx(
        abs(np.corrcoef([1, 2, 5], [30, 36, 40])[0, 1])
    )
    assert stages._correlation(np.full(4, 2.0), ages) is None
    assert stages._correlation(np.array([1.0, np.nan, np.nan, np.nan]), ages) is None
