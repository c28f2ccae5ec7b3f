"""How CycleGAN learns: the history of fakes, the turns of its players, and the training itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Context, ImageSet, MethodError, State
from harness.training import seeded, train
from methods.harmonization.cycle_gan.generator import ResNetGenerator
from methods.harmonization.cycle_gan.settings import Hyperparameters
from methods.harmonization.cycle_gan.slices import SiteSlices
from methods.networks.patch_discriminator import PatchDiscriminator, initialize_normal, least_squares

SIDES = ("first", "second")
"""The two sites, in alphabetical order. Generators and discriminators are named by the site whose look they make or
know: `generators.first` maps slices of the second site to the look of the first."""

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


def learn(settings: Hyperparameters, images: tuple[ImageSet, ImageSet], ctx: Context) -> State:
    """Train on two sites, whose order does not matter. Returns "sites", their names, and "generators.*", the weights.

    Raises MethodError unless there are two sites with brain.
    """
    sides = sorted((SiteSlices(each, settings) for each in images), key=lambda slices: slices.site)
    sites = [slices.site for slices in sides]
    if sites[0] == sites[1]:
        raise MethodError(f"cycle_gan learns between two sites, but both image sets are of {sites[0]}")
    with seeded(ctx.seed, ctx.device):
        players = build_players(settings, sides)

    def batches(rng: np.random.Generator, size: int) -> Batch:
        return {name: slices.draw(rng, size) for name, slices in zip(SIDES, sides, strict=True)}

    turns = Turns(settings)
    steps = {"generators": turns.generators, "discriminators": turns.discriminators}
    result = train(players, settings.training, batches, steps, ctx=ctx)
    weights = {key: tensor for key, tensor in result.state_dict.items() if key.startswith("generators.")}
    return {"sites": sites, **weights}


def build_generator(settings: Hyperparameters) -> ResNetGenerator:
    return ResNetGenerator(settings.width, settings.blocks, settings.upsampling)


def build_players(settings: Hyperparameters, sides: list[SiteSlices]) -> nn.ModuleDict:
    """Generators and discriminators, each by `SIDES`, and the history of each generator's fakes, which is no player."""
    generators = nn.ModuleDict({name: build_generator(settings) for name in SIDES})
    discriminators = nn.ModuleDict(
        {name: PatchDiscriminator(1, settings.discriminator_width, settings.discriminator_layers) for name in SIDES}
    )
    for module in (generators, discriminators):
        initialize_normal(module, settings.initial_deviation)
    # Fakes of one site have the size of the other site's windows, from which they were made.
    histories = {name: History(settings.history, other.window) for name, other in zip(SIDES, sides[::-1], strict=True)}
    return nn.ModuleDict(
        {"generators": generators, "discriminators": discriminators, "histories": nn.ModuleDict(histories)}
    )


class History(nn.Module):
    """Up to `size` earlier fakes, as a buffer, so that they survive a checkpoint (Shrivastava et al., CVPR 2017).

    fakes: [size, 1, h, w], of which the first `count` are filled.
    """

    fakes: Tensor
    count: Tensor

    def __init__(self, size: int, window: tuple[int, int]):
        super().__init__()
        self.register_buffer("fakes", torch.zeros(size, 1, *window))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, fakes: Tensor, generator: torch.Generator) -> Tensor:
        """Each of `fakes` [B, 1, h, w], or with probability 1/2 an earlier one, whose place it takes.

        Until the history is full, fakes are kept and returned as they are.
        """
        size, n = len(self.fakes), len(fakes)
        if not size:
            return fakes
        coins = torch.rand(n, generator=generator, device=fakes.device).tolist()
        places = torch.randint(size, (n,), generator=generator, device=fakes.device).tolist()
        count, shown = int(self.count), []
        for fake, coin, place in zip(fakes, coins, places, strict=True):
            if count < size:
                self.fakes[count] = fake
                count += 1
                shown.append(fake)
            elif coin < 0.5:
                shown.append(self.fakes[place].clone())
                self.fakes[place] = fake
            else:
                shown.append(fake)
        self.count.fill_(count)
        return torch.stack(shown)


class Turns:
    """The players' losses. Both generators move first; the discriminators learn from what these made."""

    def __init__(self, settings: Hyperparameters):
        self.settings = settings
        self._made: Batch = {}

    def generators(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Cycle, identity and adversarial losses, summed over both directions."""
        s = self.settings
        networks = {name: players.get_submodule(f"generators.{name}") for name in SIDES}
        real = {name: signed(batch[name]) for name in SIDES}
        fake = {to: networks[to](real[of]) for to, of in zip(SIDES, SIDES[::-1], strict=True)}
        cycle = identity = adversarial = real["first"].new_zeros(())
        for to, of in zip(SIDES, SIDES[::-1], strict=True):
            cycle = cycle + F.l1_loss(networks[of](fake[to]).float(), real[of])
            scores = players.get_submodule(f"discriminators.{to}")(fake[to])
            adversarial = adversarial + least_squares(scores.float(), real=True)
            if s.identity_weight:
                identity = identity + F.l1_loss(networks[to](real[to]).float(), real[to])
        self._made = {name: made.detach().float() for name, made in fake.items()}
        loss = adversarial + s.cycle_weight * (cycle + s.identity_weight * identity)
        return {"loss": loss, "cycle": cycle, "identity": identity, "adversarial": adversarial}

    def discriminators(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Real slices against fakes of the history, halved, and summed over both sites."""
        real = fake = batch["first"].new_zeros(())
        for name in SIDES:
            network, history = (players.get_submodule(f"{part}.{name}") for part in ("discriminators", "histories"))
            assert isinstance(history, History)
            shown = history.exchange(self._made[name], generator)
            real = real + least_squares(network(signed(batch[name])).float(), real=True)
            fake = fake + least_squares(network(shown).float(), real=False)
        return {"loss": 0.5 * (real + fake), "real": real, "fake": fake}


def signed(x: Tensor) -> Tensor:
    """[0, 1] to the networks' [-1, 1]."""
    return 2 * x - 1
