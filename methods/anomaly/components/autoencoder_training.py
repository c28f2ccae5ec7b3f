"""How the autoencoder of latent diffusion learns: its losses, its two players, and the scale of its latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.anomaly import NormalData
from harness.api import Context, ImageSet
from harness.training import seeded, train
from methods.anomaly.components.augmentation import change, draw_changes
from methods.anomaly.components.autoencoder_files import read_safetensors
from methods.networks.kl_autoencoder import KLAutoencoder, posterior
from methods.networks.lpips_vgg import LpipsVGG
from methods.networks.patch_discriminator import PatchDiscriminator, initialize_normal

if TYPE_CHECKING:
    from methods.anomaly.components.autoencoder import Autoencoder, LatentAutoencoder

Batch = dict[str, Tensor]
LARGEST_FACTOR = 1e4  # of the adversarial loss, where its gradient vanishes (Rombach et al., code)


class _Learner(nn.Module):
    """The autoencoder, and the logarithm of the variance that its reconstruction loss is divided by."""

    def __init__(self, network: KLAutoencoder, learn_variance: bool):
        super().__init__()
        self.network = network
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=learn_variance)

    def forward(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(reconstruction of x [B, 1, H, W] in [-1, 1], KL divergence [B]); without a generator from the mean."""
        mean, log_variance = posterior(self.network.quant_conv(self.network.encoder(x)))
        z = mean
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            z = mean + (0.5 * log_variance).exp() * noise
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return self.network.decoder(self.network.post_quant_conv(z)), divergence


class _Players(nn.Module):
    """Both players, and how many iterations are done, which a resumed training must know."""

    done: Tensor

    def __init__(self, autoencoder: _Learner, discriminator: PatchDiscriminator):
        super().__init__()
        self.autoencoder, self.discriminator = autoencoder, discriminator
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))


def train_autoencoder(network: KLAutoencoder, settings: LatentAutoencoder, data: NormalData, ctx: Context) -> None:
    """Train in place; the network ends on `ctx.device` with the selected weights.

    Raises UserError where the weights of LPIPS cannot be read.
    """
    perceptual = None
    if settings.perceptual_weights is not None and settings.perceptual_weight:
        path = Path(settings.perceptual_weights).expanduser()
        perceptual = LpipsVGG.from_weights(read_safetensors(path), str(path)).to(ctx.device)
    with seeded(ctx.seed, ctx.device):
        discriminator = PatchDiscriminator(1, settings.discriminator_width, settings.discriminator_layers)
        initialize_normal(discriminator)
    players = _Players(_Learner(network, settings.learn_variance), discriminator)
    images, shape = data.images, data.images.pixels.shape[1:]

    def batches(rng: np.random.Generator, size: int) -> Batch:
        index = rng.integers(len(images), size=size)
        pixels, mask = as_tensors(images, index)
        changes = draw_changes(rng, size, (shape[0], shape[1]), settings.augmentation)
        return {"pixels": pixels, "mask": mask, "changes": changes}

    def validate(module: nn.Module) -> float:
        assert isinstance(module, _Players)
        total = 0.0
        for pixels, _ in in_batches(data.validation, settings.batch_size):
            x = 2 * pixels.to(ctx.device) - 1
            total += float((module.autoencoder(x, None)[0].float() - x).abs().mean()) / 2 * len(x)
        return -total / len(data.validation)

    turns = Turns(settings, perceptual)
    train(
        players,
        settings.training,
        batches,
        {"autoencoder": turns.autoencoder, "discriminator": turns.discriminator},
        ctx=ctx,
        validate=validate if len(data.validation) else None,
    )


class Turns:
    """The players' losses. The autoencoder moves first; the discriminator learns from what it made."""

    def __init__(self, settings: LatentAutoencoder, perceptual: LpipsVGG | None):
        self.settings, self.perceptual = settings, perceptual
        self._real: Tensor | None = None
        self._made: Tensor | None = None

    def autoencoder(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Reconstruction over the learnt variance, KL, and from its start on the adversarial loss; sums over a slice,
        means over the batch."""
        assert isinstance(players, _Players)
        settings, learner = self.settings, players.autoencoder
        players.done += 1
        x = 2 * change(batch["pixels"], batch["mask"], batch["changes"])[0] - 1
        made, divergence = learner(x, generator)
        made = made.float()
        difference = (made - x).abs()
        l1 = difference.detach().mean() / 2
        if self.perceptual is not None:
            difference = difference + settings.perceptual_weight * self.perceptual(made, x)[:, None, None, None]
        spread = learner.log_variance
        likelihood = (difference / spread.exp() + spread).flatten(1).sum(1).mean()
        kl = divergence.mean()
        loss = likelihood + settings.kl_weight * kl
        losses = {"l1": l1, "kl": kl.detach(), "log_variance": spread.detach()}
        if self._adversarial(players):
            fooled = -players.discriminator(made).float().mean()
            factor = balance(likelihood, fooled, learner.network.last)
            loss = loss + settings.discriminator_weight * factor * fooled
            losses |= {"adversarial": fooled.detach(), "factor": factor}
        self._real, self._made = x.detach(), made.detach()
        return {"loss": loss, **losses}

    def discriminator(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Hinge loss of real slices and reconstructions, halved; nothing before its start."""
        assert isinstance(players, _Players)
        assert self._real is not None
        assert self._made is not None
        if not self._adversarial(players):
            # Zero, but of the parameters, so that it has the gradient that the optimiser asks for.
            return {"loss": torch.stack([p.sum() for p in players.discriminator.parameters()]).sum() * 0}
        real = F.relu(1 - players.discriminator(self._real).float()).mean()
        fake = F.relu(1 + players.discriminator(self._made).float()).mean()
        return {"loss": 0.5 * (real + fake), "real": real.detach(), "fake": fake.detach()}

    def _adversarial(self, players: _Players) -> bool:
        return bool(self.settings.discriminator_weight) and int(players.done) >= self.settings.start_discriminator


def balance(likelihood: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """By what the adversarial loss is multiplied to have the other's norm of gradient at the weights `last`."""
    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (likelihood, fooled)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, LARGEST_FACTOR).detach()


@torch.inference_mode()
def calibrated_scale(autoencoder: Autoencoder, images: ImageSet, size: int, device: str) -> float:
    """1 / standard deviation of the latents, drawn from their posteriors, over all slices, channels and places."""
    count, total, squares = 0, 0.0, 0.0
    for pixels, _ in in_batches(images, size):
        mean, deviation = (each.double() for each in autoencoder.moments(pixels.to(device)))
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + deviation.square()).sum())
    return 1 / math.sqrt(squares / count - (total / count) ** 2)


def in_batches(images: ImageSet, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All slices and masks in order, both [B, 1, H, W] on the CPU, pixels in [0, 1]."""
    for start in range(0, len(images), size):
        yield as_tensors(images, slice(start, start + size))


def as_tensors(images: ImageSet, index: np.ndarray | slice) -> tuple[Tensor, Tensor]:
    """Slices [B, 1, H, W] in [0, 1] with background 0, and their masks, bool."""
    mask = np.asarray(images.mask[index])
    return torch.from_numpy(images.floats(index) * mask)[:, None], torch.from_numpy(mask.copy())[:, None]
