"""Scores of predicted ages with intervals; people are the units, so whoever has two scans brings both or neither.

Every score of `regression` follows from a few sums over cases. Each person's sums are made once, and a resample adds
up those of the people it drew: nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.metrics.bca import Floats, bca_limits

SCORES = ("mae", "error_sd", "rmse", "bias", "r2", "r2_pearson")
DEFINED = 0.75
"""Share of the resamples that must define a score for it to have an interval."""
AT_A_TIME = 4_000_000
"""Draws that are held at a time."""


@dataclass(frozen=True, eq=False)
class Cases:
    """What one model predicts at one site: whose scan it is, true and predicted age, [n] each."""

    subjects: Sequence[str]
    target: Floats
    predicted: Floats


@dataclass(frozen=True)
class Scored:
    """A score and its 95 % interval; None where undefined: one person has no interval."""

    value: float | None
    low: float | None
    high: float | None


def scores_of(
    sites: Sequence[Sequence[Cases]], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Mapping[str, Scored]:
    """Each of `SCORES`: the mean over sites of the mean over the models of a site, such as those of several seeds.

    Intervals are BCa (Efron, JASA 1987), people drawn within their site, the same ones for all models. Resamples that
    do not define a score are left out of its interval, and there is none where that is more than a quarter. Raises
    ValueError where the lengths of a case differ or an age is not finite.
    """
    sums = [_sums_by_subject(models) for models in sites if models]
    if not sums:
        return dict.fromkeys(SCORES, Scored(None, None, None))
    wholes = [own.sum(axis=1, keepdims=True) for own in sums]
    estimate = _over([_scores(whole, whole) for whole in wholes])
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([*_resampled(own, resamples, rng)], axis=1) for own in sums]
    replicates = _over([_scores(own, whole) for own, whole in zip(drawn, wholes, strict=True)])
    left_out: dict[str, list[Floats]] = {name: [] for name in SCORES}
    for place, own in enumerate(sums):
        rest = [_scores(whole - own if i == place else whole, whole) for i, whole in enumerate(wholes)]
        for name, values in _over(rest).items():
            left_out[name].append(values)
    return {
        name: _scored(float(estimate[name][0]), replicates[name], np.concatenate(left_out[name]), confidence)
        for name in SCORES
    }


def _sums_by_subject(models: Sequence[Cases]) -> Floats:
    """[models, subjects, 9]: n and the sums of |e|, e², e, y, y², p, p², yp; y and p less the first of each."""
    names = sorted({subject for cases in models for subject in cases.subjects})
    number = {name: place for place, name in enumerate(names)}
    found = []
    for cases in models:
        y, p = np.asarray(cases.target, np.float64), np.asarray(cases.predicted, np.float64)
        if y.ndim != 1 or y.shape != p.shape or len(cases.subjects) != len(y):
            raise ValueError(f"need one age and one prediction of {len(cases.subjects)} cases")
        if not (np.isfinite(y).all() and np.isfinite(p).all()):
            raise ValueError("ages and predictions must be finite; leave missing cases out and count them")
        e = p - y
        # Around a value of their own, the sums lose no digits, and constants leave exact zeros.
        y, p = y - y[:1], p - p[:1]
        columns = (np.ones_like(y), np.abs(e), e**2, e, y, y**2, p, p**2, y * p)
        whose = np.array([number[subject] for subject in cases.subjects], np.int64)
        found.append(np.stack([np.bincount(whose, column, len(names)) for column in columns], axis=1))
    return np.stack(found)


def _resampled(own: Floats, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Sums of as many people as there are, drawn with replacement: [models, some of the resamples, 9] at a time."""
    n = own.shape[1]
    step = max(1, AT_A_TIME // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        yield times @ own


def _scores(sums: Floats, whole: Floats) -> dict[str, Floats]:
    """Scores of each row of sums [models, rows, 9], the mean over models [rows]; nan where they do not define one.

    whole: the sums of everybody, [models, 1, 9]: next to their spread, what rounding leaves is none.
    """
    n, absolute, square, error, *_ = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        yy, pp, yp = _centred(sums)
        all_yy, all_pp, _ = _centred(whole)
        yy = np.where(yy > 1e-9 * all_yy, yy, np.nan)
        pp = np.where(pp > 1e-9 * all_pp, pp, np.nan)
        mae, mse = absolute / n, square / n
        values = {
            "mae": mae,
            "error_sd": np.sqrt(np.maximum(mse - mae**2, 0)),
            "rmse": np.sqrt(mse),
            "bias": error / n,
            "r2": 1 - square / yy,
            "r2_pearson": np.minimum(1, yp**2 / (yy * pp)),
        }
    return {name: value.mean(axis=0) for name, value in values.items()}


def _centred(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums of squares of true and predicted ages about their means, and of their products."""
    n, _, _, _, y, y_square, p, p_square, product = np.moveaxis(sums, -1, 0)
    return y_square - y**2 / n, p_square - p**2 / n, product - y * p / n


def _over(sites: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """The mean over sites of each score; a site's only row stands beside every row of the others."""
    return {name: np.mean(np.broadcast_arrays(*(site[name] for site in sites)), axis=0) for name in SCORES}


def _scored(estimate: float, replicates: Floats, left_out: Floats, confidence: float) -> Scored:
    if not math.isfinite(estimate):
        return Scored(None, None, None)
    kept, jackknife = replicates[np.isfinite(replicates)], left_out[np.isfinite(left_out)]
    if len(jackknife) < 2 or len(kept) < DEFINED * len(replicates):
        return Scored(estimate, None, None)
    return Scored(estimate, *bca_limits(estimate, kept, jackknife, confidence))
