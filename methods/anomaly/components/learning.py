"""What the trainings of diffusion models ask of their slices, and how long they last."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.api import ImageSet, MethodError
from harness.training import TrainingSettings


def updates(epochs: int, slices: int, training: TrainingSettings) -> int:
    """Updates of so many passes over so many slices, the last batch of each filled up; at most `iterations`."""
    return min(training.iterations, epochs * math.ceil(slices / training.batch_size))


def not_empty(images: ImageSet, method: str, split: str) -> ImageSet:
    if len(images) == 0:
        raise MethodError(f"{method}: there are no healthy {split} slices; give that split more scans")
    return images


def check_size(images: ImageSet, multiple: int, method: str) -> None:
    """Raises MethodError where slices cannot be halved as often as the network does."""
    height, width = images.pixels.shape[1:]
    if height % multiple or width % multiple:
        raise MethodError(
            f"{method}: slices are {height} × {width} pixels; the network needs multiples of {multiple}: set the size "
            "in the data's preparation"
        )


def spread(n: int, most: int) -> np.ndarray:
    """At most so many of n slices, evenly spread, int64 [K]."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def portions(n: int, size: int) -> Iterator[slice]:
    """0..n in slices of at most `size`."""
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))
