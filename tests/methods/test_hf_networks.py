"""The networks of Harmonizing Flows, and how slices are cut for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from discs import SIZE, SOURCE, site
from torch import nn

from harness.api import ImageSet, Scan
from harness.training import seeded
from methods.harmonization.harmonizing_flows.harmonizer_net import HarmonizerNet, harmonized, reconstruction_loss, ssim
from methods.harmonization.harmonizing_flows.learning import build_flow, build_harmonizer
from methods.harmonization.harmonizing_flows.method import HarmonizingFlows
from methods.harmonization.harmonizing_flows.slices import Crops, grey_levels, whole

PUBLISHED = (16, 32, 48, 64, 64)


# --------------------------------------------------------------------------------------------- networks


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_networks_have_their_published_sizes() -> None:
    with seeded(0):
        published = HarmonizingFlows()
        assert parameters(build_flow(published.flow)) == 4_023_176  # 4.02 M with the dequantiser
        assert parameters(build_harmonizer(published.harmonizer)) == 816_529  # 0.82 M
        assert parameters(HarmonizerNet(PUBLISHED, "affine", 255)) == 816_529 + 65


def test_published_values_are_the_defaults() -> None:
    m = HarmonizingFlows()
    schedule = m.flow.training
    assert (schedule.iterations, schedule.learning_rate, schedule.batch_size) == (20_000, 1e-3, 32)
    assert (schedule.schedule, schedule.step_every, schedule.step_factor, schedule.clip_norm) == ("step", 2000, 0.5, 1)
    training = m.harmonizer.training
    assert (training.iterations, training.learning_rate, training.batch_size) == (5000, 1e-3, 64)
    assert (training.schedule, training.step_every, training.step_factor, training.select) == ("step", 500, 0.5, "best")
    assert (m.guidance.margin, m.guidance.threshold, m.guidance.augmented_fraction) == (1.2, 100, 0.2)
    assert (m.adaptation.learning_rate, m.adaptation.batch_size, m.adaptation.max_epochs) == (5e-7, 32, 20)
    assert (m.crop, m.stopping, m.patience, m.adaptation_split()) == (224, "source_bpd", 3, "test")


@pytest.mark.parametrize("size", [(16, 16), (19, 33), (5, 7)])
def test_a_harmoniser_takes_any_size(size: tuple[int, int]) -> None:
    with seeded(0):
        network = HarmonizerNet((4, 6, 8), "plain", 255)
    x = 255 * torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(0))
    assert network(x).shape == x.shape
    if size == (19, 33):  # padded evenly to 20 × 36, with what counts as background
        bigger = torch.zeros(2, 1, 20, 36)
        bigger[..., :19, 1:34] = x
        assert torch.allclose(network(bigger)[..., :19, 1:34], network(x), atol=1e-4)


def test_an_affine_head_is_a_factor_and_an_offset() -> None:
    with seeded(0):
        network = HarmonizerNet((4, 6, 8), "affine", 255)
    x = 255 * torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    alpha, beta = network.parts(x)
    assert alpha is not None
    assert alpha.shape == (3, 1, 1, 1)
    assert torch.equal(network(x), alpha * x + beta)
    assert alpha.unique().numel() == 3
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(0.1)  # type: ignore[union-attr]
        network.slope.weight.zero_()  # type: ignore[union-attr]
        network.slope.bias.fill_(2)  # type: ignore[union-attr]
    assert torch.allclose(network(x), 2 * x + 25.5)


def test_what_is_shown_lies_in_range_and_in_the_brain() -> None:
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :4] = 0
    x = torch.linspace(-300, 300, 64).view(1, 1, 8, 8)
    shown = harmonized(nn.Identity(), x, mask)
    assert torch.equal(shown, x.clamp(0, 255) * mask)


def test_similarity_is_that_of_the_reference_implementation() -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    a = rng.random((32, 24))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    _, full = structural_similarity(
        a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    ours = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]).item()
    assert ours == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


def test_the_loss_is_zero_only_for_the_truth() -> None:
    truth = 255 * torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    for kind in ("l1_ssim", "mse"):
        assert reconstruction_loss(truth, truth, kind)["loss"].item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    shifted = reconstruction_loss(truth + 25.5, truth, "l1_ssim")
    assert shifted["l1"].item() == pytest.approx(0.1)
    assert shifted["loss"].item() == pytest.approx(0.1 + 1 - shifted["ssim"].item())
    assert shifted["ssim"].item() < 1
    assert reconstruction_loss(truth + 25.5, truth, "mse")["loss"].item() == pytest.approx(0.01)


# ----------------------------------------------------------------------------------------------- slices


def coordinates(size: int) -> ImageSet:
    """Float slices whose pixels tell their row and column."""
    rows, columns = np.mgrid[:size, :size]
    pixels = np.repeat(((rows * size + columns) / (size * size))[None], 40, 0).astype(np.float32)
    return ImageSet(pixels, np.ones(pixels.shape, bool), (Scan("s", "s", "A", 0, 40, (1.0, 1.0, 1.0)),))


def test_windows_start_where_the_authors_code_lets_them() -> None:
    images = coordinates(256)
    crops = Crops(224, 8, 32)
    pixels, mask = crops.random(images, np.arange(40), np.random.default_rng(0))
    assert pixels.shape == mask.shape == (40, 1, 224, 224)
    first = (pixels[:, 0, 0, 0] / 255 * 256 * 256).round().long()
    for offsets in (first // 256, first % 256):
        assert offsets.min() == 8
        assert offsets.max() == 23
    central, _ = crops.central(images, slice(0, 2))
    assert torch.equal(central[:, 0], torch.from_numpy(grey_levels(images, slice(0, 2))[:, 16:240, 16:240]))


def test_slices_that_fit_are_used_whole_and_padded_with_background() -> None:
    images = site((90, 190), size=(20, 27))
    for size in (None, 27, 224):
        pixels, mask = Crops(size, 8, 8).random(images, np.arange(3), np.random.default_rng(0))
        assert pixels.shape == mask.shape == (3, 1, 24, 32)
        inside = pixels[:, 0, 2:22, 2:29]
        assert torch.equal(inside, torch.from_numpy(images.pixels[:3].astype(np.float32)))
        assert pixels.sum() == inside.sum()
        assert mask.sum() == images.mask[:3].sum()
    pixels, _ = Crops(16, 8, 8).random(images, np.arange(3), np.random.default_rng(0))
    assert pixels.shape == (3, 1, 16, 16)


def test_batches_are_whole_levels_whatever_the_pixels_type() -> None:
    levels = grey_levels(SOURCE, slice(0, 3))
    assert np.array_equal(levels, SOURCE.pixels[:3])
    floats = SOURCE.with_pixels(SOURCE.floats())
    assert np.allclose(grey_levels(floats, slice(0, 3)), levels, atol=1e-4)
    pixels, mask = whole(SOURCE, slice(0, 3))
    assert pixels.dtype == mask.dtype == torch.float32
    assert pixels.shape == (3, 1, SIZE, SIZE)
