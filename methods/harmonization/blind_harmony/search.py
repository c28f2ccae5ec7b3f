"""BlindHarmony at work: gradient steps towards the input, each drawn to the likely by a pass through the flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.harmonization.blind_harmony.flow import SplineGlow
from methods.harmonization.blind_harmony.levels import dequantize, quantize
from methods.harmonization.blind_harmony.settings import Search

LEAST_NORM = 1e-6
LARGEST = 100.0  # an inverse pass that leaves a slice beyond this has failed
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@torch.no_grad()
def seek(flow: SplineGlow, start: Tensor, seen: Tensor, settings: Search, generator: torch.Generator) -> Tensor:
    """Slices like `seen` and likely under the flow, in 0..1, from a first guess `start`; all [B, 1, H, W].

    A slice that the flow does not give back sound stays, in that iteration, as the gradient step left it.
    """
    x, flat = start, flat_regions(seen, settings)
    for _ in range(settings.iterations):
        x = x - settings.likeness_step * likeness_gradient(x, seen) - settings.edge_step * edge_gradient(x, flat)
        back = _drawn(flow, dequantize(x, generator), settings.latent_shrink)
        found = quantize(back)
        x = torch.where(_sound(back, found)[:, None, None, None], found, x)
    return x


def _drawn(flow: SplineGlow, x: Tensor, shrink: float) -> Tensor:
    """Through the flow, its latents drawn towards 0, and back."""
    # By default a GPU rounds the inputs of convolutions to 10 bits: too coarse to come back to the same 12-bit level.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        latents, _ = flow(x)
        return flow.inverse([(1 - shrink) * z for z in latents])


def likeness_gradient(x: Tensor, seen: Tensor) -> Tensor:
    """Gradient in x of −cos(x, seen), the angle between slices [B, 1, H, W] as vectors, not centred."""
    norm_x, norm_y = (_norm(each).clamp(min=LEAST_NORM) for each in (x, seen))
    product = (x * seen).sum((1, 2, 3), keepdim=True)
    return -seen / (norm_x * norm_y) + product * x / (norm_x**3 * norm_y)


def edge_gradient(x: Tensor, flat: Tensor) -> Tensor:
    """Gradient in x of Σ |flat · Sobel x|, both directions; x [B, 1, H, W], flat [B, 2, H, W].

    A Sobel filter is odd, so with zeros around the slice its transpose is its negative.
    """
    signs = torch.sign(flat * sobel(x))
    along_columns, along_rows = (sobel(signs[:, i : i + 1])[:, i : i + 1] for i in (0, 1))
    return -(along_columns + along_rows)


def flat_regions(seen: Tensor, settings: Search) -> Tensor:
    """Where the input is foreground and without edges, 0 or 1, for both directions of `sobel`; [B, 2, H, W]."""
    foreground = seen > settings.foreground
    edges = sobel(seen).abs()
    flat = torch.zeros_like(edges)
    for i in range(len(seen)):
        within = foreground[i, 0] if settings.flat_within == "foreground" else torch.ones_like(foreground[i, 0])
        if within.any():
            for axis in (0, 1):
                limit = torch.quantile(edges[i, axis][within], settings.flat_percentile / 100)
                flat[i, axis] = (edges[i, axis] < limit) & foreground[i, 0]
    return flat


def sobel(x: Tensor) -> Tensor:
    """3 × 3 Sobel derivatives of x [B, 1, H, W] along columns and along rows, zeros around; [B, 2, H, W]."""
    kernel = x.new_tensor(SOBEL)
    return F.conv2d(x, torch.stack([kernel, kernel.T])[:, None], padding=1)


def _sound(back: Tensor, found: Tensor) -> Tensor:
    """Which slices the flow gave back finite, within bounds and not empty, bool [B]."""
    bounded = (back.abs() <= LARGEST).flatten(1).all(1)  # false for nan
    return bounded & (found != 0).flatten(1).any(1)


def _norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()
