"""What stages ask for, what a cluster has, and whether the one fits into the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from harness.api import Settings


class Resources(Settings):
    """What one stage of a class asks for. GPUs count only where the cluster has any."""

    cpus: float = Field(1, gt=0, description="CPU cores; also the number of threads a stage may use")
    gpus: float = Field(0, ge=0, description="GPUs, fractional below 1; ignored where there are none")
    memory_gib: float = Field(0, ge=0, description="memory that must be free to start; 0 = not considered")
    workers: int = Field(
        1, ge=1, description="train: processes that train one model together, each with these CPUs, GPUs and a batch"
    )
    limit_minutes: float | None = Field(
        None, gt=0, description="longest that one attempt may take; it is then ended and tried again; null: no limit"
    )


class ResourceClasses(Settings):
    """Resource classes of stages; the same YAML serves a laptop and a cluster."""

    prepare: Resources = Resources()
    train: Resources = Resources(gpus=1)
    apply: Resources = Resources(gpus=0.5)
    score: Resources = Resources()


@dataclass(frozen=True)
class Ask:
    """What a stage asks Ray for: `each` by Ray's resource name, for each of `workers` processes."""

    each: Mapping[str, float]
    workers: int = 1

    @property
    def total(self) -> dict[str, float]:
        return {name: amount * self.workers for name, amount in self.each.items()}

    def options(self) -> dict[str, Any]:
        """As options of a Ray task. Of several processes the task is the one that starts them, which takes nothing."""
        if self.workers > 1:
            return {"num_cpus": 0}
        names = {"CPU": "num_cpus", "GPU": "num_gpus"}
        options: dict[str, Any] = {names.get(name, name): amount for name, amount in self.each.items()}
        if "memory" in options:
            options["memory"] = int(options["memory"])
        return options


@dataclass(frozen=True)
class Capacity:
    """Resources of a cluster's nodes: those that are there, and those that an autoscaler may add (with how many)."""

    nodes: tuple[Mapping[str, float], ...] = ()
    coming: tuple[tuple[Mapping[str, float], int], ...] = ()

    def total(self, name: str) -> float:
        """How much there is now."""
        return sum(node.get(name, 0.0) for node in self.nodes)

    def most(self, name: str) -> float:
        """How much there can be."""
        return self.total(name) + sum(node.get(name, 0.0) * count for node, count in self.coming)

    def ask(self, wanted: Resources, *, workers: int = 1) -> Ask:
        """What a stage of this class asks for here. workers: processes that it runs in."""
        each = {"CPU": wanted.cpus}
        if wanted.gpus and self.most("GPU"):
            each["GPU"] = wanted.gpus
        if wanted.memory_gib:
            each["memory"] = wanted.memory_gib * 2**30
        return Ask(each, workers)

    def impossible(self, ask: Ask) -> str:
        """Why no node can ever run this (Ray itself would wait for ever), or ''."""
        for name, amount in ask.each.items():
            largest = max((node.get(name, 0.0) for node in self._kinds()), default=0.0)
            if amount > largest + 1e-9:
                have = f"the largest node has {_shown(name, largest)}"
                return f"asks for {_shown(name, amount)}, {have}; see resources in the YAML"
        room = sum(count * _places(node, ask.each) for node, count in self._counted())
        if room < 1:
            asked = " and ".join(_shown(name, amount) for name, amount in ask.each.items())
            return f"asks for {asked} together, which no node has; see resources in the YAML"
        if room < ask.workers:
            return f"asks for {ask.workers} workers, the cluster has room for {room}; see resources in the YAML"
        return ""

    def _counted(self) -> Iterable[tuple[Mapping[str, float], int]]:
        return (*((node, 1) for node in self.nodes), *self.coming)

    def _kinds(self) -> Iterable[Mapping[str, float]]:
        return (node for node, count in self._counted() if count)


@dataclass
class Usage:
    """What the stages in flight take, so that no more are submitted than can run."""

    taken: dict[str, float] = field(default_factory=dict)

    def fits(self, ask: Ask, capacity: Capacity) -> bool:
        return all(
            self.taken.get(name, 0.0) + amount <= capacity.most(name) + 1e-9 for name, amount in ask.total.items()
        )

    def take(self, ask: Ask) -> None:
        for name, amount in ask.total.items():
            self.taken[name] = self.taken.get(name, 0.0) + amount

    def give_back(self, ask: Ask) -> None:
        for name, amount in ask.total.items():
            self.taken[name] = max(0.0, self.taken.get(name, 0.0) - amount)


def _places(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many such processes the node holds. GPU shares do not straddle GPUs: two of 0.6 need two."""
    places = []
    for name, amount in each.items():
        have = node.get(name, 0.0)
        if name == "GPU" and amount < 1:
            places.append(int(have) * int(1 / amount + 1e-9))
        else:
            places.append(int(have / amount + 1e-9))
    return min(places, default=0)


def _shown(name: str, amount: float) -> str:
    return f"{amount / 2**30:.3g} GiB memory" if name == "memory" else f"{amount:g} {name}"
