"""How the style transfer learns: the losses of StarGAN v2's four turns, and the training itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Context, ImageSet, State
from harness.training import seeded, train
from methods.harmonization.style_transfer.networks import (
    Discriminator,
    Generator,
    Mapping,
    StyleEncoder,
    initialize_he,
)
from methods.harmonization.style_transfer.settings import Hyperparameters
from methods.harmonization.style_transfer.stacks import Pool

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


def learn(settings: Hyperparameters, sets: Sequence[ImageSet], ctx: Context) -> State:
    """Train on the pooled slices of `sets`. Returns "painters.*": the averaged weights of all but the discriminator."""
    pool = Pool(sets, settings)
    with seeded(ctx.seed, ctx.device):
        players = Players(settings)

    def batches(rng: np.random.Generator, size: int) -> Batch:
        """Slices to repaint, two references and two latents: one of each pair asks for a style, one for another."""
        slices = {name: pool.draw(rng, size) for name in ("real", "reference", "reference_2")}
        latents = rng.standard_normal((2, size, settings.latent_dim)).astype(np.float32)
        return {**slices, "latent": torch.from_numpy(latents[0]), "latent_2": torch.from_numpy(latents[1])}

    turns = Turns(settings)
    result = train(
        players,
        settings.training,
        batches,
        {
            "discriminator": {"latent": turns.judge_latent, "reference": turns.judge_reference},
            "painters": {"latent": turns.paint_latent, "reference": turns.paint_reference},
        },
        ctx=ctx,
        rates={"painters.mapping": settings.mapping_rate},
    )
    return {key: tensor for key, tensor in result.state_dict.items() if key.startswith("painters.")}


class Painters(nn.Module):
    """Generator, style encoder and mapping network: they move together."""

    def __init__(self, s: Hyperparameters):
        super().__init__()
        self.generator = Generator(s.adjacent_slices, s.base_width, s.max_width, s.downs, s.style_dim)
        self.encoder = StyleEncoder(s.adjacent_slices, s.base_width, s.max_width, s.trunk_downs, s.style_dim)
        self.mapping = Mapping(s.latent_dim, s.mapping_width, s.style_dim)


class Players(nn.Module):
    """All networks, and the number of finished iterations, on which the weight of diversity depends."""

    finished: Tensor

    def __init__(self, s: Hyperparameters):
        super().__init__()
        self.painters = Painters(s)
        self.discriminator = Discriminator(s.adjacent_slices, s.base_width, s.max_width, s.trunk_downs)
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        initialize_he(self)


class Turns:
    """The players' losses. Each player moves on fakes in styles of latents, then on fakes in styles of references."""

    def __init__(self, settings: Hyperparameters):
        self.settings = settings

    def judge_latent(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        assert isinstance(players, Players)
        with torch.no_grad():
            style = players.painters.mapping(batch["latent"])
        return self._judge(players, batch["real"], style)

    def judge_reference(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        assert isinstance(players, Players)
        with torch.no_grad():
            style = players.painters.encoder(batch["reference"])
        return self._judge(players, batch["real"], style)

    def paint_latent(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        assert isinstance(players, Players)
        mapping = players.painters.mapping
        return self._paint(players, batch["real"], mapping(batch["latent"]), mapping(batch["latent_2"]))

    def paint_reference(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """The generator alone moves: neither how styles are read nor how they are drawn is learnt from references."""
        assert isinstance(players, Players)
        encoder = players.painters.encoder
        with _resting(encoder, players.painters.mapping):
            losses = self._paint(players, batch["real"], encoder(batch["reference"]), encoder(batch["reference_2"]))
        players.finished += 1
        return losses

    def _judge(self, players: Players, real: Tensor, style: Tensor) -> Losses:
        """Cross-entropy of real and fake, and R1 (Mescheder et al., ICML 2018)."""
        s = self.settings
        with torch.no_grad():
            fake = players.painters.generator(real, style)
        losses = {"fake": F.softplus(players.discriminator(fake).float()).mean()}
        with torch.autocast(real.device.type, enabled=False):  # a gradient's gradient needs full precision
            probed = real.detach().requires_grad_()
            scores = players.discriminator(probed)
            (slope,) = torch.autograd.grad(scores.sum(), probed, create_graph=True)
        losses["real"] = F.softplus(-scores).mean()
        losses["r1"] = 0.5 * slope.square().flatten(1).sum(1).mean()
        return {"loss": losses["real"] + losses["fake"] + s.gradient_penalty * losses["r1"], **losses}

    def _paint(self, players: Players, real: Tensor, style: Tensor, other: Tensor) -> Losses:
        s, painters = self.settings, players.painters
        fake = painters.generator(real, style)
        with torch.no_grad():
            fake_2 = painters.generator(real, other)
        again = painters.generator(fake, painters.encoder(real))
        losses = {
            "adversarial": F.softplus(-players.discriminator(fake).float()).mean(),
            "style": F.l1_loss(painters.encoder(fake).float(), style.float()),
            "diversity": F.l1_loss(fake.float(), fake_2.float()),
            "cycle": F.l1_loss(again.float(), real),
        }
        loss = losses["adversarial"] + s.style_weight * losses["style"] + s.cycle_weight * losses["cycle"]
        return {"loss": loss - diversity_weight(s, players.finished) * losses["diversity"], **losses}


def diversity_weight(settings: Hyperparameters, finished: Tensor) -> Tensor:
    """λ_ds after this many iterations: λ₀ (1 − t / T), 0 from T on."""
    return settings.diversity_weight * (1 - finished / settings.diversity_iterations).clamp(min=0)


@contextmanager
def _resting(*modules: nn.Module) -> Iterator[None]:
    """Losses computed inside give these modules no gradients, so that an update leaves them alone."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
