"""The autoencoder of latent diffusion: slices to latents and back, learnt here or loaded."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator
from torch import Tensor

from harness.anomaly import Component, NormalData
from harness.api import Context, ImageSet, MethodError, State, hyper
from harness.cost import counted
from harness.training import TrainingSettings, load_weights, seeded, weights_of
from methods.anomaly.components.augmentation import MildAugmentation
from methods.anomaly.components.autoencoder_files import is_local, pretrained_weights
from methods.anomaly.components.autoencoder_training import calibrated_scale, train_autoencoder
from methods.networks.kl_autoencoder import KLAutoencoder, posterior

LDM = "Rombach et al., CVPR 2022, section G and code"
CODE = "authors' code of MAD-AD"
KINDS: dict[str, tuple[tuple[int, ...], int]] = {"f8": ((1, 2, 4, 4), 4), "f4": ((1, 2, 4), 3)}
"""Kind → (multipliers of the levels, channels of the latents)."""
PUBLISHED_SCALE = 0.18215
WEIGHTS = "network."


class AutoencoderTraining(TrainingSettings):
    """Adam at 4.5e-6 × batch; the last weights are kept, since a best L1 would be from before the discriminator."""

    iterations: int = hyper(100_000, "updates of each player", origin="ours; published nowhere", ge=1)
    batch_size: int = hyper(8, "slices in a batch", origin="ours; published nowhere", ge=1)
    learning_rate: float = hyper(3.6e-5, "learning rate of both players", origin=f"{LDM}: 4.5e-6 × batch", ge=0)
    betas: tuple[float, float] = hyper((0.5, 0.9), "moments of adam", origin=LDM)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper("off", "mixed precision on a GPU", origin=LDM)
    validate_every: int = hyper(2500, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper(
        "last", "weights that are kept: of the lowest L1 of validation slices, or the last", origin="ours"
    )
    checkpoint_every: int = hyper(2500, "iterations between two checkpoints", origin="ours", ge=1)


class LatentAutoencoder(Component):
    """Variational autoencoder of latent diffusion for one channel: kind f8 (83.65 M weights) or f4 (55.31 M).

    Loss: L1, with LPIPS where its weights are supplied, divided by a learnt variance; KL × 1e-6; and from
    `start_discriminator` on a PatchGAN with hinge loss, weighted so that its gradient at the last layer of the decoder
    has `discriminator_weight` times the norm of the reconstruction's.

    With `load` it starts from a checkpoint, whose three colour channels become one: a grey slice gives what its copy
    in three channels gave, and decoded channels are averaged. It is then fine-tuned unless `fine_tune` is off.

    Slices are [-1, 1] inside the network. Rows and columns must be divisible by 8 (f8) or 4 (f4).
    """

    id = "latent_autoencoder"
    reference = "Rombach et al., CVPR 2022; used by MAD-AD (Beizaee et al., 2025) and REFLECT"
    notes = (
        "The published autoencoder is a checkpoint of photographs, fine-tuned on unnamed data for an unknown time. "
        "Ours: trained from scratch unless `load` names a checkpoint; lengths of training; the discriminator "
        "normalises each slice by itself, where the published one normalises batches; LPIPS only with its weights."
    )

    kind: Literal["f8", "f4"] = hyper(
        "f8", "latents of an eighth of the side and 4 channels, or a quarter and 3", origin=CODE
    )
    width: int = hyper(128, "channels of the first level", origin=LDM, ge=1)
    multipliers: tuple[int, ...] | None = hyper(
        None, "channels of the levels over those of the first; null: of the kind", origin=LDM
    )
    blocks: int = hyper(2, "residual blocks of a level", origin=LDM, ge=1)
    groups: int = hyper(32, "groups of the normalisations", origin=LDM, ge=1)
    scale: float | Literal["calibrated"] = hyper(
        PUBLISHED_SCALE,
        "factor of all latents; calibrated: 1 / their standard deviation over training slices",
        origin=CODE,
    )
    load: str | None = hyper(
        None,
        "a safetensors file, a folder of diffusers, or a model on the hub (NAME or NAME@REVISION); null: from scratch",
        origin="ours; published: a checkpoint of photographs",
    )
    fine_tune: bool = hyper(True, "train what was loaded", origin=CODE)

    kl_weight: float = hyper(1e-6, "weight of the KL divergence from the standard normal", origin=LDM, ge=0)
    perceptual_weights: str | None = hyper(
        None, "safetensors file of LPIPS with VGG-16; null: no perceptual loss", origin="ours; published: with it"
    )
    perceptual_weight: float = hyper(1.0, "weight of LPIPS beside L1", origin=LDM, ge=0)
    learn_variance: bool = hyper(
        True, "learn the variance that divides the reconstruction loss; else it is 1", origin=LDM
    )
    start_discriminator: int = hyper(50_001, "iteration from which on there is a discriminator", origin=CODE, ge=1)
    discriminator_weight: float = hyper(0.5, "weight of the adversarial loss", origin=CODE, ge=0)
    discriminator_layers: Literal[1, 2, 3] = hyper(3, "its layers of stride 2", origin=CODE)
    discriminator_width: int = hyper(64, "channels of its first layer", origin=LDM, ge=1)
    augmentation: MildAugmentation = hyper(MildAugmentation(), "of training slices", origin=CODE)
    training: AutoencoderTraining = hyper(AutoencoderTraining(), "optimisation", origin=LDM)
    batch_size: int = hyper(16, "slices that are encoded or decoded at a time", origin="ours", ge=1)

    @field_validator("scale")
    @classmethod
    def _positive(cls, scale: float | str) -> float | str:
        if isinstance(scale, float) and scale <= 0:
            raise ValueError("scale must be above 0, or calibrated")
        return scale

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(KINDS[self.kind][0])
        if self.multipliers is not None and len(self.multipliers) != levels:
            raise ValueError(
                f"kind {self.kind} has {levels} levels, but multipliers has {len(self.multipliers)} entries"
            )
        for multiplier in self.multipliers or KINDS[self.kind][0]:
            if self.width * multiplier % self.groups:
                raise ValueError(
                    f"groups {self.groups} do not divide the {self.width * multiplier} channels of a level"
                )
        return self

    @classmethod
    def example(cls) -> LatentAutoencoder:
        return cls.model_validate(
            {
                "width": 8,
                "multipliers": (1, 1, 2, 2),
                "blocks": 1,
                "groups": 4,
                "scale": "calibrated",
                "start_discriminator": 5,
                "discriminator_width": 4,
                "discriminator_layers": 2,
                "training": {"iterations": 8, "batch_size": 4, "learning_rate": 2e-3, "validate_every": 8},
            }
        )

    def files(self) -> tuple[str, ...]:
        named = self.load if self.load is not None and is_local(self.load) else None
        return tuple(path for path in (named, self.perceptual_weights) if path is not None)

    @property
    def factor(self) -> int:
        """Pixels of a side of one latent."""
        return 2 ** (len(KINDS[self.kind][0]) - 1)

    @property
    def latent_channels(self) -> int:
        return KINDS[self.kind][1]

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns the weights as "network.*", and "scale"."""
        check_size(self, data.images)
        with seeded(ctx.seed, ctx.device):
            network = build(self)
        if self.load is not None:
            load_weights(network, pretrained_weights(self.load, weights_of(network)))
        if self.load is None or self.fine_tune:
            train_autoencoder(network, self, data, ctx)
        network.to(ctx.device).eval()
        scale = self.scale
        if scale == "calibrated":
            scale = calibrated_scale(Autoencoder(network, 1.0, self), data.images, self.batch_size, ctx.device)
        return {"scale": scale, **{WEIGHTS + key: tensor for key, tensor in weights_of(network).items()}}

    def departures(self) -> tuple[str, ...]:
        """Where these settings depart from the publications, for `AnomalyDetector.deviations`."""
        multipliers = self.multipliers or KINDS[self.kind][0]
        found = {
            "autoencoder trained from scratch": self.load is None,
            "autoencoder without a perceptual loss": self.perceptual_weights is None
            and (self.load is None or self.fine_tune),
            "smaller autoencoder": (self.width, self.blocks, multipliers) != (128, 2, KINDS[self.kind][0]),
            "latents scaled by their own deviation": self.scale == "calibrated",
        }
        return tuple(phrase for phrase, holds in found.items() if holds)


class Autoencoder:
    """A trained autoencoder as methods use it; its evaluations are counted as "autoencoder".

    factor: pixels of a side of one latent. scale: factor of all latents.
    Gradients flow through all of its functions; use it under `torch.inference_mode` where none are wanted.
    """

    def __init__(self, network: KLAutoencoder, scale: float, settings: LatentAutoencoder):
        self.scale, self.factor, self.latent_channels = scale, settings.factor, settings.latent_channels
        self._encoding = counted(network.encoding(), "autoencoder")
        self._decoding = counted(network.decoding(), "autoencoder")

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, both [B, C, H / factor, W / factor], of [B, 1, H, W] in
        [0, 1]."""
        mean, log_variance = posterior(self._encoding(2 * pixels - 1))
        return mean * self.scale, (0.5 * log_variance).exp() * self.scale

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents, the mean of the posterior."""
        return self.moments(pixels)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Slices [B, 1, H, W], about [-1, 1] and not clipped, of scaled latents."""
        return self._decoding(latents / self.scale)


def load_autoencoder(state: State, settings: LatentAutoencoder, device: str) -> Autoencoder:
    """What `LatentAutoencoder.fit` left, on the device, in eval mode and frozen."""
    with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
        network = build(settings)
    load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
    return Autoencoder(network.to(device).eval().requires_grad_(False), float(state["scale"]), settings)


def build(settings: LatentAutoencoder) -> KLAutoencoder:
    """The network, its weights drawn from torch's global generator."""
    multipliers = settings.multipliers or KINDS[settings.kind][0]
    return KLAutoencoder(settings.width, multipliers, settings.blocks, settings.latent_channels, settings.groups)


def check_size(settings: LatentAutoencoder, images: ImageSet) -> None:
    """Raises MethodError for slices that the network cannot halve often enough, and where there are none."""
    if not len(images):
        raise MethodError("latent_autoencoder: there are no training slices; give the data set's split more scans")
    rows, columns = images.pixels.shape[1:]
    if rows % settings.factor or columns % settings.factor:
        raise MethodError(
            f"latent_autoencoder: slices are {rows} × {columns} pixels, but kind {settings.kind} needs multiples of "
            f"{settings.factor}; pad them"
        )
