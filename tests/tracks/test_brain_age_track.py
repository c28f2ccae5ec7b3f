"""The brain-age track from data to report: a table whose features follow age, and a few simulated newborns."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import age_data
import numpy as np
import polars as pl
import pytest
import tiny
import yaml
from rich.console import Console

from harness.data import arrays
from harness.engine.executor import Execution, ResourceClasses, Summary
from harness.engine.store import Store, open_store
from harness.problems import UserError
from harness.results import ages, exhibits, leaderboard, terminal
from harness.run import audit, collect
from harness.spec import load
from harness.tracks.base import Benchmark

TABLES = {"id": "regional_regression", "segmentation": None}
ROWS: dict[str, Any] = {
    "mean_age": None,
    "ridge": {**TABLES, "select": 8},
    "everything": {**TABLES, "select": None},
    "sizes": {**TABLES, "families": ["relational volume"], "select": None, "regressor": "kernel_ridge"},
}
METRICS = ["mae", "error_sd", "rmse", "r2", "r2_pearson", "mse"]


def benchmark(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Benchmark:
    """A benchmark of a table with these rows, split by scan as its column says."""
    folder.mkdir(parents=True, exist_ok=True)
    data = age_data.write_table(folder / "data", rows)
    file = {
        "benchmark": "table",
        "track": "brain_age",
        "data": {"card": "feature_table", "root": str(data), "with": {"split": {"by": "scan"}}},
        "methods": ROWS,
        "metrics": METRICS,
        "training_sizes": ["all", 20],
        "importance_repeats": 10,
        "report": {"baseline": "mean_age"},
        **changes,
    }
    (folder / "table.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return load(folder / "table.yaml", cache=folder / "cache")


def leaking() -> list[dict[str, Any]]:
    """The rows of a table in which one person's two scans are on two sides."""
    rows = age_data.people()
    second = next(row for row in rows if row["scan"].removeprefix("v") != row["subject"].removeprefix("p"))
    first = next(row for row in rows if row["subject"] == second["subject"] and row is not second)
    first["split"], second["split"] = "train", "test"
    return rows


Finished = tuple[Benchmark, Store, Summary, Path]


def carried_out(found: Benchmark, folder: Path) -> Finished:
    store = open_store(str(folder / "store"))
    summary = Execution(found.plan, store, ResourceClasses()).run()
    assert not summary.failures, summary.failures
    return found, store, summary, folder


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("table")
    found = benchmark(folder, leaking())
    assert audit(found) == []
    done = carried_out(found, folder)
    collect(found, done[1], done[2], folder / "results", folder / "table.yaml", time.time())
    return done


def artifact(done: Finished, title: str) -> Path:
    return done[1].read(next(s.key for s in done[0].plan.stages if s.title == title))


def test_features_that_follow_age_beat_its_mean(finished: Finished) -> None:
    table = pl.read_parquet(finished[3] / "results" / "records.parquet")
    assert set(table["status"]) == {"ok", "empty"}
    assert set(table.filter(pl.col("status") == "empty").select("method", "metric").rows()) == {
        ("mean_age", "r2_pearson")
    }
    error = {
        key: frame["value"].mean()
        for key, frame in table.filter(pl.col("metric") == "mae").group_by("method", "source")
    }
    assert set(error) == {(name, source) for name in ROWS for source in ("all", "20 scans")}
    for name in ("ridge", "everything", "sizes"):
        assert error[name, "all"] < error["mean_age", "all"] / 3
    tested = finished[0].dataset.scans("SITE_A", "test")
    per_scan = table.filter((pl.col("metric") == "mae") & (pl.col("method") == "ridge") & (pl.col("source") == "all"))
    assert sorted(per_scan["note"]) == sorted(f"scan {scan.id}" for scan in tested)
    assert set(per_scan["subject"]) == {scan.subject for scan in tested}
    assert set(per_scan["unit"]) == {"weeks"}


def test_the_report_has_what_was_found(finished: Finished) -> None:
    folder = finished[3] / "results"
    shown = ages.read(folder)
    assert len(shown.predictions) == len(ROWS) * 2 * len(finished[0].dataset.scans("SITE_A", "test"))
    important = ages.read_importance(folder)
    assert set(important["method"]) == {"ridge", "everything", "sizes"}
    assert set(important["source"]) == {"all"}
    assert set(important.filter(pl.col("method") == "sizes")["family"]) == {"relational volume"}
    correlations = ages.read_correlations(folder)
    assert correlations.filter(pl.col("method") == "ridge")["chosen"].sum() == 8
    assert len(ages.read_feature_values(folder)) == 3 * 6 * len(finished[0].dataset.scans("SITE_A", "test"))
    assert ages.read_atlas(folder) == ()
    assert len(exhibits.read_curves(folder)) == 0
    report = (folder / "report.html").read_text()
    for text in (*ROWS, "20 scans", "relational volume"):
        assert text in report


def test_a_person_on_both_sides_is_a_warning_everywhere(finished: Finished) -> None:
    (line,) = finished[0].dataset.warnings()
    assert "people on several of its sides: 1;" in line
    folder = finished[3] / "results"
    assert ages.read(folder).warnings == (line,)
    assert line in (folder / "report.html").read_text()
    out = io.StringIO()
    terminal.show(leaderboard.build(folder), Console(file=out, width=300))
    assert line in " ".join(out.getvalue().split())


def test_ages_of_test_scans_change_no_prediction_and_no_choice(finished: Finished, tmp_path: Path) -> None:
    rows = leaking()
    for row in rows:
        if row["split"] == "test":
            row["age"] = round(72 - row["age"], 3)
            row["birth_age"] = round(min(row["age"], row["birth_age"]), 3)
    poisoned = carried_out(benchmark(tmp_path, rows), tmp_path)
    compared = 0
    for stage in finished[0].plan.stages:
        if stage.kind == "predict":
            one, two = (
                [row["predicted"] for row in json.loads((artifact(done, stage.title) / "predictions.json").read_text())]
                for done in (finished, poisoned)
            )
            assert one == two
            compared += 1
        if stage.kind == "fit" and "mean_age" not in stage.title:
            one, two = (arrays.load_state(artifact(done, stage.title))["columns"] for done in (finished, poisoned))
            np.testing.assert_array_equal(one, two)
            compared += 1
    assert compared == 2 * 4 + 2 * 3
    scores = [
        json.loads((artifact(d, "score ridge SITE_A") / "records.json").read_text()) for d in (finished, poisoned)
    ]
    assert scores[0] != scores[1], "the ages did change"


def test_families_under_each_others_name_are_told(tmp_path: Path) -> None:
    rows = age_data.people()
    for row in rows:
        for k in range(1, age_data.REGIONS + 1):
            row[f"rv_{k}"], row[f"svr_{k}"] = row[f"svr_{k}"], row[f"rv_{k}"]
    (problem,) = audit(benchmark(tmp_path, rows))
    assert "the table names the two the wrong way round. Write swap: true" in str(problem)
    assert "feature_table.yaml:" in str(problem)


def test_a_cell_that_holds_no_number_is_told_where_it_stands(tmp_path: Path) -> None:
    rows = age_data.people()
    rows[6]["age"], rows[9]["rv_2"] = "forty", "n/a?"
    found = [str(problem) for problem in audit(benchmark(tmp_path, rows))]
    assert any("features.csv:8: age:" in line for line in found), found
    assert any("features.csv:11: relational volume of label 2:" in line for line in found), found


def test_one_person_on_two_sides_is_no_mistake_only_by_scan(tmp_path: Path) -> None:
    with_subjects = {"card": "feature_table", "root": str(tmp_path / "data")}
    problems = audit(benchmark(tmp_path, leaking(), data=with_subjects))
    assert any("in train" in str(problem) and "split: {by: scan}" in str(problem) for problem in problems)


def volumes_end_to_end(folder: Path, data: dict[str, Any], site: str) -> pl.DataFrame:
    """From the command line, on whole volumes: the regions they have, a segmenter's, and the mean; the records."""
    segmentation = {
        "filters": [4, 8, 16],
        "patch": 16,
        "stride": 12,
        "jitter": 1,
        "window_batch": 8,
        "training": {"epochs": None, "iterations": 40, "batch_size": 4, "learning_rate": 0.01, "validate_every": 20},
    }
    methods = {
        "mean_age": None,
        "own_regions": {"id": "regional_regression", "segmentation": None, "select": 20},
        "proposed": {"id": "regional_regression", "segmentation": segmentation, "select": 20},
    }
    file = {
        "benchmark": "volumes",
        "track": "brain_age",
        "data": data,
        "methods": methods,
        "metrics": ["mae", "rmse", "dsc"],
        "importance_repeats": 2,
        "report": {"baseline": "mean_age"},
    }
    (folder / "volumes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    home = ("--home", folder / "runs")
    answer = tiny.run_json(
        "run", folder / "volumes.yaml", *home, "--tracking", "none", "-j", "2", cwd=folder, code=None
    )
    assert answer["failed"] == answer["blocked"] == 0, answer["failures"]
    table = pl.read_parquet(answer["records"])
    assert set(table.filter(pl.col("metric") == "mae")["method"]) == set(methods)
    overlaps = table.filter(pl.col("metric") == "dsc")
    assert set(overlaps["method"]) == {"proposed"}
    assert overlaps["value"].is_between(0, 1).all()
    results = Path(answer["records"]).parent
    assert {one.plane for one in ages.read_atlas(results)} == {"axial", "coronal", "sagittal"}
    assert set(exhibits.read_curves(results)["method"]) == {"patch_segmenter"}
    assert set(ages.read_importance(results)["method"]) == {"own_regions", "proposed"}
    report = (results / "report.html").read_text()
    assert "proposed" in report
    assert site in report
    return table


def test_volumes_end_to_end(tmp_path: Path) -> None:
    root = age_data.write_heads(tmp_path / "data", [30.0 + i for i in range(12)])
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(age_data.HEADS))
    table = volumes_end_to_end(tmp_path, {"card": "heads.yaml", "root": str(root)}, "A")
    overlaps = table.filter(pl.col("metric") == "dsc")
    assert set(overlaps["label"]) == {"left", "right"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_newborns_end_to_end(tmp_path: Path) -> None:
    """Each is rendered twice, for its volume and its regions: a minute on a core."""
    changes = {
        "scans": 6,
        "volumes": {"voxel_mm": 3.0, "chunk": 2},
        "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
    }
    table = volumes_end_to_end(tmp_path, {"card": "phantom_newborns", "with": changes}, "DHCP")
    assert len(set(table.filter(pl.col("metric") == "dsc")["label"])) > 40


def test_a_file_that_is_wrong_everywhere_is_told_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        benchmark(tmp_path, age_data.people(), metrics=["mae", "dice"], train="SITE_B", methods={"mean_agee": None})
    lines = [str(problem) for problem in told.value.problems]
    assert all(line.startswith(f"{tmp_path / 'table.yaml'}:") for line in lines)
    for what in (
        "unknown metric 'dice'",
        "unknown site 'SITE_B'",
        "unknown method 'mean_agee'; did you mean mean_age?",
    ):
        assert sum(what in line for line in lines) == 1
