"""Style transfer of Liu et al.: one model of all sites, told the look to paint by slices of the source."""

from __future__ import annotations

import numpy as np

from harness.api import ApplyData, Context, FitData, Harmonizer, State
from methods.harmonization.style_transfer.learning import learn
from methods.harmonization.style_transfer.settings import Hyperparameters, StyleTransferTraining
from methods.harmonization.style_transfer.translation import translate


class StyleTransfer(Hyperparameters, Harmonizer):
    """Repaint slices in the style of source slices, by a StarGAN v2 that takes all sites for one domain.

    A style is a code that an encoder reads off a slice. The generator, which must return a slice unharmed when asked
    for its own style, paints any slice in any style. Training pools the slices of all sites and is told no site.
    """

    id = "style_transfer"
    reference = "Liu et al., MICCAI 2021 and Computers in Biology and Medicine 2023; StarGAN v2, Choi et al., CVPR 2020"
    notes = (
        "Coronal slices only, as the thesis uses it: the paper's mixture and average of three orientations does not "
        "apply. The style is a mean over source slices (references), where the paper takes that of one slice of one "
        "volume. The range of a scan is matched over the brain, on average over the source scans. All three are ours."
    )
    source_free, task_agnostic, unknown_domains = False, True, False
    fit_scope = "sites"
    late_fields = ("style_from", "references", "range_percentiles", "inference_batch")

    @classmethod
    def example(cls) -> StyleTransfer:
        return cls(
            base_width=4,
            max_width=8,
            downs=2,
            trunk_downs=4,
            style_dim=4,
            latent_dim=2,
            mapping_width=8,
            references=4,
            training=StyleTransferTraining(iterations=3, batch_size=2),
        )

    def fit(self, data: FitData, ctx: Context) -> State:
        """See `learn`."""
        return learn(self, [data.sites[name] for name in sorted(data.sites)], ctx)

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """See `translate`."""
        return translate(self, state, data, ctx)
