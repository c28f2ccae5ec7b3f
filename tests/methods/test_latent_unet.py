"""The latent U-Net: its published sizes, and that it is built as the publications say."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.api import MethodError
from harness.training import seeded
from methods.anomaly.mad_ad.network import MaskedDenoiser
from methods.networks.latent_unet import SIZES, LatentUNet, UNetSettings, _Attention, _Residual


def small(**changes: object) -> LatentUNet:
    """A network whose zeroed layers are drawn like the others, so that all of it counts."""
    with seeded(0):
        network = LatentUNet(3, 2, 8, 2, groups=4, **changes)  # type: ignore[arg-type]
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
    return network


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def millions(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


# --------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "expected"), [("XS", 16.13), ("S", 64.41), ("M", 144.86), ("L", 257.47), ("XL", 579.18)]
)
def test_sizes_with_a_scalar_time_are_those_of_reflect(size: str, expected: float) -> None:
    with torch.device("meta"):
        network = LatentUNet(4, 4, *SIZES[size], time="scalar")
    assert round(millions(network), 2) == expected


@pytest.mark.parametrize(("size", "expected"), [("XS", 16.14), ("S", 64.48), ("M", 145.01), ("L", 257.74)])
def test_sizes_with_two_heads_are_those_of_mad_ad(size: str, expected: float) -> None:
    with torch.device("meta"):
        network = MaskedDenoiser(4, UNetSettings.model_validate({"size": size}))
    assert round(millions(network), 2) == expected


def test_the_largest_size_of_mad_ad_has_its_count_but_not_with_its_heads() -> None:
    with torch.device("meta"):
        network = MaskedDenoiser(4, UNetSettings(width=320, heads=10))
    assert round(millions(network), 2) == 402.66
    with pytest.raises(MethodError, match="width 320 cannot be built with 12 heads"):
        LatentUNet(4, 4, 320, 12)
    with pytest.raises(ValidationError, match="width 320 cannot be built with 12 heads"):
        UNetSettings(width=320, heads=12)
    with pytest.raises(ValidationError, match="32 groups"):
        UNetSettings(width=16, heads=4)
    with pytest.raises(ValidationError, match="multipliers"):
        UNetSettings(multipliers=())


def test_default_size_is_large() -> None:
    assert UNetSettings().shape() == (256, 8)
    assert UNetSettings(size="M").shape() == (192, 6)
    assert UNetSettings(width=32, heads=4).shape() == (32, 4)


# ----------------------------------------------------------------------------------------- structure


def test_attention_follows_every_residual_block_but_the_last_of_the_middle() -> None:
    network = small()
    found = [module for module in network.modules() if isinstance(module, _Residual | _Attention)]
    kinds = ["R" if isinstance(module, _Residual) else "A" for module in found]
    # three levels of two blocks down, the middle, three levels of three blocks up
    assert "".join(kinds) == "RA" * 6 + "RA" + "R" + "RA" * 9


def test_every_residual_block_drops_forty_per_cent_and_only_while_it_trains() -> None:
    network = small()
    drops = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert drops == [0.4] * 17
    x, times = latents(2, 3, 8, 8), torch.tensor([1, 4])
    network.eval()
    assert torch.equal(network(x, times), network(x, times))
    network.train()
    with seeded(3):
        assert not torch.equal(network(x, times), network(x, times))


def test_attention_is_softmax_of_queries_and_keys_for_each_head() -> None:
    with seeded(0):
        layer = _Attention(8, 2, 4)
        layer.out.reset_parameters()
    x = latents(2, 8, 3, 5)
    queries, keys, values = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    mixed = torch.zeros(2, 8, 15)
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.einsum("bci,bcj->bij", queries[:, head], keys[:, head]).div(math.sqrt(4)).softmax(-1)
        mixed[:, head] = torch.einsum("bij,bcj->bci", weights, values[:, head])
    expected = x + layer.out(mixed.view(2, 8, 3, 5))
    torch.testing.assert_close(layer(x), expected)


def test_it_starts_at_zero_with_residual_branches_that_do_nothing() -> None:
    with seeded(0):
        network = LatentUNet(4, 4, 8, 2, groups=4)
    x = latents(1, 4, 8, 8)
    assert not network(x, torch.tensor([3])).detach().any()
    block = network.encoder[0][0]  # type: ignore[index]
    assert torch.equal(block(network.stem(x), torch.zeros(1, 32)), network.stem(x))


def test_it_takes_rectangles_and_refuses_what_cannot_be_halved() -> None:
    network = small().eval()
    assert network(latents(1, 3, 8, 12), torch.tensor([0])).shape == (1, 2, 8, 12)
    with pytest.raises(MethodError, match=r"6 × 8.*multiples of 4"):
        network(latents(1, 3, 6, 8), torch.tensor([0]))


def test_a_sample_does_not_depend_on_those_beside_it() -> None:
    network = small().eval()
    x, times = latents(3, 3, 8, 8), torch.tensor([0, 5, 9])
    together = network(x, times)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], times[i : i + 1]), together[i : i + 1], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- time


def test_sinusoids_are_as_wide_as_the_network_with_periods_up_to_ten_thousand() -> None:
    waves = small()._times(torch.tensor([0, 7]))
    periods = 10_000 ** (torch.arange(4) / 4)
    assert torch.equal(waves[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(waves[1], torch.cat([(7 / periods).cos(), (7 / periods).sin()]))


@pytest.mark.parametrize("time", ["sinusoidal", "scalar"])
def test_the_time_changes_what_comes_out(time: str) -> None:
    network = small(time=time).eval()
    x = latents(1, 3, 4, 4)
    early, late = (network(x, torch.tensor([t], dtype=torch.float32)) for t in (0.1, 0.9))
    assert float((early - late).detach().abs().max()) > 1e-3
    assert network.embed[0].in_features == (8 if time == "sinusoidal" else 1)


def test_a_scalar_time_enters_as_the_number_it_is() -> None:
    assert torch.equal(small(time="scalar")._times(torch.tensor([0.25, 1.0])), torch.tensor([[0.25], [1.0]]))


def test_computing_attention_again_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (True, False):
        network = small(checkpointing=checkpointing, dropout=0.0)
        network(latents(2, 3, 8, 8), torch.tensor([1, 4])).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
