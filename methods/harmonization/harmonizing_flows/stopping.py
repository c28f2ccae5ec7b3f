"""Rules that choose an epoch of an adaptation, on plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def first_reaching(bpd: Sequence[float], source_bpd: float) -> int:
    """The first epoch whose target BPD is not above the source's; the last one where none is (ours)."""
    return next((epoch for epoch, value in enumerate(bpd) if value <= source_bpd), len(bpd) - 1)


def lowest_entropy(entropies: Iterable[float], patience: int) -> int:
    """The epoch of the lowest entropy, looking no further once `patience` epochs in a row were not lower.

    `entropies` is consumed one by one, so later ones need not be computed.
    """
    best, lowest = 0, float("inf")
    for epoch, value in enumerate(entropies):
        if value < lowest:
            best, lowest = epoch, value
        elif epoch - best >= patience:
            break
    return best


def pixel_entropy(logits: Tensor) -> Tensor:
    """−Σ_c p log p in nats, logits [B, C, H, W] to [B, H, W] in 0..ln C."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
