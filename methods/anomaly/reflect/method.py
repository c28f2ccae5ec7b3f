"""REFLECT: carries a slice's latent along the flow to healthy ones, and maps what that changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, part
from harness.api import Context, ImageSet, State, hyper
from harness.cost import counted
from methods.anomaly.components.autoencoder import Autoencoder, load_autoencoder
from methods.anomaly.reflect.flow import carried, euler
from methods.anomaly.reflect.settings import CODE, THESIS
from methods.anomaly.reflect.velocity import REFERENCE, ReflectStudent, ReflectVelocity, check_size
from methods.networks.latent_unet import LatentUNet

SIDE = 256  # pixels of the slices that smoothing is stated for
SHOWN_STEPS = 10


class _Reflect(AnomalyDetector):
    """What both detectors share: all but the velocity."""

    late_fields = (
        "steps",
        "score",
        "reference_image",
        "gamma",
        "latent_gamma",
        "sigma",
        "latent_sigma",
        "batch_size",
    )

    steps: int = hyper(1, "Euler steps", origin=f"{CODE}; {THESIS} says 1 and 5", ge=1)
    score: Literal["both", "image", "latent"] = hyper(
        "both", "which difference is mapped; both: their mean", origin=THESIS
    )
    reference_image: Literal["decoded", "image"] = hyper(
        "decoded",
        "what a corrected slice is compared with: the slice's own latent, decoded, or the slice itself",
        origin=f"{CODE}; the slice in {THESIS} eq. 5.10",
    )
    gamma: float | None = hyper(
        0.4,
        "where differences of slices in [-1, 1] are clipped and mapped to 1; null: neither",
        origin=f"{CODE}; null in {THESIS}",
        gt=0,
    )
    latent_gamma: float | None = hyper(
        0.4, "the same for differences of latents", origin=f"{CODE}; null in {THESIS}", gt=0
    )
    sigma: float = hyper(
        3.0,
        "standard deviation of the Gaussian that smooths differences of slices, in pixels of slices of 256 pixels; on "
        "others in proportion to the longer side",
        origin=f"{CODE}; 0 in {THESIS}",
        ge=0,
    )
    latent_sigma: float = hyper(
        1.0,
        "that of differences of latents, in cells of latents of slices of 256 pixels",
        origin=f"{CODE}; 0 in {THESIS}",
        ge=0,
    )
    batch_size: int = hyper(32, "slices at a time", origin="ours", ge=1)

    @abstractmethod
    def _flow(self) -> ReflectVelocity:
        """The settings that the velocity in the state was built with."""

    def components(self) -> dict[str, Component]:
        """The flow, "velocity", and "autoencoder", which is also that of its latents."""
        return {"velocity": self._flow(), "autoencoder": self._flow().latents.autoencoder}

    def deviations(self) -> tuple[str, ...]:
        return self._flow().departures()

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        """Maps in [0, 1] where both differences are clipped; the reconstruction is the corrected slice, decoded.

        Raises MethodError for slices whose size does not fit the networks.
        """
        autoencoder, velocity = self._networks(state, images, ctx)
        maps, healthy = np.empty(images.pixels.shape, np.float32), np.empty(images.pixels.shape, np.float32)
        for chosen, pixels in self._batches(images, ctx):
            with torch.inference_mode():
                latents = autoencoder.encode(pixels)
                corrected = carried(velocity, latents, self.steps)
                shown = autoencoder.decode(corrected)
                reference = autoencoder.decode(latents) if self.reference_image == "decoded" else 2 * pixels - 1
            by_image, by_latent = self._differences(shown, reference, corrected, latents)
            maps[chosen] = {"both": (by_image + by_latent) / 2, "image": by_image, "latent": by_latent}[self.score]
            healthy[chosen] = _picture(shown)
        return AnomalyMaps(maps, healthy)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """What the autoencoder makes of slices, their correction in one step, every second of ten steps, and both
        differences of the map."""
        autoencoder, velocity = self._networks(state, images, ctx)
        shown: dict[str, list[np.ndarray]] = {}

        def show(caption: str, pictures: np.ndarray) -> None:
            shown.setdefault(caption, []).append(pictures)

        for _, pixels in self._batches(images, ctx):
            with torch.inference_mode():
                latents = autoencoder.encode(pixels)
                decoded = autoencoder.decode(latents)
                show("decoded", _picture(decoded))
                show("corrected in 1 step", _picture(autoencoder.decode(carried(velocity, latents, 1))))
                for step, passed in enumerate(euler(velocity, latents, SHOWN_STEPS), start=1):
                    if step % 2 == 0:
                        time = step / SHOWN_STEPS
                        caption = f"t = {time:.1f} of {SHOWN_STEPS} steps" if time < 1 else f"{SHOWN_STEPS} steps"
                        show(caption, _picture(autoencoder.decode(passed)))
                corrected = carried(velocity, latents, self.steps)
                reference = decoded if self.reference_image == "decoded" else 2 * pixels - 1
                differences = self._differences(autoencoder.decode(corrected), reference, corrected, latents)
            for caption, difference in zip(("difference of slices", "difference of latents"), differences, strict=True):
                show(caption, np.clip(difference, 0, 1))
        return {caption: np.concatenate(pictures) for caption, pictures in shown.items()}

    def _networks(self, state: State, images: ImageSet, ctx: Context) -> tuple[Autoencoder, LatentUNet]:
        settings = self._flow()
        check_size(settings, images.pixels.shape[1:])
        autoencoder = load_autoencoder(part(state, "autoencoder"), settings.latents.autoencoder, ctx.device)
        return autoencoder, counted(settings.load(part(state, "velocity"), ctx.device))

    def _batches(self, images: ImageSet, ctx: Context) -> Iterator[tuple[slice, Tensor]]:
        """(indices, pixels [B, 1, H, W] in [0, 1] on the device)."""
        for start in range(0, len(images), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield chosen, torch.from_numpy(images.floats(chosen))[:, None].to(ctx.device)

    def _differences(
        self, shown: Tensor, reference: Tensor, corrected: Tensor, latents: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of slices [B, 1, H, W] and of latents [B, C, h, w]; both float32 [B, H, W], up to 1 where clipped."""
        size = (shown.shape[2], shown.shape[3])
        relative = max(size) / SIDE
        by_image = _smooth(_clipped((shown - reference).abs().amax(1), self.gamma), self.sigma * relative)
        grid = _smooth(_clipped((corrected - latents).abs().mean(1), self.latent_gamma), self.latent_sigma * relative)
        enlarged = F.interpolate(torch.from_numpy(grid)[:, None], size, mode="bilinear", align_corners=False)
        return by_image, enlarged[:, 0].numpy()


class Reflect(_Reflect):
    """1-REFLECT: a flow from corrupted to healthy latents (see `ReflectVelocity`), followed in one step.

    A slice is encoded to its posterior mean z, which Euler steps along the velocity carry to z'. Its map is the mean of

    image:  |decode(z') − decode(z)|, the largest over channels, of slices in [-1, 1];
    latent: |z' − z|, the mean over channels, on the latent grid, enlarged bilinearly;

    each clipped, divided by where it is clipped, and smoothed. Rows and columns of slices must be divisible by 32 with
    an autoencoder of kind f8 and the published U-Net, by 16 with f4.
    """

    id = "reflect"
    reference = REFERENCE
    notes = (
        "The velocity is added, where eq. 5.9 subtracts it. Ours: lengths of the smoothing follow the size of the "
        "slices; what the components say of themselves."
    )

    velocity: ReflectVelocity = hyper(ReflectVelocity(), "the flow", origin=THESIS)

    @classmethod
    def example(cls) -> Reflect:
        return cls(velocity=ReflectVelocity.example())

    def _flow(self) -> ReflectVelocity:
        return self.velocity


class Reflect2(_Reflect):
    """2-REFLECT: `reflect` with a flow that was straightened once, so that one step follows it more closely.

    See `ReflectStudent` for what is learnt. The teacher is the flow of 1-REFLECT, learnt once for both.
    """

    id = "reflect_2"
    reference = REFERENCE
    notes = Reflect.notes

    student: ReflectStudent = hyper(ReflectStudent(), "the straightened flow", origin=THESIS)

    @classmethod
    def example(cls) -> Reflect2:
        return cls(student=ReflectStudent.example())

    def components(self) -> dict[str, Component]:
        """The student, "velocity", and "autoencoder", which is also that of the teacher's latents."""
        return {**super().components(), "velocity": self.student}

    def deviations(self) -> tuple[str, ...]:
        return self.student.departures()

    def _flow(self) -> ReflectVelocity:
        return self.student.teacher


def _clipped(difference: Tensor, gamma: float | None) -> np.ndarray:
    """Differences up to gamma as 0..1; as they are without gamma."""
    return (difference if gamma is None else difference.clamp(max=gamma) / gamma).cpu().numpy()


def _smooth(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Maps [B, h, w], each smoothed by itself."""
    return ndimage.gaussian_filter(maps, (0, sigma, sigma))


def _picture(decoded: Tensor) -> np.ndarray:
    """Slices [B, 1, H, W] about [-1, 1] as pictures [B, H, W] in [0, 1]."""
    return ((decoded[:, 0] + 1) / 2).clamp(0, 1).cpu().numpy()
