"""Nyúl–Udupa: the exact properties of the map, its ties and ends, and the class on scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness._conformance_data import Material, make_material
from harness.api import ApplyData, Context, FitData, MethodError
from methods.harmonization.histogram_matching import (
    NYUL_PERCENTILES,
    HistogramMatching,
    landmarks,
    standard_scale,
    transform,
)

RNG = np.random.default_rng(0)
SKEWED = RNG.gamma(2.0, 0.1, 5000)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


@pytest.fixture
def material() -> Material:
    return make_material().locked()


def test_landmarks_fall_on_the_standard_scale() -> None:
    own = landmarks(SKEWED, NYUL_PERCENTILES)
    standard = np.linspace(0.1, 0.9, 11) ** 2
    np.testing.assert_allclose(transform(own, own, standard), standard, rtol=0, atol=1e-12)


def test_map_is_monotone_and_goes_on_beyond_the_ends() -> None:
    own, standard = np.array([0.2, 0.5, 0.6]), np.array([0.1, 0.7, 0.8])
    x = np.linspace(-0.5, 1.5, 4001)
    mapped = transform(x, own, standard)
    assert (np.diff(mapped) > -1e-12).all()
    np.testing.assert_allclose(transform(np.array([0.0, 1.0]), own, standard), [-0.3, 1.2], atol=1e-12)
    np.testing.assert_allclose(transform(np.array([0.35, 0.55]), own, standard), [0.4, 0.75], atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_map_does_not_see_a_positive_affine_change_of_the_input(scale: float, shift: float) -> None:
    standard = np.linspace(0.1, 0.9, 11) ** 2
    plain = transform(SKEWED, landmarks(SKEWED, NYUL_PERCENTILES), standard)
    moved = scale * SKEWED + shift
    np.testing.assert_allclose(transform(moved, landmarks(moved, NYUL_PERCENTILES), standard), plain, rtol=0, atol=1e-8)


def test_tied_landmarks_merge_at_their_mean() -> None:
    own, standard = np.array([0.1, 0.3, 0.3, 0.3, 0.9]), np.array([0.0, 0.2, 0.4, 0.6, 1.0])
    np.testing.assert_allclose(transform(np.array([0.1, 0.3, 0.9]), own, standard), [0.0, 0.4, 1.0], atol=1e-12)


def test_one_distinct_landmark_is_a_shift() -> None:
    np.testing.assert_allclose(
        transform(np.array([0.5, 0.7]), np.full(3, 0.5), np.array([0.1, 0.2, 0.3])), [0.2, 0.4], atol=1e-12
    )


def test_standard_scale_by_hand() -> None:
    rows = np.array([[0.0, 0.5, 1.0], [0.2, 0.3, 0.6]])
    # range 0.1..0.8; middles at 1/2 and 1/4 of it
    np.testing.assert_allclose(standard_scale(rows), [0.1, 0.1 + 0.7 * 0.375, 0.8], atol=1e-12)
    np.testing.assert_allclose(standard_scale(rows, (0.0, 1.0)), [0.0, 0.375, 1.0], atol=1e-12)


def test_one_source_image_stays_itself(material: Material, ctx: Context) -> None:
    own = landmarks(SKEWED, NYUL_PERCENTILES)
    np.testing.assert_allclose(transform(SKEWED, own, standard_scale(own[None])), SKEWED, rtol=0, atol=1e-12)


def test_target_takes_the_source_landmarks(material: Material, ctx: Context) -> None:
    method = HistogramMatching()
    state = method.fit(FitData({"source": material.source}), ctx)
    out = method.harmonize(state, ApplyData({"target": material.test}), ctx)
    for scan in material.test.scans:
        brain = out[scan.slices][material.test.mask[scan.slices]]
        # Not exact: percentiles interpolate between the ties of 8-bit images.
        np.testing.assert_allclose(landmarks(brain, NYUL_PERCENTILES), state["standard"], atol=0.01)
    assert (out[~material.test.mask] == 0).all()


def test_background_counts_neither_in_fit_nor_apply(material: Material, ctx: Context) -> None:
    method = HistogramMatching()
    state = method.fit(FitData({"source": material.source}), ctx)
    dirty = material.source.pixels.copy()
    dirty[~material.source.mask] = 200
    again = method.fit(FitData({"source": material.source.with_pixels(dirty)}), ctx)
    np.testing.assert_array_equal(state["standard"], again["standard"])


def test_fixed_range(material: Material, ctx: Context) -> None:
    state = HistogramMatching(output_range=(0.1, 0.9)).fit(FitData({"source": material.source}), ctx)
    np.testing.assert_allclose(state["standard"][[0, -1]], [0.1, 0.9], atol=1e-12)


def test_source_scan_without_contrast_is_named(material: Material, ctx: Context) -> None:
    flat = material.source.with_pixels(np.where(material.source.mask, 100, 0).astype(np.uint8))
    with pytest.raises(MethodError, match="source scan a-train-0 has no contrast"):
        HistogramMatching().fit(FitData({"source": flat}), ctx)


@pytest.mark.parametrize(
    "wrong",
    [
        {"percentiles": (50.0,)},
        {"percentiles": (10.0, 10.0, 90.0)},
        {"percentiles": (-1.0, 50.0)},
        {"output_range": (0.9, 0.1)},
        {"output_range": "target"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        HistogramMatching(**wrong)
