"""SSIMH: what a swap of low frequencies keeps and what it takes over, and which source slice is the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from harness._conformance_data import Material, make_material
from harness.api import ApplyData, Context, ImageSet, MethodError, Scan
from harness.conformance import check_method
from methods.harmonization._places import nearest_in_place, typical_scans
from methods.harmonization.ssimh import (
    Ssimh,
    amplitudes,
    coefficients,
    half_width,
    swap_amplitudes,
    swap_coefficients,
)

SIZES = [(16, 16), (15, 15), (16, 13), (11, 18)]
RNG = np.random.default_rng(0)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


@pytest.fixture
def material() -> Material:
    return make_material().locked()


def pair(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image with background around, and a reference."""
    image, reference = np.zeros(size), RNG.random(size)
    image[3:-3, 3:-3] = RNG.random((size[0] - 6, size[1] - 6))
    return image, reference


def window(size: tuple[int, int], half: int) -> np.ndarray:
    """Which frequencies of np.fft.fft2 lie in the window, found by their own numbers."""
    rows, columns = (np.abs(np.fft.fftfreq(n, 1 / n)) <= half for n in size)
    return rows[:, None] & columns[None, :]


def test_conformance() -> None:
    assert [r for r in check_method(Ssimh) if not r.passed] == []


# ------------------------------------------------------------------------------------- the algorithm


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half", [0, 1, 4])
def test_an_image_that_is_its_own_reference_stays_itself(size: tuple[int, int], half: int) -> None:
    image, _ = pair(size)
    assert np.abs(swap_amplitudes(image, amplitudes(image, half)) - image).max() < 2e-15


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half", [0, 2, 5])
def test_a_real_image_stays_real(size: tuple[int, int], half: int) -> None:
    image, reference = pair(size)
    out = swap_amplitudes(image, amplitudes(reference, half))
    assert np.abs(out.imag).max() < 1e-15
    assert np.abs(out.real - image).max() > 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half", [0, 3])
def test_the_mean_is_that_of_the_reference(size: tuple[int, int], half: int) -> None:
    image, reference = pair(size)
    assert swap_amplitudes(image, amplitudes(reference, half)).real.mean() == pytest.approx(reference.mean(), abs=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_amplitudes_inside_the_window_change_and_phases_nowhere(size: tuple[int, int]) -> None:
    image, reference = pair(size)
    before, after = np.fft.fft2(image), np.fft.fft2(swap_amplitudes(image, amplitudes(reference, 2)).real)
    inside = window(size, 2)
    np.testing.assert_allclose(np.abs(after)[inside], np.abs(np.fft.fft2(reference))[inside], rtol=0, atol=1e-12)
    np.testing.assert_allclose(after[~inside], before[~inside], rtol=0, atol=1e-12)
    turn = np.angle(after * before.conj())
    assert np.abs(turn[np.abs(before) > 1e-6]).max() < 1e-8


def test_an_empty_image_takes_the_amplitudes_with_phase_0() -> None:
    _, reference = pair((16, 16))
    out = swap_amplitudes(np.zeros((16, 16)), amplitudes(reference, 1))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(np.fft.fft2(out.real)[0, 0], reference.sum(), atol=1e-12)


def test_the_window_is_a_fraction_of_the_shorter_side() -> None:
    assert half_width(0.01, (256, 256)) == 2
    assert half_width(0.01, (64, 64)) == 0
    assert half_width(0.29, (100, 300)) == 29  # 0.29 · 100 is 28.999…
    assert half_width(0.499, (65, 64)) == 31


@pytest.mark.parametrize("size", SIZES)
def test_cosine_swap(size: tuple[int, int]) -> None:
    image, reference = pair(size)
    assert np.abs(swap_coefficients(image, coefficients(image, 3)) - image).max() < 2e-15
    out = swap_coefficients(image, coefficients(reference, 3))
    assert out.mean() == pytest.approx(reference.mean(), abs=1e-14)
    size_all = min(size)
    before, after, wanted = (coefficients(each, size_all) for each in (image, out, reference))
    np.testing.assert_allclose(after[:3, :3], wanted[:3, :3], atol=1e-13)
    np.testing.assert_allclose(after[3:], before[3:], atol=1e-13)
    np.testing.assert_allclose(after[:, 3:], before[:, 3:], atol=1e-13)


# ------------------------------------------------------------------------------------- the references


def scans_of(*levels: float, slices: int = 4, size: int = 16) -> ImageSet:
    """One scan for each level: slice k has the level + k / 20 within the brain, nothing in slice 0."""
    scans, pixels = [], np.zeros((len(levels) * slices, size, size), np.float32)
    for i, level in enumerate(levels):
        scans.append(Scan(f"s{i}", f"s{i}", "a", i * slices, (i + 1) * slices, (1.0, 1.0, 1.0)))
        for k in range(1, slices):
            pixels[i * slices + k, 4:12, 4:12] = level + k / 20
    return ImageSet(pixels, pixels > 0, tuple(scans))


def means_in_full(method: Ssimh, source: ImageSet, target: ImageSet, ctx: Context) -> np.ndarray:
    """Mean of the whole slice before the result is clipped and masked, [N]."""
    references = method._references(source, {scan.stop - scan.start for scan in target.scans})
    swap = swap_amplitudes if method.spectrum == "fourier" else swap_coefficients
    found = [swap(image, references[len(image)]).real for _, image, _ in target.volumes()]
    return np.concatenate(found).mean(axis=(1, 2))


def test_the_reference_is_the_typical_scan_at_the_same_place(ctx: Context) -> None:
    source = scans_of(0.1, 0.7, 0.3)
    assert [scan.id for scan in typical_scans(source, 1)] == ["s2"]
    found = means_in_full(Ssimh(), source, scans_of(0.5), ctx)[1:]
    np.testing.assert_allclose(found, (0.3 + np.arange(1, 4) / 20) * 64 / 256, atol=1e-7)


def test_the_reference_may_be_a_mean_over_scans_or_over_the_site(ctx: Context) -> None:
    source, target = scans_of(0.1, 0.7, 0.3), scans_of(0.5)
    by_place = means_in_full(Ssimh(ref_mode="mean"), source, target, ctx)[1:]
    np.testing.assert_allclose(by_place, (1.1 / 3 + np.arange(1, 4) / 20) * 64 / 256, atol=1e-7)
    by_site = means_in_full(Ssimh(ref_mode="site"), source, target, ctx)
    np.testing.assert_allclose(by_site, (1.1 / 3 + 2 / 20) * 64 / 256, atol=1e-7)


def test_places_of_scans_with_other_numbers_of_slices(ctx: Context) -> None:
    brain = np.array([False, True, True, True, True])
    assert nearest_in_place(brain, 5).tolist() == [1, 1, 2, 3, 4]
    assert nearest_in_place(brain, 9).tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4]
    assert nearest_in_place(brain, 1).tolist() == [2]
    source, target = scans_of(0.2, slices=4), scans_of(0.5, slices=10)
    assert len(means_in_full(Ssimh(), source, target, ctx)) == 10


@pytest.mark.parametrize("spectrum", ["fourier", "cosine"])
def test_target_slices_are_swapped_clipped_and_masked(spectrum: str, material: Material, ctx: Context) -> None:
    source, target = material.source, material.test
    method = Ssimh.model_validate({"spectrum": spectrum, "beta": 0.05})
    out = method.harmonize({}, ApplyData({"source": source, "target": target}), ctx)
    reference = source.floats(typical_scans(source, 1)[0].slices).astype(np.float64)
    for scan, image, mask in target.volumes():
        if spectrum == "fourier":
            swapped = swap_amplitudes(image, amplitudes(reference, 3)).real
        else:
            swapped = swap_coefficients(image, coefficients(reference, 3))
        np.testing.assert_allclose(out[scan.slices], np.clip(swapped, 0, 1) * mask, rtol=0, atol=1e-6)
        assert np.abs(out[scan.slices] - image)[mask].mean() > 0.01


def test_batches_do_not_show(material: Material, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ApplyData({"source": material.source, "target": material.test})
    whole = Ssimh(beta=0.05).harmonize({}, data, ctx)
    monkeypatch.setattr("methods.harmonization.ssimh.BATCH", 3)
    np.testing.assert_allclose(Ssimh(beta=0.05).harmonize({}, data, ctx), whole, rtol=0, atol=1e-7)


def test_what_does_not_fit_is_named(material: Material, ctx: Context) -> None:
    smaller = ImageSet(material.source.pixels[:, :32], material.source.mask[:, :32], material.source.scans)
    with pytest.raises(MethodError, match="64 × 64 pixels, source slices 32 × 64"):
        Ssimh().harmonize({}, ApplyData({"source": smaller, "target": material.test}), ctx)
    empty = replace(material.source, mask=np.zeros_like(material.source.mask))
    with pytest.raises(MethodError, match="no source scan has brain"):
        Ssimh().harmonize({}, ApplyData({"source": empty, "target": material.test}), ctx)
    with pytest.raises(ValidationError):
        Ssimh(beta=0.5)
