"""pDDPM at work: each box in turn is drowned in noise and predicted at once from the rest of the slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, Processing, part
from harness.api import Context, ImageSet, State, hyper
from harness.cost import counted
from harness.training import load_weights, seeded
from methods.anomaly.components.sampling import simplex_noise, slice_batches
from methods.anomaly.pddpm.boxes import box_masks, boxes
from methods.anomaly.pddpm.prior import CODE, WEIGHTS, PatchedPrior, check_slices, noised_within

PUBLISHED_SIDE = 96  # pixels of the published slices; those of `Processing` have 128


class Pddpm(AnomalyDetector):
    """One box at a time is noised and predicted in one evaluation; the map is what the boxes and the slice differ in.

    The insides of the predicted boxes, clamped to 0..1, are put together to x̂; the map is |x − x̂|. One field of noise
    serves all boxes of a slice. With boxes on a 2 × 2 grid there are four evaluations.
    """

    id = "pddpm"
    reference = "Behrendt et al., Patched diffusion models for unsupervised anomaly detection in brain MRI, MIDL 2023"
    notes = (
        "The paper's boxes of 48 pixels in slices of 96 are the quarters of a slice, of any size here. Its median "
        "filter is of 5 × 5 × 5 voxels, ours within a slice, and so are small regions."
    )

    prior: PatchedPrior = hyper(PatchedPrior(), "the diffusion model of boxes", origin="component")
    level: int = hyper(499, "time to which boxes are noised", origin=CODE, ge=0)
    batch_size: int = hyper(32, "slices at once", origin="ours", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Pddpm:
        if self.level >= self.prior.times:
            raise ValueError(f"level {self.level} is beyond the last time of the prior, {self.prior.times - 1}")
        return self

    @classmethod
    def example(cls) -> Pddpm:
        return cls.model_validate({"prior": PatchedPrior.example().model_dump(), "batch_size": 4})

    def components(self) -> Mapping[str, Component]:
        return {"prior": self.prior}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        found = self._reconstructed(state, images, ctx)
        return AnomalyMaps(np.abs(images.floats() - found), found)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """What the network is handed for each box, and the boxes that it predicts, put together."""
        pictures: dict[str, np.ndarray] = {}

        def look(at: slice, caption: str, slices: Tensor) -> None:
            picture = pictures.setdefault(caption, np.zeros(images.pixels.shape, np.float32))
            picture[at] = slices[:, 0].clamp(0, 1).cpu().numpy()

        found = self._reconstructed(state, images, ctx, look)
        return {**pictures, "reconstruction": found}

    def published_processing(self) -> Processing:
        """Erosion by 3 pixels, a median of 5 × 5 and regions of at most 7 pixels, all at 96 × 96."""
        factor = 128 / PUBLISHED_SIDE
        return Processing(erode=round(3 * factor), median=round(5 * factor), smallest=round(7 * factor**2))

    def deviations(self) -> tuple[str, ...]:
        return self.prior.deviations()

    @torch.inference_mode()
    def _reconstructed(
        self, state: State, images: ImageSet, ctx: Context, look: Callable[[slice, str, Tensor], None] | None = None
    ) -> np.ndarray:
        """Predicted boxes put together, float32 [N, H, W] in 0..1."""
        prior, learnt = self.prior, part(state, "prior")
        with seeded(0):  # the weights are replaced; torch's own generator stays as it is
            built = prior.network.build()
        load_weights(built, {k.removeprefix(WEIGHTS): v for k, v in learnt.items() if k.startswith(WEIGHTS)})
        check_slices(images, prior, built.multiple)
        network, schedule = counted(built.to(ctx.device).eval()), prior.time_schedule()
        signed = prior.image_range == "signed"
        out = np.zeros(images.pixels.shape, np.float32)
        for at, slices, generators in slice_batches(images, ctx.seed, self.batch_size, ctx.device):
            height, width = slices.shape[-2:]
            noise = simplex_noise(generators, height, width, prior.simplex).to(ctx.device)
            clean = 2 * slices - 1 if signed else slices
            times = torch.full((len(slices),), self.level, dtype=torch.int64, device=ctx.device)
            found = torch.zeros_like(slices)
            for number, (rows, columns) in enumerate(boxes(height, width, prior.grid)):
                inside = box_masks(torch.full_like(times, number), height, width, prior.grid)
                handed = noised_within(schedule, clean, inside, self.level, noise)
                predicted = network(handed, times)
                if signed:
                    handed, predicted = (handed + 1) / 2, (predicted + 1) / 2
                found[..., rows, columns] = predicted[..., rows, columns]
                if look is not None:
                    look(at, f"box {number + 1} noised", handed)
            out[at] = found[:, 0].clamp(0, 1).cpu().numpy()
        return out
