"""The anomaly track from the command line: a cold run on simulated patients, and a run with nothing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import yaml

from harness import registry
from harness.anomaly import AnomalyDetector

SITES = ["FLAIR", "T1"]


def file(folder: Path, methods: dict[str, Any], **changes: Any) -> Path:
    path = folder / "patients.yaml"
    data = {
        "card": "phantom_s2",
        "sites": SITES,
        "with": {
            "scans": 12,
            "slices": {"size": 64, "pixel_mm": 3.2, "count": 6},
            "split": {"train": 0.4, "validation": 0.3, "test": 0.3},
        },
    }
    text = {
        "benchmark": "patients",
        "track": "anomaly",
        "data": data,
        "methods": methods,
        "metrics": ["max_dice_global", "auroc", "ap", "dice_operating", "fpr_healthy", "evaluations"],
        "report": {"baseline": next(iter(methods))},
        **changes,
    }
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


def run(path: Path, folder: Path) -> dict[str, Any]:
    return tiny.run_json("run", path, "--home", folder / "runs", "--tracking", "none", "-j", "2", cwd=folder)


def test_patients_end_to_end(tmp_path: Path) -> None:
    methods = {
        "prevalence_floor": None,
        "intensity_threshold": None,
        "ae": {"training": {"epochs": None, "iterations": 4, "batch_size": 4, "validate_every": 4}},
    }
    path = file(tmp_path, methods)
    answer = run(path, tmp_path)
    assert answer["failed"] == answer["blocked"] == 0, answer["failures"]
    records = pl.read_parquet(answer["records"])
    scored = records.filter(pl.col("metric") == "auroc")
    assert set(scored.select("method", "target").rows()) == {(m, site) for m in methods for site in SITES}
    level = {(m, t): v for m, t, v in scored.select("method", "target", "value").rows()}
    assert level["prevalence_floor", "FLAIR"] == 0.5
    assert level["intensity_threshold", "FLAIR"] > 0.8, "tumours are bright in FLAIR"
    assert level["intensity_threshold", "FLAIR"] > level["intensity_threshold", "T1"]
    report = Path(answer["report"]).read_text()
    assert "intensity_threshold" in report
    assert "maximum Dice" in report
    again = run(path, tmp_path)
    assert (again["executed"], again["failed"]) == (0, 0)
    board = tiny.harness("leaderboard", "patients", "--home", tmp_path / "runs", cwd=tmp_path)
    assert board.returncode == 0
    assert "SIMULATED" in board.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_detector(tmp_path: Path) -> None:
    detectors = {i: cls for i in registry.entries() if issubclass(cls := registry.load(i), AnomalyDetector)}
    methods = {
        name: cls.example().model_dump(mode="json", exclude_defaults=True) or None for name, cls in detectors.items()
    }
    answer = run(file(tmp_path, methods, processing=["raw", "common", "published"]), tmp_path)
    assert answer["failed"] == answer["blocked"] == 0, answer["failures"]
    records = pl.read_parquet(answer["records"])
    scored = records.filter((pl.col("metric") == "ap") & (pl.col("status") == "ok"))
    assert set(scored["method"]) == set(detectors)
    assert set(scored["processing"]) == {"raw", "common", "published"}
