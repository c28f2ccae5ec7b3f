"""Harmonizing Flows: the method as the harness calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator

from harness.api import ApplyData, Context, FitData, Harmonizer, ImageSet, MethodError, Outcome, State, hyper
from harness.training import load_weights, seeded
from methods.harmonization.harmonizing_flows.adaptation import adapt_harmonizer
from methods.harmonization.harmonizing_flows.flow import SliceFlow, size_multiple
from methods.harmonization.harmonizing_flows.harmonizer_net import HarmonizerNet, harmonized
from methods.harmonization.harmonizing_flows.learning import (
    WEIGHTS,
    build_flow,
    build_harmonizer,
    train_flow,
    train_harmonizer,
)
from methods.harmonization.harmonizing_flows.settings import (
    CODE,
    THESIS,
    Adaptation,
    FlowSettings,
    Guidance,
    HarmonizerSettings,
)
from methods.harmonization.harmonizing_flows.slices import Crops, whole
from methods.harmonization.harmonizing_flows.stopping import first_reaching, lowest_entropy, pixel_entropy

EPOCHS = "epochs."


class HarmonizingFlows(Harmonizer):
    """A U-Net undoes random contrast changes of source slices; at a target it is adapted to a flow of the source.

    The flow gives the likelihood of a slice at the source, guided by augmented slices that it learns to find
    unlikely. Adaptation minimises the bits per dimension (BPD) of harmonised target slices and keeps the
    harmoniser of every epoch; `stopping` chooses among them afterwards, so that all rules share one trajectory:

    source_bpd: the first epoch whose mean target BPD is not above that of clean source validation slices, else
                the last.
    entropy:    the lowest mean pixel entropy of the task model's predictions, with patience.
    fixed:      `fixed_epochs`.         oracle: the labels choose, outside the method.
    none:       the harmoniser as trained on the source; no flow, no adaptation.

    Training, adaptation and BPD use windows of `crop` pixels, padded with background where the flow needs it.
    Harmonising takes whole slices, whatever their size: both networks are fully convolutional.
    """

    id = "harmonizing_flows"
    reference = "Harmonizing Flows (Beizaee et al., IPMI 2023; thesis ch. 2)"
    notes = (
        "Where the thesis and the authors' code differ, defaults follow the thesis; the code's values are fields. "
        "Ours: L1 + (1 − SSIM) where eq. 2.5 adds SSIM, and SSIM of the output within 0..255; the U-Net works on "
        "levels / 255; the ranges of the geometric augmentation; the stopping rules, which the code does not have; "
        "conditioners start at zero."
    )
    source_free, task_agnostic, unknown_domains = True, True, True
    validates = True
    late_fields = ("stopping", "fixed_epochs", "patience")

    flow: FlowSettings = hyper(FlowSettings(), "density of source slices", origin=THESIS)
    guidance: Guidance = hyper(Guidance(), "augmented slices that the flow is to find unlikely", origin=THESIS)
    harmonizer: HarmonizerSettings = hyper(HarmonizerSettings(), "the network that maps slices", origin=THESIS)
    crop: int | None = hyper(
        224,
        "rows and columns of training windows; slices that are not larger, or all with null: whole",
        origin=CODE,
        ge=1,
    )
    crop_shift: int = hyper(
        8, "random windows start at −shift..shift−1 from the central one", origin=f"{CODE}: offsets 8..23 of 256", ge=0
    )
    adaptation: Adaptation = hyper(Adaptation(), "optimisation at the target", origin=THESIS)
    stopping: Literal["source_bpd", "entropy", "fixed", "oracle", "none"] = hyper(
        "source_bpd", "which epoch of the adaptation harmonises", origin=f"{THESIS}; fixed in {CODE}"
    )
    fixed_epochs: int = hyper(20, "fixed: the epoch", origin=CODE, ge=0)
    patience: int = hyper(3, "entropy: epochs without a lower one after which none is looked at", origin=THESIS, ge=1)

    @model_validator(mode="after")
    def _check_fixed_epochs(self) -> HarmonizingFlows:
        if self.stopping == "fixed" and self.fixed_epochs > self.adaptation.max_epochs:
            raise ValueError(
                f"fixed_epochs is {self.fixed_epochs}, but adaptation.max_epochs is {self.adaptation.max_epochs}; "
                "lower the one or raise the other"
            )
        return self

    @classmethod
    def example(cls) -> HarmonizingFlows:
        return cls.model_validate(
            {
                "flow": {
                    "couplings": 3,
                    "widths": (4, 6),
                    "dequantizer_couplings": 1,
                    "training": {"iterations": 4, "batch_size": 2, "validate_every": 4},
                },
                "harmonizer": {
                    "widths": (4, 6, 8),
                    "training": {"iterations": 10, "batch_size": 4, "learning_rate": 1e-2, "validate_every": 10},
                },
                "adaptation": {"learning_rate": 1e-4, "batch_size": 6, "max_epochs": 2},
            }
        )

    # ------------------------------------------------------------------------------------- at the source

    def fit_parts(self) -> Mapping[str, tuple[str, ...]]:
        parts: dict[str, tuple[str, ...]] = {"harmonizer": ("harmonizer", "crop", "crop_shift")}
        if self.adapts():
            parts["flow"] = ("flow", "guidance", "crop", "crop_shift")
        return parts

    def fit_part(self, part: str, data: FitData, ctx: Context) -> State:
        """Learn "flow" (`learning.train_flow`) or "harmonizer" (`learning.train_harmonizer`)."""
        if part == "flow":
            return train_flow(self.flow, self.guidance, self._crops(size_multiple(self.flow.widths)), data, ctx)
        return train_harmonizer(self.harmonizer, self._crops(1), data, ctx)

    # ------------------------------------------------------------------------------------- at the target

    def adapts(self) -> bool:
        return self.stopping != "none"

    def adaptation_split(self) -> Literal["train", "test"]:
        return self.adaptation.images

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> State:
        """Adapt to `data.target`. Returns "epochs.*", the weights of all epochs stacked, "bpd" and "source_bpd"."""
        flow, network = self._flow(state), self._network(state)
        source_bpd = float(state["flow.source_bpd"])
        crops = self._crops(flow.multiple)
        found = adapt_harmonizer(network, flow, data.target, crops, self.adaptation, source_bpd, ctx)
        stacked = {EPOCHS + key: torch.stack([each[key] for each in found.weights]) for key in found.weights[0]}
        return {**stacked, "bpd": np.array(found.bpd), "source_bpd": source_bpd}

    def steps(self, state: State) -> tuple[int, ...]:
        """Epochs, 0 before any update."""
        return tuple(range(len(state["bpd"]))) if "bpd" in state else ()

    def at(self, state: State, step: int) -> State:
        """The harmoniser after epoch `step`; `harmonize` then shows it whatever `stopping` says."""
        if step not in self.steps(state):
            raise MethodError(
                f"{self.id}: there is no epoch {step}; the adaptation has {len(self.steps(state))}, from 0"
            )
        prefix = "harmonizer." + WEIGHTS
        weights = {prefix + key.removeprefix(EPOCHS): v[step] for key, v in state.items() if key.startswith(EPOCHS)}
        return {**weights, "step": step}

    def is_oracle(self) -> bool:
        return self.stopping == "oracle"

    def uses_task(self) -> bool:
        return self.stopping == "entropy"

    def supports(self, outcome: Outcome) -> bool:
        return outcome == "labels" or self.stopping != "entropy"

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """`data.target` in source intensities, float32 [N, H, W] in [0, 1].

        Raises MethodError where the state is not adapted although `stopping` wants it, and under "oracle" without
        a step chosen by `at`.
        """
        if self.adapts() and "step" not in state:
            step = self._choose(state, data, ctx)
            ctx.log("chosen_step", 0, step)
            state = self.at(state, step)
        result = np.empty(data.target.pixels.shape, np.float32)
        for chosen, pixels in self._harmonized(state, data.target, ctx):
            result[chosen] = pixels[:, 0].cpu().numpy()
        return result

    def _choose(self, state: State, data: ApplyData, ctx: Context) -> int:
        """The epoch that `stopping` chooses."""
        if "bpd" not in state:
            raise MethodError(f'{self.id}: the state is not adapted; call adapt first, or set stopping to "none"')
        if self.stopping == "oracle":
            raise MethodError(f"{self.id}: under the oracle rule labels choose the step; pin one with `at` first")
        if self.stopping == "fixed":
            return self.fixed_epochs
        if self.stopping == "entropy":
            return lowest_entropy(self._entropies(state, data, ctx), self.patience)
        return first_reaching(state["bpd"].tolist(), state["source_bpd"])

    def _entropies(self, state: State, data: ApplyData, ctx: Context) -> Iterator[float]:
        """Mean pixel entropy of the task model's predictions, epoch by epoch, nats."""
        if data.task.outcome != "labels":
            raise MethodError(
                f'{self.id}: stopping "entropy" needs a task that predicts labels, not {data.task.outcome}; set '
                'stopping to "source_bpd" or "fixed"'
            )
        task = data.task.network()
        for step in self.steps(state):
            total = 0.0
            for _, pixels in self._harmonized(self.at(state, step), data.target, ctx):
                with torch.no_grad():
                    total += float(pixel_entropy(task(pixels)).mean((1, 2)).sum())
            mean = total / len(data.target)
            ctx.log("entropy", step, mean)
            yield mean

    def _harmonized(self, state: State, images: ImageSet, ctx: Context) -> Iterator[tuple[slice, torch.Tensor]]:
        """(indices, pixels [B, 1, H, W] in [0, 1]) of whole harmonised slices, batch by batch."""
        network = self._network(state).to(ctx.device).eval()
        for start in range(0, len(images), self.adaptation.batch_size):
            chosen = slice(start, start + self.adaptation.batch_size)
            pixels, mask = (each.to(ctx.device) for each in whole(images, chosen))
            with torch.no_grad():
                shown = harmonized(network, pixels, mask) / 255
            yield chosen, shown

    # --------------------------------------------------------------------------------------- networks

    def _crops(self, multiple: int) -> Crops:
        return Crops(self.crop, self.crop_shift, multiple)

    def _flow(self, state: State) -> SliceFlow:
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            flow = build_flow(self.flow)
        load_weights(flow, _part(state, "flow." + WEIGHTS))
        return flow

    def _network(self, state: State) -> HarmonizerNet:
        with seeded(0):
            network = build_harmonizer(self.harmonizer)
        load_weights(network, _part(state, "harmonizer." + WEIGHTS))
        return network


def _part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
