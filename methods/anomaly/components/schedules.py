"""The arithmetic of Gaussian diffusion: how much of a slice is left at each time, and the steps back from one.

    x_t = √kept_t · x_0 + √(1 − kept_t) · noise          t = 0 … T − 1

Times are counted from 0; the slice itself is what comes before time 0, written −1. Sources: Ho et al. (NeurIPS 2020)
for the linear schedule and the ancestral step, Nichol & Dhariwal (ICML 2021) for the cosine schedule, Song et al.
(ICLR 2021) for the implicit step.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Variance = Literal["small", "large"]
CLEAN = -1  # the "time" of a slice without noise


@dataclass(frozen=True, eq=False)
class Schedule:
    """kept: float64 [T], the share of a slice's energy that is left at each time; it falls."""

    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def kept_at(self, time: int) -> float:
        """1 for the slice itself."""
        return 1.0 if time == CLEAN else float(self.kept[time])

    def noised(self, clean: Tensor, time: int | Tensor, noise: Tensor) -> Tensor:
        """Slices [B, C, H, W] at a time, or at one each, int64 [B]."""
        if isinstance(time, Tensor):
            kept = torch.from_numpy(self.kept).to(clean.device)[time].view(-1, 1, 1, 1)
            return kept.sqrt().to(clean.dtype) * clean + (1 - kept).sqrt().to(clean.dtype) * noise
        kept_at = self.kept_at(time)
        return math.sqrt(kept_at) * clean + math.sqrt(1 - kept_at) * noise

    def clean_from(self, x: Tensor, time: int, noise: Tensor) -> Tensor:
        """The slice that became x at a time through the noise."""
        kept = self.kept_at(time)
        return (x - math.sqrt(1 - kept) * noise) / math.sqrt(kept)

    def noise_from(self, x: Tensor, time: int, clean: Tensor) -> Tensor:
        """The noise through which a slice became x at a time."""
        kept = self.kept_at(time)
        return (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)

    def ancestral(
        self, x: Tensor, time: int, clean: Tensor, noise: Tensor | None, variance: Variance = "small"
    ) -> Tensor:
        """From x at a time to the time before it, given what the slice is taken for: a draw from the posterior.

        variance: of the draw, "small" for that of the posterior given the slice, "large" for β. At time 0 nothing is
        drawn and `noise` is not read.
        """
        kept, before = self.kept_at(time), self.kept_at(time - 1)
        stay = kept / before  # α, that is 1 − β
        mean = (math.sqrt(before) * (1 - stay) * clean + math.sqrt(stay) * (1 - before) * x) / (1 - kept)
        if time == 0 or noise is None:
            return mean
        spread = (1 - stay) * ((1 - before) / (1 - kept) if variance == "small" else 1.0)
        return mean + math.sqrt(spread) * noise

    def implicit(self, x: Tensor, time: int, clean: Tensor, before: int) -> Tensor:
        """From x at a time to any earlier one, or to CLEAN, given what the slice is taken for; nothing is drawn."""
        return self.noised(clean, before, self.noise_from(x, time, clean))


def linear_schedule(times: int, first: float, last: float) -> Schedule:
    """β rises linearly from `first` to `last`."""
    return Schedule(np.cumprod(1 - np.linspace(first, last, times)))


def cosine_schedule(times: int, offset: float = 0.008, most: float = 0.999) -> Schedule:
    """What is kept falls like a squared cosine; no β is larger than `most`."""
    edges = np.cos((np.arange(times + 1) / times + offset) / (1 + offset) * math.pi / 2) ** 2
    return Schedule(np.cumprod(1 - np.minimum(1 - edges[1:] / edges[:-1], most)))


def descent(level: int, steps: int | None, through: Collection[int] = ()) -> list[tuple[int, int]]:
    """(time, the time before it) for every step from `level` to CLEAN.

    steps:   None takes every time. Otherwise so many times, evenly spread, `level` and 0 among them.
    through: times that must be among them: the nearest other one gives way. Raises ValueError where they do not fit.
    """
    times = list(range(level, -1, -1))
    if steps is not None:
        wanted = {level, *through} | ({0} if steps > 1 else set())
        if len(wanted) > steps or steps > level + 1:
            raise ValueError(f"{steps} steps from time {level} do not pass through {len(wanted)} times")
        times = np.linspace(level, 0, steps).round().astype(int).tolist()
        for time in wanted.difference(times):
            free = [index for index, other in enumerate(times) if other not in wanted]
            times[min(free, key=lambda index: abs(times[index] - time))] = time
        times.sort(reverse=True)
    return list(zip(times, [*times[1:], CLEAN], strict=True))
