"""Regions of a brain in the shape of filled random walks, on the grid of latent cells.

Everything random is drawn with the numpy generator, for a whole batch at once; what is compiled walks and fills.
"""

from __future__ import annotations

import numba
import numpy as np

from methods.anomaly.reflect.settings import Corruption

REFERENCE_CELLS = 32 * 32  # the grid for which longest walks are stated


def draw_regions(brain: np.ndarray, counts: np.ndarray, corruption: Corruption, rng: np.random.Generator) -> np.ndarray:
    """Regions of a batch of brains: uint8 [B, h, w], r in the cells of a slice's r-th region (from 1), 0 elsewhere.

    brain:  [B, h, w] bool. counts: [B], regions of each slice; none are drawn where there is no brain.

    A walk starts in a cell of the brain, each as likely, and tries a move of −1, 0 or 1 along both axes in every step,
    staying where it is instead of leaving the brain. Its region is the path closed to a polygon, filled by the even-odd
    rule, outline and closing edge included; or the visited cells alone. What a polygon holds of cells outside the brain
    is left out. A cell of two regions belongs to the earlier. A region may come out empty where all its cells do.
    """
    slices, height, width = brain.shape
    cells = brain.reshape(slices, -1)
    available = cells.sum(1)
    counts = np.where(available > 0, counts, 0)
    owners = np.repeat(np.arange(slices), counts)
    ordinals = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    lengths = walk_lengths(counts[owners], height * width, corruption, rng)
    ranks = (rng.random(len(owners)) * available[owners]).astype(np.int64)
    first = np.cumsum(available) - available
    starts = np.flatnonzero(cells)[first[owners] + ranks] - owners * height * width
    moves = rng.integers(-1, 2, size=(int(lengths.sum()), 2), dtype=np.int8)
    labels = np.zeros(brain.shape, np.uint8)
    filled = corruption.walk == "polygon"
    _walk_all(labels, np.ascontiguousarray(brain), owners, ordinals, lengths, starts, moves, filled)
    return labels


def walk_lengths(counts: np.ndarray, cells: int, corruption: Corruption, rng: np.random.Generator) -> np.ndarray:
    """Steps of walks, int64 like `counts`, the number of regions in the slice of each; on a grid of `cells`."""
    drawn, lengths = rng.random(len(counts)), np.zeros(len(counts), np.int64)
    for count, longest in enumerate(corruption.longest, start=1):
        weights = np.linspace(corruption.decline, 1.0, max(1, round(longest * cells / REFERENCE_CELLS)))
        cumulative = np.cumsum(weights) / weights.sum()
        chosen = counts == count
        lengths[chosen] = np.searchsorted(cumulative[:-1], drawn[chosen], side="right")
    return lengths


@numba.njit(cache=True)
def _walk_all(labels, brain, owners, ordinals, lengths, starts, moves, filled):  # type: ignore[no-untyped-def]
    """Walk every region in turn and write its number into free cells of its slice's brain."""
    height, width = labels.shape[1:]
    outline = np.zeros((height, width), np.bool_)
    crossed = np.zeros((height, width + 1), np.bool_)
    at = 0
    for region in range(len(owners)):
        outline[:] = False
        crossed[:] = False
        inside = brain[owners[region]]
        y0, x0 = starts[region] // width, starts[region] % width
        y, x = y0, x0
        outline[y, x] = True
        for _ in range(lengths[region]):
            below, right = y + moves[at, 0], x + moves[at, 1]
            at += 1
            if 0 <= below < height and 0 <= right < width and inside[below, right]:
                _cross(crossed, y, x, below, right)
                y, x = below, right
                outline[y, x] = True
        if filled:
            _cross(crossed, y, x, y0, x0)
            _draw_line(outline, y, x, y0, x0)
        target = labels[owners[region]]
        for row in range(height):
            odd = False
            for column in range(width):
                odd ^= crossed[row, column]
                painted = outline[row, column] or (filled and odd)
                if painted and inside[row, column] and target[row, column] == 0:
                    target[row, column] = ordinals[region]


@numba.njit(cache=True)
def _cross(crossed, y0, x0, y1, x1):  # type: ignore[no-untyped-def]
    """Note for each row that an edge crosses the first cell that is not left of it.

    A row belongs to an edge from its upper end, inclusive, to its lower, exclusive: so a corner counts once where the
    polygon goes on downwards, and twice or not at all where it turns. Cells on an edge are the outline's.
    """
    if y0 > y1:
        y0, x0, y1, x1 = y1, x1, y0, x0
    for row in range(y0, y1):
        # The smallest column that is ≥ x0 + (row − y0)(x1 − x0)/(y1 − y0), in whole numbers.
        column = x0 - ((row - y0) * (x0 - x1)) // (y1 - y0)
        crossed[row, column] ^= True


@numba.njit(cache=True)
def _draw_line(cells, y0, x0, y1, x1):  # type: ignore[no-untyped-def]
    """Mark the cells nearest to a straight line: one for each step along its longer axis, halves rounded up."""
    steps = max(abs(y1 - y0), abs(x1 - x0))
    for step in range(steps + 1):
        # (2·step·d + steps) // (2·steps) is step·d/steps, rounded.
        row = y0 + (2 * step * (y1 - y0) + steps) // (2 * max(steps, 1))
        column = x0 + (2 * step * (x1 - x0) + steps) // (2 * max(steps, 1))
        cells[row, column] = True
