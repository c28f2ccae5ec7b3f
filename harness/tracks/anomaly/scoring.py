"""The numbers of one set of maps: from maps, masks and lesion labels to records. Nothing here is seen by a method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.api import ImageSet
from harness.metrics import detection, lesion_size, max_dice
from harness.metrics.catalogue import METRICS
from harness.metrics.pooled_intervals import pooled_intervals
from harness.metrics.ranked_maps import RankedMaps, rank_maps

Record = dict[str, Any]
BINS = {"thor": lesion_size.THOR_BINS, "itermask": lesion_size.ITERMASK_BINS}
REFERENCE_PIXEL_MM2 = (256 / 128) ** 2
"""Of the published bins (ours): slices of MNI space at 1 mm, padded to 256 and resampled to 128."""
MOST_POINTS = 400
"""Of a precision-recall curve as it is kept."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What is scored together, N slices: maps [N, H, W] after processing, lesions bool [N, H, W], the images.

    scores: [N], one for each slice. threshold: fixed on healthy validation slices.
    healthy, healthy_images, healthy_scores: the same of slices without lesions that fixed nothing.
    """

    maps: np.ndarray
    lesions: np.ndarray
    images: ImageSet
    scores: np.ndarray
    threshold: float
    healthy: np.ndarray
    healthy_images: ImageSet
    healthy_scores: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return np.asarray(self.images.mask)

    @property
    def subjects(self) -> list[str]:
        """Whose slice it is, [N]."""
        return subjects_of(self.images)


def records(scored: Scored, metrics: Iterable[str], bins: str, seed: int) -> Iterator[Record]:
    """Every metric asked for that is no cost. Lesion outside the brain mask counts in the `_full` metrics alone."""
    wanted = set(metrics)
    maps = rank_maps(scored.maps, scored.lesions, scored.mask)
    best = max_dice.global_max_dice(maps)
    yield from _pooled(scored, maps, best.value, wanted, seed)
    yield from _sizes(scored, maps, wanted, bins)
    yield from _operating(scored, best.value, wanted)


def best_threshold(scored: Scored) -> float | None:
    """The threshold of the global max Dice, for pictures; None without lesions."""
    threshold = max_dice.global_max_dice(rank_maps(scored.maps, scored.lesions, scored.mask)).threshold
    return threshold if math.isfinite(threshold) else None


def precision_recall(scored: Scored) -> list[list[float]]:
    """[recall, precision] of pooled brain pixels at up to MOST_POINTS thresholds, falling, and where all is
    called abnormal; [] without lesions."""
    maps = rank_maps(scored.maps, scored.lesions, scored.mask)
    if maps.n_abnormal == 0:
        return []
    curve = maps.curve
    # Evenly spread over the pixels found, so that the curve is as fine at its steep end.
    at = np.unique(np.searchsorted(curve.true, np.linspace(0, maps.n_abnormal, MOST_POINTS)))
    at = at[at < len(curve.true)]
    recall, precision = curve.true[at] / maps.n_abnormal, curve.true[at] / (curve.true[at] + curve.false[at])
    points: list[list[float]] = np.stack([recall, precision], 1).tolist()
    return [*points, [1.0, maps.n_abnormal / (maps.n_abnormal + maps.n_normal)]]


def _pooled(scored: Scored, maps: RankedMaps, best: float, wanted: set[str], seed: int) -> Iterator[Record]:
    if wanted & {"max_dice_global", "auroc", "ap"}:
        intervals = pooled_intervals(maps, scored.subjects, seed=seed)
        for metric, exact, interval in (
            ("max_dice_global", best, intervals.max_dice),
            ("auroc", detection.auroc(maps), intervals.auroc),
            ("ap", detection.average_precision(maps), intervals.ap),
        ):
            if metric in wanted:
                yield record(metric, exact, low=interval.low, high=interval.high)
    if "max_dice_shared" in wanted:
        yield record("max_dice_shared", max_dice.shared_max_dice(maps).value)
    if "max_dice_oracle" in wanted:
        yield record("max_dice_oracle", max_dice.oracle_max_dice(maps).mean)
    if "aupro" in wanted:
        yield record("aupro", detection.aupro(maps))
    if wanted & {"auroc_full", "ap_full"}:
        everywhere = rank_maps(scored.maps, scored.lesions)
        if "auroc_full" in wanted:
            yield record("auroc_full", detection.auroc(everywhere))
        if "ap_full" in wanted:
            yield record("ap_full", detection.average_precision(everywhere))
    if "image_auroc" in wanted:
        abnormal = (scored.lesions & scored.mask).any(axis=(1, 2))
        truth = np.concatenate([abnormal, np.zeros(len(scored.healthy_scores), np.bool_)])
        yield record(
            "image_auroc", detection.image_auroc(np.concatenate([scored.scores, scored.healthy_scores]), truth)
        )


def _sizes(scored: Scored, maps: RankedMaps, wanted: set[str], bins: str) -> Iterator[Record]:
    height, width = scored.maps.shape[1:]
    in_pixels = lesion_size.scaled_bins(BINS[bins], (height, width))
    if wanted & {"max_dice_binned", "max_dice_bin_weighted"}:
        found = lesion_size.binned_dice(maps, lesion_size.lesion_areas(maps), in_pixels)
        if "max_dice_binned" in wanted:
            yield from (_bin("max_dice_binned", each) for each in found.bins)
        if "max_dice_bin_weighted" in wanted:
            yield record("max_dice_bin_weighted", found.global_bin_weighted)
    if "max_dice_binned_mm2" in wanted:
        areas = lesion_size.lesion_areas(maps, _pixel_areas(scored.images))
        found = lesion_size.binned_dice(maps, areas, lesion_size.bins_in_mm2(BINS[bins], REFERENCE_PIXEL_MM2))
        yield from (_bin("max_dice_binned_mm2", each) for each in found.bins)


def _bin(metric: str, found: lesion_size.BinScores) -> Record:
    return record(metric, found.max_dice, label=found.bin.name, note=f"{found.n} images")


def _operating(scored: Scored, best: float, wanted: set[str]) -> Iterator[Record]:
    if wanted & {"dice_operating", "dice_gap"}:
        at = max_dice.dice_at(scored.maps, scored.lesions, scored.threshold, scored.mask)
        if "dice_operating" in wanted:
            yield from _by_subject("dice_operating", at.per_image, scored.subjects)
        if "dice_gap" in wanted:
            yield record("dice_gap", best - at.pooled)
    if "fpr_healthy" in wanted:
        false = max_dice.false_positive_rate(scored.healthy, scored.threshold, np.asarray(scored.healthy_images.mask))
        yield from _by_subject("fpr_healthy", false.per_image, subjects_of(scored.healthy_images))


def _by_subject(metric: str, values: np.ndarray, subjects: Sequence[str]) -> Iterator[Record]:
    """The mean over each subject's slices."""
    for subject in dict.fromkeys(subjects):
        own = [value for value, name in zip(values.tolist(), subjects, strict=True) if name == subject]
        defined = [value for value in own if not math.isnan(value)]
        yield record(metric, math.fsum(defined) / len(defined) if defined else math.nan, subject=subject)


def costs(measured: Mapping[str, Any], metrics: Iterable[str]) -> Iterator[Record]:
    """Records of what a detection cost; `measured` is a `harness.cost.Meter`'s summary."""
    values = {
        "parameters": measured["parameters"],
        "evaluations": measured["evaluations"].get("network", 0.0),
        "seconds_per_slice": measured["seconds"],
        "peak_memory": measured["peak_bytes"],
    }
    return (record(metric, values[metric]) for metric in metrics if metric in values)


def record(
    metric: str,
    value: float,
    *,
    subject: str = "",
    label: str = "",
    low: float = math.nan,
    high: float = math.nan,
    note: str = "",
) -> Record:
    """One record; a value that is not defined has the status "empty"."""
    number = float(value)
    known = math.isfinite(number)
    return {
        "subject": subject,
        "label": label,
        "metric": metric,
        "value": number if known else None,
        "low": float(low) if known and math.isfinite(low) else None,
        "high": float(high) if known and math.isfinite(high) else None,
        "unit": METRICS[metric].unit,
        "status": "ok" if known else "empty",
        "note": note,
    }


def subjects_of(images: ImageSet) -> list[str]:
    """Whose slice each of an image set's is."""
    return [scan.subject for scan in images.scans for _ in range(scan.stop - scan.start)]


def _pixel_areas(images: ImageSet) -> np.ndarray:
    """mm² of a pixel of each slice, [N]."""
    return np.array([scan.spacing[1] * scan.spacing[2] for scan in images.scans for _ in range(scan.stop - scan.start)])
