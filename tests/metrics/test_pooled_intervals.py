"""Bootstrap of pooled scores: every resample is exactly what scoring the resampled images gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.metrics import pooled_intervals
from harness.metrics.detection import auroc, average_precision, f1_max
from harness.metrics.pooled_intervals import pooled_intervals as intervals
from harness.metrics.ranked_maps import RankedMaps, rank_maps

SUBJECTS = ["a", "a", "b", "c", "d", "d", "e"]


@pytest.fixture(scope="module")
def maps() -> RankedMaps:
    rng = np.random.default_rng(3)
    labels = np.zeros((len(SUBJECTS), 16, 16), np.bool_)
    for i, side in enumerate((5, 2, 7, 3, 4, 0, 6)):
        labels[i, 3 : 3 + side, 4 : 4 + side] = True
    # few distinct scores, so that ties between normal and abnormal pixels matter
    scores = np.round(rng.random(labels.shape) * 8 + labels * rng.uniform(0, 4, (len(SUBJECTS), 1, 1))) / 8
    return rank_maps(scores.astype(np.float32), labels)


def test_a_resample_is_scored_as_its_images_are(maps: RankedMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_intervals, "CHUNK", 5)  # several chunks, as with real maps
    names = sorted(set(SUBJECTS))
    of_image = np.array([names.index(s) for s in SUBJECTS])
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=12).astype(float)
    found = pooled_intervals._scores(maps, of_image, weights)
    for row, *values in zip(weights, *found, strict=True):
        drawn = [i for i, name in enumerate(of_image) for _ in range(int(row[name]))]
        again = maps.select(drawn)
        expected = (auroc(again), average_precision(again), f1_max(again).value)
        assert values == pytest.approx(expected, abs=1e-12)


def test_the_estimate_is_the_exact_score_and_lies_inside(maps: RankedMaps) -> None:
    found = intervals(maps, SUBJECTS, resamples=500)
    for interval, exact in (
        (found.auroc, auroc(maps)),
        (found.ap, average_precision(maps)),
        (found.max_dice, f1_max(maps).value),
    ):
        assert interval.estimate == pytest.approx(exact, abs=1e-12)
        assert interval.low < exact < interval.high
        assert interval.n == 5


def test_it_agrees_with_the_bootstrap_of_scipy(maps: RankedMaps) -> None:
    from scipy.stats import bootstrap

    names = sorted(set(SUBJECTS))
    own = {name: [i for i, s in enumerate(SUBJECTS) if s == name] for name in names}

    def statistic(index: np.ndarray) -> float:
        return average_precision(maps.select([i for k in index.astype(int) for i in own[names[k]]]))

    expected = bootstrap(
        (np.arange(5),), statistic, n_resamples=2000, vectorized=False, rng=np.random.default_rng(1)
    ).confidence_interval
    found = intervals(maps, SUBJECTS, resamples=2000).ap
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_one_subject_with_a_lesion_gives_no_interval(maps: RankedMaps) -> None:
    found = intervals(maps.select([0, 1]), ["a", "a"])
    assert math.isnan(found.ap.low)
    assert found.ap.estimate == pytest.approx(average_precision(maps.select([0, 1])))


def test_the_number_of_subjects_must_fit(maps: RankedMaps) -> None:
    with pytest.raises(ValueError, match="need the subject of 7 images, not 2"):
        intervals(maps, ["a", "b"])
