"""How ImUnity learns: pairs of slices of one scan, the turns of its players, and the training itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Context, ImageSet, MethodError, State
from harness.training import Step, seeded, train
from methods.harmonization.imunity.networks import (
    Generator,
    SiteClassifier,
    kl_divergence,
    reparameterize,
    uniform_cross_entropy,
)
from methods.harmonization.imunity.settings import Hyperparameters
from methods.networks.patch_discriminator import PatchDiscriminator, initialize_normal, least_squares

logger = logging.getLogger(__name__)

PREFIX = "generator."
Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


def learn(settings: Hyperparameters, sets: Sequence[ImageSet], ctx: Context) -> State:
    """Train on the scans of `sets`. Returns "generator.*", the weights, and "sites", those that the scans are of.

    Raises MethodError where no scan has two slices with brain, and for slices of several sizes.
    """
    pairs = SlicePairs(sets)
    confused = pairs.sites if len(pairs.sites) > 1 and settings.confusion_weight > 0 else ()
    if not confused:
        logger.info("imunity: no site confusion (sites %s, weight %g)", pairs.sites, settings.confusion_weight)
    ctx.log("confused_sites", 0, len(confused))
    with seeded(ctx.seed, ctx.device):
        players = build_players(settings, len(confused))
    turns = Turns(settings)
    steps: dict[str, Step] = {"generator": turns.generator, "discriminator": turns.discriminator}
    if confused:
        steps["sites"] = turns.sites
    result = train(players, settings.training, pairs.draw, steps, ctx=ctx)
    weights = {key: tensor for key, tensor in result.state_dict.items() if key.startswith(PREFIX)}
    return {"sites": list(pairs.sites), **weights}


def build_generator(settings: Hyperparameters) -> Generator:
    return Generator(settings.widths, settings.latent_channels, settings.skips)


def build_players(settings: Hyperparameters, sites: int) -> nn.ModuleDict:
    """The networks by player; a site classifier only where there are sites to tell apart."""
    players: dict[str, nn.Module] = {
        "generator": build_generator(settings),
        "discriminator": PatchDiscriminator(1, settings.discriminator_width, settings.discriminator_layers),
    }
    for player in players.values():
        initialize_normal(player)
    if sites:  # with torch's own initial weights: from weights as small as a GAN's it takes long to see anything
        players["sites"] = SiteClassifier(settings.latent_channels, settings.site_width, sites)
    return nn.ModuleDict(players)


class SlicePairs:
    """Pairs of slices with brain at different places of one scan. Sites are drawn alike, then their scans' slices."""

    def __init__(self, sets: Sequence[ImageSet]):
        self.sets = tuple(sets)
        sizes = {images.pixels.shape[1:] for images in self.sets}
        if len(sizes) != 1:
            raise MethodError(f"imunity: the training slices are of several sizes, {sorted(sizes)}; prepare one size")
        by_site: dict[str, list[tuple[int, np.ndarray]]] = {}
        for number, images in enumerate(self.sets):
            for scan in images.scans:
                brain = np.asarray(images.mask[scan.slices]).any(axis=(1, 2))
                slices = scan.start + np.flatnonzero(brain)
                if len(slices) > 1:
                    by_site.setdefault(scan.site, []).append((number, slices))
        if not by_site:
            raise MethodError("imunity: no training scan has two slices with brain, from which to form a pair")
        self.sites = tuple(sorted(by_site))
        self._scans = [by_site[site] for site in self.sites]
        # The last slice number of each scan, counting through the site's scans: a slice's number leads to its scan.
        self._ends = [np.cumsum([len(slices) for _, slices in scans]) for scans in self._scans]

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """content, style [B, 1, H, W] in [0, 1]; mask [B, 1, H, W], the content's brain as 0 and 1; site [B]."""
        site = rng.integers(len(self.sites), size=size)
        content, style, mask = [], [], []
        for s in site:
            ends = self._ends[s]
            k = int(rng.integers(ends[-1]))
            scan = int(np.searchsorted(ends, k, side="right"))
            number, slices = self._scans[s][scan]
            i = k - (int(ends[scan]) - len(slices))
            j = (i + 1 + int(rng.integers(len(slices) - 1))) % len(slices)  # any slice of the scan but i
            images = self.sets[number]
            both = images.floats(slices[[i, j]])
            content.append(both[0])
            style.append(both[1])
            mask.append(images.mask[slices[i]])
        arrays = {"content": content, "style": style, "mask": mask}
        batch = {name: torch.from_numpy(np.stack(rows).astype(np.float32))[:, None] for name, rows in arrays.items()}
        return {**batch, "site": torch.from_numpy(site)}


@dataclass(frozen=True)
class Outcome:
    """What the generator saw and made in its turn, detached: pixels [B, 1, H, W], mean code [B, C, h, w], site [B]."""

    real: Tensor
    fake: Tensor
    mu: Tensor
    site: Tensor


class Turns:
    """The players' losses. The generator moves first; the others learn from what it made in the same iteration."""

    def __init__(self, settings: Hyperparameters):
        self.settings = settings
        self._made: Outcome | None = None

    def generator(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Paint the content slice, its contrast altered, in the contrast of the style slice."""
        s = self.settings
        network, discriminator = players.get_submodule("generator"), players.get_submodule("discriminator")
        assert isinstance(network, Generator)
        pair = random_powers(s.pair_gamma, batch["site"], generator)
        own = random_powers(s.content_gamma, batch["site"], generator)
        multiple = 2 ** len(s.widths)
        mask = pad(batch["mask"], multiple)
        real, style = pad(batch["content"], multiple) ** pair, pad(batch["style"], multiple) ** pair
        code = network.encode(real**own, style)
        z = reparameterize(code, generator)
        fake = network.decode(z, code.skips) * mask
        losses = {
            "l1": F.l1_loss(fake, real),
            "kl": kl_divergence(code),
            "adversarial": least_squares(discriminator(fake).float(), real=True),
        }
        reconstruction = losses["l1"]
        if s.ssim_weight:
            losses["ssim"] = mean_ssim(fake, real)
            reconstruction = reconstruction + s.ssim_weight * (1 - losses["ssim"])
        loss = s.reconstruction_weight * reconstruction + s.kl_weight * losses["kl"]
        loss = loss + s.adversarial_weight * losses["adversarial"]
        if "sites" in dict(players.named_children()):
            # The code without its noise, as inference has it: noise would hide the site from the classifier alone.
            losses["confusion"] = uniform_cross_entropy(players.get_submodule("sites")(code.mu))
            loss = loss + s.confusion_weight * losses["confusion"]
        self._made = Outcome(real, fake.detach(), code.mu.detach(), batch["site"])
        return {"loss": loss, **losses}

    def discriminator(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        made, network = self._outcome(), players.get_submodule("discriminator")
        real = least_squares(network(made.real).float(), real=True)
        fake = least_squares(network(made.fake).float(), real=False)
        return {"loss": 0.5 * (real + fake), "real": real, "fake": fake}

    def sites(self, players: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        made = self._outcome()
        logits = players.get_submodule("sites")(made.mu).float()
        accuracy = (logits.argmax(1) == made.site).float().mean()
        return {"loss": F.cross_entropy(logits, made.site), "accuracy": accuracy}

    def _outcome(self) -> Outcome:
        assert self._made is not None, "the generator moves first"
        return self._made


def random_powers(bounds: tuple[float, float], like: Tensor, generator: torch.Generator) -> Tensor:
    """Exponents [B, 1, 1, 1], log-uniform within `bounds`, one for each entry of `like` [B] and on its device."""
    low, high = math.log(bounds[0]), math.log(bounds[1])
    draws = torch.rand(len(like), 1, 1, 1, generator=generator, device=like.device)
    return (low + (high - low) * draws).exp()


def pad(images: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right of [B, 1, H, W], up to multiples of `multiple`, of which at least two."""
    height, width = (max(2, -(-size // multiple)) * multiple for size in images.shape[2:])  # one latent pixel has no IN
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


def mean_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of images [B, 1, H, W] in [0, 1]; zeros beyond the border.

    Wang et al., IEEE TIP 2004: Gaussian window of 11 pixels with deviation 1.5, constants 0.01² and 0.03².
    """
    window = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, device=a.device) / 1.5).square())
    window = window / window.sum()

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1), padding=(5, 0)), window.view(1, 1, 1, 11), padding=(0, 5))

    with torch.autocast(a.device.type, enabled=False):  # variances are small differences of large numbers
        mean_a, mean_b = local(a), local(b)
        variances = local(a * a) + local(b * b) - mean_a.square() - mean_b.square()
        covariance = local(a * b) - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
        return (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()
