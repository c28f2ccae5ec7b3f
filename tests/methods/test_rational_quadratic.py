"""Rational-quadratic splines: exact inverses and slopes, the identity at zero, and linear tails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.networks.rational_quadratic import parameters_per_spline, rational_quadratic


def material(bins: int = 8, n: int = 4000, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Places in −4..4, ends of the bent part and a knot's neighbourhood among them, and wild splines."""
    generator = torch.Generator().manual_seed(0)
    x = 8 * torch.rand(n, generator=generator, dtype=torch.float64) - 4
    x[:4] = torch.tensor([-3.0, 3.0, 0.0, 3.0 - 1e-12])
    parameters = spread * torch.randn(n, parameters_per_spline(bins), generator=generator, dtype=torch.float64)
    return x, parameters


@pytest.mark.parametrize("bins", [2, 4, 8])
def test_the_inverse_is_exact_and_slopes_are_reciprocal(bins: int) -> None:
    x, parameters = material(bins)
    y, log_slope = rational_quadratic(x, parameters, bound=3.0)
    back, log_back = rational_quadratic(y, parameters, bound=3.0, inverse=True)
    assert (back - x).abs().max() < 1e-9
    assert (log_back + log_slope).abs().max() < 1e-7
    assert (y - x).abs().max() > 0.5


def test_slopes_agree_with_autograd() -> None:
    x, parameters = material()
    x.requires_grad_(True)
    y, log_slope = rational_quadratic(x, parameters, bound=3.0)
    slope = torch.autograd.grad(y.sum(), x)[0]
    assert torch.allclose(slope.log(), log_slope, atol=1e-8)


def test_zeros_are_the_identity() -> None:
    x, parameters = material()
    y, log_slope = rational_quadratic(x, torch.zeros_like(parameters), bound=3.0)
    assert (y - x).abs().max() < 1e-12
    assert log_slope.abs().max() < 1e-12


def test_outside_the_bound_nothing_bends_and_inside_it_rises() -> None:
    parameters = material()[1][:1]
    x = torch.linspace(-4, 4, 5001, dtype=torch.float64)
    y, log_slope = rational_quadratic(x, parameters.expand(5001, -1), bound=3.0)
    outside = x.abs() > 3
    assert torch.equal(y[outside], x[outside])
    assert torch.equal(log_slope[outside], torch.zeros_like(x[outside]))
    assert (y.diff() > 0).all()
    # Smooth at the seam: the slope is 1 on both sides.
    assert log_slope[(x.abs() - 3).abs().argmin()].abs() < 0.05


def test_every_bin_and_slope_keeps_its_minimum() -> None:
    parameters = torch.zeros(1, parameters_per_spline(4), dtype=torch.float64)
    parameters[0, 0], parameters[0, 8:] = 200.0, -200.0  # one bin would take all, slopes would vanish
    x = torch.linspace(-2.999, 2.999, 100_001, dtype=torch.float64)
    y, log_slope = rational_quadratic(x, parameters.expand(len(x), -1), bound=3.0, minimum=0.1)
    assert torch.isfinite(log_slope).all()
    back, _ = rational_quadratic(y, parameters.expand(len(x), -1), bound=3.0, minimum=0.1, inverse=True)
    assert (back - x).abs().max() < 1e-9
    # Three bins of 0.1 · 6 are left; each rises by 6 / 4, so the first spans 6 − 3 · 0.6 and rises by as much.
    at, _ = rational_quadratic(torch.tensor([-3 + 6 * 0.7], dtype=torch.float64), parameters, bound=3.0, minimum=0.1)
    assert at.item() == pytest.approx(-3 + 6 / 4, abs=1e-9)


def test_float32_round_trip_is_far_below_a_level_of_12_bits() -> None:
    x, parameters = (each.float() for each in material())
    y, _ = rational_quadratic(x, parameters / 4, bound=3.0)
    back, _ = rational_quadratic(y, parameters / 4, bound=3.0, inverse=True)
    assert (back - x).abs().max() < 1e-4
