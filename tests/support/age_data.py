"""Data for tests of the brain-age track: a table whose features follow age, and small heads in files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REGIONS = 6
SIDES = ("train", "validation", "test")


def people(scans: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a feature table, one in eight a second visit: shares and ratios of regions that follow age, with noise.

    split: 60 % train, 15 % validation, 25 % test, second visits on the side of the first.
    """
    rng = np.random.default_rng(seed)
    slopes = np.linspace(-0.06, 0.06, REGIONS)
    rows: list[dict[str, Any]] = []
    for i in range(scans):
        again = i % 8 == 7
        age = round(float(rng.uniform(28, 44)), 3)
        sizes = np.linspace(1, 2, REGIONS) * np.exp(slopes * (age - 36) + rng.normal(0, 0.03, REGIONS))
        ratios = np.clip(0.5 + slopes[::-1] * (age - 36) / 4 + rng.normal(0, 0.01, REGIONS), 0.01, 1)
        first = i - again
        rows.append(
            {
                "scan": f"v{i:03}",
                "subject": f"p{first:03}",
                "age": age,
                "sex": "FM"[first % 2],
                "birth_age": round(min(age, 40.0) - 1, 3),
                "split": SIDES[int(np.searchsorted([12, 15], first % 20, side="right"))],
                **{f"rv_{k}": float(share) for k, share in enumerate(sizes / sizes.sum(), start=1)},
                **{f"svr_{k}": float(ratio) for k, ratio in enumerate(ratios, start=1)},
            }
        )
    return rows


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """features.csv, as datasets/feature_table.yaml reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "features.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


HEADS: dict[str, Any] = {
    "id": "heads",
    "name": "small heads",
    "kind": "nifti",
    "simulated": True,
    "modality": "T2w",
    "age_unit": "weeks",
    "reference": "ours",
    "licence": "none",
    "access": "made by the tests",
    "labels": {"names": ["background", "left", "right"]},
    "volumes": {"chunk": 3},
    "intensity": "max",
    "sites": {
        "A": {
            "image": "{subject}_image.nii",
            "label": "{subject}_label.nii",
            "subjects": {"file": "people.csv", "scan": "subject"},
        }
    },
}


def write_heads(folder: Path, ages: Sequence[float]) -> Path:
    """Images and labels of so many heads, the older the larger, and people.csv with their ages."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij"))
    for i in range(len(ages)):
        brain = np.hypot(np.hypot(grid[0], grid[1]), grid[2]) < 4 + i / 5
        image = np.where(brain, 100 + 5 * grid[0] + i, 0).astype(np.uint8)
        for kind, values in (("image", image), ("label", np.where(brain, np.where(grid[0] > i % 3 - 1, 2, 1), 0))):
            nib.Nifti1Image(values.astype(np.uint8), np.eye(4)).to_filename(folder / f"p{i:02}_{kind}.nii")
    return write_ages(folder, ages)


def write_ages(folder: Path, ages: Sequence[float]) -> Path:
    """people.csv of the heads in a folder."""
    rows = "".join(f"p{i:02},{age}\n" for i, age in enumerate(ages))
    (folder / "people.csv").write_text(f"subject,age\n{rows}")
    return folder
