"""How much faster our HD95 and Dice are than MONAI's, at equal values.

    python benchmarks/perf/metrics.py [--repeats 5] [--json FILE]

One process, one thread, one interleaved run: in every repetition each implementation is timed once, so a busy
machine slows all of them alike. Times are CPU time. Equality is asserted, and so are the targets with `--check`.
"""

# ruff: noqa: E402 - the thread counts must be set before the libraries are imported
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before numpy and torch read them

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks.utils import one_hot
from rich.console import Console
from rich.table import Table

from harness.metrics.overlap import dsc, joint_counts
from harness.metrics.surface import hd95_all

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "metric_fixtures"
N = 15
Spacing = tuple[float, float, float]
Maps = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """Median CPU milliseconds on one case; `target` is the least ratio of MONAI (prebuilt one-hot) to ours."""

    metric: str
    case: str
    ours_ms: float
    monai_prebuilt_ms: float
    monai_onehot_inside_ms: float
    target: float

    @property
    def ratio_prebuilt(self) -> float:
        return self.monai_prebuilt_ms / self.ours_ms

    @property
    def ratio_inside(self) -> float:
        return self.monai_onehot_inside_ms / self.ours_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--synthetic", action="store_true", help="use generated label maps even where fixtures exist")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio misses its target")
    options = parser.parse_args()

    torch.set_num_threads(1)
    (gt, pred), spacing, name = label_maps(options.synthetic)
    rows = [time_dsc(gt, pred, name, options.repeats)]
    for case, (predicted, target) in hard_cases(pred, name).items():
        rows.append(time_hd95(gt, predicted, spacing, case, target, options.repeats))
    show(rows)
    if options.json:
        content = [asdict(r) | {"ratio_prebuilt": r.ratio_prebuilt, "ratio_inside": r.ratio_inside} for r in rows]
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(options.check and any(row.ratio_prebuilt < row.target for row in rows))


# Inputs -----------------------------------------------------------------------------------------------------------


def label_maps(synthetic: bool) -> tuple[Maps, Spacing, str]:
    """The `brain` fixture, or on other machines a synthetic head of the same size."""
    if synthetic or not FIXTURES.is_dir():
        return synthetic_maps(), (0.9375, 0.9375, 3.0), "synthetic"
    spec = importlib.util.spec_from_file_location("metric_fixtures", FIXTURES / "fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = module.load(FIXTURES / "fixtures.npz")
    return (arrays["brain_gt"], arrays["brain_pred"]), module.SPACING["brain"], "brain"


def synthetic_maps() -> Maps:
    """256 × 256 × 32, nested shells and small ellipsoids with smooth noise on their borders: 14 structures."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (256, 256, 32)), indexing="ij"))
    centres, radii = rng.uniform(-0.35, 0.35, (11, 3)), rng.uniform(0.06, 0.2, (11, 3))

    def draw(jitter: float) -> np.ndarray:
        coarse = rng.normal(0, 0.06, (32, 32, 8))
        noise = np.kron(coarse, np.ones((8, 8, 4)))
        labels = np.zeros(grid.shape[1:], np.uint8)
        for label, radius in ((1, 0.8), (2, 0.7), (3, 0.45)):
            labels[np.sqrt((grid**2).sum(axis=0)) + noise < radius] = label
        for label, (centre, radius) in enumerate(zip(centres, radii, strict=True), start=4):
            moved = centre + rng.normal(0, jitter, 3)
            labels[sum(((grid[i] - moved[i]) / radius[i]) ** 2 for i in range(3)) + 3 * noise < 1] = label
        return labels

    return draw(0), draw(0.01)


def hard_cases(pred: np.ndarray, name: str) -> dict[str, tuple[np.ndarray, float]]:
    """Predictions with the least ratio we want: the typical one, two far away, and one full of noise."""
    rng = np.random.default_rng(1)
    noise = rng.random(pred.shape) < 0.02
    noisy = np.where(noise, rng.integers(0, N, pred.shape), pred).astype(np.uint8)
    return {
        name: (pred, 10),
        "shifted 10": (np.roll(pred, 10, axis=0), 5),
        "shifted 40": (np.roll(pred, 40, axis=0), 5),
        "2 % noise": (noisy, 5),
    }


# Timing -----------------------------------------------------------------------------------------------------------


def time_hd95(gt: np.ndarray, pred: np.ndarray, spacing: Spacing, case: str, target: float, repeats: int) -> Row:
    def ours() -> np.ndarray:
        found = hd95_all(gt, pred, N, spacing, want=("torch",))
        return np.array([found[label]["torch"] for label in range(1, N)])

    def monai(onehot_gt: torch.Tensor, onehot_pred: torch.Tensor) -> np.ndarray:
        return compute_hausdorff_distance(onehot_pred, onehot_gt, percentile=95, spacing=spacing)[0].double().numpy()

    times = interleaved(ours, monai, gt, pred, repeats)
    return Row("HD95", case, *times, target=target)


def time_dsc(gt: np.ndarray, pred: np.ndarray, case: str, repeats: int) -> Row:
    def ours() -> np.ndarray:
        return dsc(joint_counts(gt, pred, N)).astype(np.float32)

    def monai(onehot_gt: torch.Tensor, onehot_pred: torch.Tensor) -> np.ndarray:
        return compute_dice(onehot_pred, onehot_gt, ignore_empty=False)[0].numpy()

    times = interleaved(ours, monai, gt, pred, repeats)
    return Row("DSC", case, *times, target=30)


def interleaved(
    ours: Callable[[], np.ndarray],
    monai: Callable[[torch.Tensor, torch.Tensor], np.ndarray],
    gt: np.ndarray,
    pred: np.ndarray,
    repeats: int,
) -> tuple[float, float, float]:
    """Median CPU milliseconds of ours, MONAI on prebuilt one-hot maps, and MONAI with the one-hot step inside."""
    prebuilt = onehot(gt), onehot(pred)
    candidates: list[Callable[[], np.ndarray]] = [
        ours,
        lambda: monai(*prebuilt),
        lambda: monai(onehot(gt), onehot(pred)),
    ]
    # The first call compiles and warms caches; it also gives the values to compare.
    np.testing.assert_array_equal(ours(), monai(*prebuilt))
    elapsed = np.empty((repeats, len(candidates)))
    for repeat in range(repeats):
        for i, candidate in enumerate(candidates):
            start = time.process_time()
            candidate()
            elapsed[repeat, i] = time.process_time() - start
    ms = 1e3 * np.median(elapsed, axis=0)
    return float(ms[0]), float(ms[1]), float(ms[2])


def onehot(labels: np.ndarray) -> torch.Tensor:
    """float32 [1, N, ...], the type that MONAI computes in."""
    return one_hot(torch.from_numpy(np.ascontiguousarray(labels))[None, None], N)


def show(rows: list[Row]) -> None:
    table = Table(title="median CPU ms, one thread, values equal; MONAI on prebuilt one-hot maps and with that step")
    for heading in ("metric", "case"):
        table.add_column(heading)
    for heading in ("ours", "MONAI", "×", "target", "with one-hot", "×"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.metric,
            row.case,
            f"{row.ours_ms:.1f}",
            f"{row.monai_prebuilt_ms:.0f}",
            f"{row.ratio_prebuilt:.1f}",
            f"≥ {row.target:g}",
            f"{row.monai_onehot_inside_ms:.0f}",
            f"{row.ratio_inside:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    sys.exit(main())
