"""The flow from corrupted to healthy latents: its velocity's loss, and Euler's method along it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, h, w], times [B] in 0..1) → change of the latents in a unit of time."""


def velocity_loss(velocity: Velocity, start: Tensor, end: Tensor, times: Tensor) -> Tensor:
    """Mean squared error of the velocity on the straight line from `start` at time 0 to `end` at 1.

    Liu et al., ICLR 2023: at time t the point start + t·(end − start) moves by end − start.
    """
    change = end - start
    return F.mse_loss(velocity(start + times[:, None, None, None] * change, times).float(), change)


def euler(velocity: Velocity, latents: Tensor, steps: int) -> Iterator[Tensor]:
    """Latents after each of `steps` equal steps from time 0, where they are given, to time 1.

    The velocity is learnt on end − start, so it is added: eq. 5.9 of the thesis subtracts it, which would double what
    it is to remove.
    """
    for step in range(steps):
        times = torch.full((len(latents),), step / steps, device=latents.device)
        latents = latents + velocity(latents, times) / steps
        yield latents


def carried(velocity: Velocity, latents: Tensor, steps: int) -> Tensor:
    """Latents at time 1; see `euler`."""
    *_, last = euler(velocity, latents, steps)
    return last
