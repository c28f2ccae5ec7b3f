"""BlindHarmony: the method as the harness calls it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import field_validator

from harness.api import ApplyData, Context, FitData, Harmonizer, ImageSet, MethodError, State, hyper
from methods.harmonization._places import nearest_in_place
from methods.harmonization.blind_harmony.learning import (
    learn_flow,
    load_flow,
    mean_percentiles,
    mean_slices,
    unit_slices,
)
from methods.harmonization.blind_harmony.levels import pad
from methods.harmonization.blind_harmony.search import seek
from methods.harmonization.blind_harmony.settings import PAPER, FlowSettings, Search


class BlindHarmony(Harmonizer):
    """A flow learns the density of source slices; a target slice is replaced by one alike that the flow finds likely.

    From the mean source slice at the same place, `seek` climbs the cosine to the target slice, and after each step
    draws the result towards the centre of the flow's latent space. Nothing is trained at the target. Slices are
    scaled each to its own range, and the cosine knows no scale: intensities come back at the end, by `rescale`.
    """

    id = "blind_harmony"
    reference = "Jeong et al., BlindHarmony: “Blind” Harmonization for MR Images via Flow model, ICCV 2023"
    notes = (
        "The authors' scripts are incomplete; steps follow their formulas. Ours: training slices are shuffled, slices "
        "are padded to the flow's multiple, the percentile of flat regions is of the foreground, widths and heights "
        "of splines are divided by √hidden before their softmax, and intensities are rescaled scan by scan. A batch "
        "of 256 whole slices needs several GPUs: lower flow.training.batch_size."
    )
    source_free, task_agnostic, unknown_domains = True, True, True
    validates = True
    late_fields = ("search", "rescale")

    flow: FlowSettings = hyper(FlowSettings(), "density of source slices", origin=PAPER)
    search: Search = hyper(Search(), "how a likely slice is sought", origin=PAPER)
    rescale: Literal["scan", "none"] = hyper(
        "scan",
        "scan: the `percentiles` of each harmonised scan become the source's, affinely; none: slices stay in 0..1, "
        "each over its own range",
        origin="ours; the paper works on slices of range 0..1",
    )
    percentiles: tuple[float, float] = hyper(
        (1.0, 99.0), "percentiles of the brain that `rescale` matches", origin="ours"
    )

    @field_validator("percentiles")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("percentiles must be [low, high] with 0 <= low < high <= 100")
        return value

    @classmethod
    def example(cls) -> BlindHarmony:
        return cls.model_validate(
            {
                "flow": {
                    "levels": 2,
                    "steps": 1,
                    "hidden": 4,
                    "blocks": 1,
                    "bins": 4,
                    "training": {"iterations": 4, "batch_size": 4, "validate_every": 2},
                },
                "search": {"iterations": 2, "likeness_step": 160.0},
            }
        )

    def fit(self, data: FitData, ctx: Context) -> State:
        """Returns "flow.*" (weights), "bits" and "iteration", "means" (mean slices by place) and "range".

        Raises MethodError where the source has no slice with brain in its training or validation split.
        """
        state = learn_flow(self.flow, data.source, data.validation, ctx)
        return {
            **state,
            "means": mean_slices(data.source),
            "range": mean_percentiles(data.source, self.percentiles),
        }

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Raises MethodError where target slices have another size than the source's."""
        target, means = data.target, np.asarray(state["means"])
        if target.pixels.shape[1:] != means.shape[1:]:
            sizes = [" × ".join(map(str, shape[1:])) for shape in (target.pixels.shape, means.shape)]
            raise MethodError(
                f"{self.id}: target slices are {sizes[0]} pixels, source slices {sizes[1]}; prepare both alike"
            )
        out = self._sought(state, target, ctx)
        if self.rescale == "scan":
            for scan in target.scans:
                brain = np.asarray(target.mask[scan.slices])
                if brain.any():
                    out[scan.slices] = rescaled(out[scan.slices], brain, state["range"], self.percentiles)
        return np.clip(out, 0, 1, out=out)

    def _sought(self, state: State, target: ImageSet, ctx: Context) -> np.ndarray:
        """Slices that `seek` found, float32 [N, H, W]; those without brain are 0."""
        flow = load_flow(self.flow, state).to(ctx.device)
        generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
        chosen = np.flatnonzero([np.asarray(mask).any() for mask in target.mask])
        out = np.zeros(target.pixels.shape, np.float32)
        height, width = target.pixels.shape[1:]
        guesses, guess_of = self._guesses(np.asarray(state["means"]), target)
        for first in range(0, len(chosen), self.search.batch_size):
            index = chosen[first : first + self.search.batch_size]
            seen = unit_slices(target, index, flow.multiple).to(ctx.device)
            start = pad(torch.from_numpy(guesses[guess_of[index]])[:, None], flow.multiple).to(ctx.device)
            found = seek(flow, start, seen, self.search, generator)
            out[index] = found[:, 0, :height, :width].cpu().numpy()
        return out

    def _guesses(self, means: np.ndarray, target: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        """First guesses [K, H, W], and for each slice of `target` which of them is its own, [N]."""
        if self.search.start == "site":
            return means.mean(axis=0, keepdims=True, dtype=np.float32), np.zeros(len(target), np.int64)
        every = np.ones(len(means), bool)
        return means, np.concatenate([nearest_in_place(every, scan.stop - scan.start) for scan in target.scans])


def rescaled(slices: np.ndarray, brain: np.ndarray, wanted: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Slices [n, H, W] of a scan, moved and scaled so that the brain's two percentiles are `wanted`, [2].

    A scan whose percentiles are equal is only moved.
    """
    low, high = np.percentile(slices[brain].astype(np.float64), percentiles)
    scale = (wanted[1] - wanted[0]) / (high - low) if high > low else 1.0
    return ((slices - low) * scale + wanted[0]).astype(np.float32)
