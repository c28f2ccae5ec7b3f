"""Models of real healthy slices, and real lesions in T1: through the generic card of PNG slices, to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import real_lesions
import tiny
import yaml

from harness.results import detections

SMALL = yaml.safe_load((tiny.REPO / "benchmarks" / "anomaly_s2.yaml").read_text())["methods"]
UPDATES = 800
"""Of every training: about half of the small benchmark's."""


def shortened(fields: Any) -> Any:
    """Settings of a method with at most so many updates."""
    if not isinstance(fields, dict):
        return fields
    few = {name: shortened(value) for name, value in fields.items()}
    if "iterations" in few:
        few |= {"iterations": UPDATES, **({"validate_every": UPDATES // 2} if "validate_every" in few else {})}
    return {**few, **({"start_discriminator": UPDATES // 2} if "start_discriminator" in few else {})}


CARD = {
    "card": "png_folder",
    "with": {
        "simulated": False,
        "slices": {"size": real_lesions.SIZE},
        "intensity": {"percentile": 99.5},
        "sites": {
            "OASIS": {"image": "healthy/{scan}.png", "mask": None, "healthy": True, "modality": "T1w"},
            "LESIONS": {
                "image": "patients/{scan}.png",
                "label": "lesions/{scan}.png",
                "mask": None,
                "grouping": "any",
                "modality": "T1w",
            },
        },
    },
}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_models_of_healthy_slices_meet_real_lesions(real_data: Path, tmp_path: Path) -> None:
    rows = ("prevalence_floor", "intensity_threshold", "mean_image", "ae", "ddpm", "mad_ad", "reflect")
    file: dict[str, Any] = {
        "benchmark": "real_lesions",
        "track": "anomaly",
        "data": {**CARD, "root": str(real_lesions.write(real_data, tmp_path / "data"))},
        "settings": {"T1": {"train": "OASIS", "test": "LESIONS"}},
        "slices": {"test": "lesions"},
        "methods": {name: shortened(SMALL[name]) for name in rows},
        "metrics": ["auroc", "ap", "max_dice_global", "max_dice_shared", "fpr_healthy", "evaluations"],
        "report": {"baseline": "mean_image"},
    }
    path = tmp_path / "real_lesions.yaml"
    path.write_text(yaml.safe_dump(file))
    answer = tiny.run_json("run", path, "--home", tmp_path / "runs", "--tracking", "none", cwd=tmp_path, limit_s=5000)
    assert answer["failed"] == answer["blocked"] == 0, answer["failures"]
    table = pl.read_parquet(answer["records"])
    area = dict(table.filter(pl.col("metric") == "auroc").select("method", "value").rows())
    assert set(area) == set(rows)
    assert area["prevalence_floor"] == 0.5
    false = table.filter(pl.col("metric") == "fpr_healthy").group_by("method").agg(pl.col("value").mean())
    assert all(value < 0.25 for name, value in false.rows() if name != "prevalence_floor"), false
    shown = detections.read_detections(tmp_path / "runs" / "real_lesions")
    assert {d.subject.removeprefix("LESIONS-") for d in shown} == {name for _, name, _ in real_lesions.PATIENTS}
    for found in shown:
        brain = found.input > 0
        values = found.map[brain].astype(np.float64)
        assert np.isfinite(values).all()
        assert not found.map[~brain].any()
        if found.method != "prevalence_floor":
            assert values.std() > 0, f"{found.method} says the same of every pixel"
    report = (tmp_path / "runs" / "real_lesions" / "report.html").read_text()
    assert "data:image/png" in report


def test_the_slices_show_what_they_should(real_data: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = real_lesions.write(real_data, tmp_path)
    assert len(list((folder / "healthy").glob("*.png"))) == 100
    heights = []
    for path in [
        *sorted((folder / "healthy").glob("*.png"))[:20],
        *(folder / "patients").glob("*.png"),
        *(folder / "lesions").glob("*.png"),
    ]:
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (real_lesions.SIZE, real_lesions.SIZE)
        if path.parent.name == "lesions":
            assert set(np.unique(pixels)) == {0, 255}
            assert pixels.astype(bool).sum() >= 10
        else:
            heights.append(np.ptp(np.flatnonzero(pixels.any(1))))
    assert max(heights) < 1.35 * min(heights), "brains of one size"
