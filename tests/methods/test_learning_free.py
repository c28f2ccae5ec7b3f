"""Detectors without a network: intensities, distances to a mean, and no information, all worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness._conformance_data import make_anomaly_material
from harness.anomaly import AnomalyDetector, NormalData, Processing
from harness.api import Context, ImageSet, MethodError, Scan
from harness.conformance import check_method
from harness.contract import check_maps
from harness.metrics.detection import auroc, average_precision, image_auroc
from harness.metrics.max_dice import global_max_dice
from harness.metrics.ranked_maps import rank_maps
from methods.anomaly.learning_free.intensity_threshold import IntensityThreshold, equalised
from methods.anomaly.learning_free.mean_image import MeanImage
from methods.anomaly.learning_free.prevalence_floor import PrevalenceFloor


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


def images_of(pixels: np.ndarray, modality: str = "FLAIR", mask: np.ndarray | None = None) -> ImageSet:
    """Slices [N, H, W], float32 in [0, 1], of one scan."""
    scan = Scan("s", "s", "a", 0, len(pixels), (1.0, 1.0, 1.0), modality=modality)
    return ImageSet(pixels.astype(np.float32), pixels > 0 if mask is None else mask, (scan,))


@pytest.mark.parametrize("cls", [IntensityThreshold, MeanImage, PrevalenceFloor])
def test_conformance(cls: type[AnomalyDetector]) -> None:
    assert [r for r in check_method(cls) if not r.passed] == []


# ------------------------------------------------------------------------------------- intensities


SLICE = np.array([[[0.0, 0.2, 0.2, 0.4], [0.0, 0.6, 0.6, 0.6], [0.0, 0.0, 0.8, 1.0]]])  # brain: 8 pixels
SHARES = np.array([[[0.0, 0.25, 0.25, 0.375], [0.0, 0.75, 0.75, 0.75], [0.0, 0.0, 0.875, 1.0]]])


def test_equalisation_is_the_share_of_the_brain_that_is_not_brighter() -> None:
    np.testing.assert_array_equal(equalised(SLICE[0], SLICE[0] > 0), SHARES[0])
    bytes_too = (SLICE[0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(equalised(bytes_too, bytes_too > 0), SHARES[0])
    rng = np.random.default_rng(0)
    image, mask = rng.random((40, 40)), rng.random((40, 40)) < 0.6
    found = equalised(image, mask)
    assert not found[~mask].any()
    np.testing.assert_allclose(np.sort(found[mask]), np.arange(1, mask.sum() + 1) / mask.sum(), rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(found[mask]), np.argsort(image[mask]))


@pytest.mark.parametrize(("equalise", "seen"), [(True, SHARES), (False, SLICE)])
def test_directions(equalise: bool, seen: np.ndarray, ctx: Context) -> None:
    brain = SLICE > 0
    middle = np.median(seen[brain])
    for direction, wanted in (("bright", seen), ("dark", 1 - seen), ("both", np.abs(seen - middle))):
        method = IntensityThreshold(equalise=equalise, direction=direction)
        found = method.detect({}, images_of(SLICE), ctx).maps
        np.testing.assert_allclose(found, wanted * brain, atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "direction"),
    [("FLAIR", "bright"), ("T2w", "bright"), ("T1w", "dark"), ("T1CE", "both"), ("", "both")],
)
def test_the_direction_follows_the_modality(modality: str, direction: str, ctx: Context) -> None:
    images = images_of(SLICE, modality)
    wanted = IntensityThreshold(direction=direction).detect({}, images, ctx).maps
    np.testing.assert_array_equal(IntensityThreshold().detect({}, images, ctx).maps, wanted)


def test_scans_of_several_modalities_are_each_judged_by_their_own(ctx: Context) -> None:
    one, two = images_of(SLICE, "FLAIR"), images_of(SLICE, "T1w")
    scans = (one.scans[0], replace(two.scans[0], start=1, stop=2))
    both = ImageSet(np.concatenate([one.pixels] * 2), np.concatenate([one.mask] * 2), scans)
    found = IntensityThreshold().detect({}, both, ctx).maps
    for i, images in enumerate((one, two)):
        np.testing.assert_array_equal(found[i], IntensityThreshold().detect({}, images, ctx).maps[0])
    assert (found[0] != found[1]).any()


def test_bright_lesions_are_found_and_dark_ones_are_not(ctx: Context) -> None:
    test = make_anomaly_material().test
    lesion = test.pixels == 245
    found = check_maps(IntensityThreshold().detect({}, test, ctx), test)
    assert average_precision(rank_maps(found.maps, lesion, test.mask)) == pytest.approx(1, abs=0.02)
    with_one = lesion.any((1, 2))
    assert found.image_scores is not None
    assert np.all(found.image_scores == 1), "equalised slices all reach 1: the slice with a lesion is not known"
    raw = check_maps(IntensityThreshold(equalise=False).detect({}, test, ctx), test)
    assert raw.image_scores is not None
    assert image_auroc(raw.image_scores, with_one) == 1


def test_what_departs_from_the_publication_is_said() -> None:
    assert IntensityThreshold(direction="bright").deviations() == ()
    assert len(IntensityThreshold().deviations()) == 1
    assert IntensityThreshold(direction="bright", equalise=False).deviations() == ("no histogram equalisation",)
    assert IntensityThreshold().published_processing() == Processing(smallest=20)


# ---------------------------------------------------------------------------------- the mean slice


def healthy(n: int = 150, size: int = 16, seed: int = 0) -> np.ndarray:
    """Slices with another spread at each pixel, in a square brain."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.01, 0.1, size)[:, None]
    pixels = np.zeros((n, size, size))
    inner = slice(3, size - 3)
    pixels[:, inner, inner] = np.clip(0.5 + spread[inner] * rng.standard_normal((n, size - 6, size - 6)), 0.01, 1)
    return pixels.astype(np.float32)


def learnt(method: MeanImage, pixels: np.ndarray, ctx: Context) -> dict[str, np.ndarray]:
    return method.fit(NormalData(images_of(pixels), images_of(pixels[:2])), ctx)


def test_the_mean_and_the_deviation_are_those_of_the_slices(ctx: Context) -> None:
    pixels = healthy()
    state = learnt(MeanImage(), pixels, ctx)
    np.testing.assert_allclose(state["mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(state["deviation"], pixels.std(0), atol=1e-6)


def test_maps_are_distances_in_intensity_or_in_deviations(ctx: Context) -> None:
    pixels, seen = healthy(), healthy(3, seed=1)
    state = learnt(MeanImage(), pixels, ctx)
    found = MeanImage().detect(state, images_of(seen), ctx)
    np.testing.assert_allclose(found.maps, np.abs(seen - pixels.mean(0)), atol=1e-6)
    assert found.reconstruction is not None
    np.testing.assert_allclose(found.reconstruction[2], pixels.mean(0), atol=1e-6)
    own = MeanImage(standardise=True, least_deviation=0.03)
    deviation = np.maximum(pixels.std(0), 0.03)
    assert (pixels.std(0)[3:13, 3:13] < 0.03).any()
    found = own.detect(state, images_of(seen), ctx)
    np.testing.assert_allclose(found.maps, np.abs(seen - pixels.mean(0)) / deviation, rtol=1e-4, atol=1e-5)


def test_slices_are_smoothed_before_they_are_averaged_and_compared(ctx: Context) -> None:
    pixels, seen = healthy(size=32), healthy(2, 32, seed=1)
    sharp, smooth = MeanImage(), MeanImage(smooth=4.0)  # one pixel, in slices of 32
    state = learnt(smooth, pixels, ctx)
    np.testing.assert_allclose(state["mean"].sum(), pixels.mean(0).sum(), rtol=1e-3)
    assert state["deviation"][10:22, 10:22].mean() < 0.5 * pixels.std(0)[10:22, 10:22].mean()
    rough = sharp.detect(learnt(sharp, pixels, ctx), images_of(seen), ctx).maps
    assert smooth.detect(state, images_of(seen), ctx).maps.mean() < 0.6 * rough.mean()


def test_slices_of_another_size_and_no_slices(ctx: Context) -> None:
    state = learnt(MeanImage(), healthy(), ctx)
    with pytest.raises(MethodError, match="slices are 32 × 32 pixels, those learnt from 16 × 16"):
        MeanImage().detect(state, images_of(healthy(2, 32)), ctx)
    with pytest.raises(MethodError, match="no training slice"):
        learnt(MeanImage(), healthy()[:0], ctx)


# -------------------------------------------------------------------------------- no information


def test_no_information_scores_what_a_constant_scores(ctx: Context) -> None:
    test = make_anomaly_material().test
    lesion = test.pixels == 245
    found = check_maps(PrevalenceFloor().detect({}, test, ctx), test)
    ranked = rank_maps(found.maps, lesion, test.mask)
    prevalence = lesion.sum() / test.mask.sum()
    assert 0 < prevalence < 0.1
    assert average_precision(ranked) == pytest.approx(prevalence)
    assert auroc(ranked) == 0.5
    assert global_max_dice(ranked).value == pytest.approx(2 * lesion.sum() / (lesion.sum() + test.mask.sum()))
    assert found.image_scores is not None
    assert image_auroc(found.image_scores, lesion.any((1, 2))) == 0.5
    assert set(found.image_scores) == {1.0}
