"""Small methods for track tests: real plugins whose effect can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from harness.api import (
    ApplyData,
    Context,
    FitData,
    Generalizer,
    Harmonizer,
    ImageSet,
    MethodError,
    State,
    TaskData,
    TaskModel,
    hyper,
)


def brain_mean(images: ImageSet) -> float:
    return float(images.floats()[np.asarray(images.mask)].mean())


class Stepwise(Harmonizer):
    """Scales to the source's mean in `reach` equal steps; learns mean and spread apart; picks a step."""

    id = "stepwise"
    reference = "ours"
    source_free, task_agnostic, unknown_domains = True, True, True
    validates = True
    late_fields = ("pick",)

    reach: int = hyper(3, "steps from the target's mean to the source's", origin="ours", ge=1)
    floor: float = hyper(0.0, "added to the spread", origin="ours")
    pick: Literal["last", "first", "oracle", "task"] = hyper("last", "which step is shown", origin="ours")

    def fit_parts(self) -> Mapping[str, tuple[str, ...]]:
        return {"mean": (), "spread": ("floor",)}

    def fit_part(self, part: str, data: FitData, ctx: Context) -> State:
        if part == "mean":
            return {"value": brain_mean(data.source)}
        return {"value": self.floor + float(data.validation.floats().std())}

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> State:
        ctx.log("gap", 0, state["mean.value"] - brain_mean(data.target))
        return {**state, "target": brain_mean(data.target)}

    def steps(self, state: State) -> tuple[int, ...]:
        return tuple(range(self.reach + 1))

    def at(self, state: State, step: int) -> State:
        return {**state, "step": step}

    def is_oracle(self) -> bool:
        return self.pick == "oracle"

    def uses_task(self) -> bool:
        return self.pick == "task"

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        if "step" not in state and self.pick == "oracle":
            raise MethodError("the step is to be chosen by labels")
        step = state.get("step", 0 if self.pick == "first" else self.reach)
        if self.pick == "task":
            assert data.task.outcome == "labels"
        ctx.log("chosen_step", 0, step)
        factor = (state["mean.value"] / state["target"]) ** (step / self.reach)
        return np.clip(data.target.floats() * factor, 0, 1)


class PairMean(Harmonizer):
    """Keeps the means of two sites, whichever is the source, and maps each to the other."""

    id = "pair_mean"
    reference = "ours"
    source_free, task_agnostic, unknown_domains = False, True, False
    fit_scope = "pair"

    def fit(self, data: FitData, ctx: Context) -> State:
        return {images.scans[0].site: brain_mean(images) for images in (data.source, data.target)}

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        own = data.target.scans[0].site
        other = next(site for site in state if site != own)
        return np.clip(data.target.floats() * state[other] / state[own], 0, 1)


class PooledMean(Harmonizer):
    """Maps every site to the mean of all."""

    id = "pooled_mean"
    reference = "ours"
    source_free, task_agnostic, unknown_domains = False, True, False
    fit_scope = "sites"

    def fit(self, data: FitData, ctx: Context) -> State:
        return {site: brain_mean(images) for site, images in data.sites.items()}

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        factor = np.mean(list(state.values())) / state[data.target.scans[0].site]
        return np.clip(data.target.floats() * factor, 0, 1)


class Darker(Generalizer):
    """Halves the pixels of training batches."""

    id = "darker"
    reference = "ours"

    def augment(self, pixels: Any, mask: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
        return pixels / 2, labels


class MeanTask(TaskModel):
    """Predicts from the mean of the training pixels: the label 1 in the brain, or an age near the mean."""

    id = "mean_task"
    reference = "ours"

    def train(self, data: TaskData, ctx: Context, augment: Any = None) -> State:
        import torch

        pixels = torch.from_numpy(data.images.floats())[:, None]
        if augment is not None:
            pixels, _ = augment(pixels, pixels[:, 0] > 0, None, torch.Generator())
        return {"mean": float(pixels.mean())}

    def network(self, state: State) -> Any:
        import torch

        class Threshold(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cat([torch.full_like(x, 0.5), (x > 0).float(), x], 1).repeat(1, 5, 1, 1)

        return Threshold()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        return np.where(np.asarray(images.pixels) > 128, 2, 1).astype(np.uint8)


class MeanAge(MeanTask):
    """Every scan has the mean age of the training scans, plus the mean of its pixels."""

    id = "mean_age"
    outcome = "age"

    def train(self, data: TaskData, ctx: Context, augment: Any = None) -> State:
        if any(scan.age is not None for scan in data.images.scans):
            raise MethodError("ages must come as the reference only")
        return {"mean": float(data.ages.mean())}

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        return state["mean"] + images.per_scan(images.floats().mean((1, 2)))
