"""The four maximum Dice, operating thresholds and size bins, against brute force and reference values."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from anomaly_maps import Maps, load_fixtures, random_maps, small_maps
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics.lesion_size import (
    ITERMASK_BINS,
    THOR_BINS,
    SizeBin,
    binned_dice,
    bins_in_mm2,
    lesion_areas,
    scaled_bins,
)
from harness.metrics.max_dice import (
    dice_at,
    false_positive_rate,
    global_max_dice,
    operating_threshold,
    oracle_max_dice,
    published_max_dice,
    shared_max_dice,
)
from harness.metrics.ranked_maps import rank_maps


def dice_of(called: np.ndarray, label: np.ndarray) -> Fraction:
    total = int(called.sum()) + int(label.sum())
    return Fraction(2 * int((called & label).sum()), total) if total else Fraction(1)


def shared_by_thresholds(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Value and highest threshold of the best mean Dice, over all distinct scores and none called."""
    best = Fraction(-1), math.nan
    for threshold in [math.inf, *np.unique(scores)[::-1].tolist()]:
        called = scores >= np.float64(threshold)
        mean = sum((dice_of(c, t) for c, t in zip(called, labels, strict=True)), Fraction(0)) / len(scores)
        if mean > best[0]:
            best = mean, threshold
    return float(best[0]), best[1]


# ------------------------------------------------------------------------------------------ brute force


@settings(max_examples=120, deadline=None)
@given(small_maps())
def test_shared_and_oracle_equal_brute_force_over_all_thresholds(maps: Maps) -> None:
    scores, labels = maps
    ranked, abnormal = rank_maps(scores, labels), labels.reshape(len(labels), -1).any(axis=1)
    value, threshold = shared_by_thresholds(scores, labels)
    found = shared_max_dice(ranked)
    assert found.value == pytest.approx(value, abs=1e-15)
    assert dice_at(scores, labels, found.threshold).mean == found.value
    assert dice_at(scores, labels, threshold).mean == pytest.approx(found.value, abs=1e-15)
    oracle = oracle_max_dice(ranked)
    for i, score in enumerate(scores):
        if abnormal[i]:
            best = max(dice_of(score >= t, labels[i]) for t in np.unique(score))
            assert oracle.dice[i] == float(best)
            assert float(dice_of(score >= np.float64(oracle.threshold[i]), labels[i])) == oracle.dice[i]
        else:
            assert math.isnan(oracle.dice[i])
    if abnormal.any():
        only = shared_max_dice(ranked, abnormal_only=True)
        assert only.value == pytest.approx(shared_by_thresholds(scores[abnormal], labels[abnormal])[0], abs=1e-15)
        assert oracle.mean >= only.value - 1e-15
        assert global_max_dice(ranked).value == dice_at(scores, labels, global_max_dice(ranked).threshold).pooled


@settings(max_examples=60, deadline=None)
@given(small_maps(), st.integers(0, 10**6))
def test_a_mask_equals_leaving_pixels_out(maps: Maps, seed: int) -> None:
    """Against brute force over the pixels inside; an image that the mask empties is left out of every mean."""
    scores, labels = maps
    mask = np.random.default_rng(seed).random(scores.shape) < 0.6
    mask[-1] = mask[-1] & (seed % 2 == 0)
    kept = mask.reshape(len(mask), -1).any(axis=1)
    means = []
    for threshold in [math.inf, *np.unique(scores)[::-1].tolist()]:
        called = scores >= np.float64(threshold)
        each = [dice_of(called[i][mask[i]], labels[i][mask[i]]) for i in np.flatnonzero(kept)]
        means.append(float(sum(each, Fraction(0)) / len(each)) if each else math.nan)
        found = dice_at(scores, labels, threshold, mask)
        assert found.mean == pytest.approx(means[-1], abs=1e-15, nan_ok=True)
        assert np.isnan(found.per_image).tolist() == (~kept).tolist()
    best = shared_max_dice(rank_maps(scores, labels, mask)).value
    assert best == pytest.approx(max(means) if kept.any() else math.nan, abs=1e-15, nan_ok=True)


def test_shared_on_many_images_of_continuous_scores() -> None:
    """Enough images and thresholds for rounding to show where sums were kept in floating point."""
    scores, labels = random_maps((60, 5, 5), levels=10**5, seed=4)
    value, threshold = shared_by_thresholds(scores, labels)
    found = shared_max_dice(rank_maps(scores, labels))
    assert (found.value, found.threshold) == (pytest.approx(value, abs=2e-16), threshold)


# ----------------------------------------------------------------------------------- what changes what


def test_transforms() -> None:
    """One increasing function of all scores changes nothing; one for each image leaves only the oracle."""
    scores, labels = random_maps()
    ranked = rank_maps(scores, labels)
    together = rank_maps(np.exp(scores.astype(np.float64)) * 300, labels)
    apart = rank_maps(scores + 2.0 * np.array([0, 3, 1, 4, 2, 5])[:, None, None], labels)
    for metric in (global_max_dice, shared_max_dice):
        assert metric(together).value == metric(ranked).value
        assert metric(apart).value != metric(ranked).value
    for other in (together, apart):
        assert oracle_max_dice(other).dice.tolist() == pytest.approx(oracle_max_dice(ranked).dice.tolist(), nan_ok=True)


def test_the_order_of_images_does_not_matter() -> None:
    scores, labels = random_maps()
    order = [3, 0, 5, 1, 2, 4]
    assert shared_max_dice(rank_maps(scores[order], labels[order])) == shared_max_dice(rank_maps(scores, labels))
    selected = rank_maps(scores, labels).select(order)
    assert shared_max_dice(selected) == shared_max_dice(rank_maps(scores, labels))


# -------------------------------------------------------------------------------------------- edge cases


def test_healthy_images_alone() -> None:
    scores, labels = np.arange(8.0).reshape(2, 2, 2), np.zeros((2, 2, 2), bool)
    ranked = rank_maps(scores, labels)
    assert (shared_max_dice(ranked).value, shared_max_dice(ranked).threshold) == (1, math.inf)
    assert math.isnan(shared_max_dice(ranked, abnormal_only=True).value)
    assert math.isnan(global_max_dice(ranked).value)
    assert math.isnan(oracle_max_dice(ranked).mean)
    found = dice_at(scores, labels, 3.5)
    assert found.per_image.tolist() == [1, 0]
    assert math.isnan(found.pooled)
    assert math.isnan(found.mean_abnormal)


def test_constant_map() -> None:
    labels = np.zeros((2, 2, 5), bool)
    labels[0, 0, 0] = True
    scores = np.zeros(labels.shape)
    ranked = rank_maps(scores, labels)
    # Calling nothing is right for the healthy image, and better than calling everything in both.
    assert (shared_max_dice(ranked).value, shared_max_dice(ranked).threshold) == (0.5, math.inf)
    assert shared_max_dice(ranked, abnormal_only=True).value == 2 / 11
    assert global_max_dice(ranked).value == 2 / 21
    assert oracle_max_dice(ranked).mean == 2 / 11


def test_all_abnormal() -> None:
    ranked = rank_maps(np.arange(8.0).reshape(2, 2, 2), np.ones((2, 2, 2), bool))
    assert (shared_max_dice(ranked).value, shared_max_dice(ranked).threshold) == (1, 0)
    assert oracle_max_dice(ranked).threshold.tolist() == [0, 4]


# -------------------------------------------------------------------------------------- fixed thresholds


@settings(max_examples=60, deadline=None)
@given(small_maps(), st.sampled_from([0.0, 0.01, 0.05, 0.29, 0.5, 0.99]))
def test_the_operating_threshold_is_the_lowest_that_keeps_the_rate(maps: Maps, rate: float) -> None:
    scores, mask = maps[0], ~maps[1]
    threshold = operating_threshold(scores, rate, mask)
    assert false_positive_rate(scores, threshold, mask).pooled <= rate
    assert false_positive_rate(scores, np.nextafter(threshold, -np.inf), mask).pooled > rate


def test_a_rate_that_floating_point_misses() -> None:
    healthy = np.arange(100.0).reshape(1, 10, 10)  # 0.29 * 100 is a little less than 29
    assert false_positive_rate(healthy, operating_threshold(healthy, 0.29)).pooled == 0.29


def test_thresholds_between_float32_scores_are_not_rounded() -> None:
    score = np.float32(0.2)
    maps, labels = np.full((1, 2, 2), score), np.ones((1, 2, 2), bool)
    above = operating_threshold(maps, 0.0)
    assert np.float32(above) == score
    assert false_positive_rate(maps, above).pooled == 0
    assert dice_at(maps, labels, above).pooled == 0
    assert dice_at(maps, labels, float(score)).pooled == 1


def test_rates_per_image() -> None:
    healthy, mask = np.arange(12.0).reshape(3, 2, 2), np.ones((3, 2, 2), bool)
    mask[0, 0] = False
    mask[1] = False
    found = false_positive_rate(healthy, 3.0, mask)
    np.testing.assert_array_equal(found.per_image, [0.5, math.nan, 1])
    assert (found.pooled, found.mean) == (5 / 6, 0.75)
    assert false_positive_rate(healthy, math.inf).pooled == 0
    assert false_positive_rate(healthy, -math.inf).pooled == 1


def test_mistakes() -> None:
    scores, labels = random_maps()
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="false-positive rate"):
            operating_threshold(scores, rate)
    with pytest.raises(ValueError, match="no pixel"):
        operating_threshold(scores, 0.1, np.zeros_like(labels))
    with pytest.raises(ValueError, match="never determined"):
        dice_at(scores, labels, math.nan)
    with pytest.raises(ValueError, match="never determined"):
        false_positive_rate(scores, math.nan)
    with pytest.raises(ValueError, match="two thresholds"):
        published_max_dice(scores, labels, 1)
    with pytest.raises(ValueError, match="below every abnormal pixel"):
        rank_maps(scores, labels).counts_at(-100)


# ---------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize("levels", [2, 101, 201])
def test_the_published_rule_by_its_loop(levels: int) -> None:
    scores, labels = random_maps(levels=200)
    mask = np.random.default_rng(1).random(labels.shape) < 0.8
    best = (-1.0, math.nan)
    for threshold in np.linspace(0, 1, levels):
        means = []
        for score, label, inside in zip(scores, labels, mask, strict=True):
            called, truth = (score.astype(np.float64) > threshold) & inside, label & inside
            positive, size = int(called.sum()), int(truth.sum())
            means.append(2 * int((called & truth).sum()) / (positive + size + 1e-6) if size else float(positive == 0))
        best = max(best, (float(np.mean(means)), -threshold))
    found = published_max_dice(scores, labels, levels, mask)
    assert (found.value, found.threshold) == (pytest.approx(best[0], rel=1e-15), -best[1])


def test_reference_values(metric_fixtures: Path) -> None:
    arrays, maps, reference = load_fixtures(metric_fixtures)
    labels = arrays["anom_gt"]
    for name, scores in maps.items():
        wanted, ranked = reference["recommended"][name], rank_maps(scores, labels)
        assert global_max_dice(ranked).value == wanted["global_max_dice"]
        assert oracle_max_dice(ranked).mean == pytest.approx(wanted["max_dice_per_image_abnormal"], rel=1e-15)
        for levels in (101, 201):
            published = published_max_dice(scores, labels, levels)
            assert published.value == pytest.approx(wanted[f"max_dice_shared_{levels}"], abs=1e-15)
            # A grid can at best find what all scores find; the epsilon lowers small lesions a little.
            assert shared_max_dice(ranked).value >= published.value
    healthy = ~labels.any(axis=(1, 2))
    found = published_max_dice(maps["cont"][healthy], labels[healthy])
    peer = reference["all_normal"]["shared_threshold.max_dice_201_cmp64"]
    assert (found.value, found.threshold) == (peer["best"], peer["threshold"])


# ----------------------------------------------------------------------------------------------- size bins


def test_bins_are_scored_by_their_own_images() -> None:
    scores, labels = random_maps((30, 24, 20))
    labels[5, :12] = True
    ranked = rank_maps(scores, labels)
    areas = lesion_areas(ranked)
    assert areas.tolist() == labels.sum(axis=(1, 2)).tolist()
    bins = (SizeBin("small", 3, 20), SizeBin("medium", 20, 60), SizeBin("large", 100, 300))
    found = binned_dice(ranked, areas, bins)
    overall = global_max_dice(ranked)
    held = 0
    for scored in found.bins:
        inside = (areas > scored.bin.low) & (areas <= scored.bin.high)
        held += scored.n
        assert scored.n == inside.sum() > 0
        own = global_max_dice(rank_maps(scores[inside], labels[inside]))
        assert (scored.max_dice, scored.threshold) == (own.value, own.threshold)
        fixed = dice_at(scores[inside], labels[inside], overall.threshold)
        assert (scored.pooled_at_global, scored.mean_at_global) == (fixed.pooled, pytest.approx(fixed.mean, rel=1e-15))
        assert scored.max_dice >= scored.pooled_at_global
    assert found.n_unbinned == (areas > 0).sum() - held > 0
    assert (found.global_pooled, found.global_threshold) == (overall.value, overall.threshold)
    weighted = np.average([s.max_dice for s in found.bins], weights=[s.n for s in found.bins])
    assert found.global_bin_weighted == pytest.approx(weighted, rel=1e-15)


def test_many_small_lesions_separate_the_two_averages() -> None:
    """Nine images with a hidden pixel, one with a large lesion that is plain: one name, two numbers."""
    labels = np.zeros((10, 8, 8), bool)
    labels[:9, 0, 0] = True
    labels[9, :, :5] = True
    scores = np.where(labels, 0.0, 0.5)
    scores[9] = labels[9]
    ranked = rank_maps(scores, labels)
    found = binned_dice(ranked, lesion_areas(ranked), (SizeBin("small", 0, 10), SizeBin("large", 10, 100)))
    assert found.global_pooled == 2 * 40 / (49 + 40)
    assert found.global_bin_weighted == pytest.approx((9 * 2 / 65 + 1 * 1) / 10)


def test_bins_in_pixels_of_another_resolution_and_in_mm2() -> None:
    assert [(b.low, b.high) for b in scaled_bins(THOR_BINS, (256, 256))] == [(12, 284), (284, 2280), (2280, 40000)]
    assert [(b.low, b.high) for b in bins_in_mm2(THOR_BINS, 4.0)] == [(12, 284), (284, 2280), (2280, 40000)]
    assert scaled_bins(ITERMASK_BINS, (64, 128))[2].high == math.inf
    scores, labels = random_maps()
    ranked = rank_maps(scores, labels)
    pixel_mm2 = np.array([1, 0.5, 2, 1, 1, 4])
    areas = lesion_areas(ranked, pixel_mm2)
    assert areas.tolist() == (labels.sum(axis=(1, 2)) * pixel_mm2).tolist()
    doubled = binned_dice(ranked, 2 * areas, bins_in_mm2((SizeBin("all", 0, 1000),), 2.0))
    assert doubled.bins[0].n == binned_dice(ranked, areas, (SizeBin("all", 0, 1000),)).bins[0].n == 5


def test_empty_bins_and_healthy_sets() -> None:
    scores, labels = random_maps()
    ranked = rank_maps(scores, labels)
    found = binned_dice(ranked, lesion_areas(ranked), (SizeBin("giant", 1e6, math.inf),))
    assert (found.bins[0].n, found.n_unbinned) == (0, 5)
    assert math.isnan(found.bins[0].max_dice)
    assert math.isnan(found.global_bin_weighted)
    healthy = ranked.select([0])
    assert math.isnan(binned_dice(healthy, lesion_areas(healthy), THOR_BINS).global_pooled)
    for bins, message in (
        ((SizeBin("a", 0, 5), SizeBin("b", 4, 9)), "'a' and 'b' overlap"),
        ((SizeBin("a", 5, 5),), "'a' is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            binned_dice(ranked, lesion_areas(ranked), bins)
    with pytest.raises(ValueError, match="of 6 images"):
        binned_dice(ranked, [1.0], THOR_BINS)
    with pytest.raises(ValueError, match="positive number"):
        lesion_areas(ranked, 0.0)
    with pytest.raises(ValueError, match="pixel area of 6 images"):
        lesion_areas(ranked, [1.0, 2.0])
