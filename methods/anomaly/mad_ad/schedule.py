"""The noise of MAD-AD: a short cosine schedule, the steps of a sampling, and what each step of it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OFFSET = 0.008
LARGEST_BETA = 0.999


def cosine_schedule(steps: int) -> np.ndarray:
    """What is left of the signal's variance at times 0..steps−1, ᾱ [steps], falling (Nichol & Dhariwal, ICML 2021).

    Unlike theirs it is made for few steps from the start, not thinned out from a thousand.
    """
    edges = np.cos((np.arange(steps + 1) / steps + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    betas = np.minimum(1 - edges[1:] / edges[:-1], LARGEST_BETA)
    return np.cumprod(1 - betas)


def respaced(total: int, steps: int) -> tuple[int, ...] | None:
    """`steps` of the times 0..total−1 in equal strides from 0; None where no whole stride gives as many.

    As published: two of ten are 0 and 5, five of ten end at 8, not at 9.
    """
    for stride in range(1, total + 1):
        times = tuple(range(0, total, stride))
        if len(times) == steps:
            return times
    return None


@dataclass(frozen=True)
class Step:
    """One step of a DDIM sampling from `time` down to the one before, or to the clean latent from the first.

    signal, previous: ᾱ at the time, and at that before, which is 1 before the first.
    sigma:            standard deviation of the noise that is added.
    """

    time: int
    signal: float
    previous: float
    sigma: float

    def __call__(self, latents: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """Latents at the time before, from those at this one, the prediction of the clean ones, and standard noise."""
        found = (latents - math.sqrt(self.signal) * clean) / math.sqrt(1 - self.signal)
        direction = math.sqrt(max(0.0, 1 - self.previous - self.sigma**2))
        return math.sqrt(self.previous) * clean + direction * found + self.sigma * noise


def sampling_steps(schedule: np.ndarray, times: Sequence[int], eta: float) -> tuple[Step, ...]:
    """The steps of a sampling over the given times (rising), the latest first; `eta` 0: no noise, 1: that of DDPM."""
    signals = [1.0, *(float(schedule[time]) for time in times)]
    steps = []
    for time, previous, signal in zip(times, signals[:-1], signals[1:], strict=True):
        sigma = eta * math.sqrt((1 - previous) / (1 - signal)) * math.sqrt(1 - signal / previous)
        steps.append(Step(time, signal, previous, sigma))
    return tuple(reversed(steps))


def noised(latents: Tensor, noise: Tensor, times: Tensor, where: Tensor, schedule: Tensor) -> Tensor:
    """Latents [B, C, h, w] at times [B], with noise where `where` [B, 1, h, w] says so, and as they are elsewhere."""
    signal = schedule[times][:, None, None, None]
    return torch.where(where, signal.sqrt() * latents + (1 - signal).sqrt() * noise, latents)
