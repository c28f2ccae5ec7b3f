"""The same benchmark on real scans: OASIS-1 with manual labels, two declared shifts of it, and an unlabelled study."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import tiny

from harness.data.card import read_card
from harness.data.dataset import open_dataset

RESCANS = [("1003", "1023"), ("1004", "1024"), ("1005", "1025"), ("1018", "1038"), ("1019", "1039")]


def test_scans_of_one_person_stay_on_one_side(real_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(read_card("oasis1_malf"), real_data, tmp_path)
    sides: dict[str, set[str]] = {}
    for site in ("OASIS", "OASIS_SHIFT_A", "OASIS_SHIFT_B"):
        for split in ("train", "validation", "test"):
            for scan in dataset.scans(site, split):
                number = scan.id.rpartition("-")[2]
                person = next((pair[0] for pair in RESCANS if number in pair), number)
                sides.setdefault(person, set()).add(split)
    assert len(sides) == 24
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_real_scans_end_to_end(real_data: Path, tmp_path: Path) -> None:
    file = tiny.REPO / "benchmarks" / "real_scans.yaml"
    answer = tiny.run_json("run", file, "--root", real_data, cwd=tmp_path)
    assert answer["failed"] == answer["blocked"] == 0
    table = pl.read_parquet(answer["records"])
    dice = table.filter(pl.col("metric") == "dsc", pl.col("status") == "ok")
    means = dice.group_by("method", "source", "target").agg(pl.col("value").mean())
    diagonal = means.filter(pl.col("method") == "none", pl.col("source") == pl.col("target"))
    off = means.filter(pl.col("source") != pl.col("target")).group_by("method").agg(pl.col("value").mean())
    level = dict(off.rows())
    in_domain = diagonal["value"].mean()
    assert level["none"] < in_domain - 0.05, "the shift costs something"
    assert level["histogram_matching"] > level["none"]
    assert level["tent"] > level["none"]
    unlabelled = table.filter(pl.col("target") == "OPENMS")
    scored = set(unlabelled.filter(pl.col("status") == "ok")["metric"])
    assert scored == {"wasserstein"}
    report = Path(answer["report"]).read_text()
    assert "OASIS_SHIFT_A" in report
    again = tiny.run_json("run", file, "--root", real_data, cwd=tmp_path)
    assert again["executed"] == 0
