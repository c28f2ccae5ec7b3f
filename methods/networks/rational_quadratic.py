"""Monotone rational-quadratic splines (Durkan et al., Neural Spline Flows, NeurIPS 2019), with linear tails.

Within [−bound, bound] a spline of K bins, outside the identity, smoothly joined: both ends have slope 1. A spline is
given by 3K − 1 unconstrained numbers; with all of them 0 it is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def parameters_per_spline(bins: int) -> int:
    """How many numbers `rational_quadratic` wants for each element: K widths, K heights, K − 1 inner slopes."""
    return 3 * bins - 1


def rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float, minimum: float = 1e-3, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """(y, log dy/dx), both of the shape of x, which may be any; with `inverse`, (x of y, log dx/dy).

    parameters: [..., 3K − 1], leading dimensions those of x.
    minimum:    least width and height of a bin, as a fraction of [−bound, bound], and least slope; K·minimum < 1.
    """
    bins = (parameters.shape[-1] + 1) // 3
    widths, heights, slopes = parameters.split([bins, bins, bins - 1], -1)
    inside = x.abs() <= bound
    left, width = _bins(widths, bound, minimum)
    bottom, height = _bins(heights, bound, minimum)
    # softplus(0 + shift) + minimum = 1: equal bins with these slopes are the identity.
    slope = minimum + F.softplus(slopes + math.log(math.expm1(1 - minimum)))
    slope = F.pad(slope, (1, 1), value=1.0)

    given = torch.where(inside, x, torch.zeros_like(x))
    chosen = (given[..., None] >= (bottom if inverse else left)[..., 1:]).sum(-1, keepdim=True)
    x0, w, y0, h, d0 = (each.gather(-1, chosen)[..., 0] for each in (left, width, bottom, height, slope))
    d1 = slope.gather(-1, chosen + 1)[..., 0]
    s = h / w
    bend = d0 + d1 - 2 * s

    if inverse:
        rise = given - y0
        a, b, c = h * (s - d0) + rise * bend, h * d0 - rise * bend, -s * rise
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        place = 2 * c / (-b - root)  # the form that does not cancel
        out = x0 + place * w
    else:
        place = (given - x0) / w
    between = place * (1 - place)
    below = s + bend * between
    if not inverse:
        out = y0 + h * (s * place.square() + d0 * between) / below
    rate = s.square() * (d1 * place.square() + 2 * s * between + d0 * (1 - place).square())
    log_slope = rate.log() - 2 * below.log()
    log_slope = -log_slope if inverse else log_slope
    return torch.where(inside, out, x), torch.where(inside, log_slope, torch.zeros_like(x))


def _bins(raw: Tensor, bound: float, minimum: float) -> tuple[Tensor, Tensor]:
    """Lower edges and sizes, both [..., K], of bins that together fill [−bound, bound]."""
    size = 2 * bound * (minimum + (1 - minimum * raw.shape[-1]) * raw.softmax(-1))
    return F.pad(size[..., :-1].cumsum(-1), (1, 0)) - bound, size
