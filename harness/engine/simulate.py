"""A plan replayed on imaginary workers: how long it would take on 1, 2, … 256, and where more stop helping.

List scheduling as the executor does it: of the stages that are ready the one with the longest remaining path goes
first, into whatever room it asks for. The cluster is one pool: that a node may be too small for what is left of it,
and what it costs to move data, is not modelled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.engine.plan import Stage
from harness.engine.resources import ResourceClasses

DISPATCH_S = 0.002
"""Seconds that the driver spends on a stage; it handles one after the other (ours, benchmarks/perf/scale.py)."""
AROUND_S = 0.015
"""Seconds that a worker spends on a stage beside its function: checks inputs, commits (ours, from the same)."""


@dataclass(frozen=True)
class Replay:
    """How a plan fares on some workers (CPU cores). seconds: from start to end; busy: core-seconds that stages took."""

    workers: int
    seconds: float
    busy: float

    @property
    def efficiency(self) -> float:
        """Share of the workers' time in which stages ran, 0..1."""
        return self.busy / (self.workers * self.seconds) if self.seconds else 1.0

    @property
    def worker_hours(self) -> float:
        """What is paid for where workers are paid by the hour, idle ones included."""
        return self.workers * self.seconds / 3600


class Workload:
    """Stages with durations, ready to be replayed. Needs that are not among the stages count as done.

    path: seconds of the longest chain of stages, which no number of workers can beat. busy: core-seconds in all.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        seconds: Callable[[Stage], float],
        classes: ResourceClasses | None = None,
        *,
        around: float = AROUND_S,
        dispatch: float = DISPATCH_S,
    ):
        """stages: in plan order. seconds: of a stage's function. around, dispatch: added to each, see the constants."""
        stages, classes = tuple(stages), classes or ResourceClasses()
        place = {stage.key: i for i, stage in enumerate(stages)}
        self.dispatch = dispatch
        self._seconds = [max(0.0, seconds(stage)) + around for stage in stages]
        self._after: list[list[int]] = [[] for _ in stages]
        self._waits = [0] * len(stages)
        for i, stage in enumerate(stages):
            for key in {need.key for need in stage.needs.values()} & place.keys():
                self._after[place[key]].append(i)
                self._waits[i] += 1
        self._rest = [0.0] * len(stages)
        for i in reversed(range(len(stages))):
            self._rest[i] = self._seconds[i] + max((self._rest[j] for j in self._after[i]), default=0.0)
        kinds: dict[tuple[float, float], int] = {}
        self._kind = [kinds.setdefault(_ask(stage, classes), len(kinds)) for stage in stages]
        self._asks = list(kinds)
        self.path = max(self._rest, default=0.0)
        self.busy = sum(s * self._asks[kind][0] for s, kind in zip(self._seconds, self._kind, strict=True))

    def on(self, workers: int, gpus: float = 0.0) -> Replay:
        """Replay on so many CPU cores and GPUs. What asks for more than there is takes all there is."""
        asks = [(min(cpus, workers), min(wanted, gpus)) for cpus, wanted in self._asks]
        waits = self._waits.copy()
        ready: list[list[tuple[float, int]]] = [[] for _ in asks]
        for i, count in enumerate(waits):
            if not count:
                heapq.heappush(ready[self._kind[i]], (-self._rest[i], i))
        free = (float(workers), float(gpus))
        running: list[tuple[float, int]] = []
        now = 0.0
        while running or any(ready):
            kind = None if running and running[0][0] <= now else _first(ready, asks, free)
            if kind is not None:
                now += self.dispatch
                i = heapq.heappop(ready[kind])[1]
                heapq.heappush(running, (now + self._seconds[i], i))
                free = (free[0] - asks[kind][0], free[1] - asks[kind][1])
                continue
            end, i = heapq.heappop(running)
            now = max(now, end)
            ask = asks[self._kind[i]]
            free = (free[0] + ask[0], free[1] + ask[1])
            for j in self._after[i]:
                waits[j] -= 1
                if not waits[j]:
                    heapq.heappush(ready[self._kind[j]], (-self._rest[j], j))
        return Replay(workers, now, self.busy)


def counts(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and `most`."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return (*powers, most)


def enough(replays: Sequence[Replay], gain: float = 0.05) -> Replay:
    """The first replay that no later one, with more workers, beats by more than `gain`."""
    fastest = min(replay.seconds for replay in replays)
    return next(replay for replay in replays if replay.seconds <= fastest * (1 + gain))


def _ask(stage: Stage, classes: ResourceClasses) -> tuple[float, float]:
    wanted = getattr(classes, stage.resources)
    return wanted.cpus * stage.workers, wanted.gpus * stage.workers


def _first(
    ready: list[list[tuple[float, int]]], asks: list[tuple[float, float]], free: tuple[float, float]
) -> int | None:
    """Which of the queues has the most urgent stage that fits, None if nothing fits."""
    best = None
    for kind, (cpus, gpus) in enumerate(asks):
        fits = ready[kind] and cpus <= free[0] + 1e-9 and gpus <= free[1] + 1e-9
        if fits and (best is None or ready[kind][0] < ready[best][0]):
            best = kind
    return best
