"""CycleGAN between two sites; one fit serves both directions."""

from __future__ import annotations

import numpy as np
import torch

from harness.api import ApplyData, Context, FitData, Harmonizer, MethodError, State
from harness.training import load_weights, seeded
from methods.harmonization.cycle_gan.generator import ResNetGenerator
from methods.harmonization.cycle_gan.learning import SIDES, build_generator, learn, signed
from methods.harmonization.cycle_gan.settings import CycleGANTraining, Hyperparameters
from methods.harmonization.cycle_gan.slices import pad


class CycleGAN(Hyperparameters, Harmonizer):
    """Translate slices of one site to the look of another by a generator learnt from unpaired slices of both.

    A generator for each direction must fool a discriminator of patches, and the two must undo each other. Both are
    trained at once, so n sites need n (n − 1) / 2 trainings.
    """

    id = "cycle_gan"
    reference = "Zhu et al., ICCV 2017; Modanwal et al., SPIE Medical Imaging 2020 (MRI)"
    notes = (
        "The discriminators' field is 34 pixels (discriminator_layers 2), not CycleGAN's 70: Modanwal et al. found "
        "that a smaller one preserves anatomy; their exact layers are unknown. A number of iterations for each pair in "
        "place of epochs is ours, and so is resizing by the shorter side, which keeps pixels square."
    )
    source_free, task_agnostic, unknown_domains = False, True, False
    fit_scope = "pair"
    late_fields = ("inference_batch",)

    @classmethod
    def example(cls) -> CycleGAN:
        training = CycleGANTraining(iterations=4, batch_size=2)
        return cls(width=4, blocks=1, discriminator_width=4, resize=None, crop=48, history=4, training=training)

    def fit(self, data: FitData, ctx: Context) -> State:
        """See `learn`."""
        return learn(self, (data.source, data.target), ctx)

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Raises MethodError where the slices are of neither site of the fit."""
        images, sites = data.target, list(state["sites"])
        site = images.scans[0].site
        if site not in sites:
            raise MethodError(f"cycle_gan was fitted between {sites[0]} and {sites[1]}; it knows no site {site}")
        network = load_generator(self, state, SIDES[1 - sites.index(site)]).to(ctx.device)
        height, width = images.pixels.shape[1:]
        out = np.zeros(images.pixels.shape, np.float32)
        for start in range(0, len(images), self.inference_batch):
            chosen = slice(start, start + self.inference_batch)
            x = pad(torch.from_numpy(images.floats(chosen))[:, None])
            with torch.inference_mode():
                y = (network(signed(x).to(ctx.device)) + 1) / 2
            out[chosen] = y[:, 0, :height, :width].cpu().numpy() * images.mask[chosen]
        return out


def load_generator(settings: Hyperparameters, state: State, side: str) -> ResNetGenerator:
    """The trained generator that makes the look of one of `SIDES`, on the CPU and in eval mode."""
    prefix = f"generators.{side}."
    with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
        network = build_generator(settings)
    load_weights(network, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network.eval()
