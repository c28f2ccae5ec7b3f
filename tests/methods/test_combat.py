"""ComBat: golden vectors of neuroCombat, the exact properties of the estimator, and the class on scans."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness._conformance_data import Material, make_material
from harness.api import ApplyData, Context, FitData, ImageSet, MethodError
from methods.harmonization._combat_model import CombatModel, fit_combat, remove_site_effect
from methods.harmonization.combat import ComBat

PEERS = Path(__file__).parents[3] / "shared" / "metric_fixtures"

# neuroCombat 0.2.12 on DATA, feature 0 (published numbers of the spec sheet, six decimals).
GOLDEN: list[tuple[str, dict[str, Any], str]] = [
    ("no eb", {"prior": "none"}, "5.085564 9.456305 7.583131 5.677348 5.291518 9.535648 9.921478 6.449008"),
    ("eb", {}, "5.325137 8.735280 7.273790 5.729540 5.301969 10.005254 10.432825 6.584683"),
    ("age", {"covariates": True}, "5.072537 8.450343 7.074599 5.646162 5.288333 10.176822 10.691204 6.883666"),
    ("mean only", {"mean_only": True}, "5.004433 8.504433 7.004433 5.664433 5.164433 10.664433 11.164433 6.664433"),
    (
        "nonparametric",
        {"prior": "nonparametric"},
        "5.788030 8.570165 7.377821 5.585974 5.145815 9.987565 10.427724 6.466292",
    ),
    # The first site is the reference and stays; its three values are those of DATA.
    ("reference", {"reference": 0}, "0 3.5 2 0.594543 0.286953 3.670439 3.978029 1.209722"),
]
SITES = np.array([0, 0, 0, 1, 1, 1, 1, 1])
AGE = np.array([20, 30, 40, 22, 28, 35, 41, 50], float)[:, None]


def _golden_data() -> np.ndarray:
    f, s = np.mgrid[:5, :8]
    return (((7 * f + 3 * s**2 + f * s) % 11) + 2 * SITES * (f + 1) + 0.5 * s).T.astype(float)


DATA = _golden_data()


def _harmonized(values: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None, **options: Any):
    model = fit_combat([values], sites, covariates, **options)
    out = np.empty_like(values)
    for site in np.unique(sites):
        own = sites == site
        out[own] = remove_site_effect(model, values[own], int(site), None if covariates is None else covariates[own])
    return model, out


def _simulated(n: int = 12, features: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    sites = np.repeat([0, 1], n)
    values = rng.normal(size=(2 * n, features)) + np.linspace(0, 3, features)
    values[sites == 1] = 0.5 + values[sites == 1] * rng.uniform(1.2, 1.8, features)
    return values, sites


class TestModel:
    @pytest.mark.parametrize(("options", "golden"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN])
    def test_golden_rows(self, options: dict[str, Any], golden: str) -> None:
        options = dict(options)
        covariates = AGE if options.pop("covariates", False) else None
        _, out = _harmonized(DATA, SITES, covariates, **options)
        np.testing.assert_allclose(out[:, 0], np.array(golden.split(), float), rtol=0, atol=1e-6)

    def test_golden_parameters(self) -> None:
        model, _ = _harmonized(DATA, SITES)
        np.testing.assert_allclose(model.gamma[:, 4], [-3.068668, 1.706846], atol=1e-6)
        np.testing.assert_allclose(model.delta_squared[:, 4], [1.092028, 1.376218], atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "options"),
        [("eb", {}), ("mean_only", {"mean_only": True}), ("no_eb", {"prior": "none"})],
    )
    def test_recorded_neurocombat(self, name: str, options: dict[str, Any]) -> None:
        if not (PEERS / "reference.json").exists():
            pytest.skip(f"no peer fixtures in {PEERS}")
        spec = importlib.util.spec_from_file_location("metric_fixtures", PEERS / "fixtures.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        values, sites, age = module.combat_case()
        recorded = json.loads((PEERS / "reference.json").read_text())["combat"][f"neuroCombat.{name}"]
        age = age.astype(np.float32).astype(float)[:, None]  # neuroCombat holds covariates in float32
        _, out = _harmonized(values.T, sites, age, **options)
        np.testing.assert_allclose(out[:, 0], recorded["first_row"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(out[-1], recorded["last_col"], rtol=0, atol=1e-6)
        # neuroCombat may stop one iteration sooner in a site: see _relative.
        assert out.sum() == pytest.approx(recorded["sum"], rel=1e-7)
        assert (out**2).sum() == pytest.approx(recorded["sumsq"], rel=1e-7)

    def test_without_eb_site_moments_are_equal_exactly(self) -> None:
        values, sites = _simulated()
        model, out = _harmonized(values, sites, prior="none")
        for site in (0, 1):
            np.testing.assert_allclose(out[sites == site].mean(0), model.alpha, rtol=0, atol=1e-12)
            np.testing.assert_allclose(out[sites == site].var(0, ddof=1), model.sigma**2, rtol=1e-12)

    def test_eb_narrows_the_gap_without_closing_it(self) -> None:
        values, sites = _simulated()
        _, out = _harmonized(values, sites)
        before = np.abs(values[sites == 0].mean(0) - values[sites == 1].mean(0))
        after = np.abs(out[sites == 0].mean(0) - out[sites == 1].mean(0))
        assert 0 < after.mean() < 0.3 * before.mean()

    def test_covariate_slope_is_kept(self) -> None:
        values, sites = _simulated()
        age = np.random.default_rng(1).uniform(20, 70, len(sites))[:, None]
        model, out = _harmonized(values + 0.1 * age, sites, age, prior="none", mean_only=True)
        design = np.hstack([np.eye(2)[sites], age])
        np.testing.assert_allclose(np.linalg.lstsq(design, out, rcond=None)[0][2:], model.beta, rtol=0, atol=1e-10)

    def test_reference_site_is_untouched_bit_by_bit(self) -> None:
        values, sites = _simulated()
        model, out = _harmonized(values, sites, reference=0)
        np.testing.assert_array_equal(out[sites == 0], values[sites == 0])
        assert (model.gamma[0] == 0).all()
        assert (model.delta_squared[0] == 1).all()

    @pytest.mark.parametrize("options", [{}, {"prior": "nonparametric"}, {"reference": 0}])
    def test_order_of_samples_does_not_matter(self, options: dict[str, Any]) -> None:
        values, sites = _simulated()
        order = np.random.default_rng(5).permutation(len(sites))
        _, out = _harmonized(values, sites, **options)
        _, shuffled = _harmonized(values[order], sites[order], **options)
        np.testing.assert_allclose(shuffled, out[order], rtol=0, atol=1e-10)

    @pytest.mark.parametrize("options", [{}, {"prior": "nonparametric"}, {"mean_only": True}])
    def test_chunks_do_not_matter(self, options: dict[str, Any]) -> None:
        values, sites = _simulated()
        whole = fit_combat([values], sites, **options)
        parts = fit_combat((values[:, a:b] for a, b in ((0, 1), (1, 1), (1, 30), (30, 50))), sites, **options)
        for name in ("alpha", "sigma", "gamma", "delta_squared"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)

    def test_nonparametric_survives_likelihoods_that_underflow(self) -> None:
        values, sites = _simulated(n=800, features=8)
        values += 30 * np.arange(8)
        model = fit_combat([values], sites, prior="nonparametric")
        assert np.isfinite(model.gamma).all()
        assert (model.delta_squared > 0).all()

    def test_constant_features_pass_unchanged_and_leave_the_others_alone(self) -> None:
        values, sites = _simulated()
        padded = np.hstack([np.full((len(values), 3), 5.0), values, np.zeros((len(values), 60))])
        _, plain = _harmonized(values, sites)
        _, out = _harmonized(padded, sites)
        np.testing.assert_array_equal(out[:, :3], 5.0)
        np.testing.assert_array_equal(out[:, 53:], 0.0)
        np.testing.assert_allclose(out[:, 3:53], plain, rtol=0, atol=1e-12)

    def test_feature_constant_within_one_site_stays_finite(self) -> None:
        values, sites = _simulated()
        values[sites == 1, 0] = 2.0
        _, out = _harmonized(values, sites)
        assert np.isfinite(out).all()

    @pytest.mark.parametrize(
        ("values", "sites", "covariates", "message"),
        [
            (DATA[:4], [0, 0, 0, 1], None, "two samples a site; site 1 has 1"),
            (DATA, SITES, SITES[:, None] * 2.0, "cannot be told from the sites"),
            (DATA, SITES, np.full((8, 1), 30.0), "cannot be told from the sites"),
            (DATA[[0, 1, 3, 4]], [0, 0, 1, 1], AGE[[0, 1, 3, 4]] ** [1, 2], "too few"),
            (np.full((8, 5), 3.0), SITES, None, "two features that vary; 0 of 5 do"),
            (np.where(DATA > 10, np.nan, DATA), SITES, None, "finite"),
        ],
    )
    def test_errors(self, values: np.ndarray, sites: Any, covariates: np.ndarray | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit_combat([values], np.asarray(sites), covariates)


class TestMethod:
    @pytest.fixture
    def ctx(self, tmp_path: Path) -> Context:
        self.logged: dict[str, float] = {}
        return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda k, _, v: self.logged.update({k: v}))

    @pytest.fixture
    def material(self) -> Material:
        return make_material().locked()

    def _fit_data(self, material: Material) -> FitData:
        return FitData({"source": material.source, "target": material.target})

    @pytest.mark.parametrize("mode", ["ref_source", "grand_mean"])
    def test_equals_the_model_on_the_stacked_pixels(self, mode: str, material: Material, ctx: Context) -> None:
        method = ComBat(mode=mode)
        state = method.fit(self._fit_data(material), ctx)
        out = method.harmonize(state, ApplyData({"target": material.test}), ctx)
        common = np.logical_and.reduce([m for i in (material.source, material.target) for *_, m in i.volumes()])
        np.testing.assert_array_equal(state["mask"], common)
        rows = [v[common] for i in (material.source, material.target) for _, v, _ in i.volumes()]
        sites = np.repeat([0, 1], [len(material.source.scans), len(material.target.scans)])
        model = fit_combat([np.stack(rows)], sites, reference=0 if mode == "ref_source" else None)
        for scan, image, _ in material.test.volumes():
            expected = np.clip(remove_site_effect(model, image[common][None], 1)[0], 0, 1)
            np.testing.assert_allclose(out[scan.slices][common], expected, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(out[scan.slices][~common], image[~common])

    def test_brings_the_target_closer_to_the_source(self, material: Material, ctx: Context) -> None:
        state = ComBat().fit(self._fit_data(material), ctx)
        out = ComBat().harmonize(state, ApplyData({"target": material.test}), ctx)
        inside = np.tile(state["mask"], (len(material.test.scans), 1, 1))
        source = np.mean([v for _, v, _ in material.source.volumes()], axis=0)[state["mask"]]

        def gap(pixels: np.ndarray) -> float:
            return float(np.abs(pixels[inside].reshape(-1, len(source)).mean(0) - source).mean())

        assert gap(out) < 0.5 * gap(material.test.floats())

    def test_parameters_do_not_depend_on_the_test_scans(self, material: Material, ctx: Context) -> None:
        """A new subject of the known site gets the stored parameters, whoever else is there."""
        state = ComBat().fit(self._fit_data(material), ctx)
        together = ComBat().harmonize(state, ApplyData({"target": material.test}), ctx)
        last = material.test.scans[-1]
        alone = ImageSet(
            material.test.pixels[last.slices],
            material.test.mask[last.slices],
            (replace(last, start=0, stop=last.stop - last.start),),
        )
        np.testing.assert_array_equal(
            ComBat().harmonize(state, ApplyData({"target": alone}), ctx), together[last.slices]
        )

    def test_own_age_counts(self, material: Material, ctx: Context) -> None:
        method = ComBat(covariates="age_sex")
        state = method.fit(self._fit_data(material), ctx)
        assert self.logged["covariates"] == 2
        # A variance effect acts on the distance from what is expected at one's age, so age changes the result.
        older = replace(material.test, scans=tuple(replace(s, age=90.0) for s in material.test.scans))
        first = method.harmonize(state, ApplyData({"target": material.test}), ctx)
        assert not np.array_equal(first, method.harmonize(state, ApplyData({"target": older}), ctx))
        unknown = replace(material.test, scans=tuple(replace(s, age=None) for s in material.test.scans))
        with pytest.raises(MethodError, match="scan b-test-0 lacks one"):
            method.harmonize(state, ApplyData({"target": unknown}), ctx)

    def test_auto_covariates(self, material: Material, ctx: Context) -> None:
        assert not ComBat().fit(self._fit_data(material), ctx)["covariates"]  # four and three scans are few
        many = FitData({"source": _repeated(material.source, 20), "target": _repeated(material.target, 20)})
        assert ComBat().fit(many, ctx)["covariates"]
        one_sex = replace(many.source, scans=tuple(replace(s, sex="F") for s in many.source.scans))
        other = replace(many.target, scans=tuple(replace(s, sex="M") for s in many.target.scans))
        confounded = FitData({"source": one_sex, "target": other})
        assert not ComBat().fit(confounded, ctx)["covariates"]
        assert self.logged["covariates"] == 0
        with pytest.raises(MethodError, match="cannot be told from the sites"):
            ComBat(covariates="age_sex").fit(confounded, ctx)

    def test_coverage_widens_the_mask(self, material: Material, ctx: Context) -> None:
        strict = ComBat().fit(self._fit_data(material), ctx)["mask"]
        wide = ComBat(coverage=0.5).fit(self._fit_data(material), ctx)["mask"]
        assert (wide | ~strict).all()
        assert wide.sum() > strict.sum()

    @pytest.mark.parametrize("prior", ["nonparametric", "none"])
    def test_other_priors(self, prior: str, material: Material, ctx: Context) -> None:
        state = ComBat(prior=prior).fit(self._fit_data(material), ctx)
        out = ComBat(prior=prior).harmonize(state, ApplyData({"target": material.test}), ctx)
        assert np.isfinite(out).all()

    def test_other_grid_is_refused(self, material: Material, ctx: Context) -> None:
        first = material.target.scans[0]
        short = replace(material.target, scans=(replace(first, stop=first.stop - 1), *material.target.scans[1:]))
        with pytest.raises(MethodError, match=r"scan b-train-0 of b is 3×64×64, the source site's first is 4×64×64"):
            ComBat().fit(FitData({"source": material.source, "target": short}), ctx)
        cut = replace(material.test, pixels=material.test.pixels[:, :60], mask=material.test.mask[:, :60])
        state = ComBat().fit(self._fit_data(material), ctx)
        with pytest.raises(MethodError, match="4×60×64"):
            ComBat().harmonize(state, ApplyData({"target": cut}), ctx)

    def test_other_site_is_refused(self, material: Material, ctx: Context) -> None:
        state = ComBat().fit(self._fit_data(material), ctx)
        with pytest.raises(MethodError, match="fitted for site b and knows nothing of a"):
            ComBat().harmonize(state, ApplyData({"target": material.validation}), ctx)

    def test_one_scan_is_too_few(self, material: Material, ctx: Context) -> None:
        one = replace(material.target, scans=material.target.scans[:1])
        with pytest.raises(MethodError, match="2 scans a site; b has 1"):
            ComBat().fit(FitData({"source": material.source, "target": one}), ctx)

    def test_brains_without_overlap_are_refused(self, material: Material, ctx: Context) -> None:
        empty = replace(material.target, mask=np.zeros_like(material.target.mask))
        with pytest.raises(MethodError, match="share no pixel"):
            ComBat().fit(FitData({"source": material.source, "target": empty}), ctx)


def _repeated(images: ImageSet, n: int) -> ImageSet:
    """n scans of fresh noise, ages and sexes over the anatomies of `images`."""
    rng = np.random.default_rng(len(images.scans))
    slices = images.scans[0].stop
    chosen = [images.scans[i % len(images.scans)] for i in range(n)]
    pixels = np.concatenate([images.pixels[s.slices] for s in chosen]).astype(int)
    noisy = np.clip(pixels + rng.integers(-3, 4, pixels.shape), 1, 255).astype(np.uint8)
    mask = np.concatenate([images.mask[s.slices] for s in chosen])
    scans = tuple(
        replace(s, id=f"{s.id}-{i}", start=i * slices, stop=(i + 1) * slices, age=float(rng.integers(20, 80)))
        for i, s in enumerate(chosen)
    )
    return ImageSet(np.where(mask, noisy, 0).astype(np.uint8), mask, scans)


def test_model_is_frozen() -> None:
    model = fit_combat([DATA], SITES)
    assert isinstance(model, CombatModel)
    with pytest.raises(AttributeError):
        model.reference = 1  # type: ignore[misc]
