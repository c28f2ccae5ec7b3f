"""BlindHarmony: an exact flow, levels of 12 bits, the search's formulas, and likelier slices after a brief training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness._conformance_data import Material, make_material
from harness.api import ApplyData, Context, FitData, ImageSet, MethodError, State
from harness.conformance import check_method
from harness.training import seeded
from methods.harmonization.blind_harmony.flow import ActNorm, Mixing, SplineCoupling, SplineGlow
from methods.harmonization.blind_harmony.learning import (
    load_flow,
    mean_bits,
    mean_percentiles,
    mean_slices,
    with_brain,
)
from methods.harmonization.blind_harmony.levels import TOP, dequantize, pad, quantize, slice_bits, unit_range
from methods.harmonization.blind_harmony.method import BlindHarmony, rescaled
from methods.harmonization.blind_harmony.search import (
    edge_gradient,
    flat_regions,
    likeness_gradient,
    seek,
    sobel,
)
from methods.harmonization.blind_harmony.settings import FlowSettings, Search

TINY = FlowSettings(levels=2, steps=2, hidden=6, blocks=1, bins=4)
STILL = Search(likeness_step=0, edge_step=0, latent_shrink=0)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


@pytest.fixture(scope="module")
def material() -> Material:
    return make_material().locked()


@pytest.fixture(scope="module")
def briefly() -> BlindHarmony:
    """Settings that learn something within seconds."""
    training = {"iterations": 80, "batch_size": 4, "learning_rate": 5e-3, "validate_every": 40}
    flow = {"levels": 2, "steps": 2, "hidden": 8, "blocks": 1, "bins": 4, "training": training}
    return BlindHarmony.model_validate({"flow": flow, "search": {"likeness_step": 160.0}})


@pytest.fixture(scope="module")
def learnt(briefly: BlindHarmony, material: Material, tmp_path_factory: pytest.TempPathFactory) -> State:
    ctx = Context(seed=0, device="cpu", scratch=tmp_path_factory.mktemp("scratch"), log=lambda *_: None)
    return briefly.fit(FitData({"source": material.source, "validation": material.validation}), ctx)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def disturbed(build: Callable[[], nn.Module], size: float = 0.3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module in eval mode whose parameters and running statistics are far from their initial values."""
    with seeded(3):
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(size * torch.randn_like(parameter))
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.3)
                    layer.running_var.uniform_(0.5, 2)
    return module.to(dtype).eval()


def log_det_by_autograd(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log|det| of the Jacobian of each sample, [B]."""
    found = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: function(s[None]).flatten(), sample)
        found.append(torch.linalg.slogdet(jacobian.reshape(sample.numel(), -1)).logabsdet)
    return torch.stack(found)


def test_conformance() -> None:
    assert [r for r in check_method(BlindHarmony) if not r.passed] == []


# ------------------------------------------------------------------------------------------ the flow


LAYERS = {
    "normalisation": lambda: ActNorm(4),
    "mixing": lambda: Mixing(4),
    "coupling": lambda: SplineCoupling(4, TINY),
    "published coupling": lambda: SplineCoupling(4, FlowSettings(hidden=8)),
}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_invertible_and_knows_its_determinant(build: Callable[[], nn.Module]) -> None:
    layer, x = disturbed(build), noise(2, 4, 4, 4)
    y, log_det = layer(x)
    assert (x - layer.inverse(y)).abs().max() < 1e-10
    assert log_det.abs().min() > 0.1
    assert torch.allclose(log_det, log_det_by_autograd(lambda s: layer(s)[0], x), atol=1e-8)


@pytest.mark.parametrize("size", [4, 8])
def test_the_flow_is_invertible_and_knows_its_determinant(size: int) -> None:
    flow, x = disturbed(lambda: SplineGlow(TINY)), noise(2, 1, size, size)
    latents, log_det = flow(x)
    assert sum(z[0].numel() for z in latents) == size * size
    assert (x - flow.inverse(latents)).abs().max() < 1e-6
    joined = log_det_by_autograd(lambda s: torch.cat([z.flatten() for z in flow(s)[0]]), x)
    assert torch.allclose(log_det, joined, atol=1e-7)


def test_float32_is_enough_at_depth() -> None:
    flow = disturbed(lambda: SplineGlow(FlowSettings(hidden=16, blocks=1)), 0.05, torch.float32)
    x = noise(2, 1, 32, 32, dtype=torch.float32) / 4
    assert (x - flow.inverse(flow(x)[0])).abs().max() < 1e-4


def test_the_published_flow_has_its_size() -> None:
    with torch.device("meta"):
        flow = SplineGlow(FlowSettings()).eval()
        shapes = [z.shape for z in flow(torch.empty(1, 1, 144, 176))[0]]
    assert sum(p.numel() for p in flow.parameters()) == 14_486_534
    assert sum(math.prod(shape) for shape in shapes) == 144 * 176
    assert shapes[-1] == (1, 32, 9, 11)


def test_a_first_batch_normalises_every_channel_once() -> None:
    layer, x = ActNorm(3).train(), 5 + 2 * noise(8, 3, 4, 4).float()
    y, _ = layer(x)
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(y.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    assert torch.equal(layer(x + 1)[0], (x + 1) * layer.log_scale.exp()[:, None, None] + layer.shift[:, None, None])
    idle = ActNorm(3).eval()
    assert torch.equal(idle(x)[0], x)  # nothing is taken from a batch outside training


def test_mixing_starts_as_a_permutation() -> None:
    with seeded(1):
        layer = Mixing(16)
    x = noise(2, 16, 2, 2).float()
    y, log_det = layer(x)
    assert not torch.equal(layer.order, torch.arange(16))
    assert torch.allclose(y, x[:, layer.order], atol=1e-6)
    assert log_det.abs().max() < 1e-4


def test_a_coupling_keeps_half_and_bends_the_other_by_the_kept_alone() -> None:
    layer, x = disturbed(lambda: SplineCoupling(4, TINY)), noise(1, 4, 4, 4)
    y, _ = layer(x)
    assert torch.equal(y[:, :2], x[:, :2])
    other = x.clone()
    other[0, 2, 0, 0] += 0.5
    changed = (layer(other)[0] != y).nonzero()
    assert changed.tolist() == [[0, 2, 0, 0]]  # pixel by pixel


# ---------------------------------------------------------------------------------------- the levels


def test_levels_survive_a_round_trip() -> None:
    levels = torch.arange(TOP + 1, dtype=torch.float32) / TOP
    noisy = dequantize(levels, generator())
    assert noisy.min() >= -0.5
    assert noisy.max() < 0.5
    # float32 rounds noise within 2e-4 of the next level up to it.
    off = ((quantize(noisy) - levels) * TOP).round()
    assert set(off.tolist()) <= {0.0, 1.0}
    assert off.mean() < 1e-3
    x = torch.rand(10_000, generator=generator())
    below = (x - quantize(dequantize(x, generator()))) * TOP
    assert ((below >= -0.01) & (below <= 1.01)).float().mean() > 0.999
    assert below.abs().max() < 2
    assert below.mean() == pytest.approx(0.5, abs=0.02)


def test_an_intensity_in_another_unit_is_clipped_on_its_way_back() -> None:
    assert quantize(torch.tensor([-0.7, 0.7])).tolist() == [0.0, 1.0]


def test_each_slice_has_its_own_range() -> None:
    x = torch.stack([torch.linspace(0, 0.5, 16).reshape(4, 4), torch.full((4, 4), 0.3)])
    out = unit_range(x)
    assert out[0].min() == 0
    assert out[0].max() == 1
    assert torch.equal(out[1], torch.zeros(4, 4))


def test_padding_is_background_below_and_beside() -> None:
    out = pad(torch.ones(1, 1, 5, 8), 4)
    assert out.shape == (1, 1, 8, 8)
    assert out[..., :5, :8].min() == 1
    assert out[..., 5:, :].max() == 0


def test_bits_of_noise_are_those_of_the_density() -> None:
    """Under an identity flow −0.5..0.5 has density of a normal; 12 bits less its log₂ at each pixel."""
    flow = SplineGlow(FlowSettings(levels=1, steps=1, hidden=2, blocks=0)).eval()
    with torch.no_grad():
        for scale in flow.scales:
            for layer in scale.layers:
                if isinstance(layer, SplineCoupling):
                    for parameter in layer.parameters():
                        parameter.zero_()
    x = torch.full((1, 1, 4, 4), 0.5)
    noisy = dequantize(x, generator(5))
    expected = 12 + ((noisy.square() + math.log(2 * math.pi)) / 2).mean() / math.log(2)
    assert slice_bits(flow, x, generator(5)).item() == pytest.approx(expected.item(), abs=1e-4)


# ---------------------------------------------------------------------------------------- the search


def test_the_likeness_gradient_is_that_of_minus_the_cosine() -> None:
    x, y = noise(3, 1, 6, 5).requires_grad_(True), noise(3, 1, 6, 5, seed=1)
    cosine = torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1))
    assert torch.allclose(likeness_gradient(x, y), torch.autograd.grad(-cosine.sum(), x)[0], atol=1e-12)
    assert likeness_gradient(torch.zeros(1, 1, 4, 4), y[:1, :, :4, :4].float()).isfinite().all()


def test_the_edge_gradient_is_that_of_the_flat_edges() -> None:
    x = noise(2, 1, 7, 6).requires_grad_(True)
    flat = (noise(2, 2, 7, 6, seed=1) > 0).double()
    penalty = (flat * sobel(x)).abs().sum()
    assert torch.allclose(edge_gradient(x, flat), torch.autograd.grad(penalty, x)[0], atol=1e-12)


def test_sobel_by_hand() -> None:
    ramp = torch.arange(5.0)[None, None, None].expand(1, 1, 4, 5)
    along_columns, along_rows = sobel(ramp)[0]
    assert (along_columns[1:-1, 1:-1] == 8).all()
    assert (along_rows[1:-1, 1:-1] == 0).all()


def test_flat_regions_are_the_share_of_the_foreground_asked_for() -> None:
    seen = torch.zeros(1, 1, 32, 32)
    seen[..., 8:24, 8:24] = 0.2 + 0.6 * torch.rand(16, 16, generator=generator())
    found = flat_regions(seen, Search())
    share = found[0, :, 8:24, 8:24].mean((1, 2))
    assert torch.allclose(share, torch.full((2,), 0.3), atol=0.02)
    assert found.sum() == found[0, :, 8:24, 8:24].sum()
    # Three quarters of the slice are background, so the percentile of the whole is 0, and nothing is below it.
    assert flat_regions(seen, Search(flat_within="slice")).sum() == 0
    assert flat_regions(torch.zeros(1, 1, 8, 8), Search()).sum() == 0


def search_material(material: Material) -> tuple[Tensor, Tensor]:
    """First guesses and inputs, [3, 1, 64, 64]."""
    start = unit_range(torch.from_numpy(material.source.floats(slice(0, 3)))[:, None])
    seen = unit_range(torch.from_numpy(material.test.floats(slice(0, 3)))[:, None])
    return start, seen


def test_without_steps_a_slice_stays_itself_up_to_levels(material: Material) -> None:
    flow = disturbed(lambda: SplineGlow(TINY), 0.05, torch.float32)
    start, seen = search_material(material)
    out = seek(flow, start, seen, STILL.model_copy(update={"iterations": 1}), generator())
    assert (out - start).abs().max() <= 2.01 / TOP
    assert ((out - start).abs() <= 1.01 / TOP).float().mean() > 0.999
    again = seek(flow, start, seen, STILL, generator())
    # Noise next to a level's end may cross it on the way through the flow, a level at a time and rarely.
    assert (again - start).abs().max() <= 3.01 / TOP
    assert (again - start).abs().mean() <= 1 / TOP


def test_the_cosine_rises_when_nothing_draws_to_the_likely(material: Material) -> None:
    flow = disturbed(lambda: SplineGlow(TINY), 0.05, torch.float32)
    start, seen = search_material(material)
    cosines = [torch.cosine_similarity(start.flatten(1), seen.flatten(1))]
    for iterations in range(1, 6):
        settings = Search(latent_shrink=0, likeness_step=160, iterations=iterations)
        out = seek(flow, start, seen, settings, generator())
        cosines.append(torch.cosine_similarity(out.flatten(1), seen.flatten(1)))
    rises = torch.stack(cosines).diff(dim=0)
    assert (rises > 0).all()
    assert (cosines[-1] - cosines[0]).min() > 0.5 * (1 - cosines[0]).min()


class _Breaking(SplineGlow):
    """Gives the first slice back as nan, the second too large, the third as nothing, the others as they came."""

    def inverse(self, latents: list[Tensor]) -> Tensor:
        back = super().inverse(latents)
        back[0], back[1, 0, 0, 0], back[2] = math.nan, 101.0, -0.5
        return back


def test_a_slice_that_the_flow_breaks_stays_as_the_step_left_it() -> None:
    flow = disturbed(lambda: _Breaking(TINY), 0.05, torch.float32)
    start = torch.rand(4, 1, 8, 8, generator=generator())
    out = seek(flow, start, start, STILL.model_copy(update={"iterations": 2}), generator())
    assert torch.equal(out[:3], start[:3])
    assert not torch.equal(out[3], start[3])


# ---------------------------------------------------------------------------------------- the method


def test_training_finds_the_source_likelier_and_keeps_the_best(
    briefly: BlindHarmony, material: Material, learnt: State, ctx: Context
) -> None:
    flow, held_out = load_flow(briefly.flow, learnt), with_brain(material.validation, "validation")
    bits = mean_bits(flow, material.validation, held_out, 8, ctx)
    assert bits == pytest.approx(learnt["bits"], abs=1e-3)
    with seeded(0):
        fresh = SplineGlow(briefly.flow).eval()
    assert bits < mean_bits(fresh, material.validation, held_out, 8, ctx) - 1
    assert all(layer.initialized for layer in flow.modules() if isinstance(layer, ActNorm))


def test_harmonised_slices_are_likelier_than_what_was_seen(
    briefly: BlindHarmony, material: Material, learnt: State, ctx: Context
) -> None:
    """The target is a source scan with its contrast bent."""
    bent = np.where(material.validation.mask, material.validation.floats() ** 0.4, 0).astype(np.float32)
    target = material.validation.with_pixels(bent)
    out = briefly.harmonize(learnt, ApplyData({"target": target}), ctx) * target.mask
    flow, chosen = load_flow(briefly.flow, learnt), with_brain(target, "test")
    before, after = (mean_bits(flow, target.with_pixels(each), chosen, 8, ctx) for each in (bent, out))
    assert after < before - 0.05
    # And nearer to the scan before it was bent.
    clean, mask = material.validation.floats(), target.mask
    assert np.abs(out - clean)[mask].mean() < 0.5 * np.abs(bent - clean)[mask].mean()


def test_sizes_that_do_not_fit_are_padded_and_cropped(briefly: BlindHarmony, material: Material, ctx: Context) -> None:
    def cut(images: ImageSet) -> ImageSet:
        return ImageSet(images.pixels[:, 5:58, 3:61], images.mask[:, 5:58, 3:61], images.scans)

    method = BlindHarmony.example()
    data = FitData({"source": cut(material.source), "validation": cut(material.validation)})
    state = method.fit(data, ctx)
    assert state["means"].shape == (4, 53, 58)
    out = method.harmonize(state, ApplyData({"target": cut(material.test)}), ctx)
    assert out.shape == (12, 53, 58)


def test_the_range_of_each_scan_becomes_that_of_the_source(
    briefly: BlindHarmony, material: Material, learnt: State, ctx: Context
) -> None:
    method = briefly.model_copy(update={"search": Search(iterations=2, likeness_step=160)})
    out = method.harmonize(learnt, ApplyData({"target": material.test}), ctx)
    for scan in material.test.scans:
        brain = out[scan.slices][material.test.mask[scan.slices]]
        np.testing.assert_allclose(np.percentile(brain, (1, 99)), learnt["range"], atol=5e-3)
    raw = method.model_copy(update={"rescale": "none"}).harmonize(learnt, ApplyData({"target": material.test}), ctx)
    assert raw[material.test.mask].max() > learnt["range"][1] + 0.1
    flat = rescaled(np.full((1, 2, 2), 0.7), np.ones((1, 2, 2), bool), np.array([0.1, 0.5]), (1.0, 99.0))
    np.testing.assert_allclose(flat, 0.1, atol=1e-6)


def test_mean_slices_and_range_by_hand(material: Material) -> None:
    source = material.source
    slices = np.stack([source.floats(scan.slices) for scan in source.scans])
    expected = (slices / slices.max(axis=(2, 3), keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(mean_slices(source), expected, atol=1e-6)
    rows = [np.percentile(image[mask], (1, 99)) for _, image, mask in source.volumes()]
    np.testing.assert_allclose(mean_percentiles(source, (1, 99)), np.mean(rows, axis=0), atol=1e-7)


def test_starts_are_by_place_or_one_for_all(briefly: BlindHarmony, material: Material, learnt: State) -> None:
    means = np.asarray(learnt["means"])
    guesses, of = briefly._guesses(means, material.test)
    assert of.tolist() == [0, 1, 2, 3] * 3
    assert guesses is means
    site = briefly.model_copy(update={"search": Search(start="site")})
    guesses, of = site._guesses(means, material.test)
    assert guesses.shape == (1, 64, 64)
    assert set(of) == {0}


def test_what_does_not_fit_is_named(briefly: BlindHarmony, material: Material, learnt: State, ctx: Context) -> None:
    smaller = ImageSet(material.test.pixels[:, :32], material.test.mask[:, :32], material.test.scans)
    with pytest.raises(MethodError, match="32 × 64 pixels, source slices 64 × 64"):
        briefly.harmonize(learnt, ApplyData({"target": smaller}), ctx)
    empty = replace(material.validation, mask=np.zeros_like(material.validation.mask))
    with pytest.raises(MethodError, match="no validation slice with brain"):
        briefly.fit(FitData({"source": material.source, "validation": empty}), ctx)


@pytest.mark.parametrize(
    "wrong",
    [
        {"percentiles": (99.0, 1.0)},
        {"flow": {"bins": 200, "minimum": 0.01}},
        {"search": {"latent_shrink": 1.0}},
        {"rescale": "slice"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        BlindHarmony.model_validate(wrong)
