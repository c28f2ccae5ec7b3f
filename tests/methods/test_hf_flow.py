"""The flow of Harmonizing Flows: exact inverses and determinants, and what it must not touch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.training import seeded
from methods.harmonization.harmonizing_flows.flow import (
    Conditioner,
    Coupling,
    SliceFlow,
    VariationalDequantizer,
    guided_loss,
)
from methods.networks.flow import Chain, normal_log_density

WIDTHS = (3, 4)  # rows and columns must be even for a conditioner, divisible by 8 for a whole flow


def disturbed(build: Callable[[], nn.Module], size: float = 0.3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module whose parameters are far from their initial values: couplings start as the identity."""
    with seeded(3):
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return module.to(dtype)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(*shape: int) -> Tensor:
    """Whole grey levels."""
    return (256 * noise(*shape, seed=7)).floor()


def log_det_by_autograd(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log|det| of the Jacobian of each sample, [B]."""
    found = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: function(s[None]).flatten(), sample)
        found.append(torch.linalg.slogdet(jacobian.reshape(sample.numel(), -1)).logabsdet)  # type: ignore[union-attr]
    return torch.stack(found)


COUPLINGS = {
    "checkerboard": ((1, 4, 4), "checkerboard"),
    "rectangle": ((1, 8, 4), "checkerboard"),
    "four channels": ((4, 4, 4), "channels"),
    "sixteen channels": ((16, 2, 2), "channels"),
}


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize(("shape", "mask"), COUPLINGS.values(), ids=COUPLINGS)
def test_a_coupling_is_invertible_and_knows_its_determinant(shape: tuple[int, ...], mask: str, parity: int) -> None:
    coupling = disturbed(lambda: Coupling(shape[0], WIDTHS, mask, parity))  # type: ignore[arg-type]
    x = 4 * noise(2, *shape) - 2
    y, log_det = coupling(x)
    assert (x - coupling.inverse(y)).abs().max() < 1e-10  # type: ignore[operator]
    assert log_det.abs().min() > 0.1
    assert torch.allclose(log_det, log_det_by_autograd(lambda s: coupling(s)[0], x), atol=1e-8)


def test_a_coupling_leaves_half_unchanged_and_the_next_parity_the_other_half() -> None:
    for shape, mask in (((1, 8, 8), "checkerboard"), ((4, 4, 4), "channels"), ((16, 2, 2), "channels")):
        x = noise(1, *shape)
        moved = []
        for parity in (0, 1):
            coupling = disturbed(lambda: Coupling(shape[0], WIDTHS, mask, parity))  # type: ignore[arg-type] # noqa: B023
            moved.append(coupling(x)[0] != x)
            assert moved[-1].sum() * 2 == x.numel()
        assert torch.equal(moved[0], ~moved[1])
        if mask == "channels":
            assert moved[0][0, : shape[0] // 2].sum() == 0  # the first half of the channels is kept


def test_the_log_scale_stays_within_its_learnt_bound() -> None:
    coupling = disturbed(lambda: Coupling(1, WIDTHS, "checkerboard", 0), size=20)
    assert isinstance(coupling, Coupling)
    x = noise(4, 1, 8, 8)
    for a in (0.0, -1.0, 0.5):
        with torch.no_grad():
            coupling.log_bound.fill_(a)
        s, _ = coupling._scale_and_shift(x, None)
        assert math.exp(a) * 0.999 < s.abs().max() <= math.exp(a)


def test_couplings_start_as_the_identity() -> None:
    with seeded(0):
        coupling = Coupling(1, (16, 32, 48, 64), "checkerboard", 0)
    x = noise(2, 1, 16, 16).float()
    y, log_det = coupling(x)
    assert torch.equal(x, y)
    assert not log_det.any()


def test_a_conditioner_sees_only_what_is_kept() -> None:
    """Otherwise the inverse would not know the scale."""
    coupling = disturbed(lambda: Coupling(1, WIDTHS, "checkerboard", 0))
    x = noise(1, 1, 4, 4)
    other = x.clone()
    other[0, 0, 0, 1] += 1  # (0 + 1) % 2 is not the parity: this pixel is moved, not kept
    assert torch.equal(coupling(x)[1], coupling(other)[1])
    other[0, 0, 0, 0] += 1
    assert not torch.equal(coupling(x)[1], coupling(other)[1])


def test_the_chain_is_invertible_and_knows_its_determinant() -> None:
    flow = disturbed(lambda: SliceFlow(6, WIDTHS, 1))
    assert isinstance(flow, SliceFlow)
    x = 0.98 * noise(2, 1, 8, 8) + 0.01
    z, log_det = flow.chain(x)
    assert z.shape == (2, 16, 2, 2)
    assert (x - flow.chain.inverse(z)).abs().max() < 1e-10
    assert torch.allclose(log_det, log_det_by_autograd(lambda s: flow.chain(s)[0], x), atol=1e-7)


def test_the_published_chain_is_invertible_in_single_precision() -> None:
    flow = disturbed(lambda: SliceFlow(12, (16, 32, 48, 64), 4), size=0.01, dtype=torch.float32)
    assert isinstance(flow, SliceFlow)
    x = ((levels(1, 1, 32, 32) + noise(1, 1, 32, 32)) / 256).float()
    with torch.no_grad():
        z, log_det = flow.chain(x)
        assert log_det.abs().item() > 1
        assert (x - flow.chain.inverse(z)).abs().max() < 1e-4


# ------------------------------------------------------------------------------------ dequantisation


def dequantizer(couplings: int = 2) -> VariationalDequantizer:
    module = disturbed(lambda: VariationalDequantizer(couplings, WIDTHS, 1e-5))
    assert isinstance(module, VariationalDequantizer)
    return module


def test_dequantisation_noise_lies_in_the_unit_interval_and_knows_its_determinant() -> None:
    module = dequantizer()
    x = levels(2, 1, 4, 4)
    draw = noise(2, 1, 4, 4)
    u, log_det = module.dequantize(draw, x)
    assert 0 < u.min() < u.max() < 1
    for i in range(2):
        expected = log_det_by_autograd(lambda d: module.dequantize(d, x[i : i + 1])[0], draw[i : i + 1])  # noqa: B023
        assert torch.allclose(log_det[i : i + 1], expected, atol=1e-8)


def test_dequantised_levels_stay_within_their_cell() -> None:
    x = levels(2, 1, 8, 8)
    unit, _ = dequantizer()(x, torch.Generator().manual_seed(1))
    assert torch.equal((unit * 256).floor(), x)


def test_dequantisation_depends_on_the_picture_smoothly() -> None:
    module, x = dequantizer(), (255 * noise(1, 1, 4, 4, seed=2)).requires_grad_()
    module.dequantize(noise(1, 1, 4, 4), x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


# --------------------------------------------------------------------------------- bits per dimension


def test_the_whole_flow_adds_up() -> None:
    """Bits of x = −log₂ of (base density × |det dz/dnoise|), the noise being uniform."""
    flow = disturbed(lambda: SliceFlow(3, WIDTHS, 1))
    assert isinstance(flow, SliceFlow)
    x = levels(1, 1, 8, 8)
    draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)

    def to_base(d: Tensor) -> Tensor:
        return flow.chain((x + flow.dequantizer.dequantize(d, x)[0]) / 256)[0]

    log_p = normal_log_density(to_base(draw)) + log_det_by_autograd(to_base, draw)
    bpd = flow(x, torch.Generator().manual_seed(5))
    assert torch.allclose(bpd, -log_p / math.log(2) / 64, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (1, 1, 16, 24)])
def test_without_couplings_a_logistic_base_gives_eight_bits(shape: tuple[int, ...]) -> None:
    flow = SliceFlow(0, WIDTHS, 0, base="logistic").double()
    x = levels(*shape)
    bpd = flow(x, torch.Generator().manual_seed(0))
    assert bpd.shape == (shape[0],)
    assert (bpd - 8).abs().max() < 1e-4


def test_likelihood_teaches_the_pixels() -> None:
    """The gradient of the whole flow in x is that of finite differences."""
    flow = disturbed(lambda: SliceFlow(3, WIDTHS, 1))
    x = (250 * noise(1, 1, 8, 8) + 2).requires_grad_()

    def bpd(value: Tensor) -> Tensor:
        return flow(value, torch.Generator().manual_seed(5)).sum()

    (gradient,) = torch.autograd.grad(bpd(x), x)
    bump = torch.zeros_like(x)
    bump[0, 0, 3, 4] = 1e-4
    slope = (bpd(x.detach() + bump) - bpd(x.detach() - bump)) / 2e-4
    assert gradient[0, 0, 3, 4].item() == pytest.approx(slope.item(), rel=1e-5)
    assert slope.abs() > 0


def test_the_margin_clips_exactly() -> None:
    bpd = torch.tensor([2.0, 0.7, 1.2, 5.0, 0.7], requires_grad=True)
    label = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    loss = guided_loss(bpd, label, 1.2)
    assert loss.item() == pytest.approx((2.0 + 0.7 - 1.2 - 1.2 - 0.7) / 5)
    loss.backward()
    assert bpd.grad is not None
    assert bpd.grad.tolist() == pytest.approx([0.2, 0.2, bpd.grad[2].item(), 0, -0.2])


# -------------------------------------------------------------------------------------- published sizes


def test_the_published_flow_has_four_million_parameters() -> None:
    with seeded(0):
        flow = SliceFlow(12, (16, 32, 48, 64), 4)
        conditioner = Conditioner(1, 2, (16, 32, 48, 64))
    assert sum(p.numel() for p in flow.parameters()) == 4_023_176
    assert 0.24e6 < sum(p.numel() for p in conditioner.parameters()) < 0.26e6
    assert flow.multiple == 32


@pytest.mark.parametrize("depth", [0, 6, 12, 18])
def test_depth_counts_couplings_split_evenly_over_three_scales(depth: int) -> None:
    with seeded(0):
        flow = SliceFlow(depth, WIDTHS, 4)
    assert isinstance(flow.chain, Chain)
    channels = [layer.log_bound.shape[0] for layer in flow.chain.layers if isinstance(layer, Coupling)]
    assert channels == [1] * (depth // 3) + [4] * (depth // 3) + [16] * (depth // 3)
    kinds = [layer.mask for layer in flow.chain.layers if isinstance(layer, Coupling)]
    assert kinds == ["checkerboard"] * (depth // 3) + ["channels"] * (2 * depth // 3)
    parities = [layer.parity for layer in flow.chain.layers if isinstance(layer, Coupling)]
    assert parities == [i % 2 for i in range(depth // 3)] * 3


def test_a_depth_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="3 scales"):
        SliceFlow(5, WIDTHS, 1)
