"""ComBat on images: each pixel of a common brain mask is a feature, each scan a sample.

The estimator itself is `_combat_model`, on plain arrays. Here: which pixels, which covariates, which site.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from harness.api import ApplyData, Context, FitData, Harmonizer, ImageSet, MethodError, Scan, State, hyper
from methods.harmonization._combat_model import CombatModel, Prior, fit_combat, remove_site_effect, separable

SOURCE, TARGET = 0, 1
ENOUGH_FOR_COVARIATES = 20  # scans a site; ours: with fewer, slopes of age and sex are mostly noise
MAX_NONPARAMETRIC = 100_000  # features; ours: the cost is quadratic, minutes at this size


class ComBat(Harmonizer):
    """Remove the location and scale effect of the target site, pixel by pixel.

    Presumes a common grid: scans of equal slices, rows and columns, affinely aligned, or anatomy is taken
    for a site effect. Fitted on training scans of both sites; a new scan of the target site is corrected with
    the stored parameters and its own age and sex (as neuroHarmonize does, neuroCombat's own application to
    new data ignores them). ComBat was not designed for scans it was not fitted on.
    """

    id = "combat"
    reference = "Johnson et al., Biostatistics 2007; Fortin et al., NeuroImage 2018"
    notes = (
        "Source as reference site is our default, because the task model is frozen; `mode: grand_mean` is the "
        "original. Brain pixels outside the common mask stay as they are."
    )
    source_free, task_agnostic, unknown_domains = False, True, False

    mode: Literal["ref_source", "grand_mean"] = hyper(
        "ref_source",
        "map the target to the source site, or to the mean of both sites",
        origin="ours; the original maps to the grand mean, which a task model of the source has not seen",
    )
    prior: Prior = hyper(
        "parametric",
        "empirical Bayes prior of the site effects; 'none' takes the estimates as they are",
        origin="Johnson et al. 2007, section 3; Fortin et al. 2018",
    )
    mean_only: bool = hyper(
        False, "correct the mean alone, not the variance", origin="Fortin et al. 2018: both are corrected"
    )
    covariates: Literal["auto", "none", "age_sex"] = hyper(
        "auto",
        "effects that are kept; 'auto' keeps age and sex where both sites have 20 scans or more, all of known "
        "age and sex that can be told from the site",
        origin="ours",
    )
    coverage: float = hyper(
        1.0,
        "fraction of the training scans in whose brain a pixel must lie to belong to the common mask; below 1, "
        "background zeros count as values",
        origin="ours: voxels that all scans share, as in Fortin et al. 2018",
        gt=0,
        le=1,
    )

    def fit(self, data: FitData, ctx: Context) -> State:
        """Estimate on the training scans of both sites.

        Raises MethodError for scans without a common grid, fewer than two scans a site, an empty common mask,
        and covariates that are missing or cannot be told from the site.
        """
        sets = (data.source, data.target)
        for images in sets:
            if len(images.scans) < 2:
                raise MethodError(f"ComBat needs 2 scans a site; {_site(images)} has {len(images.scans)}")
        shape = _grid(sets[0])
        for images in sets:
            _require_grid(images, shape)
        mask = self._common_mask(sets)
        if self.prior == "nonparametric" and mask.sum() > MAX_NONPARAMETRIC:
            raise MethodError(
                f"the non-parametric prior is quadratic in features: {int(mask.sum())} are more than "
                f"{MAX_NONPARAMETRIC}; use prior: parametric"
            )
        sites = np.repeat([SOURCE, TARGET], [len(images.scans) for images in sets])
        covariates = self._covariates(sets, sites)
        try:
            model = fit_combat(
                _slices(sets, mask),
                sites,
                covariates,
                reference=self._reference,
                prior=self.prior,
                mean_only=self.mean_only,
            )
        except ValueError as error:
            raise MethodError(f"ComBat of {_site(data.source)} and {_site(data.target)}: {error}") from None
        ctx.log("covariates", 0, len(model.beta))
        ctx.log("common_mask_fraction", 0, float(mask.sum() / np.mean([_mean_brain(images) for images in sets])))
        # float32: pixels are 8-bit, and a site pair of whole volumes would weigh hundreds of MB in float64.
        return {
            "alpha": model.alpha.astype(np.float32),
            "beta": model.beta.astype(np.float32),
            "sigma": model.sigma.astype(np.float32),
            "gamma": model.gamma.astype(np.float32),
            "delta_squared": model.delta_squared.astype(np.float32),
            "mask": mask,
            "covariates": covariates is not None,
            "site": _site(data.target),
        }

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Raises MethodError for scans of another site or grid, or without the covariates of the fit."""
        target, mask = data.target, state["mask"]
        if _site(target) != state["site"]:
            raise MethodError(f"ComBat was fitted for site {state['site']} and knows nothing of {_site(target)}")
        _require_grid(target, mask.shape)
        covariates = _age_sex(target.scans) if state["covariates"] else None
        out = target.floats()
        starts = np.array([scan.start for scan in target.scans])
        first = 0
        for position, inside in enumerate(mask):
            span = slice(first, first + int(inside.sum()))
            model = CombatModel(
                alpha=state["alpha"][span],
                beta=state["beta"][:, span],
                sigma=state["sigma"][span],
                gamma=state["gamma"][:, span],
                delta_squared=state["delta_squared"][:, span],
                reference=self._reference,
            )
            block = out[starts + position]
            block[:, inside] = remove_site_effect(model, block[:, inside], TARGET, covariates)
            out[starts + position] = block
            first = span.stop
        return np.clip(out, 0, 1, out=out)

    @property
    def _reference(self) -> int | None:
        return SOURCE if self.mode == "ref_source" else None

    def _common_mask(self, sets: tuple[ImageSet, ...]) -> np.ndarray:
        """bool [n, H, W]: pixels in the brain of at least `coverage` of all training scans."""
        scans = [(images, scan) for images in sets for scan in images.scans]
        count = np.zeros(_grid(sets[0]), np.int32)
        for images, scan in scans:
            count += images.mask[scan.slices]
        mask = count >= self.coverage * len(scans)
        if not mask.any():
            raise MethodError("the brains of the training scans share no pixel: are they on a common grid?")
        return mask

    def _covariates(self, sets: tuple[ImageSet, ...], sites: np.ndarray) -> np.ndarray | None:
        """[N, 2] for all training scans, or None."""
        if self.covariates == "none":
            return None
        if self.covariates == "age_sex":
            return np.concatenate([_age_sex(images.scans) for images in sets])
        enough = all(len(images.scans) >= ENOUGH_FOR_COVARIATES for images in sets)
        if not enough or any(s.age is None or s.sex is None for images in sets for s in images.scans):
            return None
        covariates = np.concatenate([_age_sex(images.scans) for images in sets])
        return covariates if separable(sites, covariates) else None


def _slices(sets: tuple[ImageSet, ...], mask: np.ndarray) -> Iterator[np.ndarray]:
    """The data matrix in chunks [scans, pixels of one slice]: a whole one of real volumes would not fit."""
    for position, inside in enumerate(mask):
        rows = [images.floats([scan.start + position for scan in images.scans]) for images in sets]
        yield np.concatenate(rows)[:, inside]


def _age_sex(scans: tuple[Scan, ...]) -> np.ndarray:
    """[N, 2]: age in years, sex as 0 (F) or 1 (M)."""
    for scan in scans:
        if scan.age is None or scan.sex is None:
            raise MethodError(f"ComBat with covariates needs age and sex; scan {scan.id} lacks one (covariates: none)")
    return np.array([[scan.age, scan.sex == "M"] for scan in scans], np.float64)


def _require_grid(images: ImageSet, shape: tuple[int, ...]) -> None:
    for scan in images.scans:
        own = (scan.stop - scan.start, *images.pixels.shape[1:])
        if own != tuple(shape):
            raise MethodError(
                f"ComBat needs a common grid: scan {scan.id} of {scan.site} is {_size(own)}, "
                f"the source site's first is {_size(shape)} (slices × rows × columns)"
            )


def _grid(images: ImageSet) -> tuple[int, ...]:
    first = images.scans[0]
    return (first.stop - first.start, *images.pixels.shape[1:])


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _site(images: ImageSet) -> str:
    return images.scans[0].site if images.scans else "an empty site"


def _mean_brain(images: ImageSet) -> float:
    """Brain pixels a scan, on average."""
    return float(images.mask.sum() / len(images.scans))
