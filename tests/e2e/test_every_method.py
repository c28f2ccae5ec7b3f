"""Every registered method, at its smallest settings, through real runs: segmentation and age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny

from harness import registry
from harness.api import Generalizer, Harmonizer, TestTimeAdapter

METHODS = {
    method_id: cls
    for method_id in registry.entries()
    if issubclass(cls := registry.load(method_id), Harmonizer | TestTimeAdapter | Generalizer)
}


def settings(outcome: str) -> dict[str, Any]:
    """Rows for the methods that work with this kind of task."""
    return {
        method_id: cls.example().model_dump(mode="json", exclude_defaults=True) or None
        for method_id, cls in METHODS.items()
        if cls.example().supports(outcome)  # type: ignore[arg-type]
    }


def run(folder: Path, **changes: Any) -> pl.DataFrame:
    path = tiny.write(folder, **changes)
    answer = tiny.run_json("run", path, "--home", folder / "runs", "--tracking", "none", "-j", "2", cwd=folder)
    assert answer["failed"] == answer["blocked"] == 0, answer["failures"]
    return pl.read_parquet(answer["records"])


@pytest.mark.slow
def test_every_method_segments(tmp_path: Path) -> None:
    rows = settings("labels")
    records = run(tmp_path, methods=rows, metrics=["dsc", "wasserstein"])
    scored = records.filter((pl.col("metric") == "dsc") & (pl.col("status") == "ok"))
    assert set(scored["method"]) == set(rows)
    distances = records.filter((pl.col("metric") == "wasserstein") & (pl.col("status") == "ok"))
    assert set(distances["method"]) == {name for name in rows if issubclass(METHODS[name], Harmonizer)}
    assert (tmp_path / "runs/tiny/report.html").is_file()


@pytest.mark.slow
def test_every_method_that_can_works_for_age(tmp_path: Path) -> None:
    rows = settings("age")
    task = {
        "id": "age_resnet18",
        "widths": [4, 4, 8, 8],
        "training": {"iterations": 10, "batch_size": 4, "validate_every": 5},
    }
    data = {**tiny.tiny()["data"], "card": "phantom_neonatal_t2", "sites": ["DHCP", "V2LP"]}
    data["with"] = {"scans": 5, "slices": {"plane": "axial", "size": 64, "pixel_mm": 3.0, "count": 3}}
    records = run(tmp_path, methods=rows, task=task, data=data, metrics=["mae", "mse", "wasserstein"])
    scored = records.filter((pl.col("metric") == "mae") & (pl.col("status") == "ok"))
    assert set(scored["method"]) == set(rows)
    assert scored["value"].is_finite().all()
