"""ImUnity's two modes: learnt on the source site alone, or on all sites of a benchmark."""

from __future__ import annotations

import numpy as np

from harness.api import ApplyData, Context, FitData, Harmonizer, State
from methods.harmonization.imunity.learning import learn
from methods.harmonization.imunity.settings import Hyperparameters, ImUnityTraining
from methods.harmonization.imunity.translation import translate

REFERENCE = "Cackowski et al., ImUnity: a generalizable VAE-GAN solution for MR image harmonization, MedIA 2023"
UNAVAILABLE = (
    "Reconstructed: neither the paper's text nor its code was available, so architecture, weights and schedule follow "
    "descriptions by others or are ours. One model of coronal slices, as the thesis uses it: the paper's fusion of "
    "models of three orientations does not apply. The head that preserves biology is left out. "
)


class ImUnity(Hyperparameters, Harmonizer):
    """Repaint target slices in the contrast of a source slice, by a VAE-GAN that was trained on the source alone.

    It learns to undo a change of contrast (a power of the intensities) of one slice by looking at another slice of
    the same scan. So it needs no image of the target, and of other sites' contrasts it knows only such powers.
    """

    id = "imunity"
    reference = REFERENCE
    notes = UNAVAILABLE + (
        "Trained on one site, so site confusion has nothing to confuse and is off; see imunity_multi_site. That "
        "content, style and result can share a random power (`pair_gamma`) is ours and off: off, a network that has "
        "seen one site ignores the style slice; on, it must learn to read it, which takes long trainings."
    )
    source_free, task_agnostic, unknown_domains = False, True, True
    late_fields = ("references",)

    @classmethod
    def example(cls) -> ImUnity:
        return cls(
            widths=(4, 8),
            latent_channels=4,
            discriminator_width=4,
            training=ImUnityTraining(iterations=4, batch_size=4),
        )

    def fit(self, data: FitData, ctx: Context) -> State:
        return learn(self, [data.source], ctx)

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return translate(self, state, data, ctx)


class ImUnityMultiSite(Hyperparameters, Harmonizer):
    """ImUnity trained on the scans of all sites, with a latent code from which a classifier cannot tell the site.

    One model serves all sources and targets. It sees training images of the target, as it must here: the fit of all
    sites is one.
    """

    id = "imunity_multi_site"
    reference = REFERENCE
    notes = (
        UNAVAILABLE + "The published model is said to harmonise sites it was not trained on; here it is trained on all."
    )
    source_free, task_agnostic, unknown_domains = False, True, False
    fit_scope = "sites"
    late_fields = ("references",)

    @classmethod
    def example(cls) -> ImUnityMultiSite:
        return cls.model_validate(ImUnity.example().model_dump())

    def fit(self, data: FitData, ctx: Context) -> State:
        return learn(self, [data.sites[name] for name in sorted(data.sites)], ctx)

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return translate(self, state, data, ctx)
