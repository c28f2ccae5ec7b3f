"""Nested subsets of the scans that may be learnt from, for curves over training size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.splits import order_of


@dataclass(frozen=True)
class Subset:
    """Ids of the scans that are learnt from, and of those that settings and weights are chosen by."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def nested(scans: Sequence[Any], size: int, validation_share: float, seed: int) -> Subset:
    """The first `size` scans in an order that depends on the seed alone, so a smaller subset lies within a larger.

    scans: with `id` and `subject`, those of the train and validation splits. People stay whole on one side, of which
    validation gets its share as the subset grows; of the last person some scans may be left out. Raises ValueError
    where there are fewer scans, or one side would be empty.
    """
    if size > len(scans):
        raise ValueError(f"there are {len(scans)} scans to learn from, {size} are asked for")
    people: dict[str, list[str]] = {}
    for scan in sorted(scans, key=lambda scan: str(scan.id)):
        people.setdefault(scan.subject, []).append(scan.id)
    train: list[str] = []
    validation: list[str] = []
    for subject in sorted(people, key=lambda name: order_of(name, seed)):
        so_far = len(train) + len(validation)
        side = validation if len(validation) + 0.5 <= validation_share * (so_far + 1) else train
        side += people[subject][: size - so_far]
    if not train or not validation:
        raise ValueError(f"{size} scans with a validation share of {validation_share:g} leave one side empty")
    return Subset(tuple(train), tuple(validation))
