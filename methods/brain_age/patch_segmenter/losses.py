"""Cross-entropy and the soft Dice with squared denominators, without an array of one-hot labels.

At the published size a batch's logits are 6 GB, and its labels as one-hot planes would be as much again or twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LEAST = 1e-6  # of a denominator, in the authors' code


class Sums(NamedTuple):
    """What the losses need of some voxels, with p the probabilities and y the one-hot labels of C labels.

    log_likelihood: Σ log p of the true label, a number. overlap: Σ p·y, squares: Σ p², sizes: Σ y, each [C].
    """

    log_likelihood: Tensor
    overlap: Tensor
    squares: Tensor
    sizes: Tensor

    def plus(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def sums_of(logits: Tensor, labels: Tensor) -> Sums:
    """Of a batch: logits [B, C, X, Y, Z], labels uint8 [B, X, Y, Z], each below C.

    Probabilities are made patch by patch, and once more on the way back, so that one patch's are held at a time.
    """
    total: Sums | None = None
    for patch, truth in zip(logits, labels, strict=True):
        if torch.is_grad_enabled():
            found = Sums(*checkpoint(_patch_sums, patch, truth, use_reentrant=False, preserve_rng_state=False))
        else:
            found = _patch_sums(patch, truth)
        total = found if total is None else total.plus(found)
    assert total is not None
    return total


def cross_entropy(sums: Sums) -> Tensor:
    """Mean over voxels."""
    return -sums.log_likelihood / sums.sizes.sum()


def soft_dice(sums: Sums) -> Tensor:
    """2 Σ p·y / (Σ p² + Σ y²) of each label, [C]; 0 for a label that does not occur, never nan."""
    return 2 * sums.overlap / (sums.squares + sums.sizes).clamp(min=LEAST)


def _patch_sums(logits: Tensor, labels: Tensor) -> Sums:
    """Of one patch: logits [C, X, Y, Z], labels [X, Y, Z]."""
    n = len(logits)
    log = logits.float().flatten(1).log_softmax(0)  # sums over a patch need more than half precision
    truth = labels.flatten().long()
    of_truth = log.gather(0, truth[None])[0]
    overlap = torch.zeros(n, device=log.device).index_add(0, truth, of_truth.exp())
    squares = (2 * log).exp().sum(1)
    return Sums(of_truth.sum(), overlap, squares, torch.bincount(truth, minlength=n).to(log.dtype))
