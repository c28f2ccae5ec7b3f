"""Exact surface distances and HD95 of all labels at once, for 2-D and 3-D label maps.

A label's surface is the set of its voxels with a face neighbour of another label; outside of the image is
background. The distance of a surface voxel is the Euclidean distance, between voxel centres, to the nearest
voxel of the same label's surface in the other map. Two exact searches share the work:

1. near: visit the neighbourhood in order of physical distance until the other surface is met;
2. far: what is not met within the neighbourhood goes to a separable distance transform of that one label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from harness.metrics.overlap import IntArray, check_label_maps, check_label_range

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = Literal["ok", "gt_empty", "pred_empty", "both_empty"]
Want = Literal["max", "pooled", "torch"]

# Ours. On the cases of benchmarks/perf/metrics.py the time changes little between 200 and 1600 voxels.
NEIGHBOURHOOD = 400  # voxels that the near search visits
GIVE_UP_AFTER = 64  # misses after which a label that mostly misses is left to the far search
UNREACHED = 1 << 28  # more steps than any image has voxels along an axis, and no overflow when one is added


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the two surfaces of one label, in the unit of the spacing.

    gt_to_pred: float64 [surface voxels of the ground truth]; pred_to_gt: float64 [surface voxels of the prediction].
    Both are empty unless both maps contain the label.
    penalty: what a label scores that only one map contains: the diagonal of the whole image.
    """

    gt_to_pred: Floats
    pred_to_gt: Floats
    state: State
    penalty: float

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles (linear interpolation)."""
        if self.state != "ok":
            return self._missing
        return max(_percentile95(self.gt_to_pred), _percentile95(self.pred_to_gt))

    @property
    def hd95_pooled(self) -> float:
        """The 95th percentile of both directions together: MedPy's definition, which hides small islands."""
        if self.state != "ok":
            return self._missing
        return _percentile95(np.concatenate([self.gt_to_pred, self.pred_to_gt]))

    @property
    def hd95_torch(self) -> float:
        """`hd95` in float32 with torch's rank and interpolation, equal to MONAI's; nan where a map lacks the label."""
        if self.state != "ok":
            return math.nan
        return max(_percentile95_float32(self.gt_to_pred), _percentile95_float32(self.pred_to_gt))

    @property
    def _missing(self) -> float:
        """Absent from both maps: nothing to score. From one: the penalty, so that absence never pays."""
        return math.nan if self.state == "both_empty" else self.penalty


def hd95_all(
    gt: IntArray, pred: IntArray, n_labels: int, spacing: Sequence[float], want: Sequence[Want] = ("max", "pooled")
) -> dict[int, dict[Want, float]]:
    """HD95 of the labels 1..n_labels-1 in the unit of `spacing`: {label: {definition: value}}.

    Definitions: "max", "pooled" and "torch" are `SurfaceDistances.hd95`, `.hd95_pooled` and `.hd95_torch`.
    Arguments and errors as for `surface_distances`.
    """
    attribute: dict[Want, str] = {"max": "hd95", "pooled": "hd95_pooled", "torch": "hd95_torch"}
    if unknown := set(want) - set(attribute):
        raise ValueError(f"unknown definition of HD95 {sorted(unknown)}: choose from {sorted(attribute)}")
    (distances,) = surface_distances(gt, pred, n_labels, [spacing])
    return {label: {w: getattr(found, attribute[w]) for w in want} for label, found in distances.items()}


@dataclass(frozen=True)
class LabelScore:
    """One value for the records. metric: an id of `harness.metrics.catalogue`.

    status: "ok"; "penalised" where one map lacks the label; "empty", with the value nan, where both do.
    """

    label: int
    metric: str
    value: float
    status: Literal["ok", "penalised", "empty"]


def hd95_records(gt: IntArray, pred: IntArray, n_labels: int, spacing: Sequence[float]) -> list[LabelScore]:
    """hd95, hd95_pooled (in the unit of `spacing`), hd95_unit (pooled, in voxels) and hd95_missing of each label.

    hd95_missing is 1 where exactly one map has the label, else 0. Arguments and errors as for `surface_distances`.
    """
    true, unit = surface_distances(gt, pred, n_labels, [spacing, (1.0,) * len(spacing)])
    scores = []
    for label, found in true.items():
        missing = found.state in ("gt_empty", "pred_empty")
        status: Literal["ok", "penalised", "empty"] = (
            "penalised" if missing else "empty" if found.state == "both_empty" else "ok"
        )
        scores += [
            LabelScore(label, "hd95", found.hd95, status),
            LabelScore(label, "hd95_pooled", found.hd95_pooled, status),
            LabelScore(label, "hd95_unit", unit[label].hd95_pooled, status),
            LabelScore(label, "hd95_missing", float(missing), "ok"),
        ]
    return scores


def surface_distances(
    gt: IntArray, pred: IntArray, n_labels: int, spacings: Sequence[Sequence[float]]
) -> list[dict[int, SurfaceDistances]]:
    """Surface distances of the labels 1..n_labels-1, once for each of `spacings`: [{label: distances}].

    gt, pred: integer label maps [H, W] or [D, H, W] with values in [0, n_labels), 0 = background.
    spacings: voxel sizes along the axes of the maps, in mm; ask for (1, 1, 1) beside the true one to have voxel
    units too, the surfaces are found only once.
    Raises ValueError for other shapes, types, values or spacings.
    """
    check_label_maps(gt, pred, n_labels)
    if gt.ndim not in (2, 3) or gt.size == 0:
        raise ValueError(f"surface distances need a non-empty 2-D or 3-D label map, not shape {gt.shape}")
    for spacing in spacings:
        if len(spacing) != gt.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"spacing must be {gt.ndim} positive numbers, not {tuple(spacing)}")
    check_label_range(gt, pred, n_labels)

    balls = [_ball(tuple(float(s) for s in spacing)) for spacing in spacings]
    margin = np.max([np.ones(gt.ndim, np.int64), *(b.offsets.max(axis=1) for b in balls)], axis=0)
    inside = _foreground_box(gt, pred)
    surface_gt, surface_pred = (_Surface.of(labels[inside], n_labels, margin) for labels in (gt, pred))
    results = []
    for ball in balls:
        penalty = math.sqrt(sum((n * s) ** 2 for n, s in zip(gt.shape, ball.spacing, strict=True)))
        there = _directed(surface_gt, surface_pred, ball)
        back = _directed(surface_pred, surface_gt, ball)
        results.append(
            {
                label: SurfaceDistances(there[label], back[label], _state(surface_gt, surface_pred, label), penalty)
                for label in range(1, n_labels)
            }
        )
    return results


# Surfaces ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Surface:
    """The surfaces of all labels of one map, padded so that no neighbourhood of a voxel leaves the array.

    labels: [padded volume] flat, the label on its surface and 0 elsewhere. positions: flat indices of the surface
    voxels, label after label and ascending within each: those of label i are positions[starts[i]:starts[i + 1]].
    """

    labels: NDArray[np.unsignedinteger]
    shape: tuple[int, ...]
    positions: Ints
    starts: Ints

    @staticmethod
    def of(labels: IntArray, n_labels: int, margin: Ints) -> _Surface:
        shape = tuple(int(n + 2 * m) for n, m in zip(labels.shape, margin, strict=True))
        # A length that is a multiple of 8 can be skipped through in words.
        size = -(-math.prod(shape) // 8) * 8
        padded = np.zeros(size, np.uint8 if n_labels <= 256 else np.uint32)
        middle = tuple(slice(m, m + n) for n, m in zip(labels.shape, margin, strict=True))
        padded[: math.prod(shape)].reshape(shape)[middle] = labels
        edges = np.zeros_like(padded)
        strides = _strides(shape)
        if len(shape) == 2:
            _mark_surface_2d(padded, strides[0], edges)
        else:
            _mark_surface_3d(padded, strides[0], strides[1], edges)
        positions, starts = _positions_by_label(edges, edges.view(np.uint64), np.count_nonzero(edges), n_labels)
        return _Surface(edges, shape, positions, starts)

    def of_label(self, label: int) -> Ints:
        return self.positions[self.starts[label] : self.starts[label + 1]]


def _foreground_box(gt: IntArray, pred: IntArray) -> tuple[slice, ...]:
    """The smallest box with all foreground of both maps; around it is background as around the image."""
    either = np.maximum(gt, pred)
    box = []
    for axis in range(either.ndim):
        filled = np.flatnonzero(either.max(axis=tuple(a for a in range(either.ndim) if a != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 1))
    return tuple(box)


def _state(gt: _Surface, pred: _Surface, label: int) -> State:
    in_gt, in_pred = gt.of_label(label).size > 0, pred.of_label(label).size > 0
    if in_gt and in_pred:
        return "ok"
    if in_gt or in_pred:
        return "pred_empty" if in_gt else "gt_empty"
    return "both_empty"


def _strides(shape: tuple[int, ...]) -> Ints:
    """Flat steps along each axis of a C-ordered array."""
    return np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.int64)


@numba.njit(cache=True)
def _mark_surface_3d(padded, step_0, step_1, edges):  # type: ignore[no-untyped-def]
    """Label where any of the six neighbours differs. Branchless on shifted views, so that it vectorises."""
    n = padded.size - 2 * step_0
    here, out = padded[step_0 : step_0 + n], edges[step_0 : step_0 + n]
    a0, b0 = padded[:n], padded[2 * step_0 :]
    a1, b1 = padded[step_0 - step_1 : step_0 - step_1 + n], padded[step_0 + step_1 : step_0 + step_1 + n]
    a2, b2 = padded[step_0 - 1 : step_0 - 1 + n], padded[step_0 + 1 : step_0 + 1 + n]
    for i in range(n):
        c = here[i]
        differs = (c ^ a0[i]) | (c ^ b0[i]) | (c ^ a1[i]) | (c ^ b1[i]) | (c ^ a2[i]) | (c ^ b2[i])
        out[i] = c if differs != 0 else 0


@numba.njit(cache=True)
def _mark_surface_2d(padded, step_0, edges):  # type: ignore[no-untyped-def]
    """As `_mark_surface_3d`, with four neighbours."""
    n = padded.size - 2 * step_0
    here, out = padded[step_0 : step_0 + n], edges[step_0 : step_0 + n]
    a0, b0 = padded[:n], padded[2 * step_0 :]
    a1, b1 = padded[step_0 - 1 : step_0 - 1 + n], padded[step_0 + 1 : step_0 + 1 + n]
    for i in range(n):
        c = here[i]
        differs = (c ^ a0[i]) | (c ^ b0[i]) | (c ^ a1[i]) | (c ^ b1[i])
        out[i] = c if differs != 0 else 0


@numba.njit(cache=True)
def _positions_by_label(edges, words, n_edges, n_labels):  # type: ignore[no-untyped-def]
    """Counting sort of the surface voxels; a word of background is skipped in one comparison."""
    lanes = edges.size // words.size
    found = np.empty(n_edges + 1, np.int64)  # one spare place for the voxel that the branchless step writes last
    n = 0
    for w in range(words.size):
        if words[w] != 0:
            for i in range(w * lanes, (w + 1) * lanes):
                found[n] = i
                n += edges[i] != 0
    starts = np.zeros(n_labels + 1, np.int64)
    for i in found[:n]:
        starts[edges[i] + 1] += 1
    for label in range(n_labels):
        starts[label + 1] += starts[label]
    cursor = starts.copy()
    positions = np.empty(n, np.int64)
    for i in found[:n]:
        positions[cursor[edges[i]]] = i
        cursor[edges[i]] += 1
    return positions, starts


# Near and far search ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ball:
    """All offsets [axes, k] within some radius of the origin, and their distances [k], nearest first."""

    spacing: tuple[float, ...]
    offsets: Ints
    distances: Floats


@lru_cache(maxsize=32)
def _ball(spacing: tuple[float, ...]) -> _Ball:
    """The ball of about NEIGHBOURHOOD voxels. It holds every offset within its radius, so nearest-first is exact."""
    measure = NEIGHBOURHOOD * math.prod(spacing)
    radius = math.sqrt(measure / math.pi) if len(spacing) == 2 else (measure * 3 / (4 * math.pi)) ** (1 / 3)
    reach = [int(radius / s) for s in spacing]
    grid = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    offsets = np.stack([axis.reshape(-1) for axis in grid])
    distances = _length(offsets, spacing)
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] <= radius]
    return _Ball(spacing, offsets[:, order], distances[order])


def _length(offsets: Ints, spacing: tuple[float, ...]) -> Floats:
    """Euclidean length of the offsets [axes, k]; the axes are added in order, which fixes the last bit."""
    squared = np.zeros(offsets.shape[1])
    for along, step in zip(offsets, spacing, strict=True):
        squared += (along * step) ** 2
    return np.sqrt(squared)


def _directed(source: _Surface, target: _Surface, ball: _Ball) -> list[Floats]:
    """For every label, the distances from the source's surface voxels to the target's surface; [] if it has none."""
    distances = np.full(source.positions.size, np.inf)
    steps = _strides(source.shape) @ ball.offsets
    _near(source.positions, source.starts, target.labels, target.starts, steps, ball.distances, distances)
    found = []
    for label in range(len(source.starts) - 1):
        mine, theirs = distances[source.starts[label] : source.starts[label + 1]], target.of_label(label)
        if theirs.size == 0:
            mine = mine[:0]
        missed = np.flatnonzero(np.isinf(mine))
        if missed.size:
            mine[missed] = _far(source.of_label(label)[missed], theirs, source.shape, ball.spacing)
        found.append(mine)
    return found


@numba.njit(cache=True)
def _near(positions, starts, target, target_starts, steps, lengths, distances):  # type: ignore[no-untyped-def]
    """Write the distance of each voxel whose target lies within the ball; leave the others as they are."""
    for label in range(1, starts.size - 1):
        if target_starts[label] == target_starts[label + 1]:
            continue
        missed = 0
        for q in range(starts[label], starts[label + 1]):
            here = positions[q]
            hit = False
            for k in range(steps.size):
                if target[here + steps[k]] == label:
                    distances[q] = lengths[k]
                    hit = True
                    break
            if not hit:
                missed += 1
                # A label that has mostly moved away is cheaper to leave to the far search altogether.
                if missed >= GIVE_UP_AFTER and 2 * missed > q - starts[label]:
                    break


def _far(queries: Ints, targets: Ints, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Floats:
    """Exact distance of each query to the nearest target; both are flat positions in a volume of this shape."""
    query = np.stack(np.unravel_index(queries, shape))
    target = np.stack(np.unravel_index(targets, shape))
    if len(shape) == 2:
        query, target = (np.concatenate([c, np.zeros_like(c[:1])]) for c in (query, target))
    origin = np.minimum(query.min(axis=1), target.min(axis=1))
    query, target = query - origin[:, None], target - origin[:, None]

    # Axis roles: sweeps along "x", envelopes along "y", and one "plane" after the other along the flattest axis.
    plane = int(np.argmin(np.ptp(target, axis=1)))
    roles = [*(axis for axis in range(3) if axis != plane), plane]
    sizes = np.array([*spacing, 1.0][:3])[roles]
    query, target = query[roles], target[roles]
    extent = 1 + np.maximum(query.max(axis=1), target.max(axis=1))
    order = np.argsort((query[0] * extent[1] + query[1]) * extent[2] + query[2])

    along_x, rows = _row_distances(target, int(extent[0]))
    nearest = _nearest_targets(query, order, along_x, rows, target.min(axis=1)[1:], sizes)
    return _length(nearest[np.argsort(roles)][: len(spacing)], spacing)


def _row_distances(target: Ints, extent_x: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Along every row of the targets' box in x: steps to the nearest target, int32 [x, plane, y]; and which rows
    hold a target, bool [plane, y]. Empty rows hold large numbers.
    """
    _, y, z = target - target.min(axis=1)[:, None]
    rows = np.zeros((int(z.max()) + 1, int(y.max()) + 1), np.bool_)
    rows[z, y] = True
    steps = np.full((extent_x, *rows.shape), UNREACHED, np.int32)
    steps[target[0], z, y] = 0
    _sweep(steps.reshape(extent_x, rows.size))
    return steps, rows


@numba.njit(cache=True)
def _sweep(steps):  # type: ignore[no-untyped-def]
    """Forwards, then backwards along the first axis: one step more than the neighbour, if that is less."""
    last = steps.shape[0] - 1
    for i in range(2 * last):
        x, before = (i + 1, i) if i < last else (2 * last - i - 1, 2 * last - i)
        here, neighbour = steps[x], steps[before]
        for r in range(here.size):
            here[r] = min(here[r], neighbour[r] + np.int32(1))


@numba.njit(cache=True)
def _nearest_targets(query, order, along_x, rows, origin, sizes):  # type: ignore[no-untyped-def]
    """The offset (x, y, plane) to the nearest target of each query, int64 [3, queries]; `order` sorts by x, then y.

    At one x, each plane of targets is a set of parabolas over y (height: squared distance along x). Every query asks
    their lower envelopes, its own plane first, then outwards for as long as a plane can still hold something nearer.
    """
    n, (n_planes, n_rows) = query.shape[1], rows.shape
    size_x, size_y, size_z = sizes
    nearest = np.zeros((3, n), np.int64)
    apex, height = np.empty((n_planes, n_rows), np.int64), np.empty((n_planes, n_rows))
    begin = np.empty((n_planes, n_rows))
    count = np.empty(n_planes, np.int64)
    at = np.empty(n_planes, np.int64)
    x = np.int64(-1)
    for q in order:
        if query[0, q] != x:
            x = query[0, q]
            count[:] = -1  # no envelope is built at this x yet
        y, z = query[1, q] - origin[0], query[2, q] - origin[1]
        best = np.inf
        outward = max(z, n_planes - 1 - z, -z, z - n_planes + 1)
        for steps in range(outward + 1):
            dz = steps * size_z
            if dz * dz >= best:
                break
            for p in (z - steps, z + steps):
                if p < 0 or p >= n_planes or (steps == 0 and p != z):
                    continue
                if count[p] < 0:
                    count[p] = _envelope(along_x[x, p], rows[p], size_x, size_y, apex[p], height[p], begin[p])
                    at[p] = 0
                if count[p] == 0:
                    continue
                e = at[p]
                while e + 1 < count[p] and begin[p, e + 1] <= y + 1e-9:
                    e += 1
                at[p] = e
                while True:
                    dy = (y - apex[p, e]) * size_y
                    squared = height[p, e] + dy * dy + dz * dz
                    if squared < best:
                        best = squared
                        nearest[0, q] = along_x[x, p, apex[p, e]]
                        nearest[1, q] = y - apex[p, e]
                        nearest[2, q] = steps
                    if e == 0 or begin[p, e] < y - 1e-9:
                        break
                    e -= 1  # the crossing lies on the query itself: both sides are nearest, but for the last bit
    return nearest


@numba.njit(cache=True)
def _envelope(steps, rows, size_x, size_y, apex, height, begin):  # type: ignore[no-untyped-def]
    """Lower envelope of the parabolas over the rows with targets; returns their number.

    Parabola i is lowest from begin[i] to begin[i + 1] and has its apex (apex[i], height[i]).
    Source: Felzenszwalb and Huttenlocher, Theory of Computing 2012.
    """
    count = 0
    for y in range(rows.size):
        if not rows[y]:
            continue
        h = (steps[y] * size_x) ** 2
        start = -np.inf
        while count > 0:
            last = count - 1
            gap = y - apex[last]
            start = 0.5 * ((h - height[last]) / (size_y * size_y * gap) + y + apex[last])
            # An apex that is lowest at a single point stays: it may be the smaller one in the last bit.
            if start >= begin[last] - 1e-9:
                break
            count = last
            start = -np.inf
        apex[count], height[count], begin[count] = y, h, start
        count += 1
    return count


# Percentiles ------------------------------------------------------------------------------------------------------


def _percentile95(distances: Floats) -> float:
    """numpy's linear 95th percentile, without the overhead of np.percentile."""
    rank = (distances.size - 1) * 0.95
    low, high = _order_statistics(distances, math.floor(rank))
    part = rank - math.floor(rank)
    # The same two forms as numpy, which differ in the last bit.
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def _percentile95_float32(distances: Floats) -> float:
    """torch.quantile on float32: the rank is rounded to float32, the interpolation is one fused operation."""
    rank = np.float32(0.95) * np.float32(distances.size - 1)
    low, high = (np.float32(d) for d in _order_statistics(distances, math.floor(rank)))
    part = rank - np.float32(math.floor(rank))
    base, weight = (low, part) if part < 0.5 else (high, part - np.float32(1))
    # In float64 the product is exact, so this rounds as a fused multiply-add does but for one case in 2**29.
    return float(np.float32(float(base) + float(weight) * float(high - low)))


def _order_statistics(distances: Floats, rank: int) -> tuple[float, float]:
    """The values of rank `rank` and the next one (the last value stands for what is beyond it)."""
    partitioned = np.partition(distances, rank)
    at, above = partitioned[rank], partitioned[rank + 1 :]
    return float(at), float(above.min() if above.size else at)
