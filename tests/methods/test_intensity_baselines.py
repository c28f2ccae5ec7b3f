"""Z-score and WhiteStripe: moments that are matched, the mode of each modality, and what stays unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from harness._conformance_data import Material, make_material
from harness.api import ApplyData, Context, FitData, Harmonizer, ImageSet, MethodError
from harness.conformance import check_method
from methods.harmonization.white_stripe import WhiteStripe, smoothed_histogram, white_stripe
from methods.harmonization.zscore import ZScore, brain_moments

BOTH = [ZScore(), WhiteStripe()]
IDS = ["z_score", "white_stripe"]


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


@pytest.fixture
def material() -> Material:
    return make_material().locked()


def harmonized(method: Harmonizer, source: ImageSet, target: ImageSet, ctx: Context) -> np.ndarray:
    state = method.fit(FitData({"source": source}), ctx)
    return method.harmonize(state, ApplyData({"target": target}), ctx)


def one_scan(images: ImageSet, number: int) -> ImageSet:
    scan = images.scans[number]
    return ImageSet(
        images.pixels[scan.slices], images.mask[scan.slices], (replace(scan, start=0, stop=scan.stop - scan.start),)
    )


def tissue(*shares_and_means: tuple[int, float], seed: int = 0) -> np.ndarray:
    """Normal clusters of intensities, deviation 0.02: (how many, mean) of each."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, 0.02, n) for n, mean in shares_and_means])


# ------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("method", [ZScore, WhiteStripe], ids=IDS)
def test_conformance(method: type[Harmonizer]) -> None:
    assert [r for r in check_method(method) if not r.passed] == []


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_a_single_source_scan_stays_itself(method: Harmonizer, material: Material, ctx: Context) -> None:
    scan = one_scan(material.source, 0)
    np.testing.assert_allclose(harmonized(method, scan, scan, ctx), scan.floats(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_the_source_hardly_changes_and_the_target_does(method: Harmonizer, material: Material, ctx: Context) -> None:
    def change(images: ImageSet) -> float:
        return float(np.abs(harmonized(method, material.source, images, ctx) - images.floats())[images.mask].mean())

    assert change(material.source) < 0.01
    assert change(material.test) > 0.05


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_background_counts_neither_in_fit_nor_apply(method: Harmonizer, material: Material, ctx: Context) -> None:
    def dirty(images: ImageSet) -> ImageSet:
        return images.with_pixels(np.where(images.mask, images.pixels, 200).astype(np.uint8))

    clean = harmonized(method, material.source, material.test, ctx)
    np.testing.assert_array_equal(harmonized(method, dirty(material.source), dirty(material.test), ctx), clean)
    assert (clean[~material.test.mask] == 0).all()


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_an_affine_change_of_the_target_does_not_matter(method: Harmonizer, material: Material, ctx: Context) -> None:
    floats = material.test.floats()
    moved = np.where(material.test.mask, 0.1 + 0.5 * floats, 0).astype(np.float32)
    plain = harmonized(method, material.source, material.test.with_pixels(floats), ctx)
    again = harmonized(method, material.source, material.test.with_pixels(moved), ctx)
    np.testing.assert_allclose(again, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_a_scan_of_one_intensity_is_moved_in_a_target_and_named_in_a_source(
    method: Harmonizer, material: Material, ctx: Context
) -> None:
    flat = material.source.with_pixels(np.where(material.source.mask, 100, 0).astype(np.uint8))
    with pytest.raises(MethodError, match="source scan a-train-0 has no contrast"):
        method.fit(FitData({"source": flat}), ctx)
    state = method.fit(FitData({"source": material.source}), ctx)
    out = method.harmonize(state, ApplyData({"target": flat}), ctx)
    np.testing.assert_allclose(out[flat.mask], state["moments"][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", BOTH, ids=IDS)
def test_a_target_scan_without_brain_is_background(method: Harmonizer, material: Material, ctx: Context) -> None:
    mask = material.test.mask.copy()
    mask[material.test.scans[0].slices] = False
    empty = ImageSet(np.where(mask, material.test.pixels, 0).astype(np.uint8), mask, material.test.scans)
    out = harmonized(method, material.source, empty, ctx)
    assert (out[empty.scans[0].slices] == 0).all()
    assert (out[empty.scans[1].slices] > 0).any()


# ---------------------------------------------------------------------------------------- z-score


def test_the_target_takes_mean_and_deviation_of_the_source(material: Material, ctx: Context) -> None:
    state = ZScore().fit(FitData({"source": material.source}), ctx)
    own = [brain_moments(image[mask]) for _, image, mask in material.source.volumes()]
    np.testing.assert_allclose(state["moments"], np.mean(own, axis=0), rtol=1e-6)
    out = ZScore().harmonize(state, ApplyData({"target": material.test}), ctx)
    for scan in material.test.scans:
        brain = out[scan.slices][material.test.mask[scan.slices]].astype(np.float64)
        assert (brain > 0).all()  # nothing was clipped, so moments are exact
        assert (brain < 1).all()
        np.testing.assert_allclose(brain_moments(brain), state["moments"], rtol=0, atol=1e-6)


def test_the_deviation_is_that_of_the_population() -> None:
    assert brain_moments(np.array([1.0, 3.0])) == (2.0, 1.0)


# ------------------------------------------------------------------------------------ WhiteStripe


def test_the_stripe_has_mean_0_and_deviation_1_before_it_is_brought_back() -> None:
    method, values = WhiteStripe(), tissue((4000, 0.2), (6000, 0.5), (5000, 0.8))
    centre, spread = method.stripe_moments(values)
    normalized = (values - centre) / spread
    stripe = white_stripe(normalized, method.mode(normalized), method.width)
    assert abs(stripe.mean()) < 1e-12
    assert abs(stripe.std() - 1) < 1e-12


def test_the_stripe_of_the_target_becomes_that_of_the_source(material: Material, ctx: Context) -> None:
    method = WhiteStripe()
    state = method.fit(FitData({"source": material.source}), ctx)
    out = method.harmonize(state, ApplyData({"target": material.test}), ctx)
    for scan in material.test.scans:
        brain = out[scan.slices][material.test.mask[scan.slices]].astype(np.float64)
        np.testing.assert_allclose(method.stripe_moments(brain), state["moments"], rtol=0, atol=1e-4)


def test_each_modality_has_its_mode() -> None:
    values = tissue((3000, 0.2), (6000, 0.5), (4000, 0.8))
    for modality, expected in (("T1", 0.8), ("T2", 0.5), ("PD", 0.2)):
        assert WhiteStripe(modality=modality).mode(values) == pytest.approx(expected, abs=0.03)


def test_bright_outliers_are_no_mode() -> None:
    values = tissue((3000, 0.2), (6000, 0.5), (4000, 0.8), (200, 2.0))  # 1.5 % of the brain, as vessels are
    assert WhiteStripe().mode(values) == pytest.approx(0.8, abs=0.03)
    assert WhiteStripe(t1_percentile=100).mode(values) == pytest.approx(2.0, abs=0.05)
    few = tissue((60, -2.0), (3000, 0.2), (6000, 0.5), (100, 2.0))
    assert WhiteStripe(modality="PD").mode(few) == pytest.approx(-2.0, abs=0.1)


def test_without_an_inner_peak_the_largest_density_counts() -> None:
    ends = np.repeat([0.2, 0.9], [100, 10_000])  # peaks at the first and the last point of the grid
    assert WhiteStripe(t1_percentile=100).mode(ends) == 0.9


def test_the_stripe_lies_between_two_quantiles() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1000) / 1000)
    stripe = white_stripe(values, 0.6, 0.05)
    assert stripe.min() == pytest.approx(0.55, abs=0.002)
    assert stripe.max() == pytest.approx(0.65, abs=0.002)
    assert white_stripe(values, 0.999, 0.05).max() == 0.999  # cut at the end, not wrapped


def test_a_sample_stands_for_all() -> None:
    values = tissue((30_000, 0.3), (20_000, 0.7))
    grid, density = smoothed_histogram(values, 80, 2000)
    full_grid, full = smoothed_histogram(values, 80, len(values))
    np.testing.assert_array_equal(grid, full_grid)
    assert np.abs(grid[density.argmax()] - grid[full.argmax()]) <= grid[1] - grid[0]
    np.testing.assert_array_equal(density, smoothed_histogram(values[::-1], 80, 2000)[1])


@pytest.mark.parametrize("wrong", [{"modality": "CT"}, {"width": 0.0}, {"width": 0.6}, {"grid": 2}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        WhiteStripe(**wrong)
