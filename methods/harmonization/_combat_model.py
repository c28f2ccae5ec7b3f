"""ComBat on plain arrays: estimate and remove additive and multiplicative site effects.

    y_sf = α_f + X_s β_f + γ_bf + δ_bf ε_sf        sample s of site b, feature f

Johnson et al., Biostatistics 2007, with the imaging conventions of Fortin et al., NeuroImage 2018. Samples
are rows. Features come in chunks, each read once: regression needs one chunk at a time, and all that the
empirical Bayes step needs of the data is two moments per site and feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Prior = Literal["parametric", "nonparametric", "none"]

CONVERGED = 1e-4  # largest relative change at which the EB iteration stops; neuroCombat and sva
MAX_ITERATIONS = 10_000  # ours: convergence takes tens
FLAT = 1e-12  # ours: a variance below this fraction of its scale is rounding, so the feature is constant
BLOCK = 2**22  # ours: pairs of features weighed at a time in the non-parametric prior (32 MB)


@dataclass(frozen=True)
class CombatModel:
    """What ComBat learns. B sites, K covariates, F features.

    alpha: [F] overall mean. beta: [K, F] covariate slopes. sigma: [F] residual standard deviation.
    gamma: [B, F] additive, delta_squared: [B, F] multiplicative (variance) site effect, both of data in
    units of sigma. reference: the site everything is mapped to, or None for the grand mean.
    A feature without variance has the identity as its model, so that it passes unchanged.
    """

    alpha: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray
    gamma: np.ndarray
    delta_squared: np.ndarray
    reference: int | None


@dataclass(frozen=True)
class _Moments:
    """Of one chunk: location and scale, and per site the mean and centred sum of squares of standardised data."""

    alpha: np.ndarray
    beta: np.ndarray
    variance: np.ndarray
    varies: np.ndarray
    mean: np.ndarray
    squares: np.ndarray


def fit_combat(
    chunks: Iterable[np.ndarray],
    sites: np.ndarray,
    covariates: np.ndarray | None = None,
    *,
    reference: int | None = None,
    prior: Prior = "parametric",
    mean_only: bool = False,
) -> CombatModel:
    """Estimate ComBat from finite `chunks` [N, f] of features, side by side.

    sites: [N] ints 0..B-1. covariates: [N, K], whose effect is kept. prior "none" takes the site estimates
    as they are; "nonparametric" costs O(F²). mean_only leaves the variances alone.
    Raises ValueError for a site with fewer than two samples, for covariates that cannot be told from the
    sites, for too few samples, for values that are not finite, and for fewer than two features that vary.
    """
    sites = np.asarray(sites)
    covariates = np.zeros((len(sites), 0)) if covariates is None else np.asarray(covariates, np.float64)
    counts = np.bincount(sites)
    design = _design(sites, counts, covariates, reference)
    inverse = np.linalg.lstsq(design, np.eye(len(sites)), rcond=None)[0]
    parts = [_moments(np.asarray(c, np.float64), sites, counts, design, inverse, reference) for c in chunks]
    whole = _Moments(
        *(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in _Moments.__dataclass_fields__)
    )
    varies = whole.varies
    if varies.sum() < 2:
        raise ValueError(f"ComBat needs two features that vary; {int(varies.sum())} of {varies.size} do")
    gamma, delta_squared = np.zeros(whole.mean.shape), np.ones(whole.mean.shape)
    for site, n in enumerate(counts):
        if site != reference:
            effects = _site_effects(whole.mean[site, varies], whole.squares[site, varies], int(n), prior, mean_only)
            gamma[site, varies], delta_squared[site, varies] = effects
    return CombatModel(
        alpha=np.where(varies, whole.alpha, 0),
        beta=np.where(varies, whole.beta, 0),
        sigma=np.where(varies, np.sqrt(whole.variance), 1),
        gamma=gamma,
        delta_squared=delta_squared,
        reference=reference,
    )


def remove_site_effect(
    model: CombatModel, values: np.ndarray, site: int, covariates: np.ndarray | None = None
) -> np.ndarray:
    """`values` [N, F] of one site without its site effect, float64; covariate effects stay.

    Samples of the reference site come back exactly as they are.
    """
    values = np.array(values, np.float64)
    if site == model.reference:
        return values
    expected = model.alpha + (0.0 if covariates is None else np.asarray(covariates, np.float64) @ model.beta)
    standard = (values - expected) / model.sigma
    return model.sigma * (standard - model.gamma[site]) / np.sqrt(model.delta_squared[site]) + expected


def separable(sites: np.ndarray, covariates: np.ndarray) -> bool:
    """Whether the effects of `covariates` [N, K] can be told from those of the sites and from each other."""
    indicators = np.eye(int(sites.max()) + 1)[sites]
    within = covariates - indicators @ np.linalg.lstsq(indicators, covariates, rcond=None)[0]
    size = np.linalg.norm(covariates, axis=0)
    scaled = within / np.where(size > 0, size, 1)  # so that units do not decide the rank
    return bool(np.linalg.matrix_rank(scaled, tol=1e-9) == covariates.shape[1])  # tolerance is ours


def _design(sites: np.ndarray, counts: np.ndarray, covariates: np.ndarray, reference: int | None) -> np.ndarray:
    """[N, B + K]: one column a site (the reference's is all ones, so its coefficient is the level), covariates."""
    if counts.min() < 2:
        raise ValueError(f"ComBat needs two samples a site; site {int(counts.argmin())} has {int(counts.min())}")
    columns = np.eye(len(counts))[sites]
    if reference is not None:
        columns[:, reference] = 1
    design = np.hstack([columns, covariates])
    if len(design) <= design.shape[1]:
        raise ValueError(f"{len(design)} samples are too few for {design.shape[1]} coefficients")
    if not separable(sites, covariates):
        raise ValueError("the covariates cannot be told from the sites or from each other (collinear design)")
    return design


def _moments(
    values: np.ndarray,
    sites: np.ndarray,
    counts: np.ndarray,
    design: np.ndarray,
    inverse: np.ndarray,
    reference: int | None,
) -> _Moments:
    """Regress one chunk [N, f] and summarise it."""
    if not np.isfinite(values).all():
        raise ValueError("ComBat needs finite values")
    coefficients = inverse @ values
    levels, beta = coefficients[: len(counts)], coefficients[len(counts) :]
    alpha = levels[reference] if reference is not None else (counts / counts.sum()) @ levels
    residual = values - design @ coefficients
    judged = residual if reference is None else residual[sites == reference]
    variance = (judged**2).mean(axis=0)
    varies = variance > FLAT * (values**2).mean(axis=0)
    standard = (values - alpha - design[:, len(counts) :] @ beta) / np.sqrt(np.where(varies, variance, 1))
    # Least squares makes residuals sum to zero within each site, so the fitted site effect is the site's mean.
    mean = np.stack([standard[sites == site].mean(axis=0) for site in range(len(counts))])
    squares = np.stack([((standard[sites == site] - mean[site]) ** 2).sum(axis=0) for site in range(len(counts))])
    return _Moments(alpha, beta, variance, varies, mean, squares)


def _site_effects(
    mean: np.ndarray, squares: np.ndarray, n: int, prior: Prior, mean_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    """γ* and δ*² [F] of one site of n samples, from the moments of its standardised data."""
    variance = squares / (n - 1)
    variance = np.where(variance > FLAT, variance, 1.0)  # a feature constant within the site keeps its scale
    ones = np.ones_like(mean)
    if prior == "none":
        return mean, ones if mean_only else variance
    if prior == "nonparametric":
        return _nonparametric(mean, squares, ones if mean_only else variance, n)
    if mean_only:
        return _posterior_mean(mean, ones, 1), ones
    return _parametric(mean, squares, variance, n)


def _posterior_mean(mean: np.ndarray, variance: np.ndarray, n: int) -> np.ndarray:
    """E[γ | data, δ²] under a normal prior across features (Johnson et al. 2007, equation 3.1)."""
    tau_squared = mean.var(ddof=1)
    return (n * tau_squared * mean + variance * mean.mean()) / (n * tau_squared + variance)


def _parametric(mean: np.ndarray, squares: np.ndarray, variance: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal prior on γ, inverse gamma on δ², hyper-parameters by moments; posterior means by iteration."""
    m = variance.mean()
    s_squared = max(variance.var(ddof=1), FLAT * m * m)  # equal variances: a prior so sharp that δ*² = m
    shape, scale = (2 * s_squared + m * m) / s_squared, (m * s_squared + m**3) / s_squared
    gamma, delta_squared = mean, variance
    for _ in range(MAX_ITERATIONS):
        new_gamma = _posterior_mean(mean, delta_squared, n)
        total = squares + n * (mean - new_gamma) ** 2  # = Σ (z − γ*)²
        new_delta_squared = (total / 2 + scale) / (n / 2 + shape - 1)
        change = max(_relative(new_gamma, gamma), _relative(new_delta_squared, delta_squared))
        gamma, delta_squared = new_gamma, new_delta_squared
        if change <= CONVERGED:
            break
    return gamma, delta_squared


def _relative(new: np.ndarray, old: np.ndarray) -> float:
    """Largest |new − old| / |old|; a value that stays 0 has not changed.

    neuroCombat divides by the signed old value and may stop an iteration sooner, a difference of about 1e-8.
    """
    change, size = np.abs(new - old), np.abs(old)
    with np.errstate(divide="ignore"):
        return float(np.divide(change, size, out=np.zeros_like(change), where=change > 0).max())


def _nonparametric(
    mean: np.ndarray, squares: np.ndarray, variance: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weigh the estimates of all other features by how likely they make this feature's data."""
    gamma, delta_squared = np.empty_like(mean), np.empty_like(mean)
    rows = max(1, BLOCK // mean.size)
    for start in range(0, mean.size, rows):
        block = np.arange(start, min(start + rows, mean.size))
        total = squares[block, None] + n * (mean[block, None] - mean) ** 2
        log_likelihood = -n / 2 * np.log(variance) - total / (2 * variance)
        log_likelihood[np.arange(len(block)), block] = -np.inf
        weights = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))  # never all underflow
        weights /= weights.sum(axis=1, keepdims=True)
        gamma[block], delta_squared[block] = weights @ mean, weights @ variance
    return gamma, delta_squared
