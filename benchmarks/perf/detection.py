"""How much faster our detection metrics are than scikit-learn's and than loops over thresholds, at equal values.

    python benchmarks/perf/detection.py [--repeats 5] [--json FILE] [--check]

50 maps of 256 × 256, one process, one thread, one interleaved run: in every repetition each implementation is timed
once, so a busy machine slows all of them alike. Times are CPU time. Equality is asserted, and with `--check` the
targets too. The loops that take many seconds are timed once.
"""

# ruff: noqa: E402 - the thread counts must be set before the libraries are imported
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before numpy reads them

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from harness.metrics.detection import auroc, detection_scores
from harness.metrics.max_dice import oracle_max_dice, published_max_dice, shared_max_dice
from harness.metrics.ranked_maps import rank_maps

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "metric_fixtures"
GRID = np.linspace(0, 1, 201)
LIMIT = 0.3


@dataclass(frozen=True)
class Row:
    """Median CPU milliseconds of ours and of a peer; `target` is the least ratio we want, 0 for none."""

    metric: str
    peer: str
    ours_ms: float
    peer_ms: float
    target: float

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.ours_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--synthetic", action="store_true", help="use generated maps even where fixtures exist")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio misses its target")
    options = parser.parse_args()

    scores, labels, name = anomaly_maps(options.synthetic)
    rows = [*time_all_pixel(scores, labels, options.repeats), *time_max_dice(scores, labels, options.repeats)]
    show(rows, name)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) | {"ratio": r.ratio} for r in rows], indent=1) + "\n")
    return int(options.check and any(row.ratio < row.target for row in rows))


# Inputs -----------------------------------------------------------------------------------------------------------


def anomaly_maps(synthetic: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """The `cont` fixture, float32 with few ties, or on other machines synthetic maps of the same size."""
    if synthetic or not FIXTURES.is_dir():
        return *synthetic_maps(), "synthetic"
    spec = importlib.util.spec_from_file_location("metric_fixtures", FIXTURES / "fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = module.load(FIXTURES / "fixtures.npz")
    return module.derived(arrays)["cont"], arrays["anom_gt"], "cont"


def synthetic_maps() -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise within a disc, 0 around it, and blobs that score higher in three images of four."""
    rng = np.random.default_rng(0)
    n, side = 50, 256
    y, x = np.mgrid[:side, :side] - side / 2
    brain = x**2 + 0.7 * y**2 < 95**2
    noise = ndimage.gaussian_filter(rng.normal(size=(n, side, side)), (0, 6, 6)) * 15
    labels = np.zeros((n, side, side), bool)
    for i in range(n):
        for _ in range(rng.integers(1, 5) if i % 4 else 0):
            cy, cx, radius = *rng.integers(-60, 60, 2), rng.choice([3, 6, 11, 21])
            labels[i] |= ((x - cx) ** 2 + (y - cy) ** 2 < radius**2) & brain
    scores = 1 / (1 + np.exp(2 - noise - 2.5 * labels - 0.3 * rng.normal(size=noise.shape)))
    return np.where(brain, scores, 0).astype(np.float32), labels


# Peers ------------------------------------------------------------------------------------------------------------


def sklearn_f1_max(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


def region_weights(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """1 / (pixels of its region) for every abnormal pixel, 0 elsewhere, and the number of regions."""
    weights, n_regions = np.zeros(labels.shape), 0
    for i, label in enumerate(labels):
        region, n = ndimage.label(label, np.ones((3, 3)))
        sizes = np.bincount(region.ravel())
        weights[i][label] = 1 / sizes[region[label]]
        n_regions += n
    return weights, n_regions


def aupro_by_sorting(scores: np.ndarray, labels: np.ndarray) -> float:
    """Every distinct score a threshold: one sort of all pixels, running sums, interpolation, trapezoids."""
    weights, n_regions = region_weights(labels)
    order = np.argsort(-scores, axis=None)
    ranked = scores.ravel()[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    rate = np.cumsum(~labels.ravel()[order])[last] / np.count_nonzero(~labels)
    overlap = np.cumsum(weights.ravel()[order])[last] / n_regions
    inside = rate <= LIMIT
    rate_at_end = np.append(np.append(0, rate[inside]), LIMIT)
    overlap_at_end = np.append(np.append(0, overlap[inside]), np.interp(LIMIT, rate, overlap))
    return float(np.trapezoid(overlap_at_end, rate_at_end) / LIMIT)


def aupro_by_200_thresholds(scores: np.ndarray, labels: np.ndarray) -> float:
    """The published loop: equal steps, each region's overlap at each, the rate divided by its own maximum."""
    regions = []
    for i, label in enumerate(labels):
        region, n = ndimage.label(label, np.ones((3, 3)))
        regions += [(i, region == r) for r in range(1, n + 1)]
    normal, rates, overlaps = ~labels, [], []
    low, high = float(scores.min()), float(scores.max())
    for threshold in np.arange(low, high, (high - low) / 200):
        called = scores > threshold
        overlaps.append(np.mean([called[i][region].mean() for i, region in regions]))
        rates.append(np.count_nonzero(called & normal) / np.count_nonzero(normal))
    rate, overlap = np.array(rates), np.array(overlaps)
    inside = rate < LIMIT
    return float(-np.trapezoid(overlap[inside], rate[inside] / rate[inside].max()))


def shared_dice_by_loop(scores: np.ndarray, labels: np.ndarray) -> float:
    """The published rule: 201 thresholds, at each the Dice of each image from maps of zeros and ones."""
    best = 0.0
    for threshold in GRID:
        total = 0.0
        for score, label in zip(scores, labels, strict=True):
            called, truth = (score > threshold).astype(np.float64), label.astype(np.float64)
            if truth.sum() == 0:
                total += float(called.sum() == 0)
            else:
                total += 2 * (called * truth).sum() / (called.sum() + truth.sum() + 1e-6)
        best = max(best, total / len(scores))
    return best


def shared_dice_by_counting(scores: np.ndarray, labels: np.ndarray) -> float:
    """The same rule as lean as numpy allows: all images in one comparison, bits counted."""
    n = len(scores)
    sizes = np.count_nonzero(labels.reshape(n, -1), axis=1)
    best = 0.0
    for threshold in GRID:
        called = (scores > threshold).reshape(n, -1)
        true = np.count_nonzero(called & labels.reshape(n, -1), axis=1)
        positive = np.count_nonzero(called, axis=1)
        dice = np.where(sizes > 0, 2 * true / (positive + sizes + 1e-6), positive == 0)
        best = max(best, float(dice.mean()))
    return best


# Timing -----------------------------------------------------------------------------------------------------------


def time_all_pixel(scores: np.ndarray, labels: np.ndarray, repeats: int) -> list[Row]:
    score, truth = scores.ravel(), labels.ravel()

    def ours() -> list[float]:
        found = detection_scores(scores, labels, limit=LIMIT)
        return [found.auroc, found.ap, found.f1max.value, found.aupro]

    peers: dict[str, Callable[[], float]] = {
        "AUROC": lambda: float(roc_auc_score(truth, score)),
        "AP": lambda: float(average_precision_score(truth, score)),
        "F1max": lambda: sklearn_f1_max(truth, score),
        "AUPRO": lambda: aupro_by_sorting(scores, labels),
    }
    np.testing.assert_allclose(ours(), [peer() for peer in peers.values()], rtol=1e-11)
    ms = interleaved([ours, lambda: auroc(rank_maps(scores, labels)), *peers.values()], repeats)
    loop = once(lambda: aupro_by_200_thresholds(scores, labels))
    return [
        Row("all four, one pass", "scikit-learn × 3 + AUPRO by sorting", ms[0], sum(ms[2:]), 15),
        Row("all four, one pass", "scikit-learn × 3 + AUPRO by 200 thresholds", ms[0], sum(ms[2:5]) + loop, 0),
        Row("AUROC alone", "scikit-learn", ms[1], ms[2], 0),
    ]


def time_max_dice(scores: np.ndarray, labels: np.ndarray, repeats: int) -> list[Row]:
    def exact() -> float:
        return shared_max_dice(rank_maps(scores, labels)).value

    def published() -> float:
        return published_max_dice(scores, labels).value

    def both_bests() -> tuple[float, float]:
        maps = rank_maps(scores, labels)
        return shared_max_dice(maps).value, oracle_max_dice(maps).mean

    def counting() -> float:
        return shared_dice_by_counting(scores, labels)

    def loop() -> float:
        return shared_dice_by_loop(scores, labels)

    np.testing.assert_allclose([published(), published()], [counting(), loop()], rtol=1e-13)
    both_bests()
    ms = interleaved([exact, published, both_bests, counting, loop], max(1, min(repeats, 3)))
    return [
        Row("shared max Dice, 201 thresholds", "loop over 201 thresholds and images", ms[1], ms[4], 100),
        Row("shared max Dice, 201 thresholds", "201 comparisons of all images", ms[1], ms[3], 0),
        # Not the same work: ours takes every distinct score as a threshold, the loop 201.
        Row("shared max Dice, every score", "loop over 201 thresholds and images", ms[0], ms[4], 50),
        Row("shared max Dice, every score", "201 comparisons of all images", ms[0], ms[3], 0),
        Row("shared and per-image, every score", "loop over 201 thresholds and images", ms[2], ms[4], 0),
    ]


def interleaved(candidates: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median CPU milliseconds of each. All have run once before, which compiled them and warmed the caches."""
    elapsed = np.empty((repeats, len(candidates)))
    for repeat in range(repeats):
        for i, candidate in enumerate(candidates):
            elapsed[repeat, i] = once(candidate)
    return [float(ms) for ms in np.median(elapsed, axis=0)]


def once(candidate: Callable[[], object]) -> float:
    start = time.process_time()
    candidate()
    return 1e3 * (time.process_time() - start)


def show(rows: list[Row], name: str) -> None:
    table = Table(title=f"median CPU ms, one thread, 50 maps of 256 × 256 ({name}), values equal")
    for heading in ("metric", "peer"):
        table.add_column(heading)
    for heading in ("ours", "peer", "×", "target"):
        table.add_column(heading, justify="right")
    for row in rows:
        target = f"≥ {row.target:g}" if row.target else "–"
        table.add_row(row.metric, row.peer, f"{row.ours_ms:.1f}", f"{row.peer_ms:.0f}", f"{row.ratio:.0f}", target)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
