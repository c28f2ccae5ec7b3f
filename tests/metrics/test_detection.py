"""Detection metrics, against brute force over all thresholds, scikit-learn, and reference values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from anomaly_maps import Maps, load_fixtures, random_maps, small_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from harness.metrics.detection import (
    aupro,
    auroc,
    average_precision,
    detection_scores,
    f1_max,
    image_auroc,
    image_scores,
    subject_interval,
)
from harness.metrics.ranked_maps import rank_maps
from harness.metrics.ranking import bootstrap_mean


def exact_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    abnormal, normal = scores[labels], scores[~labels]
    above = int((abnormal[:, None] > normal).sum())
    equal = int((abnormal[:, None] == normal).sum())
    pairs = abnormal.size * normal.size
    return float(Fraction(2 * above + equal, 2 * pairs)) if pairs else math.nan


def regions_of(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Boolean masks [N, ...] of the connected regions of every image."""
    for i, label in enumerate(labels):
        found, n = ndimage.label(label, np.ones((3,) * label.ndim))
        for region in range(1, n + 1):
            mask = np.zeros(labels.shape, bool)
            mask[i] = found == region
            yield mask


def aupro_by_thresholds(scores: np.ndarray, labels: np.ndarray, limit: float) -> float:
    """The curve, point by point over all distinct scores, interpolated at the limit; trapezoids."""
    regions = list(regions_of(labels))
    if not regions or labels.all():
        return math.nan
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        rates.append(float(called[~labels].mean()))
        overlaps.append(float(np.mean([called[region].mean() for region in regions])))
    x, y = np.array(rates), np.array(overlaps)
    k = int(np.argmax(x >= limit))
    end = y[k - 1] + (y[k] - y[k - 1]) * (limit - x[k - 1]) / (x[k] - x[k - 1])
    return float(np.trapezoid([*y[:k], end], [*x[:k], limit])) / limit


# ------------------------------------------------------------------------------------------ brute force


@settings(max_examples=120, deadline=None)
@given(small_maps(), st.sampled_from([0.05, 0.3, 1.0]))
def test_equals_brute_force_over_all_thresholds(maps: Maps, limit: float) -> None:
    scores, labels = maps
    ranked = rank_maps(scores, labels)
    assert auroc(ranked) == pytest.approx(exact_auroc(scores, labels), abs=0, nan_ok=True)
    assert aupro(ranked, limit) == pytest.approx(aupro_by_thresholds(scores, labels, limit), abs=1e-12, nan_ok=True)
    if not labels.any():
        assert math.isnan(average_precision(ranked))
        assert math.isnan(f1_max(ranked).value)
        return
    n, previous, ap, best = labels.sum(), 0, Fraction(0), (Fraction(0), math.inf)
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        true, positive = int((called & labels).sum()), int(called.sum())
        ap += Fraction((true - previous) * true, positive)
        previous = true
        best = max(best, (Fraction(2 * true, int(n) + positive), float(threshold)))
    assert average_precision(ranked) == pytest.approx(float(ap / int(n)), rel=1e-14)
    assert (f1_max(ranked).value, f1_max(ranked).threshold) == (float(best[0]), best[1])


def test_aupro_is_the_exact_rational_number() -> None:
    """Independent of the order of summation: pixel by pixel over fractions."""
    scores, labels = random_maps(levels=7)
    normal = np.sort(scores[~labels])
    regions, end, area = list(regions_of(labels)), Fraction(3, 10) * normal.size, Fraction(0)
    for region in regions:
        for score in scores[region]:
            above = int(normal.size - np.searchsorted(normal, score, "right"))
            tied = int(np.searchsorted(normal, score, "right") - np.searchsorted(normal, score, "left"))
            ramp = min(max(end - above, Fraction(0)), Fraction(tied))
            area += (ramp * ramp / (2 * tied) if tied else 0) / int(region.sum())
            area += max(end - above - tied, Fraction(0)) / int(region.sum())
    assert aupro(rank_maps(scores, labels)) == pytest.approx(float(area / (len(regions) * end)), rel=1e-14)


def test_regions_of_equal_size_and_limit_1_give_auroc() -> None:
    scores, labels = random_maps()
    labels[:] = False
    labels[1:, ::4, ::5] = True  # no two touch
    ranked = rank_maps(scores, labels)
    assert ranked.regions.count.tolist() == [0] + 5 * [24]
    assert aupro(ranked, 1.0) == pytest.approx(auroc(ranked), rel=1e-13)


def test_regions_touch_over_corners_but_not_across_images() -> None:
    labels = np.zeros((2, 4, 4), bool)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[0, 3, 3] = labels[1, 3, 3] = True
    ranked = rank_maps(np.zeros((2, 4, 4)), labels)
    assert ranked.regions.count.tolist() == [2, 1]
    assert ranked.regions.share.tolist() == [0.5, 0.5, 1, 1]
    volume = np.zeros((1, 3, 3, 3), bool)
    volume[0, 0, 0, 0] = volume[0, 1, 1, 1] = True
    assert rank_maps(np.zeros(volume.shape), volume).regions.count.tolist() == [1]


# ----------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("levels", [1, 5, 10**6])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_scikit_learn(levels: int, masked: bool) -> None:
    scores, labels = random_maps((12, 40, 50), levels)
    mask = np.zeros(scores.shape, bool)
    mask[:, 5:-5, 8:-3] = True
    found = detection_scores(scores, labels, mask if masked else None)
    inside = mask if masked else np.ones_like(mask)
    truth, score = labels[inside], scores[inside]
    assert found.auroc == pytest.approx(roc_auc_score(truth, score), rel=1e-14)
    assert found.ap == pytest.approx(average_precision_score(truth, score), rel=1e-13)
    precision, recall, thresholds = precision_recall_curve(truth, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert found.f1max.value == pytest.approx(f1.max(), rel=1e-14)
    assert f1[np.flatnonzero(thresholds == found.f1max.threshold)[0]] == pytest.approx(f1.max(), rel=1e-14)
    assert (found.n_abnormal, found.n_normal) == (truth.sum(), (~truth).sum())
    assert found.n_outside == (labels & ~inside).sum()


def test_the_mask_may_cut_a_region_but_not_in_two() -> None:
    scores, labels, mask = np.arange(10.0).reshape(1, 1, 10), np.zeros((1, 1, 10), bool), np.ones((1, 1, 10), bool)
    labels[0, 0, 2:7] = True
    mask[0, 0, 4] = False
    ranked = rank_maps(scores, labels, mask)
    assert ranked.regions.count.tolist() == [1]
    assert ranked.regions.share.tolist() == [0.25] * 4
    assert ranked.n_outside == 1
    mask[0, 0, 2:7] = False
    assert math.isnan(aupro(rank_maps(scores, labels, mask)))


# ------------------------------------------------------------------------------------------- invariance


def all_scores(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    found = detection_scores(scores, labels)
    return [found.auroc, found.ap, found.f1max.value, found.aupro]


def test_only_the_order_of_scores_matters() -> None:
    scores, labels = random_maps()
    values, rank = np.unique(scores, return_inverse=True)
    for mapped in (np.exp(values.astype(float)), 1e-3 * values.astype(float) ** 3 - 5e4, np.arange(values.size) / 7):
        assert np.unique(mapped).size == values.size
        assert all_scores(mapped[rank].reshape(scores.shape), labels) == all_scores(scores, labels)


def test_neighbouring_floats_are_told_apart() -> None:
    """Scores that a sigmoid, a bin or float32 would merge."""
    high, labels = np.nextafter(700.0, 701.0), np.array([[[True, False]]])
    assert auroc(rank_maps(np.array([[[high, 700.0]]]), labels)) == 1
    assert auroc(rank_maps(np.array([[[700.0, high]]]), labels)) == 0


def test_the_order_of_pixels_and_images_does_not_matter() -> None:
    scores, labels = random_maps()
    wanted = all_scores(scores, labels)
    images, rng = [3, 0, 5, 1, 2, 4], np.random.default_rng(3)
    assert all_scores(scores[images], labels[images]) == pytest.approx(wanted, rel=1e-14)
    assert all_scores(scores[:, ::-1], labels[:, ::-1]) == pytest.approx(wanted, rel=1e-14)
    shuffled = rng.permutation(scores[0].size)
    moved = [a.reshape(6, -1)[:, shuffled].reshape(a.shape) for a in (scores, labels)]
    assert all_scores(*moved)[:3] == pytest.approx(wanted[:3], rel=1e-14)


def test_some_images_of_a_sorted_set_are_those_images_alone() -> None:
    scores, labels = random_maps()
    mask = scores > -1.5
    images = [4, 0, 2, 2]
    part, alone = (
        rank_maps(scores, labels, mask).select(images),
        rank_maps(scores[images], labels[images], mask[images]),
    )
    for metric in (auroc, average_precision, aupro):
        assert metric(part) == metric(alone)
    assert f1_max(part) == f1_max(alone)
    assert (part.n_normal, part.n_abnormal, part.n_outside) == (alone.n_normal, alone.n_abnormal, alone.n_outside)
    assert math.isnan(auroc(rank_maps(scores, labels).select([])))


# -------------------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize(
    ("scores", "labels", "wanted"),
    [
        ([0.1, 0.4, 0.4, 0.9], [0, 0, 0, 0], (math.nan, math.nan, math.nan, math.nan)),
        ([0.1, 0.4, 0.4, 0.9], [1, 1, 1, 1], (math.nan, 1.0, 1.0, math.nan)),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1], (0.5, 0.25, 0.4, 0.15)),
        ([0.1, 0.4, 0.5, 0.9], [0, 0, 1, 1], (1.0, 1.0, 1.0, 1.0)),
        ([0.1, 0.4, 0.5, 0.9], [1, 1, 0, 0], (0.0, (1 / 3 + 2 / 4) / 2, 2 / 3, 0.0)),
        ([-0.0, 0.0, -1.0, -2.0], [1, 0, 0, 0], (2.5 / 3, 0.5, 2 / 3, 0.45)),
    ],
    ids=["none abnormal", "all abnormal", "constant", "perfect", "reversed", "negative zero"],
)
def test_edge_cases(scores: list[float], labels: list[int], wanted: tuple[float, ...]) -> None:
    found = detection_scores(np.array([[scores]]), np.array([[labels]]))
    got = (found.auroc, found.ap, found.f1max.value, found.aupro)
    assert got == pytest.approx(wanted, nan_ok=True)


def test_mistakes_are_one_line() -> None:
    scores, labels = random_maps()
    for bad, message in (
        ((scores, labels[:2]), "labels and anomaly maps differ in shape"),
        ((scores, labels.astype(float)), "labels must be boolean or integer, not float64"),
        ((scores, labels, labels.astype(int)), "mask must be boolean, not int64"),
        ((scores[0, 0], labels[0, 0]), r"must be \[N, ...\]"),
        ((scores[:0], labels[:0]), "at least one pixel"),
        ((scores.astype(complex), labels), "floats of up to 64 bits, not complex128"),
        ((scores.astype(np.int64), labels), "not int64"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            rank_maps(*bad)
        assert "\n" not in str(raised.value)
    for value in (math.nan, math.inf, -math.inf):
        spoilt = scores.copy()
        spoilt[0, 0, 0] = value
        with pytest.raises(ValueError, match="finite"):
            rank_maps(spoilt, labels, np.isfinite(spoilt))
    for limit in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="integration limit"):
            aupro(rank_maps(scores, labels), limit)


def test_any_layout_and_type_of_the_same_values() -> None:
    scores, labels = random_maps(levels=4)
    wanted = all_scores(scores, labels)
    assert all_scores(np.asfortranarray(scores), labels.astype(np.uint8) * 7) == wanted
    assert all_scores(scores.astype(">f8"), labels) == wanted
    assert all_scores(scores.astype(np.float16), labels) == wanted
    assert all_scores((scores * 4).astype(np.int16), labels) == wanted


# ------------------------------------------------------------------------------------ images and subjects


def test_image_level() -> None:
    scores, labels = random_maps()
    mask = np.zeros(scores.shape, bool)
    mask[:, 3:15, 2:18] = True
    values = image_scores(scores, mask)
    assert values.tolist() == [float(s[m].max()) for s, m in zip(scores, mask, strict=True)]
    assert image_scores(scores).tolist() == scores.max(axis=(1, 2)).tolist()
    abnormal = labels.any(axis=(1, 2))
    assert image_auroc(values, abnormal) == roc_auc_score(abnormal, values)
    assert math.isnan(image_auroc(values, np.ones(6, bool)))
    mask[2] = False
    with pytest.raises(ValueError, match="image 2 has no pixel"):
        image_scores(scores, mask)
    with pytest.raises(ValueError, match="one score per image"):
        image_auroc(scores, abnormal)


def test_the_interval_is_over_subjects_not_images() -> None:
    values = [0.5, 0.7, math.nan, 0.2, 0.9, 0.4, math.nan]
    subjects = ["a", "a", "a", "b", "c", "c", "d"]
    found = subject_interval(values, subjects, resamples=999)
    assert found == bootstrap_mean([0.6, 0.2, 0.65], resamples=999)
    assert found.n == 3
    assert math.isnan(subject_interval([math.nan], ["a"]).estimate)
    with pytest.raises(ValueError, match="each of 7 images"):
        subject_interval(values[:3], subjects)


# -------------------------------------------------------------------------------------- reference values


def test_reference_values(metric_fixtures: Path) -> None:
    arrays, maps, reference = load_fixtures(metric_fixtures)
    labels, brain = arrays["anom_gt"], arrays["anom_brain"]
    for name, scores in maps.items():
        wanted, peers = reference["recommended"][name], reference[name]
        ranked = rank_maps(scores, labels)
        assert auroc(ranked) == wanted["auroc"]
        assert average_precision(ranked) == pytest.approx(wanted["ap"], rel=1e-14)
        assert (f1_max(ranked).value, f1_max(ranked).threshold) == (
            wanted["global_max_dice"],
            wanted["global_threshold"],
        )
        # The reference rounds in a running sum; ours equals the exact rational number to 1e-15.
        assert aupro(ranked) == pytest.approx(wanted["aupro"], abs=1e-12)
        assert aupro(ranked) == pytest.approx(peers["anomalib.AUPRO_0.3"], abs=1e-6)
        assert aupro(ranked, 1.0) == pytest.approx(peers["exact.aupro_8conn_1.0"]["aupro"], abs=1e-12)
        assert int(ranked.regions.count.sum()) == peers["exact.aupro_8conn_0.3"]["regions"]
        if "first4_images" in peers:
            assert auroc(ranked.select(range(4))) == peers["first4_images"]["exact_u"]["auroc"]
        if "image_level_max" in peers:
            image_level = image_auroc(image_scores(scores), labels.any(axis=(1, 2)))
            assert image_level == pytest.approx(peers["image_level_max"]["sklearn.roc_auc"], rel=1e-15)
        if "brain_pixels_only" in peers:
            inside, within = rank_maps(scores, labels, brain), peers["brain_pixels_only"]
            assert auroc(inside) == pytest.approx(within["sklearn.roc_auc"], rel=1e-14)
            assert average_precision(inside) == pytest.approx(within["sklearn.average_precision"], rel=1e-13)
    for name, image in (("saturated_image4", 4), ("constant_map_image9", 9)):
        peers, ranked = reference[name], rank_maps(maps["cont"][[image]], labels[[image]])
        assert auroc(ranked) == peers["exact_u"]["auroc"]
        assert average_precision(ranked) == pytest.approx(peers["sklearn.average_precision"], rel=1e-14)
        assert f1_max(ranked).value == pytest.approx(peers["sklearn.f1max"]["f1max"], rel=1e-15)
        assert aupro(ranked) == pytest.approx(peers["exact.aupro_8conn_0.3"]["aupro"], abs=1e-12)
